"""What to ask an archive for, so that no study is missed: windows that overlap, split at its limit; and what counts as changed.

A window's times are whole seconds of the archive's own local clock, counted as if it were UTC; it has both of its ends in it. A
range of StudyDate and one of StudyTime match apart from each other (PS3.4 C.2.2.2.5), so a window is whole days, or in one day. A
watermark is UTC. Where the archive's time zone is not known, a window is as much wider as zones differ from UTC.

A study without a StudyTime (type 2, PS3.3 C.7.2.1) is in no range of times, and no key of C-FIND selects the empty. So a day that
is too full for one answer is asked for by ModalitiesInStudy too: every study with a series has a modality (Modality is type 1,
PS3.3 C.7.3.1) of at most 16 characters of a small repertoire (CS, PS3.5 6.2), and wildcards over that repertoire leave none out.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo

from rapha.errors import Refusal

DAY = 86_400
EASTMOST, WESTMOST = 14 * 3600, 12 * 3600  # how far local time is before and behind UTC, anywhere
FIRST = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_"  # what a CS begins with; a blank may stand further in
FURTHER = FIRST + " "
LONGEST_CS = 16
LEAST_PATIENCE, CLOCK_SKEW = 60, 900  # seconds
NO_MODALITY = "RAPHA_NO_MODALIT"  # as long as any, and nobody's: an archive that matches by modality has no study of it


@dataclass(frozen=True, slots=True)
class Window:
    """first and last second; whole days, or within one."""

    first: int
    last: int

    @property
    def days(self) -> bool:
        return self.first % DAY == 0 and (self.last + 1) % DAY == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PollSettings:
    """How one PACS is polled. Seconds, all but `most`.

    overlap: looked at again behind the watermark; skew: how far its clock may be off ours; first: how far back the first looks;
    most: results at which it may have cut its answer off; smallest: a window that is not split further; zone: of its local clock,
    None where it is not known; relist: a study whose counts are the same is listed again after so long; sweep: how far back the
    daily sweep looks, 0 for none; own_roots: UID roots of series that this node writes; quiet: what is new or
    changed waits for more of it to come.
    """

    pacs: str
    overlap: int = DAY
    skew: int = 900
    first: int = DAY
    most: int = 500
    smallest: int = 60
    zone: tzinfo | None = None
    relist: int = 6 * 3600
    sweep: int = 0
    own_roots: tuple[str, ...] = ()
    priority: str = "medium"
    quiet: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundSeries:
    """One series as the archive lists it; `instances`: how many, `contents`: a digest of their UIDs, where listed."""

    series_uid: str = field(repr=False)
    modality: str = ""
    instances: int | None = None
    contents: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundStudy:
    """One study as a poll finds it. `details`: identifiers that later stages need, kept sealed; `counts`: `study_counts`."""

    study_uid: str = field(repr=False)
    series: tuple[FoundSeries, ...] = field(default=(), repr=False)
    modalities: tuple[str, ...] = ()
    study_date: str = field(default="", repr=False)
    instances: int | None = None
    counts: str = ""
    details: dict[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class PollState:
    """How the polls of a PACS go. Seconds since the epoch.

    since: when it was first looked at here; polled_at, swept_at: when a poll, and a sweep, last came to its end; odd: studies
    without a UID in the last ones; unproven: days of them on which a study without a time may be hidden; swept_from: the first
    second, on the archive's clock, of what sweeps have looked at; sweep_next: no sweep begins before this.
    """

    pacs: str
    since: int
    polled_at: int | None = None
    odd: int = 0
    unproven: int = 0
    swept_at: int | None = None
    swept_from: int | None = None
    sweep_next: int = 0


def poll_window(watermark: int | None, now: int, settings: PollSettings) -> Window:
    """The days to ask for: from behind the watermark to past now, by the clock's allowed error. now: UTC.

    Raises `Refusal` clock-behind-watermark where `now` is earlier than the watermark by more than the skew.
    """
    if watermark is not None and now < watermark - settings.skew:
        said = "the clock is behind the last poll's: set the clock, or `rapha pacs watermark` back"
        raise Refusal(["clock-behind-watermark"], said, gate="poll")
    start = now - settings.first if watermark is None else min(watermark, now) - settings.overlap
    first, last = _earliest(start - settings.skew, settings.zone), _latest(now + settings.skew, settings.zone)
    return Window(first // DAY * DAY, last // DAY * DAY + DAY - 1)


def sweep_window(before: Window, now: int, settings: PollSettings) -> Window | None:
    """The days that the daily sweep looks at: those before the poll's own window. now: UTC. None where there is none."""
    first = _earliest(now - settings.sweep, settings.zone) // DAY * DAY
    return Window(first, before.first - 1) if settings.sweep and first < before.first else None


def _earliest(at: int, zone: tzinfo | None) -> int:
    return at - WESTMOST if zone is None else at + _offset(at, zone)


def _latest(at: int, zone: tzinfo | None) -> int:
    return at + EASTMOST if zone is None else at + _offset(at, zone)


def _offset(at: int, zone: tzinfo) -> int:
    """Local time less UTC at this moment, in seconds: another in summer than in winter."""
    return int((zone.utcoffset(datetime.fromtimestamp(at, UTC).astimezone(zone)) or timedelta()).total_seconds())


def poll_code(state: PollState, now: int, interval: int | None, sweep: int) -> str:
    """The code of what is wrong with an archive's polls, "" where they go well. now, interval, sweep: seconds.

    poll-stale: none came to its end for three intervals (nor for a minute: a run's own start takes seconds), or its time lies
    ahead; poll-sweep-stale: no sweep did for three days; poll-answer-odd: the last of them had a study without a UID;
    poll-unproven: they may have missed one without a time. interval: None where no schedule polls; sweep: 0 where none is to be.
    """
    if interval is not None and _stale(state, state.polled_at, now, max(3 * interval, LEAST_PATIENCE)):
        return "poll-stale"
    if interval is not None and sweep and _stale(state, state.swept_at, now, 3 * DAY):
        return "poll-sweep-stale"
    return "poll-answer-odd" if state.odd else "poll-unproven" if state.unproven else ""


def _stale(state: PollState, last: int | None, now: int, patience: int) -> bool:
    """What never happened is waited for from the time of the first look."""
    return not -CLOCK_SKEW <= now - (state.since if last is None else last) <= patience


def split(window: Window, smallest: int) -> tuple[Window, Window]:
    """Two windows that are this one: by days, then within the day. `Refusal` window-too-dense below `smallest` seconds."""
    length = window.last - window.first + 1
    if length <= max(smallest, 1):
        raise Refusal(["window-too-dense"], "the archive's limit is reached in the smallest window", gate="poll")
    half = length // DAY // 2 * DAY if length > DAY else length // 2
    return Window(window.first, window.first + half - 1), Window(window.first + half, window.last)


def keys_of(window: Window) -> dict[str, str]:
    """The matching keys. The last second counts whole: TM has fractions (PS3.5 6.2)."""
    first, last = datetime.fromtimestamp(window.first, UTC), datetime.fromtimestamp(window.last, UTC)
    if window.days:
        one = first.date() == last.date()
        return {"StudyDate": f"{first:%Y%m%d}" if one else f"{first:%Y%m%d}-{last:%Y%m%d}"}
    return {"StudyDate": f"{first:%Y%m%d}", "StudyTime": f"{first:%H%M%S}-{last:%H%M%S}.999999"}


def wider(pattern: str) -> list[str]:
    """The patterns of CS that together match what `pattern` does, each with less: "" stands for every value there is."""
    stem = pattern.removesuffix("*")
    exact = [stem] if stem else []
    return exact + [f"{stem}{one}*" for one in (FURTHER if stem else FIRST)] if len(stem) < LONGEST_CS else exact


def study_counts(series: str, instances: str) -> str:
    """What an archive counts of a study, to be held against the last time; "" where it does not count both."""
    given = (series, instances)
    return "/".join(given) if all(one.isascii() and one.isdecimal() and len(one) < 10 for one in given) else ""


def is_own(series_uid: str, roots: Iterable[str]) -> bool:
    """Whether a series is this node's by its UID. A description or manufacturer decides nothing: anybody may write one."""
    return any(series_uid.startswith(root.rstrip(".") + ".") for root in roots if root)


def listing(series: Iterable[FoundSeries], instances: int | None) -> str:
    """What a study holds, as text to be hashed: two are equal exactly where the archive lists the same.

    `instances`, the archive's count of the whole study, counts only where no series was listed: our own reports are in it.
    """
    rows = sorted([s.series_uid, s.modality, s.instances if s.instances is not None else -1, s.contents] for s in series)
    return json.dumps(rows or [instances])
