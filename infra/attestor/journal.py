"""What an attestor signed for, so that it never signs two receipts for one job or two jobs for one deposit."""

import os
from pathlib import Path

from rapha.canonical import canonical, parse
from rapha.errors import ConfigurationError


class Journal:
    """Append-only JSON lines {"job", "escrow", "receipt"}, on disk before a signature leaves."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.signed: dict[str, str] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            self._load(path.read_bytes())

    def _load(self, raw: bytes) -> None:
        whole, _, torn = raw.rpartition(b"\n")
        if torn:  # cut short by a crash: nothing was signed for it
            os.truncate(self.path, len(raw) - len(torn))
        for line in whole.splitlines():
            value = parse(line, what="attestor's journal")
            if not isinstance(value, dict) or set(value) != {"job", "escrow", "receipt"}:
                raise ConfigurationError(["attestor-journal"], "the attestor's journal holds an odd line")
            self._remember(value["job"], value["escrow"], value["receipt"])

    def add(self, job: str, escrow: str, receipt: str) -> None:
        """Durable when it returns. The same claim again adds nothing."""
        if self.signed.get(job) == receipt and self.signed.get(escrow) == job:
            return
        with self.path.open("ab", buffering=0) as stream:
            stream.write(canonical({"job": job, "escrow": escrow, "receipt": receipt}) + b"\n")
            os.fsync(stream.fileno())
        self._remember(job, escrow, receipt)

    def _remember(self, job: str, escrow: str, receipt: str) -> None:
        self.signed[job], self.signed[escrow] = receipt, job
