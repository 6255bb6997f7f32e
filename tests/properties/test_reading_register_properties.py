"""Properties of the register and the poll: one holder a row, fair turns, whole windows, each study once."""

import secrets
import tempfile
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from blocks.reading import FoundSeries, FoundStudy, ReadingRegister
from blocks.reading_rows import STAGES
from policies.polling import DAY, PollSettings, Window, keys_of, poll_window, split
from policies.priority import HANDICAP, PRIORITIES, turn
from rapha.errors import Refusal
from tasks.reading.poll import poll
from tests.stages.test_poll import Shelves

KEY = secrets.token_bytes(32)
START = 1_800_000_000 // DAY * DAY
levels = st.sampled_from(PRIORITIES)
times = st.integers(0, 10**10)
ARRIVALS = st.lists(st.tuples(st.integers(0, 2 * DAY - 1), st.integers(0, 7200)), max_size=25, unique_by=lambda one: one[0])


@given(levels, levels, times, st.integers(0, 10**7))
def test_ageing_is_monotone_and_bounded(mine, other, queued, later):
    assert turn(mine, queued) <= turn(mine, queued + later)
    if PRIORITIES.index(mine) < PRIORITIES.index(other):
        assert turn(mine, queued) < turn(other, queued)
    if later > HANDICAP[mine]:
        assert turn(mine, queued) < turn(other, queued + later), "nothing queued so much later passes it"


@given(st.integers(1, 9), st.integers(1, 7200), st.randoms(use_true_random=False))
def test_splitting_covers_the_window_exactly_once(days, smallest, random):
    whole = Window(START, START + days * DAY - 1)
    todo, leaves = [whole], []
    while todo:
        window = todo.pop()
        assert window.days or window.first // DAY == window.last // DAY
        if random.random() < 0.3 or len(leaves) > 200:
            leaves.append(window)
            continue
        try:
            todo += split(window, smallest)
        except Refusal:
            assert window.last - window.first + 1 <= smallest
            leaves.append(window)
    leaves.sort(key=lambda one: one.first)
    assert (leaves[0].first, leaves[-1].last) == (whole.first, whole.last)
    assert all(left.last + 1 == right.first for left, right in pairwise(leaves))
    assert len({tuple(keys_of(leaf).items()) for leaf in leaves}) == len(leaves)


@given(st.lists(st.integers(0, 3 * DAY), min_size=1, max_size=8))
def test_following_windows_leave_no_gap(steps):
    mark, now, last = None, START, None
    for step in steps:
        now += step
        window = poll_window(mark, now, PollSettings(pacs="p", overlap=600, skew=60))
        assert window.first <= now - 60 and window.last >= now + 60
        assert last is None or window.first <= last + 1
        mark, last = now, window.last


@settings(max_examples=25, deadline=None)
@given(
    ARRIVALS,
    st.lists(st.integers(60, 40_000), max_size=5),
)
def test_any_sequence_of_polls_finds_each_study_exactly_once(arrivals, pauses):
    """An arrival: seconds after the start, and how much later the archive shows it (inside the overlap)."""
    with tempfile.TemporaryDirectory() as folder:
        register = ReadingRegister.at(Path(folder) / "r.sqlite", KEY)
        asks = PollSettings(pacs="p", overlap=2 * 3600, skew=60, most=4, smallest=1, first=DAY)
        shelves, now, found = Shelves(limit=4), START, []
        for pause in [0, *pauses, 3 * DAY]:
            now += pause
            shelves.studies = {
                f"1.{n}": (*_clock(START + at), {f"1.{n}.1": ["a"]})
                for n, (at, late) in enumerate(arrivals)
                if START + at + late <= now
            }
            found += poll(register, shelves, asks, now).rows
        assert sorted(found) == sorted(one.row for one in register.queue(1000)) and len(found) == len(arrivals)
        assert all(register.row_of("p", f"1.{n}") in found for n in range(len(arrivals)))
        register.close()


def _clock(at):
    moment = datetime.fromtimestamp(int(at), UTC)
    return f"{moment:%Y%m%d}", f"{moment:%H%M%S}"


class Leases(RuleBasedStateMachine):
    """Workers claim, advance, lose, fail and finish; pollers find; a person replays. A model says what must hold."""

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.register = ReadingRegister.at(Path(self.folder.name) / "r.sqlite", KEY)
        self.now, self.held, self.lost, self.content = 1000, {}, [], {}

    def teardown(self):
        self.register.close()
        self.folder.cleanup()

    @rule(number=st.integers(0, 3), count=st.integers(1, 3), level=levels)
    def find(self, number, count, level):
        study = FoundStudy(study_uid=f"1.{number}", series=(FoundSeries(series_uid="1", instances=count),))
        found = self.register.found("p", study, self.now, level)
        was = self.content.get(number)
        assert found.outcome == ("new" if was is None else "known" if was == count else "changed")
        self.content[number] = count

    @rule(worker=st.sampled_from("ab"))
    def claim(self, worker):
        lease = self.register.claim(worker, self.now, 50)
        if lease is not None:
            assert lease.row not in self.held, "a row has one holder"
            self.held[lease.row] = lease

    @rule(data=st.data(), stage=st.sampled_from(STAGES))
    def enter(self, data, stage):
        if self.held:
            row = data.draw(st.sampled_from(sorted(self.held)))
            lease = self.held[row]
            if STAGES.index(stage) >= STAGES.index(lease.stage):
                self.held[row] = self.register.enter(lease, stage, self.now)

    @rule(data=st.data(), how=st.sampled_from(["finish", "retry", "dead"]))
    def end(self, data, how):
        if self.held:
            lease = self.held.pop(data.draw(st.sampled_from(sorted(self.held))))
            if how == "finish":
                assert self.register.finish(lease, self.now) in ("completed", "scheduled")
            else:
                self.register.fail(lease, ["x"], self.now, retry_at=self.now if how == "retry" else None)
            self.lost.append(lease)

    @rule()
    def time_runs_out(self):
        self.now += 50
        reaped = {one.row for one in self.register.reap(self.now)}
        assert reaped == set(self.held), "every lease was for 50 s"
        self.lost += self.held.values()
        self.held = {}

    @rule()
    def replay(self):
        for letter in self.register.dead_letters():
            self.register.replay(letter.id, self.now)
            assert self.register.study(letter.row).stage == letter.stage

    @invariant()
    def who_lost_a_lease_writes_nothing(self):
        for lease in self.lost[-3:]:
            try:
                self.register.renew(lease, self.now, 50)
            except Refusal as refusal:
                assert refusal.codes == ("lease-lost",)
            else:
                raise AssertionError("a lost lease was renewed")

    @invariant()
    def nothing_is_lost(self):
        """Every study is owed, completed, or has an open letter; none has been tried too often."""
        letters = [letter.row for letter in self.register.dead_letters()]
        assert len(letters) == len(set(letters))
        for number in self.content:
            row = self.register.row_of("p", f"1.{number}")
            state = self.register.study(row).state
            assert (state == "canceled") == (row in letters)
            assert (state == "in-progress") == (row in self.held)
        assert self.register.counts()["dead_letters"] == len(letters)


Leases.TestCase.settings = settings(max_examples=20, stateful_step_count=25, deadline=None)
TestLeases = Leases.TestCase
