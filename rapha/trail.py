"""A segmented trail's format and its verifier: what an auditor runs on an audit trail, with the public key alone.

A trail is a folder: `trail.json` (its id and public key), and in `segments/` one ledger (see `rapha.ledger`) a segment, numbered
from 000001. Every segment but the newest ends with a signed carry-over, and the next one's genesis is made of that entry's hash,
so that segments hang together as entries do. What the entries hold is ciphertext; nothing of it is opened here.

    id of segment n's ledger = "<trail's id>/<n>/<hash of the carry-over that closed segment n - 1, empty for the first>"
    carry-over               = kind "audit.carry-over", body {"segment", "length", "last", "next", "first_at", "last_at",
                               "retired", "signature"}: `length` entries before it, `last` the hash of the one before it

An old segment may be removed once its time is over: an entry of kind "audit.retired" in a later one names it, and its folder
keeps `carry.json`, which is the carry-over with its signed head. Those who remove the newest entries and their heads set the
trail back to what it was once: only a head that was kept elsewhere shows that (`Kept`).
"""

import base64
import fcntl
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from rapha.canonical import canonical, parse
from rapha.errors import ConfigurationError, Refusal
from rapha.files import read_regular
from rapha.ledger import ENTRIES, GENESIS, Entry, examine, read_entry, signed_head

TRAIL, SEGMENTS, CARRY, TRAIL_LOCK = "trail.json", "segments", "carry.json", "trail.lock"
CARRY_OVER, RETIRED = "audit.carry-over", "audit.retired"
CARRY_DOMAIN = b"rapha audit carry-over v1\n"
CARRY_FIELDS = {
    "segment": int,
    "length": int,
    "last": str,
    "next": int,
    "first_at": int,
    "last_at": int,
    "retired": int,
    "signature": str,
}
YEAR = 31_557_600  # seconds in a Julian year
LEAST_YEARS, MOST_YEARS = 1, 10
_NUMBER = re.compile(r"[0-9]{6}")


@dataclass(frozen=True, slots=True)
class Kept:
    """A head that was kept away from the node. segment: None where it was not noted."""

    length: int
    head: str
    segment: int | None = None


@dataclass(frozen=True, slots=True)
class TrailReport:
    """Result of `verify_trail`: `ok`, or the first bad entry, its segment and the kind.

    Kinds: those of `rapha.ledger.Report`, and foreign (a segment of another trail), rolled-back (a head that was kept elsewhere
    is not on this trail).
    """

    ok: bool
    segments: int
    entries: int
    head: str
    kind: str = ""
    segment: int | None = None
    first_bad: int | None = None
    detail: str = ""
    length: int = 0
    retired: int = 0

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


def is_trail(folder: Path) -> bool:
    """Whether a folder is, or was, a segmented trail and not one ledger."""
    return (folder / TRAIL).exists() or (folder / SEGMENTS).exists()


def segment_folder(trail: Path, number: int) -> Path:
    return trail / SEGMENTS / f"{number:06d}"


def segment_id(trail_id: str, number: int, carried: str) -> str:
    """The id of a segment's ledger; `carried`: the hash of the carry-over that closed the one before."""
    return f"{trail_id}/{number}/{carried}"


def segment_numbers(trail: Path) -> list[int]:
    """Which segments there are, lowest first. Raises `OSError`."""
    return sorted(int(path.name) for path in (trail / SEGMENTS).iterdir() if _NUMBER.fullmatch(path.name))


def read_description(trail: Path) -> tuple[str, Ed25519PublicKey]:
    """(id, public key) of `trail.json`. `Refusal` trail-unreadable; raises `OSError`."""
    described = parse((trail / TRAIL).read_bytes(), what="trail description")
    try:
        key = load_pem_public_key(described["key"].encode())
        if not isinstance(key, Ed25519PublicKey) or set(described) != {"id", "key", "version"} or described["version"] != 1:
            raise ValueError("not a trail")
        if not re.fullmatch(r"[0-9a-f]{32}", described["id"]):
            raise ValueError("not a trail's id")
    except (KeyError, TypeError, AttributeError, ValueError, UnsupportedAlgorithm):
        raise Refusal(["trail-unreadable"], "trail.json does not describe a trail") from None
    return described["id"], key


def read_kept(path: Path) -> Kept:
    """A head kept elsewhere: the JSON that `ledger verify --json` printed, or a copy of a `head.json`. `ConfigurationError`."""
    try:
        value = parse(read_regular(path, 1 << 16, "head-unreadable"), what="head")
        length = value["length"] if "length" in value else value["entries"]
        kept = Kept(length, value["head"], value.get("segment"))
        if type(length) is not int or not isinstance(kept.head, str) or type(kept.segment) not in (int, type(None)):
            raise ValueError("not a head")
    except (Refusal, KeyError, TypeError, AttributeError, ValueError):
        raise ConfigurationError(["head-unreadable"], f"{path} does not hold a head: length and head") from None
    return kept


def signed_carry(body: dict[str, Any]) -> bytes:
    """The bytes that the trail's key signs in a carry-over."""
    return CARRY_DOMAIN + canonical({name: value for name, value in body.items() if name != "signature"})


@contextmanager
def shared(trail: Path) -> Iterator[None]:
    """No segment is opened, closed or removed meanwhile; a copy of a trail may lack the lock file."""
    if not (trail / TRAIL_LOCK).is_file():
        yield
        return
    with (trail / TRAIL_LOCK).open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield


def verify_trail(folder: Path, key: Ed25519PublicKey | None = None, kept: Kept | None = None) -> TrailReport:
    """Every segment, and that they hang together. `key` defaults to the one named in `trail.json`.

    What must hold: 1 the trail is described; 2 segments are numbered from 1 without gap; 3 each is a whole ledger under this key,
    with the id that the carry-over before it makes; 4 each but the newest ends with a carry-over that says so, signed, and the
    newest does not; 5 a removed one has left its carry-over, and a later segment says that it was removed after its time; 6 a
    head that was kept elsewhere is on the trail.
    """
    try:
        trail_id, own = read_description(folder)
        numbers = segment_numbers(folder)
    except (OSError, Refusal) as error:
        return TrailReport(False, 0, 0, "", "missing", detail=f"cannot be read: {type(error).__name__}")
    return _Verifier(folder, trail_id, key or own, numbers, kept).report()


class _Wrong(Exception):
    """The first thing that is wrong: kind, segment, entry, sentence."""


class _Verifier:
    def __init__(self, folder: Path, trail_id: str, key: Ed25519PublicKey, numbers: list[int], kept: Kept | None) -> None:
        self._folder, self._id, self._key, self._numbers, self._kept = folder, trail_id, key, numbers, kept
        self._pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        self._carried, self._head, self._length = "", "", 0
        self._counts: dict[int, int] = {}  # segment -> its entries
        self._gone: dict[int, dict[str, Any]] = {}  # removed segment -> its carry-over entry's body and hash
        self._said: dict[int, dict[str, Any]] = {}  # removed segment -> body of the entry that says so
        self._retired = 0
        self._kept_seen = kept is None

    def report(self) -> TrailReport:
        try:
            last = self._all()
            self._check_gone()
            if not self._kept_seen and not self._kept_is_gone():
                raise _Wrong(
                    "rolled-back", self._kept and self._kept.segment, None, "the head that was kept is not on this trail"
                )
        except _Wrong as wrong:
            kind, segment, first_bad, detail = wrong.args
            count = len(self._numbers)
            return TrailReport(False, count, sum(self._counts.values()), self._head, kind, segment, first_bad, detail)
        return TrailReport(
            True, last, sum(self._counts.values()), self._head, segment=last, length=self._length, retired=len(self._gone)
        )

    def _kept_is_gone(self) -> bool:
        """Whether the head that was kept is of a segment that was removed in its time, of which only the end is left."""
        left = self._gone.get(self._kept.segment) if self._kept and self._kept.segment is not None else None
        return left is not None and self._kept is not None and self._kept.length <= left["length"]

    def _all(self) -> int:
        """Walks the segments; the number of the newest."""
        number = 0
        while True:
            number += 1
            folder = segment_folder(self._folder, number)
            if not folder.is_dir():
                self._no_segment(number)
            if not (self._removed(number, folder) if _is_removed(folder) else self._present(number, folder)):
                continue
            beyond = [n for n in self._current_numbers() if n > number]
            if not beyond:
                return number
            if self._present(number, folder):  # a living node may have closed it since it was read
                raise _Wrong(self._foreign_kind(beyond[0]), beyond[0], 0, "a segment follows one that was not closed")

    def _current_numbers(self) -> list[int]:
        with shared(self._folder):
            return segment_numbers(self._folder)

    def _no_segment(self, number: int) -> None:
        """A segment that must be there is not; a living node may just be making it."""
        with shared(self._folder):
            numbers = segment_numbers(self._folder)
        if number in numbers:
            return
        deleted = any(n > number for n in numbers)
        kind = "deleted" if deleted else "truncated" if number > 1 else "missing"
        raise _Wrong(kind, number, 0, "the segment is not there")

    def _present(self, number: int, folder: Path) -> bool:
        """One whole segment; whether it is still open."""
        self._check_id(number, folder)
        found, entries = examine(folder, self._key)
        if not found.ok:
            if _is_removed(folder):  # it was removed just now
                return self._removed(number, folder)
            raise _Wrong(found.kind, number, found.first_bad, found.detail)
        for entry in entries:
            self._look(number, entry, entry is entries[-1])
        self._counts[number] = self._length = len(entries)
        self._head = entries[-1].hash if entries else found.head
        if not entries or entries[-1].kind != CARRY_OVER:
            return True
        self._check_carry(number, entries[-1], entries[-2] if len(entries) > 1 else None)
        self._note_carry(number, entries[-1])
        return False

    def _look(self, number: int, entry: Entry, is_last: bool) -> None:
        kept = self._kept
        if kept and kept.head == entry.hash and kept.length == entry.seq + 1 and kept.segment in (None, number):
            self._kept_seen = True
        if entry.kind == CARRY_OVER and not is_last:
            raise _Wrong("edited", number, entry.seq, "a carry-over stands before the segment's end")
        if entry.kind == RETIRED and type(entry.body.get("segment")) is int:
            self._said[entry.body["segment"]] = {**entry.body, "at": entry.at, "in": number}

    def _check_id(self, number: int, folder: Path) -> None:
        """The segment's description must be, to the byte, what the carry-over before it and the trail's key make."""
        expected = segment_id(self._id, number, self._carried)
        try:
            raw = (folder / GENESIS).read_bytes()
            if raw == canonical({"id": expected, "key": self._pem, "version": 1}) + b"\n":
                return
            described = parse(raw, what="ledger description")
            found, pem = described["id"], described["key"]
        except (OSError, Refusal, KeyError, TypeError) as error:
            raise _Wrong("missing", number, None, f"the segment cannot be read: {type(error).__name__}") from None
        if found != expected:
            raise _Wrong(self._foreign_kind(number, str(found)), number, 0, "the segment is not the one that belongs here")
        if pem != self._pem:
            raise _Wrong("unsigned", number, None, "the segment names another key than the trail's")
        raise _Wrong("edited", number, None, "the segment's description is not as it was written")

    def _foreign_kind(self, number: int, found: str | None = None) -> str:
        """What a segment that does not belong here is."""
        if found is None:
            try:
                described = parse((segment_folder(self._folder, number) / GENESIS).read_bytes(), what="ledger description")
                found = str(described["id"])
            except (OSError, Refusal, KeyError, TypeError):
                return "unsigned"
        trail, _, rest = found.partition("/")
        own = rest.partition("/")[0]
        if trail != self._id:
            return "foreign"
        if not own.isdecimal() or int(own) == number:
            return "edited"
        return "replayed" if int(own) < number else "reordered"

    def _removed(self, number: int, folder: Path) -> bool:
        try:
            value = parse((folder / CARRY).read_bytes(), what="carry-over")
            entry = read_entry(canonical(value["entry"]) + b"\n")
            mark = value["head"]
            if (value["id"], mark["length"], mark["head"]) != (
                segment_id(self._id, number, self._carried),
                entry.seq + 1,
                entry.hash,
            ):
                raise ValueError("not this segment's")
            signed = signed_head(entry.seq + 1, entry.hash, mark["checkpoints"])
            self._key.verify(base64.b64decode(mark["signature"], validate=True), signed)
        except (OSError, Refusal, InvalidSignature, KeyError, TypeError, ValueError):
            raise _Wrong("edited", number, None, "what a removed segment left is not its signed carry-over") from None
        if Entry.make(entry.seq, entry.prev, entry.at, entry.kind, entry.body).hash != entry.hash:
            raise _Wrong("edited", number, entry.seq, "the carry-over's hash is not that of its content")
        self._check_carry(number, entry, None)
        self._look(number, entry, True)
        self._gone[number] = {**entry.body, "hash": entry.hash}
        self._note_carry(number, entry)
        return False

    def _check_carry(self, number: int, entry: Entry, before: Entry | None) -> None:
        body = entry.body
        wrong = _Wrong("edited", number, entry.seq, "the carry-over does not say what it must")
        if set(body) != set(CARRY_FIELDS) or any(type(body[name]) is not kind for name, kind in CARRY_FIELDS.items()):
            raise wrong
        if entry.kind != CARRY_OVER or (body["segment"], body["length"], body["next"]) != (number, entry.seq, number + 1):
            raise wrong
        if body["last"] != entry.prev or (before and body["last"] != before.hash):
            raise wrong
        try:
            self._key.verify(base64.b64decode(body["signature"], validate=True), signed_carry(body))
        except (InvalidSignature, ValueError):
            raise _Wrong("unsigned", number, entry.seq, "the carry-over's signature does not verify") from None

    def _note_carry(self, number: int, entry: Entry) -> None:
        self._carried, self._head, self._length = entry.hash, entry.hash, entry.seq + 1
        self._retired = max(self._retired, entry.body["retired"])

    def _check_gone(self) -> None:
        """Every removed segment: a later entry, or a later carry-over, says that it was removed, and after its time."""
        for number, left in self._gone.items():
            said = self._said.get(number)
            if said is None:
                if number > self._retired:
                    raise _Wrong("deleted", number, 0, "the segment was removed and nothing says so")
                continue
            years = said.get("years")
            if said.get("carry") != left["hash"] or said["in"] <= number:
                raise _Wrong("deleted", number, 0, "what says that the segment was removed names another")
            if type(years) is not int or not LEAST_YEARS <= years <= MOST_YEARS or said["at"] < left["last_at"] + years * YEAR:
                raise _Wrong("deleted", number, 0, "the segment was removed before its time")
        if self._gone and max(self._gone) != len(self._gone):
            raise _Wrong("deleted", max(self._gone), 0, "a segment was removed before an older one")


def _is_removed(folder: Path) -> bool:
    return (folder / CARRY).is_file() and not (folder / ENTRIES).exists()
