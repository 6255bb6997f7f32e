"""The records of a scope, as the archive holds them now: what a custodian's manifest is made of, and what a person retrieves."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from blocks.archive import Archive
from blocks.pacs import Answer, DicomWeb, value_of
from blocks.part10 import ContentDigest
from policies.minimise import pseudonym
from policies.records import Record
from policies.scope import Scope
from rapha.errors import PeerError

FIELDS = ("00080018", "0020000D", "0020000E", "00100020", "00080060", "00080020", "00180015")
Progress = Callable[[int, int], None]


def collect_records(
    archive: DicomWeb, scope: Scope, key: bytes, labels: Mapping[str, int], *, progress: Progress | None = None
) -> list[Record]:
    """One record for each instance within `scope`, hashed as it streams past; nothing is kept.

    key: the project's (`policies.minimise.project_key`); labels: SOP Instance UID -> class. Raises `PeerError` pacs-… when the
    archive fails, sends other instances than it listed, or sends one twice; `Refusal` identifier-… for a record without a name.
    """
    listed = list_scope(archive, scope)
    records: dict[str, Record] = {}
    for study in sorted({value_of(answer, "0020000D") for answer in listed.values()}):
        for uid, content in _contents(archive, study).items():
            if uid in listed and uid not in records:
                patient = pseudonym(key, "patient", value_of(listed[uid], "00100020"))
                records[uid] = Record(pseudonym(key, "record", uid), patient, content, labels.get(uid))
        if progress:
            progress(len(records), len(listed))
    if len(records) != len(listed):
        raise PeerError("pacs-incomplete", "the archive did not send every instance that it listed", peer="pacs")
    return list(records.values())


def list_scope(archive: DicomWeb, scope: Scope) -> dict[str, Answer]:
    """SOP Instance UID -> answer, of every instance within `scope`. What the archive answers beyond it is left out."""
    found: dict[str, Answer] = {}
    for query in scope.queries():
        for answer in archive.list_instances(query, FIELDS):
            bounds = (value_of(answer, "00080060"), value_of(answer, "00180015"), value_of(answer, "00080020"))
            if scope.admits(*bounds):
                found[value_of(answer, "00080018")] = answer
    return found


def _contents(archive: DicomWeb, study: str) -> dict[str, str]:
    """SOP Instance UID -> content digest, of a whole study."""
    found: dict[str, str] = {}
    with archive.retrieve(study) as parts:
        for part in parts:
            content = ContentDigest()
            for block in part.body:
                content.feed(block)
            digest, meta = content.digest(), content.meta
            if meta is None or meta.sop_instance in found:
                raise PeerError("pacs-instance-twice", "the archive sent an instance twice", peer="pacs")
            found[meta.sop_instance] = digest
    return found


def save_instances(archive: DicomWeb, study: str, series: str | None, instance: str | None, folder: Path) -> tuple[int, int]:
    """Writes what the archive sends to folder/000001.dcm and so on, as it is stored: (files, bytes).

    A file's name says nothing of what is in it. A retrieval that breaks off leaves no half file; files that are there already
    are not touched, `PeerError` pacs-… says what failed.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    count = size = 0
    with archive.retrieve(study, series, instance) as parts:
        for part in parts:
            count += 1
            size += _save(folder, count, part.body)
    return count, size


def save_by_get(archive: Archive, study: str, series: str | None, instance: str | None, folder: Path) -> tuple[int, int]:
    """The same by C-GET. Raises `PeerError(pacs-incomplete)` when fewer came than the archive lists."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    sizes: dict[str, int] = {}

    def keep(_sop_class: str, sop_uid: str, blocks: Iterable[bytes]) -> None:
        if sop_uid not in sizes:
            sizes[sop_uid] = _save(folder, len(sizes) + 1, blocks)

    listed = archive.list_study(study)
    wanted = [one for one in listed if series in (None, one.series_uid) and instance in (None, one.sop_uid)]
    archive.get(study, wanted, keep)
    if {one.sop_uid for one in wanted} != set(sizes):
        raise PeerError("pacs-incomplete", f"{len(sizes)} of {len(wanted)} listed instances came", peer="pacs")
    return len(sizes), sum(sizes.values())


def _save(folder: Path, number: int, blocks: Iterable[bytes]) -> int:
    path, half = folder / f"{number:06d}.dcm", folder / f".{number:06d}.half"
    try:
        with half.open("wb") as stream:
            size = sum(stream.write(block) for block in blocks)
        half.rename(path)
    finally:
        half.unlink(missing_ok=True)
    return size
