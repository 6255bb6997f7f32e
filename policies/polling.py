"""What to ask an archive for, so that no study is missed: windows that overlap, split at its limit; and what counts as changed.

Times are whole seconds of the archive's own local clock, counted as if it were UTC; a window has both of its ends in it. A range
of StudyDate and one of StudyTime match apart from each other (PS3.4 C.2.2.2.5), so a window is whole days, or lies in one day.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from rapha.errors import Refusal

DAY = 86_400


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
    most: results at which it may have cut its answer off; smallest: a window that is not split further; offset: its local clock
    less UTC; own_roots: UID roots of series that this node writes.
    """

    pacs: str
    overlap: int = DAY
    skew: int = 900
    first: int = DAY
    most: int = 500
    smallest: int = 60
    offset: int = 0
    own_roots: tuple[str, ...] = ()
    priority: str = "medium"


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundSeries:
    """One series as the archive lists it; `instances`: how many, `contents`: a digest of their UIDs, where listed."""

    series_uid: str = field(repr=False)
    modality: str = ""
    instances: int | None = None
    contents: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundStudy:
    """One study as a poll finds it. `details`: identifiers that later stages need; kept sealed."""

    study_uid: str = field(repr=False)
    series: tuple[FoundSeries, ...] = field(default=(), repr=False)
    modalities: tuple[str, ...] = ()
    study_date: str = field(default="", repr=False)
    instances: int | None = None
    details: dict[str, str] = field(default_factory=dict, repr=False)


def poll_window(watermark: int | None, now: int, settings: PollSettings) -> Window:
    """The days to ask for: from behind the watermark to past now, by the clock's allowed error. now: UTC.

    Raises `Refusal` clock-behind-watermark where `now` is earlier than the watermark by more than the skew.
    """
    local = now + settings.offset
    if watermark is not None and local < watermark - settings.skew:
        raise Refusal(["clock-behind-watermark"], "the clock is behind the last poll's", gate="poll")
    start = local - settings.first if watermark is None else min(watermark, local) - settings.overlap
    first, last = start - settings.skew, local + settings.skew
    return Window(first // DAY * DAY, last // DAY * DAY + DAY - 1)


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


def is_own(series_uid: str, roots: Iterable[str]) -> bool:
    """Whether a series is this node's by its UID. A description or manufacturer decides nothing: anybody may write one."""
    return any(series_uid.startswith(root.rstrip(".") + ".") for root in roots if root)


def listing(series: Iterable[FoundSeries], instances: int | None) -> str:
    """What a study holds, as text to be hashed: two are equal exactly where the archive lists the same.

    `instances`, the archive's count of the whole study, counts only where no series was listed: our own reports are in it.
    """
    rows = sorted([s.series_uid, s.modality, s.instances if s.instances is not None else -1, s.contents] for s in series)
    return json.dumps(rows or [instances])
