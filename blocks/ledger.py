"""The ledger's writer: append, flush to disk, sign the head; readers are in `rapha.ledger`.

Several processes of a node append to one folder (the flow, the keeper): an exclusive lock on `ledger.lock` orders them. A write
that fails raises `Refusal(ledger-unwritable)`: nothing goes on without its record.
"""

import base64
import errno
import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from rapha.canonical import canonical, parse
from rapha.errors import Refusal
from rapha.files import replace_durably
from rapha.ledger import (
    CHECKPOINTS,
    ENTRIES,
    GENESIS,
    HEAD,
    LOCK,
    MAX_LINE,
    Entry,
    genesis,
    read,
    read_entry,
    read_on,
    signed_checkpoint,
    signed_head,
)


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the chain: entries before it, the hash of the last of them, their bytes."""

    length: int
    head: str
    size: int


class Ledger:
    """An append-only, hash-chained, signed record in a folder.

    A crash between the entry's flush and the head's leaves one entry that the head does not name; the next append, or
    `recover`, signs for it after checking that it extends the chain. More than one such entry is refused.
    """

    def __init__(self, folder: Path, key: Ed25519PrivateKey, *, every: int = 16, adopt: bool = True) -> None:
        """adopt: whether an entry that a crash left without its head is signed for. False drops whatever no head names: it was
        never answered, so it never happened. Only so may several entries be written at once."""
        self.folder, self._key, self._every, self._adopt = folder, key, every, adopt

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
        replace_durably(folder / GENESIS, canonical({"id": ledger_id, "key": pem, "version": 1}) + b"\n")
        return ledger

    def append(self, kind: str, body: dict[str, Any], *, at: int | None = None) -> Entry:
        """Writes one entry and returns it once it and the signed head are on disk.

        Raises `Refusal` ledger-unwritable, ledger-entry (too large, or without a canonical form), ledger-broken,
        ledger-truncated.
        """
        return self.append_all([(kind, body, int(time.time()) if at is None else at)])[0]

    def append_all(self, items: Sequence[tuple[str, dict[str, Any], int]]) -> list[Entry]:
        """Writes an entry for each (kind, body, at), all of them or none, with one flush and one head. Raises as `append`."""
        if len(items) > 1 and self._adopt:
            raise ValueError("a ledger that adopts an entry without its head takes one at a time")
        try:
            with self._locked():
                length, head = self._recovered()
                entries: list[Entry] = []
                for seq, (kind, body, at) in enumerate(items, length):
                    entries.append(_readable(seq, head, at, kind, body))
                    head = entries[-1].hash
                self._write(entries)
                return entries
        except OSError as error:
            raise Refusal(["ledger-unwritable"], f"the ledger cannot be written: {error.strerror}") from None

    def entries(self) -> Iterator[Entry]:
        """Every entry of the whole chain, which must end at the signed head. `Refusal` ledger-… otherwise."""
        try:
            with self._locked():
                length, head = self._recovered()
                found = list(read(self.folder))
        except OSError as error:
            raise Refusal(["ledger-unreadable"], f"the ledger cannot be read: {error.strerror}") from None
        if len(found) != length or (found and found[-1].hash != head):
            raise Refusal(["ledger-truncated"], "the ledger does not end at its signed head")
        return iter(found)

    def position(self) -> Position:
        """Where the next entry will stand. `Refusal` ledger-…"""
        try:
            with self._locked():
                length, head = self._recovered()
                return Position(length, head, (self.folder / ENTRIES).stat().st_size)
        except OSError as error:
            raise Refusal(["ledger-unreadable"], f"the ledger cannot be read: {error.strerror}") from None

    def since(self, position: Position) -> list[Entry]:
        """The entries from there to the signed head, chained to it: what they say is in the signed ledger, at the cost of their
        own number. Whether the chain before them is whole is for `entries` and `rapha ledger verify`. `Refusal` ledger-…"""
        try:
            with self._locked():
                length, head = self._recovered()
                with (self.folder / ENTRIES).open("rb") as lines:
                    lines.seek(position.size)
                    found = list(read_on(lines, position.length, position.head))
        except OSError as error:
            raise Refusal(["ledger-unreadable"], f"the ledger cannot be read: {error.strerror}") from None
        if position.length + len(found) != length or (found[-1].hash if found else position.head) != head:
            raise Refusal(["ledger-truncated"], "the ledger does not end at its signed head")
        return found

    def recover(self) -> int:
        """Finishes or takes back an append that a crash cut short; the number of entries. For a node's start."""
        try:
            with self._locked():
                self._trim_checkpoints()
                return self._recovered()[0]
        except OSError as error:
            raise Refusal(["ledger-unwritable"], f"the ledger cannot be written: {error.strerror}") from None

    def _write(self, entries: list[Entry]) -> None:
        """Entries, then head. Where one of them fails, what was written of the entries is taken back: they never happened."""
        before, last = (self.folder / ENTRIES).stat().st_size, entries[-1]
        try:
            self._append_line(ENTRIES, b"".join(entry.line() for entry in entries))
            self._write_head(last.seq + 1, last.hash)
        except OSError:
            if self._signed()[2] == before:  # else the new head is there already, and stands
                os.truncate(self.folder / ENTRIES, before)
            raise
        if self._every <= 1 or any((entry.seq + 1) % self._every == 1 for entry in entries):
            self._append_line(CHECKPOINTS, canonical(self._checkpoint(last.seq + 1, last.hash)) + b"\n")

    def _recovered(self) -> tuple[int, str]:
        length, head, end = self._signed()
        size = (self.folder / ENTRIES).stat().st_size
        if size == end:
            return length, head
        if size < end:
            raise Refusal(["ledger-truncated"], "the ledger is shorter than its signed head says")
        with (self.folder / ENTRIES).open("r+b") as stream:
            stream.seek(end)
            tail = stream.read(MAX_LINE + 2)
            if not (
                self._adopt and tail.endswith(b"\n")
            ):  # an append that a crash cut short: it was never answered, so it never happened
                stream.truncate(end)
                os.fsync(stream.fileno())
                return length, head
        return self._adopted(tail, length, head)

    def _adopted(self, tail: bytes, length: int, head: str) -> tuple[int, str]:
        """One whole entry that a crash left without its head; anything else after the head is refused."""
        try:
            entry = read_entry(tail)
        except Refusal:
            raise Refusal(["ledger-broken"], "what follows the signed head is not one entry") from None
        if entry != Entry.make(length, head, entry.at, entry.kind, entry.body):
            raise Refusal(["ledger-broken"], "the entry after the signed head does not extend the chain")
        self._write_head(entry.seq + 1, entry.hash)
        return entry.seq + 1, entry.hash

    def _signed(self) -> tuple[int, str, int]:
        """(length, hash, bytes) of the head, which this ledger's key signed."""
        try:
            mark = parse((self.folder / HEAD).read_bytes(), what="ledger head")
            length, head, end = mark["length"], mark["head"], mark["bytes"]
            signed = signed_head(length, head, mark["checkpoints"])
            self._key.public_key().verify(base64.b64decode(mark["signature"], validate=True), signed)
        except (Refusal, InvalidSignature, KeyError, TypeError, ValueError):
            raise Refusal(["ledger-broken"], "the ledger's head is not one that its key signed") from None
        if type(length) is not int or type(end) is not int or end < 0:
            raise Refusal(["ledger-broken"], "the ledger's head is not one that its key signed")
        return length, head, end

    def _append_line(self, name: str, line: bytes) -> None:
        with (self.folder / name).open("ab", buffering=0) as stream:
            if stream.write(line) != len(line):  # a full disk takes a part of it and says so only in the count
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(stream.fileno())

    def _trim_checkpoints(self) -> int:
        """A line that a crash or a full disk cut short is no checkpoint. The bytes of those that are."""
        with (self.folder / CHECKPOINTS).open("r+b") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - MAX_LINE))
            tail = stream.read()
            if tail and not tail.endswith(b"\n"):
                size -= len(tail) - tail.rfind(b"\n") - 1
                stream.truncate(size)
        return size

    def _checkpoint(self, length: int, head: str) -> dict[str, Any]:
        return {"length": length, "head": head, "signature": self._signature(signed_checkpoint(length, head))}

    def _signature(self, signed: bytes) -> str:
        return base64.b64encode(self._key.sign(signed)).decode()

    def _write_head(self, length: int, head: str) -> None:
        entries, marks = (self.folder / ENTRIES).stat().st_size, self._trim_checkpoints()
        said = {"length": length, "head": head, "checkpoints": marks, "bytes": entries}
        signature = self._signature(signed_head(length, head, marks))
        replace_durably(self.folder / HEAD, canonical({**said, "signature": signature}) + b"\n")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.folder / LOCK).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _readable(seq: int, prev: str, at: int, kind: str, body: dict[str, Any]) -> Entry:
    """The entry, after reading it back as a verifier will: nothing is written that would break the chain for ever."""
    try:
        entry = Entry.make(seq, prev, at, kind, body)
        read_entry(entry.line())
    except (Refusal, ValueError):
        raise Refusal(["ledger-entry"], "the entry is too large or has no canonical form") from None
    return entry
