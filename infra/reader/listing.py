"""One listing of the archive held against the manifest's records."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from blocks.archive import Archive
from blocks.pacs import Answer, value_of
from policies.minimise import pseudonym
from policies.records import Record
from policies.scope import Scope
from rapha.canonical import digest_of
from rapha.errors import PeerError, Refusal
from rapha.merkle import merkle_root

FIELDS = ("00080018", "0020000D", "0020000E", "00100020", "00080060", "00080020", "00180015", "00080016")


@dataclass(frozen=True, slots=True)
class Place:
    """Where the archive keeps a record. sop_class: "" where the archive does not say it."""

    study: str
    series: str
    instance: str
    sop_class: str = ""


@dataclass(slots=True)
class Listing:
    """Counts are those of `policies.query.QueryEvidence`; places: of the selected records, by pseudonym; crowded: series that
    hold answered instances which are not selected."""

    answered: int = 0
    outside: int = 0
    ignored: int = 0
    changed: int = 0
    missing: int = 0
    places: dict[str, Place] = field(default_factory=dict)
    patients: set[str] = field(default_factory=set)
    crowded: set[str] = field(default_factory=set)
    results: str = ""


def list_archive(archive: Archive, key: bytes, records: Mapping[str, Record], manifest: Scope, intent: Scope) -> Listing:
    """Asks for the manifest's whole scope, so that a missing record is seen, and selects the job's part of it.

    Raises `PeerError` pacs-… when the archive fails or contradicts itself.
    """
    listing, seen = Listing(), set[str]()
    lines: list[bytes] = []
    for answer in _answers(archive, manifest).values():
        listing.answered += 1
        record = _record(answer, key, records) if manifest.admits(*_bounds(answer)) else None
        if record is None:
            inside = manifest.admits(*_bounds(answer))
            listing.ignored += inside
            listing.outside += not inside
            listing.crowded.add(value_of(answer, "0020000E"))
            continue
        seen.add(record.record)
        listing.changed += not _same_patient(answer, key, record)
        if intent.admits(*_bounds(answer)):
            place = Place(*(value_of(answer, tag) for tag in ("0020000D", "0020000E", "00080018", "00080016")))
            listing.places[record.record] = place
            listing.patients.add(record.patient)
            lines.append(_line(record, place, key))
        else:
            listing.crowded.add(value_of(answer, "0020000E"))
    listing.missing = len(records) - len(seen)
    listing.results = merkle_root(sorted(lines))
    return listing


def query_digest(manifest: Scope, intent: Scope) -> str:
    """Digest of what is sent, and of what is selected from the answers."""
    return digest_of({"sent": list(manifest.queries()), "selected": list(intent.queries()), "fields": list(FIELDS)})


def _answers(archive: Archive, scope: Scope) -> dict[str, Answer]:
    found: dict[str, Answer] = {}
    for filters in scope.queries():
        for answer in archive.list_instances(filters, FIELDS):
            uid = value_of(answer, "00080018")
            if uid in found and any(value_of(found[uid], tag) != value_of(answer, tag) for tag in FIELDS):
                raise PeerError("pacs-set-changed", "the archive answers two queries about one instance differently", peer="pacs")
            found[uid] = answer
    return found


def _bounds(answer: Answer) -> tuple[str, str, str]:
    return value_of(answer, "00080060"), value_of(answer, "00180015"), value_of(answer, "00080020")


def _record(answer: Answer, key: bytes, records: Mapping[str, Record]) -> Record | None:
    try:
        return records.get(pseudonym(key, "record", value_of(answer, "00080018")))
    except Refusal:
        return None  # an instance without a well-formed UID is none of the manifest's


def _same_patient(answer: Answer, key: bytes, record: Record) -> bool:
    try:
        return pseudonym(key, "patient", value_of(answer, "00100020")) == record.patient
    except Refusal:
        return False


def _line(record: Record, place: Place, key: bytes) -> bytes:
    try:
        return f"{record.record} {record.patient} {pseudonym(key, 'study', place.study)}".encode()
    except Refusal:
        raise PeerError("pacs-answer-odd", "the archive lists an instance without a study", peer="pacs") from None
