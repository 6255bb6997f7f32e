"""Stage retrieve: every instance that the archive lists, sealed on disk, and the list the same before and after.

    list -> expect(before) -> fetch what is not here yet -> list again -> expect(after) -> arrival gate

By C-GET or WADO-RS the study reader fetches; by C-MOVE the archive sends to the receiver, and sets decide what that came to
(`policies.movement`). A list that changed meanwhile, or an instance that did not come, is a failed peer: it is tried again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blocks.archive import Archive, Listed
from blocks.dimse.services import BROKEN_OFF, MoveOutcome
from blocks.reading import ExpectedInstance, ReadingRegister, StudyLease
from blocks.receiver import Arrived, Receiver
from blocks.study import StudyReader
from policies.completeness import ARRIVAL_GATE, ArrivalEvidence, arrival_facts
from policies.movement import hints, next_step
from rapha.errors import PeerError
from tasks.attempt import Attempt
from tasks.gate import Cleared, require

KINDS_OF_OTHERS = ("SR", "PR", "KO")


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
    before = archive.list_study(lease.study_uid)
    register.expect(lease, _expected(before), "before")
    kept, conflicts = _fetched(lease, attempt, archive, study, receiver, before)
    register.received(lease, [(one.sop_uid, one.sha256) for one in kept.values()])
    after = archive.list_study(lease.study_uid)
    register.expect(lease, _expected(after), "after")
    was, now = {one.sop_uid for one in before}, {one.sop_uid for one in after}
    if was != now:
        raise PeerError("archive-set-changed", "the archive's list of the study changed during the retrieval", peer="pacs")
    if missing := now - set(kept):
        raise PeerError("archive-incomplete", f"{len(missing)} of {len(now)} listed instances did not arrive", peer="pacs")
    names = {one.sop_uid: one.name for one in register.instances(lease.row)}
    received = {names[uid]: one.sha256 for uid, one in kept.items() if uid in now}
    facts: Mapping[str, Any] = arrival_facts([names[uid] for uid in was], [names[uid] for uid in now], received, conflicts)
    evidence = ArrivalEvidence(**attempt.facts(attempt.job), **facts)
    return require(ARRIVAL_GATE, evidence, attempt), {uid: one for uid, one in kept.items() if uid in now}


def _expected(listed: Sequence[Listed]) -> list[ExpectedInstance]:
    return [ExpectedInstance(sop_uid=one.sop_uid, sop_class=one.sop_class, series_uid=one.series_uid) for one in listed]


def _fetched(
    lease: StudyLease,
    attempt: Attempt,
    archive: Archive,
    study: StudyReader,
    receiver: Receiver | None,
    wanted: Sequence[Listed],
) -> tuple[dict[str, Kept], int]:
    """(what arrived, how many of it came with two contents)."""
    if archive.method == "C-MOVE":
        arrived = moved(lease.study_uid, attempt, archive, receiver, wanted)
    else:
        arrived = study.fetch(lease.pacs, lease.study_uid, wanted) if wanted else []
    kept = {one.sop_uid: Kept(one.sop_uid, one.path, one.sha256) for one in arrived if not one.conflict}
    return kept, sum(one.conflict for one in arrived)


def moved(study: str, attempt: Attempt, archive: Archive, receiver: Receiver | None, wanted: Sequence[Listed]) -> list[Arrived]:
    """C-MOVE, again and closer, until every wanted instance is with the receiver; what came, claimed.

    Raises `PeerError` archive-incomplete, or that of an association which broke. What the archive says that is not so is a
    ledger entry `movement`, with its codes.
    """
    if receiver is None:
        raise PeerError("receiver-missing", "retrieval is by C-MOVE, and no receiver is configured", peer="receiver")
    number, names = receiver.message_id(), {one.sop_uid for one in wanted}
    ticket = receiver.expect(archive.endpoint.calling_ae_title, number, sorted(names))
    try:
        arrived = _rounds(study, attempt, archive, receiver, ticket, number, wanted)
    except BaseException:
        receiver.forgo(ticket)
        raise
    receiver.claim(ticket)
    return [one for one in arrived if one.sop_uid in names]


def _rounds(
    study: str, attempt: Attempt, archive: Archive, receiver: Receiver, ticket: str, number: int, wanted: Sequence[Listed]
) -> list[Arrived]:
    names = {one.sop_uid for one in wanted}
    level, rounds, before = "STUDY", 0, {one.sop_uid for one in receiver.arrived(ticket)} & names
    while True:
        rounds += 1
        ended = _round(study, archive, number, level, [one for one in wanted if one.sop_uid not in before])
        arrived = receiver.arrived(ticket)
        delivered = {one.sop_uid for one in arrived} & names
        came = len(delivered) if level == "STUDY" else len(delivered - before)
        asked = len(names) if level == "STUDY" else len(names - before)
        if codes := hints(ended.status, ended.completed, ended.failed, asked, came):
            attempt.record("movement", round=rounds, codes=list(codes))
        step = next_step(ended.status, names, delivered, before=before, rounds=rounds, level=level)
        if step == "done":
            return arrived
        if step == "failed":
            said = f"{len(names - delivered)} of {len(names)} instances did not come"
            raise ended.error or PeerError("archive-incomplete", said, peer="pacs")
        level = level if step == "retry" else "IMAGE"
        before = delivered


@dataclass(frozen=True, slots=True)
class _Ended:
    """How a round ended: the worst status, None with the error where an association broke; counts where all gave them."""

    status: int | None
    completed: int | None
    failed: int | None
    error: PeerError | None = None


def _round(study: str, archive: Archive, number: int, level: str, left: Sequence[Listed]) -> _Ended:
    """One C-MOVE of the whole study, or one a series for what is missing. Raises `PeerError` where no association stood."""
    if level == "STUDY":
        return _ended(lambda: archive.move(study, message_id=number))
    parts: list[_Ended] = []
    for series in sorted({one.series_uid for one in left}):
        uids = [one.sop_uid for one in left if one.series_uid == series]
        parts.append(_ended(lambda s=series, u=uids: archive.move(study, message_id=number, series=s, instances=u)))  # type: ignore[misc]
    return _worst(parts)


def _ended(move: Callable[[], MoveOutcome]) -> _Ended:
    try:
        outcome = move()
    except PeerError as error:
        if error.codes[0] not in BROKEN_OFF:
            raise
        return _Ended(None, None, None, error)
    return _Ended(outcome.status, outcome.completed, outcome.failed)


def _worst(parts: Sequence[_Ended]) -> _Ended:
    completed, failed = [one.completed for one in parts], [one.failed for one in parts]
    statuses = [one.status for one in parts]
    return _Ended(
        None if None in statuses else max(status or 0 for status in statuses),
        None if None in completed else sum(count or 0 for count in completed),
        None if None in failed else sum(count or 0 for count in failed),
        next((one.error for one in parts if one.error), None),
    )
