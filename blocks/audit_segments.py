"""The segments of an audit trail on disk: ledgers in a row, each bound to the one before (the format is in `rapha.trail`).

Several processes append: `trail.lock` orders them, and holds still what a verifier lists. What no signed head names is dropped.
"""

import base64
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from blocks.ledger import Ledger
from rapha.canonical import canonical, parse
from rapha.errors import ConfigurationError, Refusal
from rapha.files import made_folder, replace_durably, sync_folder
from rapha.ledger import CHECKPOINTS, ENTRIES, GENESIS, HEAD, LOCK, MAX_LINE, Entry, read_entry
from rapha.trail import (
    CARRY,
    CARRY_OVER,
    RETIRED,
    SEGMENTS,
    TRAIL,
    TRAIL_LOCK,
    YEAR,
    read_description,
    segment_folder,
    segment_id,
    segment_numbers,
    signed_carry,
)

Period = Literal["day", "month"]
_FORMS: dict[Period, str] = {"day": "%Y-%m-%d", "month": "%Y-%m"}
_NEW = ".new"


class Segments:
    """One trail's segments. Raises `Refusal` ledger-… as `Ledger` does, and `OSError`."""

    def __init__(self, folder: Path, signer: Ed25519PrivateKey, *, max_bytes: int, period: Period) -> None:
        """`ConfigurationError` audit-key-other where the trail is another key's, audit-missing where there is none."""
        self.folder, self._signer, self._max, self._period = folder, signer, max_bytes, period
        try:
            self.trail_id, key = read_description(folder)
        except (OSError, Refusal):
            raise ConfigurationError(["audit-missing"], f"{folder} holds no audit trail") from None
        if key.public_bytes_raw() != signer.public_key().public_bytes_raw():
            raise ConfigurationError(["audit-key-other"], f"{folder} is a trail of another signing key")
        self._number = 0
        self._size = -1  # of the newest segment, when this object last wrote to it
        self._first_at: int | None = None

    @staticmethod
    def create(folder: Path, signer: Ed25519PrivateKey) -> None:
        """A new, empty trail. `Refusal` audit-exists where there is one, or what is left of one."""
        made_folder(folder, "audit-unwritable")
        with _locked(folder):
            if (folder / TRAIL).exists() or (folder / SEGMENTS).exists():
                raise Refusal(["audit-exists"], "this folder holds an audit trail already, or a part of one")
            pem = signer.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
            trail_id = secrets.token_hex(16)
            (folder / SEGMENTS).mkdir(mode=0o700)
            _make(folder, signer, 1, segment_id(trail_id, 1, ""))
            replace_durably(folder / TRAIL, canonical({"id": trail_id, "key": pem, "version": 1}) + b"\n")

    def append(self, items: Sequence[tuple[str, dict[str, Any], int]]) -> list[tuple[int, Entry]]:
        """An entry for each (kind, body, at), on disk and signed for when this returns: all or none."""
        with _locked(self.folder):
            return self._append(items)

    def entries(self, since: int | None = None, until: int | None = None) -> Iterator[tuple[int, Entry]]:
        """(segment, entry), oldest first; closed segments that lie outside the time are passed over by their carry-overs."""
        for number in segment_numbers(self.folder):
            if self.is_removed(number) or not self._may_hold(number, since, until):
                continue
            for entry in self._ledger(number).entries():
                yield number, entry

    def closed(self, number: int) -> Entry | None:
        """The carry-over of a segment, or None while it is open."""
        last = self._last(number)
        return last if last and last.kind == CARRY_OVER else None

    def is_removed(self, number: int) -> bool:
        folder = segment_folder(self.folder, number)
        return (folder / CARRY).is_file() and not (folder / ENTRIES).exists()

    def expired(self, years: int, now: int) -> list[int]:
        """The oldest segments in a row whose newest entry is older than `years`."""
        found = []
        for number in segment_numbers(self.folder):
            if self.is_removed(number):
                continue
            carry = self.closed(number)
            if carry is None or carry.body["last_at"] + years * YEAR > now:
                break
            found.append(number)
        return found

    def retire(self, number: int, years: int, now: int) -> None:
        """Removes the oldest segment: first the entry that says so, then its carry-over is set aside, then the rest goes."""
        with _locked(self.folder):
            carry = self.closed(number)
            if carry is None or number not in self.expired(years, now)[:1]:
                raise Refusal(["audit-not-expired"], "only the oldest segment may be removed, and only after its time")
            body = {"segment": number, "carry": carry.hash, "last_at": carry.body["last_at"], "years": years}
            self._append([(RETIRED, body, now)])
            folder = segment_folder(self.folder, number)
            described = parse((folder / GENESIS).read_bytes(), what="ledger description")
            head = parse((folder / HEAD).read_bytes(), what="ledger head")
            left = {"id": described["id"], "entry": carry.to_json(), "head": head}
            replace_durably(folder / CARRY, canonical(left) + b"\n")
            for name in (ENTRIES, CHECKPOINTS, HEAD, GENESIS, LOCK):
                (folder / name).unlink(missing_ok=True)
            sync_folder(folder)

    def _append(self, items: Sequence[tuple[str, dict[str, Any], int]]) -> list[tuple[int, Entry]]:
        number = self._current(items[0][2])
        try:
            entries = self._ledger(number).append_all(items)
        except Refusal:
            self._size = -1
            raise
        self._size = self._size_of(number)
        if self._first_at is None:
            self._first_at = entries[0].at
        return [(number, entry) for entry in entries]

    def _current(self, at: int) -> int:
        """The number of the segment that takes the next entry; opens a new one where the newest is full or closed."""
        self._find()
        if self._size_of(self._number) != self._size:  # a new start, or another process wrote
            self._ledger(self._number).recover()
            first = self._first(self._number)
            self._first_at = first.at if first else None
            carry = self.closed(self._number)
            if carry is not None:  # a crash came between the carry-over and the segment after it
                self._open(self._number + 1, carry.hash)
        if self._is_full(at):
            self._open(self._number + 1, self._close(self._number).hash)
        return self._number

    def _find(self) -> None:
        """The newest segment: this object's, or the one that another process has opened since."""
        number = self._number or max(segment_numbers(self.folder), default=0)
        while segment_folder(self.folder, number + 1).is_dir():
            number += 1
        if number == 0:
            raise Refusal(["ledger-broken"], "the trail has no segment")
        if number != self._number:
            self._number, self._size = number, -1

    def _is_full(self, at: int) -> bool:
        if self._first_at is None:
            return False
        form = _FORMS[self._period]
        began, now = (datetime.fromtimestamp(moment, UTC).strftime(form) for moment in (self._first_at, at))
        return now > began or self._size_of(self._number) >= self._max

    def _close(self, number: int) -> Entry:
        """Ends a segment, after reading it once whole: what is broken is not carried over."""
        ledger = self._ledger(number)
        entries = list(ledger.entries())
        retired = 0
        while self.is_removed(retired + 1):
            retired += 1
        body: dict[str, Any] = {
            "segment": number,
            "length": len(entries),
            "last": entries[-1].hash,
            "next": number + 1,
            "first_at": min(entry.at for entry in entries),
            "last_at": max(entry.at for entry in entries),
            "retired": retired,
        }
        body["signature"] = base64.b64encode(self._signer.sign(signed_carry(body))).decode()
        return ledger.append(CARRY_OVER, body, at=max(int(time.time()), body["last_at"]))

    def _open(self, number: int, carried: str) -> None:
        _make(self.folder, self._signer, number, segment_id(self.trail_id, number, carried))
        self._number, self._size, self._first_at = number, self._size_of(number), None

    def _ledger(self, number: int) -> Ledger:
        folder = segment_folder(self.folder, number)
        described = parse((folder / GENESIS).read_bytes(), what="ledger description")
        if not isinstance(described, dict) or not str(described.get("id")).startswith(f"{self.trail_id}/{number}/"):
            raise Refusal(["ledger-broken"], f"segment {number} is not one of this trail")
        return Ledger(folder, self._signer, adopt=False)

    def _may_hold(self, number: int, since: int | None, until: int | None) -> bool:
        carry = self.closed(number) if since is not None or until is not None else None
        if carry is None:
            return True
        first, last = carry.body["first_at"], carry.body["last_at"]
        return not ((since is not None and last < since) or (until is not None and first > until))

    def _size_of(self, number: int) -> int:
        return (segment_folder(self.folder, number) / ENTRIES).stat().st_size

    def _first(self, number: int) -> Entry | None:
        with (segment_folder(self.folder, number) / ENTRIES).open("rb") as stream:
            line = stream.readline(MAX_LINE + 1)
        return read_entry(line) if line else None

    def _last(self, number: int) -> Entry | None:
        with (segment_folder(self.folder, number) / ENTRIES).open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - MAX_LINE - 1))
            lines = stream.read().splitlines(keepends=True)
        return read_entry(lines[-1]) if lines and lines[-1].endswith(b"\n") else None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / TRAIL_LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make(folder: Path, signer: Ed25519PrivateKey, number: int, ledger_id: str) -> None:
    """A new segment, whole or not at all."""
    new = folder / SEGMENTS / _NEW
    if new.exists():  # a crash left it
        shutil.rmtree(new)
    Ledger.create(new, signer, ledger_id)
    new.rename(segment_folder(folder, number))
    sync_folder(folder / SEGMENTS)
