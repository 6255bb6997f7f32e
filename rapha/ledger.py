"""The ledger's format and its verifier: what an auditor runs, with nothing of the node at hand.

A ledger is a folder: `entries.jsonl`, one canonical JSON object a line, hash-chained; `head.json`, the length and hash of the
newest entry, signed with the node's Ed25519 ledger key at every append; every so many appends a checkpoint is kept, one a line,
in `checkpoints.jsonl`: signed in a domain of its own, so that none can be put in the head's place, and the head says how many
bytes of them stand. A whole folder set back to an older copy of itself is whole: who must notice that keeps a head elsewhere.
`ledger.lock` orders those who write, and lets a reader see a line and its head together.

    entry  = {"seq": n, "prev": hash of entry n-1, "at": seconds, "kind": …, "body": {…}, "hash": …}
    hash   = sha256 of the canonical form of the entry without "hash"
    prev of entry 0 = sha256 of the canonical form of {"ledger": id}
"""

import base64
import fcntl
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from rapha.canonical import canonical, digest_of, parse
from rapha.errors import Refusal

ENTRIES, HEAD, CHECKPOINTS, GENESIS = "entries.jsonl", "head.json", "checkpoints.jsonl", "ledger.json"
LOCK = "ledger.lock"
MAX_LINE = 1 << 16
HEAD_DOMAIN, CHECKPOINT_DOMAIN = b"rapha ledger head v2\n", b"rapha ledger checkpoint v2\n"


@dataclass(frozen=True, slots=True)
class Entry:
    seq: int
    prev: str
    at: int
    kind: str
    body: dict[str, Any]
    hash: str

    @classmethod
    def make(cls, seq: int, prev: str, at: int, kind: str, body: dict[str, Any]) -> "Entry":
        bare = {"seq": seq, "prev": prev, "at": at, "kind": kind, "body": body}
        return cls(seq, prev, at, kind, body, digest_of(bare))

    def line(self) -> bytes:
        return canonical(self.to_json()) + b"\n"

    def to_json(self) -> dict[str, Any]:
        return {"seq": self.seq, "prev": self.prev, "at": self.at, "kind": self.kind, "body": self.body, "hash": self.hash}


@dataclass(frozen=True, slots=True)
class Report:
    """Result of `verify`: `ok`, or the first bad entry and the kind.

    Kinds: edited, deleted, reordered, truncated, replayed; unsigned (a head or checkpoint that no key signed, or entries that no
    head names); missing (a file is not there).
    """

    ok: bool
    entries: int
    head: str
    kind: str = ""
    first_bad: int | None = None
    detail: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "entries": self.entries,
            "head": self.head,
            "kind": self.kind,
            "first_bad": self.first_bad,
            "detail": self.detail,
        }


def genesis(ledger_id: str) -> str:
    """`prev` of the first entry."""
    return digest_of({"ledger": ledger_id})


def read_entry(raw: bytes) -> Entry:
    """One line as an entry; `Refusal` ledger-unreadable unless it has exactly the fields, in canonical form."""
    value = parse(raw, limit=MAX_LINE, what="ledger line")
    fields = {"seq": int, "prev": str, "at": int, "kind": str, "body": dict, "hash": str}
    if not isinstance(value, dict) or set(value) != set(fields):
        raise Refusal(["ledger-unreadable"], "a ledger line has other fields than an entry's")
    if (
        any(type(value[name]) is not kind for name, kind in fields.items())
        or canonical(value) != raw.rstrip(b"\n")
        or value["seq"] < 0
    ):
        raise Refusal(["ledger-unreadable"], "a ledger line is not in canonical form")
    return Entry(**value)


def read(folder: Path) -> Iterator[Entry]:
    """The chain, checked link by link; `Refusal` at the first bad entry. For a door that trusts nothing it did not check."""
    with (folder / ENTRIES).open("rb") as lines:
        yield from read_on(lines, 0, genesis(_ledger_id(folder)))


def read_on(lines: Iterable[bytes], seq: int, prev: str) -> Iterator[Entry]:
    """The chain on from entry `seq`, whose `prev` is the hash before it; `Refusal` at the first bad entry."""
    for raw in lines:
        entry = read_entry(raw)
        if entry.seq != seq or entry.prev != prev or _hash(entry) != entry.hash:
            raise Refusal(["ledger-broken"], f"the ledger's chain breaks at entry {seq}")
        yield entry
        prev, seq = entry.hash, seq + 1


def signed_head(length: int, head: str, checkpoints: int) -> bytes:
    """The bytes that the ledger key signs for a head. checkpoints: bytes of `checkpoints.jsonl` that stand by then."""
    return HEAD_DOMAIN + canonical({"length": length, "head": head, "checkpoints": checkpoints})


def signed_checkpoint(length: int, head: str) -> bytes:
    """The bytes that the ledger key signs for a checkpoint."""
    return CHECKPOINT_DOMAIN + canonical({"length": length, "head": head})


def verify(folder: Path, key: Ed25519PublicKey | None = None) -> Report:
    """The whole chain, its signed head and every checkpoint. `key` defaults to the one named in `ledger.json`."""
    return examine(folder, key)[0]


def examine(folder: Path, key: Ed25519PublicKey | None = None) -> tuple[Report, list[Entry]]:
    """`verify`, and the entries that it read: all of them where the report is good, else none.

    What must hold: 1 the folder and its three files are there; 2 every line is an entry in canonical form whose hash is right;
    3 seq counts from 0 without gap; 4 every prev is the hash before; 5 every checkpoint is signed and lies on the chain, each
    further than the one before; 6 the signed head is the last entry, and no checkpoint is missing that it counted.
    """
    try:
        if not all((folder / name).is_file() for name in (GENESIS, ENTRIES, CHECKPOINTS, HEAD)):
            raise FileNotFoundError
        ledger_id = _ledger_id(folder)
        key = key or ledger_key(folder)
        with _still(folder):
            lines = _lines((folder / ENTRIES).read_bytes())
            raw_marks, raw_head = _lines((folder / CHECKPOINTS).read_bytes()), (folder / HEAD).read_bytes()
    except (OSError, Refusal) as error:
        return Report(False, 0, "", "missing", None, f"cannot be read: {type(error).__name__}"), []
    report, entries = _verify_chain(lines, genesis(ledger_id))
    if not report.ok:
        return report, []
    try:
        marks, signed = [parse(raw, what="checkpoint") for raw in raw_marks], parse(raw_head, what="ledger head")
    except Refusal:
        return Report(False, report.entries, report.head, "unsigned", None, "a checkpoint or the head is not JSON"), []
    hashes = [entry.hash for entry in entries]
    report = _verify_marks(report, hashes, marks, key)
    if report.ok:
        report = _verify_head(report, hashes, signed, key, sum(map(len, raw_marks)))
    return report, entries if report.ok else []


def ledger_key(folder: Path) -> Ed25519PublicKey:
    """The public key that the ledger's own description names."""
    description = parse((folder / GENESIS).read_bytes(), what="ledger description")
    try:
        key = load_pem_public_key(description["key"].encode())
    except (KeyError, TypeError, AttributeError, ValueError, UnsupportedAlgorithm):
        raise Refusal(["ledger-unreadable"], "ledger.json does not name a key") from None
    if not isinstance(key, Ed25519PublicKey):
        raise Refusal(["ledger-key-kind"], "the ledger's key is not an Ed25519 key")
    return key


def _ledger_id(folder: Path) -> str:
    description = parse((folder / GENESIS).read_bytes(), what="ledger description")
    if not isinstance(description, dict) or not isinstance(description.get("id"), str):
        raise Refusal(["ledger-unreadable"], "ledger.json does not describe a ledger")
    return str(description["id"])


@contextmanager
def _still(folder: Path) -> Iterator[None]:
    """No append of a living node falls between two reads; a copy of a ledger may lack the lock file."""
    if not (folder / LOCK).is_file():
        yield
        return
    with (folder / LOCK).open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield


def _lines(content: bytes) -> list[bytes]:
    """Lines with their ends, by LF alone; the last may lack it."""
    return [line for line in re.split(rb"(?<=\n)", content) if line]


def _hash(entry: Entry) -> str:
    return Entry.make(entry.seq, entry.prev, entry.at, entry.kind, entry.body).hash


def _verify_chain(lines: list[bytes], prev: str) -> tuple[Report, list[Entry]]:
    seen: dict[str, int] = {}
    entries: list[Entry] = []
    for n, raw in enumerate(lines):
        try:
            entries.append(entry := read_entry(raw))
        except (Refusal, TypeError):
            return Report(False, n, prev, "truncated" if not raw.endswith(b"\n") else "edited", n, "not an entry"), []
        if _hash(entry) != entry.hash:
            return Report(False, n, prev, "edited", n, "its hash is not that of its content"), []
        seen.setdefault(entry.hash, n)
    for n, entry in enumerate(entries):
        if entry.seq == n and entry.prev == prev:
            prev = entry.hash
            continue
        kind = _break_kind(entries, n, prev, seen)
        rehashed = kind == "edited" and n > 0 and entry.seq == n and _chained(entries, n)
        return Report(False, n, prev, kind, n - 1 if rehashed else n, "the chain breaks here"), []
    return Report(True, len(entries), prev), entries


def _chained(entries: list[Entry], n: int) -> bool:
    """Whether what follows entry n builds on it: then the entry before it is the one that was written anew."""
    return n + 1 == len(entries) or entries[n + 1].prev == entries[n].hash


def _break_kind(entries: list[Entry], n: int, prev: str, seen: dict[str, int]) -> str:
    if seen[entries[n].hash] < n or (entries[n].seq < n and entries[n].seq == entries[entries[n].seq].seq):
        return "replayed"
    if any(later.seq == n and later.prev == prev for later in entries[n + 1 :]):
        return "reordered"
    return "deleted" if entries[n].seq > n else "edited"


def _verify_marks(report: Report, hashes: list[str], marks: list[Any], key: Ed25519PublicKey) -> Report:
    before = 0
    for mark in marks:
        try:
            length, head = mark["length"], mark["head"]
            if type(length) is not int or length < 0 or not isinstance(head, str):
                raise ValueError("not a checkpoint")
            key.verify(base64.b64decode(mark["signature"], validate=True), signed_checkpoint(length, head))
        except (InvalidSignature, KeyError, TypeError, ValueError):
            return Report(False, report.entries, report.head, "unsigned", None, "a checkpoint's signature does not verify")
        if bad := _off_chain(report, hashes, length, head):
            return bad
        if length <= before:
            return Report(
                False, report.entries, report.head, "replayed", length, "a checkpoint stands twice, or behind a later one"
            )
        before = length
    return report


def _verify_head(report: Report, hashes: list[str], signed: Any, key: Ed25519PublicKey, size: int) -> Report:
    """size: bytes of the checkpoints that are there."""
    try:
        length, head, checkpoints = signed["length"], signed["head"], signed["checkpoints"]
        if any(type(n) is not int or n < 0 for n in (length, checkpoints)) or not isinstance(head, str):
            raise ValueError("not a head")
        key.verify(base64.b64decode(signed["signature"], validate=True), signed_head(length, head, checkpoints))
    except (InvalidSignature, KeyError, TypeError, ValueError):
        return Report(False, report.entries, report.head, "unsigned", None, "the head's signature does not verify")
    if bad := _off_chain(report, hashes, length, head):
        return bad
    if length != len(hashes):
        return Report(False, report.entries, report.head, "unsigned", length, "entries after the signed head")
    if size < checkpoints:
        return Report(False, report.entries, report.head, "deleted", None, "checkpoints are missing that the head counted")
    return report


def _off_chain(report: Report, hashes: list[str], length: int, head: str) -> Report | None:
    if length > len(hashes):
        return Report(False, report.entries, report.head, "truncated", len(hashes), f"{length} entries were signed for")
    if length and hashes[length - 1] != head:
        return Report(False, report.entries, report.head, "edited", length - 1, "the entry is not the one signed for")
    return None
