"""The records of a scope, as the archive holds them now: what a custodian's manifest is made of, and what a person retrieves."""

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from blocks.archive import Archive, Listed
from blocks.instances import SealedReader
from blocks.pacs import Answer, DicomWeb, value_of
from blocks.part10 import ContentDigest
from blocks.receiver import Arrived, Receiver
from policies.minimise import pseudonym
from policies.movement import Level
from policies.records import Record
from policies.scope import Scope
from rapha.errors import PeerError, Refusal
from tasks.shared.moving import by_move, until_delivered

FIELDS = ("00080018", "0020000D", "0020000E", "00100020", "00080060", "00080020", "00180015")
Progress = Callable[[int, int], None]
_BLOCK = 1 << 20
log = logging.getLogger("rapha.collect")


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


def wanted_of(listed: Sequence[Listed], series: str | None, instance: str | None) -> list[Listed]:
    """Those of a study's instances that were asked for. Raises `Refusal` study-, series- or instance-not-found for none."""
    of_series = [one for one in listed if series in (None, one.series_uid)]
    wanted = [one for one in of_series if instance in (None, one.sop_uid)]
    if not wanted:
        what = "instance" if of_series else "series" if listed else "study"
        raise Refusal([f"{what}-not-found"], f"the archive lists no such {what}", gate="pacs")
    return wanted


def save_by_get(archive: Archive, study: str, series: str | None, instance: str | None, folder: Path) -> tuple[int, int]:
    """The same by C-GET. Raises `PeerError(pacs-incomplete)` when fewer came than the archive lists, and as `wanted_of`."""
    wanted = wanted_of(archive.list_study(study), series, instance)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    sizes: dict[str, int] = {}

    def keep(_sop_class: str, sop_uid: str, blocks: Iterable[bytes]) -> None:
        if sop_uid not in sizes:
            sizes[sop_uid] = _save(folder, len(sizes) + 1, blocks)

    archive.get(study, wanted, keep)
    if {one.sop_uid for one in wanted} != set(sizes):
        raise _incomplete(len(sizes), len(wanted))
    return len(sizes), sum(sizes.values())


def save_by_move(
    archive: Archive, receiver: Receiver, study: str, series: str | None, instance: str | None, folder: Path
) -> tuple[int, int]:
    """The same by C-MOVE to the node's receiver, which seals what comes to a key that only this call has, and then lets go of it.

    Raises `PeerError` pacs-incomplete, receiver-…, that of an association which broke; `Refusal` arrival-conflict, sealed-…, and
    as `wanted_of`.
    """
    wanted = wanted_of(archive.list_study(study), series, instance)
    names, key = {one.sop_uid for one in wanted}, X25519PrivateKey.generate()
    number = receiver.message_id()
    ticket = receiver.expect(archive.endpoint.calling_ae_title, number, sorted(names), seal_to=key.public_key())
    level: Level = "IMAGE" if instance else "SERIES" if series else "STUDY"
    try:
        delivered = partial(_delivered, receiver, ticket)
        failed = until_delivered(by_move(archive, study, number), delivered, wanted, level, _hinted)
        if failed is not None:
            raise failed.error or _incomplete(len(names & delivered()), len(names))
        arrived = [one for one in receiver.arrived(ticket) if one.sop_uid in names]
        if any(one.conflict for one in arrived):
            raise Refusal(["arrival-conflict"], "an instance came with two contents", gate="arrival")
        return len(arrived), _opened(arrived, key, folder)
    finally:
        receiver.forgo(ticket)


def _delivered(receiver: Receiver, ticket: str) -> set[str]:
    return {one.sop_uid for one in receiver.arrived(ticket)}


def _hinted(turn: int, codes: tuple[str, ...]) -> None:
    log.warning("round %d: %s", turn, ", ".join(codes))


def _opened(arrived: Sequence[Arrived], key: X25519PrivateKey, folder: Path) -> int:
    """Writes what came, in clear; its bytes."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    size = 0
    for number, one in enumerate(arrived, 1):
        with SealedReader(one.path, key) as stream:
            size += _save(folder, number, iter(partial(stream.read, _BLOCK), b""))
    return size


def _incomplete(came: int, wanted: int) -> PeerError:
    return PeerError("pacs-incomplete", f"{came} of {wanted} listed instances came", peer="pacs")


def _save(folder: Path, number: int, blocks: Iterable[bytes]) -> int:
    path, half = folder / f"{number:06d}.dcm", folder / f".{number:06d}.half"
    try:
        with os.fdopen(os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as stream:
            size = sum(stream.write(block) for block in blocks)
        half.rename(path)
    except OSError as error:
        raise PeerError("folder-unwritable", f"a file cannot be kept: {error.strerror}", peer="disk") from None
    finally:
        half.unlink(missing_ok=True)
    return size
