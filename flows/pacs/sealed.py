"""A study fetched by hand as the reading service fetches it: sealed as it arrives, whole by the archive's list.

The study reader (C-GET, WADO-RS) or the receiver (C-MOVE) writes it; it is kept aside for as long as this process lives.
"""

import secrets
from dataclasses import dataclass, field, replace

from blocks.audit import Patient, Study, audited
from blocks.kept import KeptFiles, of_this_process
from blocks.receiver import Arrived, Receiver
from blocks.study import StudyReader
from blocks.witnessed import WitnessedArchive, inward, sop_classes
from rapha.errors import PeerError, Refusal
from tasks.attempt import Attempt
from tasks.reading.retrieve import brought


@dataclass
class SealedStudy:
    """files: SOP Instance UID -> what arrived; note: the name under which they are kept aside."""

    study: str
    patient: Patient | None
    method: str
    kept: KeptFiles = field(repr=False)
    note: str = field(default_factory=lambda: f"{of_this_process()}-{secrets.token_hex(4)}")
    files: dict[str, Arrived] = field(default_factory=dict, repr=False)

    @property
    def size(self) -> int:
        return sum(one.size for one in self.files.values())

    def drop(self) -> None:
        """Removes the sealed files: with each goes the only copy of its key."""
        self.kept.forget(self.note)
        self.files = {}


def fetch(
    archive: WitnessedArchive,
    study: str,
    patient: Patient | None,
    reader: StudyReader,
    receiver: Receiver | None,
    attempt: Attempt,
    kept: KeptFiles,
) -> SealedStudy:
    """Every instance that the archive lists. Raises `PeerError` archive-incomplete, receiver-missing and of archive and reader;
    `Refusal(arrival-conflict)` where an instance came with two contents."""
    plain = archive.plain
    listed = archive.list_study(study)
    wanted = {one.sop_uid for one in listed}
    if not wanted:
        raise Refusal(["study-not-found"], "the archive lists no instance of this study", gate="pacs")
    about = Study(study, sop_classes=sop_classes([one.sop_class for one in listed]))
    with audited(archive.trail, "transfer", inward(archive.endpoint, archive.person, about, patient=patient)):
        arrived = brought(study, attempt, plain, reader, receiver, listed)
        _check(wanted, arrived)  # what is not kept aside goes with the connection that brought it
        found = SealedStudy(study, patient, plain.method, kept)
        places = kept.keep(found.note, {}, [one.path for one in arrived])
        found.files = {one.sop_uid: replace(one, path=place) for one, place in zip(arrived, places, strict=True)}
        return found


def _check(wanted: set[str], arrived: list[Arrived]) -> None:
    if any(one.conflict for one in arrived):
        raise Refusal(["arrival-conflict"], "an instance came with two contents", gate="arrival")
    came = {one.sop_uid for one in arrived}
    if came != wanted:
        raise PeerError("archive-incomplete", f"{len(wanted & came)} of {len(wanted)} listed instances came", peer="pacs")
