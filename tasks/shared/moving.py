"""A retrieval over DIMSE, again and closer until everything wanted is there: what sets say decides (`policies.movement`).

Both flows retrieve by this, whether the archive sends to the receiver (C-MOVE) or on our own association (C-GET).
"""

from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Literal

from blocks.archive import Archive, Listed, Sink
from blocks.dimse.services import BROKEN_OFF, MoveOutcome
from policies.movement import hints, next_step
from rapha.errors import PeerError

Level = Literal["STUDY", "SERIES", "IMAGE"]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a round ended: the worst status, None with the error where an association broke; counts where all gave them."""

    status: int | None
    completed: int | None
    failed: int | None
    error: PeerError | None = None


Ask = Callable[[Level, Sequence[Listed]], Ended]
Told = Callable[[int, tuple[str, ...]], None]


def until_delivered(
    ask: Ask, delivered: Callable[[], AbstractSet[str]], wanted: Sequence[Listed], level: Level, told: Told
) -> Ended | None:
    """Asks in rounds, at `level` first; None once every wanted instance is delivered, else how the last round ended.

    delivered: SOP instances that are here now; told(round, codes): hears what the archive said that is not so.
    """
    names = {one.sop_uid for one in wanted}
    rounds, before = 0, names & delivered()
    while True:
        rounds += 1
        whole = level != "IMAGE"
        ended = ask(level, wanted if whole else [one for one in wanted if one.sop_uid not in before])
        came = names & delivered()
        counts = (len(names), len(came)) if whole else (len(names - before), len(came - before))
        if codes := hints(ended.status, ended.completed, ended.failed, *counts):
            told(rounds, codes)
        step = next_step(ended.status, names, came, before=before, rounds=rounds, level=level)
        if step == "done":
            return None
        if step == "failed":
            return ended
        level = level if step == "retry" else "IMAGE"
        before = came


def by_move(archive: Archive, study: str, number: int) -> Ask:
    """C-MOVE with this message id: of the study, of each series, or of what is missing of each. Raises where nothing stood."""

    def ask(level: Level, left: Sequence[Listed]) -> Ended:
        if level == "STUDY":
            return ended(lambda: archive.move(study, message_id=number))
        parts = []
        for series, uids in _by_series(left):
            some = uids if level == "IMAGE" else ()
            parts.append(ended(lambda s=series, u=some: archive.move(study, message_id=number, series=s, instances=u)))  # type: ignore[misc]
        return _worst(parts)

    return ask


def by_get(archive: Archive, study: str, sink: Sink) -> Ask:
    """C-GET of each series, or of what is missing of each."""

    def ask(level: Level, left: Sequence[Listed]) -> Ended:
        get = archive.get if level == "IMAGE" else archive.get_series
        return ended(lambda: get(study, left, sink))

    return ask


def ended(retrieve: Callable[[], MoveOutcome | None]) -> Ended:
    """The outcome of one request. Raises `PeerError` where no association stood, or something else than it failed."""
    try:
        outcome = retrieve()
    except PeerError as error:
        if error.codes[0] not in BROKEN_OFF:
            raise
        return Ended(None, None, None, error)
    return Ended(outcome.status, outcome.completed, outcome.failed) if outcome else Ended(0, None, None)


def _by_series(left: Sequence[Listed]) -> list[tuple[str, list[str]]]:
    return [
        (series, [one.sop_uid for one in left if one.series_uid == series]) for series in sorted({o.series_uid for o in left})
    ]


def _worst(parts: Sequence[Ended]) -> Ended:
    statuses = [one.status for one in parts]
    return Ended(
        None if None in statuses else max(status or 0 for status in statuses),
        _sum(one.completed for one in parts),
        _sum(one.failed for one in parts),
        next((one.error for one in parts if one.error), None),
    )


def _sum(counts: Iterable[int | None]) -> int | None:
    given = list(counts)
    return None if None in given else sum(count or 0 for count in given)
