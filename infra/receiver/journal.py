"""What arrived, as the receiver remembers it across a kill: an append-only file, each line encrypted, on disk before the answer.

A line is base64 of a 12-byte nonce and the AES-256-GCM ciphertext of canonical JSON, with the line's number as associated data:
lines cannot change places. A last line that a crash cut short was never answered for, and is dropped.

Lines that no longer matter go when it is written anew, beside what goes on: into a new file, which takes the old one's place
once it holds every line that was appended meanwhile. A kill leaves the one or the other, and both are whole.
"""

import base64
import binascii
import errno
import logging
import os
import secrets
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from rapha.canonical import canonical, parse
from rapha.errors import Refusal
from rapha.files import sync_folder, unfinished

LEAST = 1 << 20  # bytes that are appended before it is written anew
MAX_LINE = 2 << 20  # base64 of the largest document that `rapha.canonical.parse` takes
log = logging.getLogger("rapha.receiver")


class Journal:
    """One process writes it; several threads may append. `entries` is read to its end before the first line is appended."""

    def __init__(self, path: Path, key: bytes, *, least: int = LEAST) -> None:
        """least: bytes; it is written anew when so many were appended, and as many as the file held when it last was."""
        self._path, self._cipher, self._lock, self._least = path, AESGCM(key), threading.Lock(), least
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._count, self._size, self._due = -1, 0, 0
        self._meanwhile: list[dict[str, Any]] | None = None  # appended while it is written anew
        self._named = True  # whether the folder's entry for the file is on disk

    @property
    def entries(self) -> Iterator[dict[str, Any]]:
        """Line by line. Raises `Refusal(journal-unreadable)` for one that this key did not write, except a last one cut short."""
        number = whole = 0
        with self._path.open("rb") as stream:
            while (line := stream.readline(MAX_LINE)).endswith(b"\n"):
                yield self._opened(number, line)
                number, whole = number + 1, whole + len(line)
            if len(line) == MAX_LINE:
                raise _unreadable()
        if line:
            os.truncate(self._path, whole)
        self._count, self._size, self._due = number, whole, whole + self._least

    def append(self, **fields: Any) -> None:
        """Raises `OSError`; then nothing of the line counts."""
        self.append_all([fields])

    def append_all(self, entries: Sequence[dict[str, Any]]) -> None:
        """Several lines with one wait for the disk. Raises `OSError`; then none counts. A crash meanwhile may leave the first."""
        with self._lock:
            lines = b"".join(self._line(self._count + number, _checked(fields)) for number, fields in enumerate(entries))
            self._mended()
            try:
                if os.write(self._file, lines) != len(lines):
                    raise OSError(errno.ENOSPC, "a line of the journal was not written whole")
                os.fsync(self._file)
            except OSError:
                os.ftruncate(self._file, self._size)
                raise
            self._count, self._size = self._count + len(entries), self._size + len(lines)
            if self._meanwhile is not None:
                self._meanwhile.extend(entries)

    def _mended(self) -> None:
        """What an earlier failure left undone. Raises `OSError` while it cannot be done."""
        if os.fstat(self._file).st_size != self._size:
            os.ftruncate(self._file, self._size)
        if not self._named:
            sync_folder(self._path.parent)
            self._named = True

    @property
    def is_due(self) -> bool:
        """Whether it is worth writing anew."""
        with self._lock:
            return self._meanwhile is None and self._size > self._due

    def rewrite(self, entries: Iterable[dict[str, Any]]) -> None:
        """Replaces the lines by those that still matter. Raises `OSError`."""
        with self._lock:
            self._meanwhile = []
        self._replaced(entries)

    def compact(self, entries: Iterable[dict[str, Any]]) -> None:
        """The same in a thread of its own: no line is appended between what `entries` say and this call. What fails is tried
        again when more was appended."""
        with self._lock:
            self._meanwhile = []
        threading.Thread(target=self._compacted, args=(entries,), daemon=True).start()

    def _compacted(self, entries: Iterable[dict[str, Any]]) -> None:
        try:
            self._replaced(entries)
        except OSError as error:
            log.error("journal-not-compacted: %s", error.strerror)

    def _replaced(self, entries: Iterable[dict[str, Any]]) -> None:
        new, made = unfinished(self._path), None
        try:
            made = _Lines(new)
            made.write(self._line(made.count, fields) for fields in entries)
            with self._lock:
                made.write(self._line(made.count, fields) for fields in self._meanwhile or ())
                new.replace(self._path)
                old, self._file, self._named = self._file, made.file, False
                self._count, self._size, self._due = made.count, made.size, made.size + max(made.size, self._least)
                os.close(old)
                self._mended()
        finally:
            with self._lock:
                self._meanwhile = None
                if made is None or self._file != made.file:
                    self._due = self._size + self._least
                    if made is not None:
                        os.close(made.file)
                    new.unlink(missing_ok=True)

    def _line(self, number: int, fields: dict[str, Any]) -> bytes:
        nonce = secrets.token_bytes(12)
        return base64.b64encode(nonce + self._cipher.encrypt(nonce, canonical(fields), str(number).encode())) + b"\n"

    def _opened(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            sealed = base64.b64decode(line.rstrip(b"\n"), validate=True)
            fields = parse(self._cipher.decrypt(sealed[:12], sealed[12:], str(number).encode()), what="journal line")
        except (binascii.Error, InvalidTag, ValueError, Refusal):
            raise _unreadable() from None
        return dict(fields)


class _Lines:
    """A new file of lines, on disk after each `write`."""

    def __init__(self, path: Path) -> None:
        self.file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self.count = self.size = 0

    def write(self, lines: Iterable[bytes]) -> None:
        with open(self.file, "ab", buffering=1 << 16, closefd=False) as stream:
            for line in lines:
                stream.write(line)
                self.count, self.size = self.count + 1, self.size + len(line)
        os.fsync(self.file)


def _checked(fields: dict[str, Any]) -> dict[str, Any]:
    """Raises `OSError` for what would not be read again: an odd text of a peer's must not stop the receiver's next start."""
    try:
        parse(canonical(fields))
    except (Refusal, ValueError):
        raise OSError(errno.EINVAL, "not a line of the journal") from None
    return fields


def _unreadable() -> Refusal:
    return Refusal(["journal-unreadable"], "the receiver's journal holds a line that is not its own")
