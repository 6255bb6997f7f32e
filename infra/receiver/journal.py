"""What arrived, as the receiver remembers it across a kill: an append-only file, each line encrypted, on disk before the answer.

A line is base64 of a 12-byte nonce and the AES-256-GCM ciphertext of canonical JSON, with the line's number as associated data:
lines cannot change places. A last line that a crash cut short was never answered for, and is dropped.
"""

import base64
import binascii
import os
import secrets
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from rapha.canonical import canonical, parse
from rapha.errors import Refusal
from rapha.files import replace_durably


class Journal:
    """One process writes it. `append` returns once the line is on disk; several threads may call it."""

    def __init__(self, path: Path, key: bytes) -> None:
        """Raises `Refusal(journal-unreadable)` for a line that this key did not write, except a last one cut short."""
        self._path, self._cipher, self._lock = path, AESGCM(key), threading.Lock()
        self.entries = list(self._recovered())
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._count = len(self.entries)

    def append(self, **fields: Any) -> None:
        """Raises `OSError`; then nothing of the line counts."""
        self.append_all([fields])

    def append_all(self, entries: Sequence[dict[str, Any]]) -> None:
        """Several lines with one wait for the disk. Raises `OSError`; then none counts. A crash meanwhile may leave the first."""
        with self._lock:
            before = os.fstat(self._file).st_size
            lines = b"".join(self._line(self._count + number, fields) for number, fields in enumerate(entries))
            try:
                if os.write(self._file, lines) != len(lines):
                    raise OSError("a line of the journal was not written whole")
                os.fsync(self._file)
            except OSError:
                os.ftruncate(self._file, before)
                raise
            self._count += len(entries)

    def rewrite(self, entries: list[dict[str, Any]]) -> None:
        """Replaces the journal by the entries that still matter. Raises `OSError`."""
        with self._lock:
            replace_durably(self._path, b"".join(self._line(number, fields) for number, fields in enumerate(entries)))
            os.close(self._file)
            self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            self._count = len(entries)

    def _line(self, number: int, fields: dict[str, Any]) -> bytes:
        nonce = secrets.token_bytes(12)
        return base64.b64encode(nonce + self._cipher.encrypt(nonce, canonical(fields), str(number).encode())) + b"\n"

    def _recovered(self) -> Iterator[dict[str, Any]]:
        raw = self._path.read_bytes() if self._path.exists() else b""
        whole, _, torn = raw.rpartition(b"\n")
        if torn:
            os.truncate(self._path, len(raw) - len(torn))
        for number, line in enumerate(whole.split(b"\n") if whole else []):
            try:
                sealed = base64.b64decode(line, validate=True)
                fields = parse(self._cipher.decrypt(sealed[:12], sealed[12:], str(number).encode()), what="journal line")
            except (binascii.Error, InvalidTag, ValueError, Refusal):
                raise Refusal(["journal-unreadable"], "the receiver's journal holds a line that is not its own") from None
            yield fields
