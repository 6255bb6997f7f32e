"""Any archive, however it refuses and breaks off: what it can send comes, nothing that is here comes again, and it ends."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from blocks.archive import Listed
from policies.movement import MOST_IN_VAIN, MOST_ROUNDS, Level
from rapha.errors import PeerError
from tasks.shared.moving import Ended, until_delivered


@dataclass
class Pretend:
    """An archive in memory. levels: those that it serves; poisoned: what it cannot send, with everything that is asked for with
    it; breaks: for each request in turn, after how many instances the association ends, None where it does not."""

    levels: frozenset[str]
    poisoned: frozenset[str]
    refusal: int
    breaks: list[int | None]
    wanted: Sequence[Listed]
    here: set[str] = field(default_factory=set)
    asked: list[tuple[str, frozenset[str], frozenset[str]]] = field(default_factory=list)
    broke: int = 0

    def ask(self, level: Level, some: Sequence[Listed]) -> Ended:
        series = {one.series_uid for one in some}
        what = [
            one.sop_uid
            for one in self.wanted
            if level == "STUDY" or (level == "SERIES" and one.series_uid in series) or (level == "IMAGE" and one in some)
        ]
        self.asked.append((level, frozenset(what), frozenset(self.here)))
        if level not in self.levels or self.poisoned & set(what):
            return Ended(self.refusal, 0, len(what))
        cut = self.breaks.pop(0) if self.breaks else None
        self.here |= set(what[:cut])
        if cut is None:
            return Ended(0, len(what), 0)
        self.broke += 1
        return Ended(None, None, None, PeerError("dimse-hung-up", "cut", peer="pacs"))


@st.composite
def pretend(draw: st.DrawFn) -> Pretend:
    series = draw(st.lists(st.integers(1, 40), min_size=1, max_size=4))
    wanted = [Listed(f"{n}.{i}", "1.2", str(n)) for n, count in enumerate(series) for i in range(count)]
    uids = [one.sop_uid for one in wanted]
    return Pretend(
        draw(st.sampled_from([frozenset({"STUDY", "SERIES", "IMAGE"}), frozenset({"SERIES", "IMAGE"}), frozenset({"IMAGE"})])),
        draw(st.frozensets(st.sampled_from(uids), max_size=2)),
        draw(st.sampled_from([0xC000, 0xC123, 0xA900, 0x0110])),
        draw(st.lists(st.none() | st.integers(0, 30), max_size=2)),
        wanted,
    )


@settings(max_examples=300, deadline=None)
@given(pretend(), st.sampled_from(["STUDY", "SERIES", "IMAGE"]), st.sets(st.integers(0, 30)), st.sampled_from([1, 3, 500]))
def test_what_can_be_sent_comes_and_nothing_that_is_here_by_name_again(
    archive: Pretend, level: Level, before: set[int], at_once: int
) -> None:
    uids = [one.sop_uid for one in archive.wanted]
    archive.here = {uid for place, uid in enumerate(uids) if place in before} - archive.poisoned
    told: list[int] = []
    failed = until_delivered(
        archive.ask, lambda: archive.here, archive.wanted, level, lambda turn, _: told.append(turn), at_once=at_once
    )
    assert (failed is None) is (set(uids) <= archive.here)
    for asked_at, what, here in archive.asked:
        assert asked_at != "IMAGE" or not what & here, "what is here is not asked for by its name"
        assert asked_at != "STUDY" or not here
    if archive.broke < 2:  # the same twice is enough
        assert set(uids) - archive.here <= archive.poisoned
    assert len(archive.asked) <= MOST_ROUNDS * (4 * (1 + 40) + MOST_IN_VAIN)
    assert all(1 <= turn <= MOST_ROUNDS for turn in told)
