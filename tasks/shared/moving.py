"""A retrieval, again and closer until everything wanted is there: what sets say decides (`policies.movement`).

Both flows retrieve by this: by C-MOVE to the receiver, by C-GET on our own association, by WADO-RS.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from blocks.archive import Archive, Listed, Sink
from blocks.dimse.services import BROKEN_OFF, MOST_UIDS, MoveOutcome
from policies.movement import MOST_IN_VAIN, UNABLE, Level, closer, hints, in_vain, next_step
from rapha.errors import PeerError

WEB_BROKEN_OFF = ("pacs-retrieve", "pacs-truncated", "pacs-slow")
SILENT = ("dimse-timeout", "dimse-slow", "pacs-retrieve", "pacs-slow")
MOST_SILENT = 2  # requests in a row that the archive let time out, before a round is over
Delivered = Callable[[], AbstractSet[str]]
Told = Callable[[int, tuple[str, ...]], None]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a request or a round ended: the worst status, None with the error where an association broke; counts where all gave
    them. counted: whether the counts are of what was asked for."""

    status: int | None
    completed: int | None
    failed: int | None
    error: PeerError | None = None
    counted: bool = True


# One request: of the study, of the series that the instances are of, or of these instances, all of one series.
Ask = Callable[[Level, Sequence[Listed]], Ended]


def until_delivered(
    ask: Ask, delivered: Delivered, wanted: Sequence[Listed], level: Level, told: Told, *, at_once: int = MOST_UIDS
) -> Ended | None:
    """Asks in rounds, at `level` first; None once every wanted instance is delivered, else how the last round ended.

    delivered: SOP instances that are here now, from an earlier try too: none of them is asked for again; told(round, codes):
    hears what the archive said that is not so; at_once: how many instances one request may name.
    """
    names = {one.sop_uid for one in wanted}
    asking, rounds, tries, here = _Asking(ask, delivered, wanted, at_once), 0, 0, names & delivered()
    if names <= here:
        return None
    if here and level == "STUDY":
        level = closer(level)
    while True:
        rounds, tries = rounds + 1, tries + 1
        ended, came = asking.round(level, here), names & delivered()
        asked, new = len(names - here), len(came - here)
        if codes := hints(ended.status, ended.completed, ended.failed, asked, new, counted=ended.counted):
            told(rounds, codes)
        step = next_step(ended.status, names, came, before=here, rounds=rounds, level=level, tries=tries)
        if step in ("done", "failed"):
            return ended if step == "failed" else None
        if step != "retry":
            level, tries = closer(level), 0
        here = came


class _Asking:
    """The requests of one retrieval, and what is known of the archive by them."""

    def __init__(self, ask: Ask, delivered: Delivered, wanted: Sequence[Listed], at_once: int) -> None:
        self._ask, self._delivered, self._wanted, self._at_once = ask, delivered, wanted, at_once
        self._whole = set[str]()  # series that were asked for as such, and answered
        self._sends_instances = False
        self._silent = self._in_vain = 0

    def round(self, level: Level, here: AbstractSet[str]) -> Ended:
        """Every series of which something is not `here`: as a whole, or where some of it is here, by what is missing."""
        left = [one for one in self._wanted if one.sop_uid not in here]
        if level == "STUDY":
            return self._ask(level, left)
        self._silent = self._in_vain = 0
        begun = {one.series_uid for one in self._wanted if one.sop_uid in here}
        found: list[Ended] = []
        for series in sorted({one.series_uid for one in left}):
            missing = [one for one in left if one.series_uid == series]
            found += self._instances(missing) if level == "IMAGE" or series in begun else [self._series(series)]
            if self._silent >= MOST_SILENT:
                break
        return _worst(found)

    def _series(self, series: str) -> Ended:
        ended = self._one("SERIES", [one for one in self._wanted if one.series_uid == series])
        if ended.status is not None:
            self._whole.add(series)
        return ended

    def _instances(self, missing: Sequence[Listed]) -> list[Ended]:
        found = list(self._portions(missing))
        (series,) = {one.series_uid for one in missing}
        if self._in_vain and not self._sends_instances and series not in self._whole:
            # It sends no instances by name, or not these: what the series as such gives is all that there is.
            again = self._series(series)
            found.append(Ended(again.status, again.completed, again.failed, again.error, counted=False))
        return found

    def _portions(self, missing: Sequence[Listed]) -> Iterator[Ended]:
        """As many at once as a request may name; one that brings nothing is made again in halves."""
        waiting = [missing[at : at + self._at_once] for at in range(0, len(missing), self._at_once)]
        while waiting and self._silent < MOST_SILENT and self._in_vain < MOST_IN_VAIN:
            portion = waiting.pop(0)
            ended = self._one("IMAGE", portion)
            yield ended
            blamed, came = _blamed(ended), self._sends_instances
            if blamed or not came:
                came = bool({one.sop_uid for one in portion} & self._delivered())
            self._sends_instances |= came
            if came or not blamed:
                self._in_vain = 0
                continue
            self._in_vain += 1
            half = len(portion) // 2
            waiting[:0] = [portion[:half], portion[half:]] if half else []

    def _one(self, level: Level, some: Sequence[Listed]) -> Ended:
        ended = self._ask(level, some)
        self._silent = self._silent + 1 if ended.error is not None and ended.error.codes[0] in SILENT else 0
        return ended


def by_move(archive: Archive, study: str, number: int) -> Ask:
    """C-MOVE with this message id. Raises where nothing stood."""

    def ask(level: Level, some: Sequence[Listed]) -> Ended:
        series = None if level == "STUDY" else some[0].series_uid
        uids = [one.sop_uid for one in some] if level == "IMAGE" else []
        return ended(lambda: archive.move(study, message_id=number, series=series, instances=uids))

    return ask


def by_get(archive: Archive, study: str, sink: Sink) -> Ask:
    """C-GET or WADO-RS of a series, or of some of its instances."""

    def ask(level: Level, some: Sequence[Listed]) -> Ended:
        get = archive.get if level == "IMAGE" else archive.get_series
        return ended(lambda: get(study, some, sink))

    return ask


def ended(retrieve: Callable[[], MoveOutcome | None]) -> Ended:
    """The outcome of one request. Raises `PeerError` where no association stood, or something else than it failed."""
    try:
        outcome = retrieve()
    except PeerError as error:
        if error.codes[0] == "pacs-status":  # an answer of HTTP that is no success: the archive was unable to
            return Ended(UNABLE, None, None, error, counted=False)
        if error.codes[0] not in (*BROKEN_OFF, *WEB_BROKEN_OFF):
            raise
        return Ended(None, None, None, error)
    return Ended(outcome.status, outcome.completed, outcome.failed) if outcome else Ended(0, None, None, counted=False)


def _blamed(ended: Ended) -> bool:
    """Whether the instances that were named may be why nothing came, and not who was asked."""
    if ended.status is not None:
        return in_vain(ended.status, ended.completed)
    return ended.error is not None and ended.error.codes[0] not in SILENT


def _worst(parts: Sequence[Ended]) -> Ended:
    statuses = [one.status for one in parts]
    return Ended(
        None if None in statuses else max(status or 0 for status in statuses),
        _sum(one.completed for one in parts),
        _sum(one.failed for one in parts),
        next((one.error for one in parts if one.error), None),
        all(one.counted for one in parts),
    )


def _sum(counts: Iterable[int | None]) -> int | None:
    given = list(counts)
    return None if None in given else sum(count or 0 for count in given)
