"""Poll: ask one archive for what is new or changed, and write it into the register.

The watermark moves only after everything that the archive listed is on disk, so a poll that dies is made again whole. Several
pollers at once do no harm: a study is one row, and the watermark never moves back.

What is below a study is listed where its counts are not those of the last listing, or that is too long ago. One that the archive
lists without a UID is counted and said, and holds up nobody: the overlap and the sweep look at it again. Once a day the sweep
looks further back, for what came late under an old date; what was there before the first sweep is left alone.
"""

import json
import logging
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from blocks.pacs import value_of
from blocks.reading import ReadingRegister
from policies.polling import (
    DAY,
    NO_MODALITY,
    FoundStudy,
    PollSettings,
    PollState,
    Window,
    is_own,
    keys_of,
    poll_window,
    split,
    sweep_window,
    wider,
)
from rapha.errors import PeerError, Refusal
from tasks.reading.listed import ODD, STUDY, Answer, Listing, counts_of, series_of, study_of

log = logging.getLogger("rapha.reading")
TOO_MANY = frozenset({"dimse-too-many", "pacs-too-many"})
MOST_FAILED = 3  # studies that could not be listed; the archive is asked for no further one
MOST_PARTS = 400  # questions by modality about one day
SWEEP_AGAIN = 3600  # seconds until a sweep that came to no end is tried again


@dataclass(frozen=True, slots=True, kw_only=True)
class PollOutcome:
    """Counts, and the rows that are new or changed. questions: study queries that were asked; odd: studies without a UID of
    their own, of a series or of an instance; unproven: days of which the archive may hide a study without a time; swept: studies
    that the daily sweep looked at, None where it was not its time."""

    new: int
    changed: int
    known: int
    own: int
    questions: int
    rows: tuple[int, ...]
    odd: int = 0
    unproven: int = 0
    swept: int | None = None


def poll(register: ReadingRegister, archive: Listing, settings: PollSettings, now: int) -> PollOutcome:
    """One poll of one archive, and the sweep where it is its time. now: seconds since the epoch.

    Raises `Refusal` window-too-dense (what could be listed is registered, the watermark stays), clock-behind-watermark;
    `PeerError` of the archive or register. What the sweep raises comes after the watermark was moved.
    """
    pacs, mark, state = settings.pacs, register.watermark(settings.pacs), register.poll_state(settings.pacs, now)
    seen = None if mark is None else mark.at
    window = poll_window(seen, now, settings)
    look = _Look(register, archive, settings, now)
    look.over(window)
    look.end()
    register.polled(pacs, odd=look.odd, unproven=look.unproven)
    register.set_watermark(pacs, now, now=now, seen=seen)
    sweep = _Sweep(register, archive, settings, now)
    if not settings.sweep or now < state.sweep_next <= now + 2 * DAY:
        return _outcome(look, None)
    sweep.behind(window, state)
    return _outcome(look, sweep)


def look_up(archive: Listing, settings: PollSettings, study_uid: str) -> FoundStudy | None:
    """One study as a poll would register it; None where the archive does not have it, or holds nothing but what we wrote.

    Raises `PeerError` of the archive, and poll-answer-odd for a series or an instance without a UID.
    """
    answers = [one for one in archive.find_studies({"StudyInstanceUID": study_uid}) if value_of(one, STUDY) == study_uid]
    if not answers:
        return None
    listed = series_of(archive, study_uid)
    series = tuple(one for one in listed if not is_own(one.series_uid, settings.own_roots))
    return None if listed and not series else study_of(answers[0], study_uid, series)


class _Look:
    """One look at an archive: each study that it lists, once."""

    def __init__(self, register: ReadingRegister, archive: Listing, settings: PollSettings, now: int) -> None:
        self._register, self._archive, self._settings, self._now = register, archive, settings, now
        self._seen, self._failed, self._refusals = set[str](), list[PeerError](), list[Refusal]()
        self.outcomes, self.questions, self.odd, self.unproven = defaultdict[str, list[int]](list), 0, 0, 0

    def over(self, window: Window) -> None:
        """Lists what lies in the window, whatever the archive's limit is."""
        windows, partly, wholly = [window], set[str](), set[str]()
        while windows:
            asked = windows.pop()
            listed, cut = self._ask(keys_of(asked))
            if not cut:
                wholly |= listed
            elif asked.last - asked.first < DAY:
                wholly |= self._full_day(asked, listed)
            else:
                partly |= listed
                windows += split(asked, self._settings.smallest)
        if self.unproven and not partly <= wholly:
            self._refuse()

    def end(self) -> None:
        """Raises what kept it from listing everything."""
        for error in (*self._failed, *self._refusals):
            raise error

    def _full_day(self, day: Window, listed: Collection[str]) -> set[str]:
        """The studies of a day that has more of them than one answer holds, in parts. That they are all of it is proven by the
        modalities. Where that cannot be, and one is in no range of times, others like it may be hidden: the poll is refused."""
        timed, dense = self._by_time(day)
        covered, complete = self._by_modality(day)
        if complete and timed.union(listed) <= covered:
            return covered
        if not covered <= timed:  # what came meanwhile has a time, as a rule
            timed |= self._by_time(day)[0]
        self.unproven += 1
        if dense or not timed or not covered.union(listed) <= timed:
            self._refuse()
        return timed

    def _refuse(self) -> None:
        said = "the archive's limit is reached in the smallest window, or by studies without a time: raise max_results"
        self._refusals.append(Refusal(["window-too-dense"], said, gate="poll"))

    def _by_time(self, day: Window) -> tuple[set[str], bool]:
        """What ranges of StudyTime list; whether the smallest of them is still too full."""
        windows, found, dense = [day], set[str](), False
        while windows:
            asked = windows.pop()
            listed, cut = self._ask(keys_of(asked)) if asked != day else (set[str](), True)
            found |= listed
            try:
                windows += split(asked, self._settings.smallest) if cut else ()
            except Refusal:
                dense = True
        return found, dense

    def _by_modality(self, day: Window) -> tuple[set[str], bool]:
        """What the modalities list; whether that is every study of the day, as far as the standard goes."""
        keys = keys_of(day)
        if any(self._ask(keys | {"ModalitiesInStudy": NO_MODALITY})):
            return set(), False  # it does not match by this key
        patterns, found, complete, questions = wider(""), set[str](), True, 0
        while patterns and questions < MOST_PARTS:
            pattern, questions = patterns.pop(), questions + 1
            listed, cut = self._ask(keys | {"ModalitiesInStudy": pattern})
            found |= listed
            if cut:
                narrower = wider(pattern) if pattern.endswith("*") else []
                complete, patterns = complete and bool(narrower), patterns + narrower
        return found, complete and bool(found) and not patterns

    def _ask(self, keys: Mapping[str, str]) -> tuple[set[str], bool]:
        """Registers the answers; the UIDs of the studies, and whether there may be more than the archive tells."""
        self.questions += 1
        answers, cut = _asked(self._archive, keys, self._settings.most)
        named = {uid: answer for answer in reversed(answers) if (uid := value_of(answer, STUDY))}
        nameless = {json.dumps(one, sort_keys=True, default=str) for one in answers if not value_of(one, STUDY)} - self._seen
        self._seen |= nameless
        for _ in nameless:
            self._count_odd()
        fresh = {uid: answer for uid, answer in named.items() if uid not in self._seen}
        self._seen |= fresh.keys()
        for uid in self._to_list({uid: counts_of(answer) for uid, answer in fresh.items()}):
            self._list(uid, fresh[uid])
        return set(named), cut

    def _to_list(self, counts: Mapping[str, str]) -> list[str]:
        """The studies of which must be listed what is below them."""
        same = self._register.same(self._settings.pacs, counts, self._now - self._settings.relist, self._now)
        self.outcomes["known"] += same.values()
        return [uid for uid in counts if uid not in same]

    def _list(self, study: str, answer: Answer) -> None:
        try:
            listed = series_of(self._archive, study)
        except PeerError as error:
            if error.codes == (ODD,):
                self._count_odd()
                return
            self._failed.append(error)
            if error.peer != "pacs" or len(self._failed) == MOST_FAILED:
                raise
            return  # the others are registered; the watermark stays for this one
        series = tuple(one for one in listed if not is_own(one.series_uid, self._settings.own_roots))
        if listed and not series:
            self.outcomes["own-report"].append(0)
            return
        by = self._settings
        found = self._register.found(by.pacs, study_of(answer, study, series), self._now, by.priority, by.quiet)
        self.outcomes[found.outcome].append(found.row)

    def _count_odd(self) -> None:
        self.odd += 1
        log.warning("poll of %s: %s", self._settings.pacs, ODD)


class _Sweep(_Look):
    """A look at older days, by counts alone. beginning: what the register does not know is written down as left alone."""

    beginning = False
    studies = 0

    def _to_list(self, counts: Mapping[str, str]) -> list[str]:
        pacs = self._settings.pacs
        self.studies += len(counts)
        same = self._register.same(pacs, counts, 0, self._now)
        self.outcomes["known"] += same.values()
        unknown = {uid: counts[uid] for uid in self._register.unknown(pacs, counts)}
        if self.beginning:
            self._register.leave_alone(pacs, unknown)
        alone = unknown.keys() if self.beginning else self._register.left_alone(pacs, unknown)
        return [uid for uid in counts if uid not in same and uid not in alone]

    def behind(self, window: Window, state: PollState) -> None:
        """Sweeps what lies behind the poll's own window.

        Days that no sweep has looked at yet are a beginning: all of them at first, some where it is to look further back.
        """
        register, pacs, now = self._register, self._settings.pacs, self._now
        register.begin_sweep(pacs, now + SWEEP_AGAIN)
        days = sweep_window(window, now, self._settings) or Window(window.first, window.first - 1)
        known = window.first if state.swept_from is None else min(max(days.first, state.swept_from), window.first)
        for self.beginning, first, last in ((True, days.first, known - 1), (False, known, days.last)):
            if first <= last:
                self.over(Window(first, last))
        self.end()
        register.swept(pacs, now, days.first, now + DAY, odd=self.odd, unproven=self.unproven)


def _asked(archive: Listing, keys: Mapping[str, str], most: int) -> tuple[list[Answer], bool]:
    """The answers, and whether there may be more than the archive tells."""
    try:
        answers = archive.find_studies(keys)
    except PeerError as error:
        if TOO_MANY.isdisjoint(error.codes):
            raise
        return [], True
    return answers, len(answers) >= most


def _outcome(look: _Look, sweep: _Sweep | None) -> PollOutcome:
    looks = [look] if sweep is None else [look, sweep]
    outcomes = {name: [row for one in looks for row in one.outcomes[name]] for name in ("new", "changed", "known", "own-report")}
    return PollOutcome(
        new=len(outcomes["new"]),
        changed=len(outcomes["changed"]),
        known=len(outcomes["known"]),
        own=len(outcomes["own-report"]),
        questions=sum(one.questions for one in looks),
        rows=tuple(sorted([*outcomes["new"], *outcomes["changed"]])),
        odd=sum(one.odd for one in looks),
        unproven=sum(one.unproven for one in looks),
        swept=None if sweep is None else sweep.studies,
    )
