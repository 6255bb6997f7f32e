"""Stage retrieve: every instance that the archive lists, sealed on disk, and the list the same before and after.

    list -> expect(before) -> fetch what is not here yet -> list again -> expect(after) -> arrival gate

By C-GET or WADO-RS the study reader fetches, by C-MOVE the archive sends to the receiver; sets decide what that came to
(`policies.movement`). A list that changed meanwhile, or an instance that did not come, is a failed peer: it is tried again, for
what is missing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from blocks.archive import Archive, Listed
from blocks.reading import ExpectedInstance, ReadingRegister, StudyLease
from blocks.receiver import Arrived, Receiver
from blocks.study import StudyReader
from policies.completeness import ARRIVAL_GATE, ArrivalEvidence, arrival_facts
from policies.movement import Level
from rapha.errors import PeerError
from tasks.attempt import Attempt
from tasks.gate import Cleared, require
from tasks.shared.moving import Ended, Told, by_move, until_delivered

MOST_NAMED = 20  # missing instances in one entry of the ledger


@dataclass(frozen=True, slots=True)
class Kept:
    """One sealed instance: its clear UID (in memory), the sealed file, SHA-256 of its data set."""

    sop_uid: str
    path: Path
    sha256: str


def retrieve(
    lease: StudyLease,
    attempt: Attempt,
    register: ReadingRegister,
    archive: Archive,
    study: StudyReader,
    receiver: Receiver | None,
) -> tuple[Cleared[ArrivalEvidence], dict[str, Kept]]:
    """The arrival verdict, and what was kept, by SOP Instance UID.

    Raises `PeerError` archive-set-changed, archive-incomplete, receiver-missing and every code of archive, receiver and reader.
    """
    before, level = _listed(lease, register, archive)
    register.expect(lease, _expected(before), "before")
    arrived = _fetched(lease, attempt, register, archive, study, receiver, before, level)
    register.received(lease, [(one.sop_uid, one.sha256) for one in arrived])
    kept = {one.sop_uid: Kept(one.sop_uid, one.path, one.sha256) for one in arrived if not one.conflict}
    conflicts = len({(one.sop_uid, one.sha256) for one in arrived}) - len({one.sop_uid for one in arrived})
    cleared = _judged(lease, attempt, register, archive, {one.sop_uid for one in before}, kept, conflicts)
    return cleared, kept


def still(
    lease: StudyLease, attempt: Attempt, register: ReadingRegister, archive: Archive, kept: Mapping[str, Kept]
) -> Cleared[ArrivalEvidence] | None:
    """The arrival verdict over what an earlier attempt kept; None where the archive lists other instances by now.

    Raises `PeerError` archive-set-changed and of the archive; `Refusal` arrival-….
    """
    before, _ = _listed(lease, register, archive)
    if {one.sop_uid for one in before} != set(kept):
        return None
    register.expect(lease, _expected(before), "before")
    return _judged(lease, attempt, register, archive, set(kept), kept, 0)


def _judged(
    lease: StudyLease,
    attempt: Attempt,
    register: ReadingRegister,
    archive: Archive,
    was: set[str],
    kept: Mapping[str, Kept],
    conflicts: int,
) -> Cleared[ArrivalEvidence]:
    """Lists again, and lets the arrival gate judge."""
    after, _ = _listed(lease, register, archive)
    register.expect(lease, _expected(after), "after")
    now = {one.sop_uid for one in after}
    if was != now:
        raise PeerError("archive-set-changed", "the archive's list of the study changed during the retrieval", peer="pacs")
    if missing := now - set(kept):
        raise PeerError("archive-incomplete", f"{len(missing)} of {len(now)} listed instances did not arrive", peer="pacs")
    names = {one.sop_uid: one.name for one in register.instances(lease.row)}
    received = {names[uid]: one.sha256 for uid, one in kept.items()}
    facts: Mapping[str, Any] = arrival_facts([names[uid] for uid in was], [names[uid] for uid in now], received, conflicts)
    return require(ARRIVAL_GATE, ArrivalEvidence(**attempt.facts(attempt.job), **facts), attempt)


def _listed(lease: StudyLease, register: ReadingRegister, archive: Archive) -> tuple[list[Listed], Level]:
    """(what is to be read, the level to ask for it at): all that the archive lists but our own reports, which an earlier attempt
    may have stored already. Where there are any it is asked for series by series, so that they do not come with the study."""
    listed = archive.list_study(lease.study_uid)
    own = register.own_among({one.series_uid for one in listed})
    return [one for one in listed if one.series_uid not in own], ("SERIES" if own else "STUDY")


def _expected(listed: Sequence[Listed]) -> list[ExpectedInstance]:
    return [ExpectedInstance(sop_uid=one.sop_uid, sop_class=one.sop_class, series_uid=one.series_uid) for one in listed]


def _fetched(
    lease: StudyLease,
    attempt: Attempt,
    register: ReadingRegister,
    archive: Archive,
    study: StudyReader,
    receiver: Receiver | None,
    wanted: Sequence[Listed],
    level: Level,
) -> list[Arrived]:
    """What arrived of what the archive lists."""
    names = {one.sop_uid: one.name for one in register.instances(lease.row)}
    return brought(lease.study_uid, attempt, archive, study, receiver, wanted, level, names) if wanted else []


def asked_for(arrived: Sequence[Arrived], wanted: Sequence[Listed], attempt: Attempt) -> list[Arrived]:
    """Those that the archive lists. It may send more, a whole series where it was asked for one instance: that is not read, and
    how many they were is a ledger entry `movement`. Their sealed files go with the connection that brought them."""
    names = {one.sop_uid for one in wanted}
    found = [one for one in arrived if one.sop_uid in names]
    if unlisted := len(arrived) - len(found):
        attempt.record("movement", codes=["arrived-unlisted"], instances=unlisted)
    return found


def brought(
    study: str,
    attempt: Attempt,
    archive: Archive,
    reader: StudyReader,
    receiver: Receiver | None,
    wanted: Sequence[Listed],
    level: Level = "STUDY",
    names: Mapping[str, str] = MappingProxyType({}),
) -> list[Arrived]:
    """Every wanted instance of a study, sealed: by C-MOVE, C-GET or WADO-RS, again and closer until all are here.

    names: the register's, by SOP Instance UID. Raises `PeerError` archive-incomplete, or that of an association which broke.
    What the archive says that is not so is a ledger entry `movement`, with its codes; what did not come one `missing`, with how
    much of it there is and the first names. What came stays for the next try.
    """
    if archive.method == "C-MOVE":
        return moved(study, attempt, archive, receiver, wanted, level, names)
    return fetched(study, attempt, archive, reader, wanted, names)


def moved(
    study: str,
    attempt: Attempt,
    archive: Archive,
    receiver: Receiver | None,
    wanted: Sequence[Listed],
    level: Level = "STUDY",
    names: Mapping[str, str] = MappingProxyType({}),
) -> list[Arrived]:
    """The same by C-MOVE: with the receiver, and claimed."""
    if receiver is None:
        raise PeerError("receiver-missing", "retrieval is by C-MOVE, and no receiver is configured", peer="receiver")
    number = receiver.message_id()
    ticket = receiver.expect(archive.endpoint.calling_ae_title, number, sorted(one.sop_uid for one in wanted))

    def delivered() -> set[str]:
        return {one.sop_uid for one in receiver.arrived(ticket)}

    try:
        failed = until_delivered(by_move(archive, study, number), delivered, wanted, level, _told(attempt))
        arrived = _came(failed, attempt, wanted, receiver.arrived(ticket), names)
    except BaseException:
        receiver.forgo(ticket)
        raise
    receiver.claim(ticket)
    return arrived


def fetched(
    study: str,
    attempt: Attempt,
    archive: Archive,
    reader: StudyReader,
    wanted: Sequence[Listed],
    names: Mapping[str, str] = MappingProxyType({}),
) -> list[Arrived]:
    """The same by C-GET or WADO-RS: with the study reader, for as long as its connection.

    By series first, but where the archive does not say of which class an instance is: C-GET cannot offer what a series needs.
    """
    by_series = archive.method == "WADO-RS" or all(one.sop_class for one in wanted)

    def ask(level: Level, some: Sequence[Listed]) -> Ended:
        said = reader.fetch(archive.endpoint.name, study, level, some)
        error = PeerError(said.error, "the archive broke off a retrieval", peer="pacs") if said.error else None
        return Ended(said.status, said.completed, said.failed, error, said.counted)

    def delivered() -> set[str]:
        return {one.sop_uid for one in reader.fetched(archive.endpoint.name, study)}

    level: Level = "SERIES" if by_series else "IMAGE"
    failed = until_delivered(ask, delivered, wanted, level, _told(attempt))
    return _came(failed, attempt, wanted, reader.fetched(archive.endpoint.name, study), names)


def _told(attempt: Attempt) -> Told:
    return lambda turn, codes: attempt.record("movement", round=turn, codes=list(codes))


def _came(
    failed: Ended | None, attempt: Attempt, wanted: Sequence[Listed], arrived: Sequence[Arrived], names: Mapping[str, str]
) -> list[Arrived]:
    """What arrived of the wanted. Where that is not all of it, raises the error with which the archive broke off or refused
    everything, else archive-incomplete."""
    uids = {one.sop_uid for one in wanted}
    came = asked_for(arrived, wanted, attempt)
    if failed is None:
        return came
    missing = uids - {one.sop_uid for one in came}
    attempt.record("missing", count=len(missing), of=len(uids), names=sorted(names.get(uid, "") for uid in missing)[:MOST_NAMED])
    if failed.error is not None and (failed.status is None or not came):
        raise failed.error
    raise PeerError("archive-incomplete", f"{len(missing)} of {len(uids)} listed instances did not come", peer="pacs")
