"""The ledger's writer: append, flush to disk, sign the head; readers are in `rapha.ledger`.

Several processes of a node append to one folder (the flow, the keeper): an exclusive lock on `ledger.lock` orders them. A write
that fails raises `Refusal(ledger-unwritable)`: nothing goes on without its record.
"""

import base64
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from rapha.canonical import canonical, parse
from rapha.errors import Refusal
from rapha.ledger import CHECKPOINTS, ENTRIES, GENESIS, HEAD, Entry, genesis, read, read_entry, signed_head


class Ledger:
    """An append-only, hash-chained, signed record in a folder.

    A crash between the entry's flush and the head's leaves one entry that the head does not name; the next append, or
    `recover`, signs for it after checking that it extends the chain. More than one such entry is refused.
    """

    def __init__(self, folder: Path, key: Ed25519PrivateKey, *, every: int = 16) -> None:
        self.folder, self._key, self._every = folder, key, every

    @classmethod
    def create(cls, folder: Path, key: Ed25519PrivateKey, ledger_id: str) -> "Ledger":
        """A new, empty ledger. Refuses a folder that holds one already."""
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / GENESIS).exists():
            raise Refusal(["ledger-exists"], "this folder holds a ledger already")
        pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        for name in (ENTRIES, CHECKPOINTS):
            (folder / name).touch()
        ledger = cls(folder, key)
        ledger._write_head(0, genesis(ledger_id))
        _durable(folder / GENESIS, canonical({"id": ledger_id, "key": pem, "version": 1}) + b"\n")
        return ledger

    def append(self, kind: str, body: dict[str, Any], *, at: int | None = None) -> Entry:
        """Writes one entry and returns it once it and the signed head are on disk."""
        try:
            with self._locked():
                length, head = self._recovered()
                entry = Entry.make(length, head, int(time.time()) if at is None else at, kind, body)
                self._append_line(ENTRIES, entry.line())
                self._write_head(length + 1, entry.hash)
                return entry
        except OSError as error:
            raise Refusal(["ledger-unwritable"], f"the ledger cannot be written: {error.strerror}") from None

    def entries(self) -> Iterator[Entry]:
        """Every entry, its links checked on the way."""
        return read(self.folder)

    def _recovered(self) -> tuple[int, str]:
        mark = parse((self.folder / HEAD).read_bytes(), what="ledger head")
        self._key.public_key().verify(base64.b64decode(mark["signature"]), signed_head(mark["length"], mark["head"]))
        size = (self.folder / ENTRIES).stat().st_size
        if size == mark["bytes"]:
            return mark["length"], mark["head"]
        if size < mark["bytes"]:
            raise Refusal(["ledger-truncated"], "the ledger is shorter than its signed head says")
        with (self.folder / ENTRIES).open("r+b") as stream:
            stream.seek(mark["bytes"])
            tail = stream.read()
            if not tail.endswith(b"\n"):  # an append that a crash cut short: it was never answered, so it never happened
                stream.truncate(mark["bytes"])
                os.fsync(stream.fileno())
                return mark["length"], mark["head"]
        entry = read_entry(tail)
        if entry.seq != mark["length"] or entry.prev != mark["head"]:
            raise Refusal(["ledger-broken"], "the entry after the signed head does not extend the chain")
        self._write_head(entry.seq + 1, entry.hash)
        return entry.seq + 1, entry.hash

    def _append_line(self, name: str, line: bytes) -> None:
        with (self.folder / name).open("ab", buffering=0) as stream:
            stream.write(line)
            os.fsync(stream.fileno())

    def _write_head(self, length: int, head: str) -> None:
        signature = base64.b64encode(self._key.sign(signed_head(length, head))).decode()
        size = (self.folder / ENTRIES).stat().st_size
        mark = {"length": length, "head": head, "signature": signature}
        _durable(self.folder / HEAD, canonical({**mark, "bytes": size}) + b"\n")
        if length % self._every == 1:
            self._append_line(CHECKPOINTS, canonical(mark) + b"\n")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.folder / "ledger.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _durable(path: Path, content: bytes) -> None:
    """Replaces a file whole, so that a crash leaves the old or the new."""
    temporary = path.with_suffix(path.suffix + ".new")
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
