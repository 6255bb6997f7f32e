"""One attempt at one job: where its files are, which facts bind it, and its ledger.

Layout of an attempt's folder:  evidence/<gate>.json  outputs/  release/  receipt.json
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blocks.ledger import Ledger
from policies.gate import Mode
from rapha.canonical import canonical


def _clock() -> int:
    return int(time.time())


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """job: `sha256:…` of the declaration; number: from 1; nonce: 64 hex digits, the node's own, new for each attempt."""

    job: str
    number: int
    nonce: str
    mode: Mode
    folder: Path
    ledger: Ledger
    clock: Callable[[], int] = field(default=_clock)

    def facts(self, previous: str) -> dict[str, Any]:
        """The keyword arguments that every `Evidence` starts with."""
        return {
            "job": self.job,
            "attempt": self.number,
            "nonce": self.nonce,
            "at": self.clock(),
            "previous": previous,
            "mode": self.mode,
        }

    def record(self, kind: str, **body: Any) -> None:
        """A ledger entry that names this attempt. Codes, counts and digests only."""
        self.ledger.append(kind, {"job": self.job, "attempt": self.number, **body}, at=self.clock())

    def keep(self, folder: str, name: str, document: dict[str, Any]) -> Path:
        """Writes a document of the attempt to disk, durably, and returns its path."""
        path = self.folder / folder / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as stream:
            stream.write(canonical(document) + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
        return path
