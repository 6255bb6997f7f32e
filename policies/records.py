"""The records file: which instances a manifest covers, one canonical JSON line each, sorted, under one Merkle root.

It stays in the hospital. A line names a record and its patient by the project's pseudonyms, and the digest of its content:
SHA-256 over the transfer syntax UID, a line feed, and the data set as the archive stores it (after the file meta group).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from rapha.canonical import canonical, is_digest, parse
from rapha.errors import Refusal
from rapha.merkle import merkle_root

MAX_LABEL = 1 << 31
MAX_LINE = 1024
_HEX64 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Record:
    """record, patient: pseudonyms (64 hex digits); content: digest; label: a class number or None."""

    record: str
    patient: str
    content: str
    label: int | None

    def line(self) -> bytes:
        """The canonical line without its line feed: a leaf of the tree."""
        return canonical({"record": self.record, "patient": self.patient, "content": self.content, "label": self.label})


def records_root(records: Iterable[Record]) -> str:
    """Merkle root of records in the order of their pseudonyms."""
    return merkle_root(record.line() for record in sorted(records, key=lambda record: record.record))


def write_records(records: Iterable[Record]) -> bytes:
    """The file's bytes. Raises `Refusal` records-duplicate."""
    ordered = sorted(records, key=lambda record: record.record)
    _increasing(ordered)
    return b"".join(record.line() + b"\n" for record in ordered)


def read_records(raw: bytes) -> tuple[Record, ...]:
    """The records of a file, in order. Raises `Refusal` records-malformed, records-not-canonical, records-duplicate."""
    if raw and not raw.endswith(b"\n"):
        raise Refusal(["records-malformed"], "the records file ends inside a line")
    records = tuple(_record(line) for line in raw.split(b"\n")[:-1])
    _increasing(records)
    return records


def _record(line: bytes) -> Record:
    try:
        fields = parse(line, limit=MAX_LINE, what="records file's line")
    except Refusal:
        raise Refusal(["records-malformed"], "a line of the records file is not strict JSON") from None
    if not isinstance(fields, Mapping) or set(fields) != {"record", "patient", "content", "label"}:
        raise Refusal(["records-malformed"], "a line of the records file has other fields")
    record, patient, label = fields["record"], fields["patient"], fields["label"]
    names = all(isinstance(name, str) and _HEX64.fullmatch(name) for name in (record, patient))
    numbered = label is None or (isinstance(label, int) and not isinstance(label, bool) and 0 <= label < MAX_LABEL)
    if not names or not numbered or not is_digest(fields["content"]):
        raise Refusal(["records-malformed"], "a line of the records file has a field of another form")
    made = Record(record, patient, fields["content"], label)
    if made.line() != line:
        raise Refusal(["records-not-canonical"], "a line of the records file is not in its one canonical form")
    return made


def _increasing(records: Sequence[Record]) -> None:
    if any(one.record >= two.record for one, two in pairwise(records)):
        raise Refusal(["records-duplicate"], "the records file is out of order or names a record twice")
