"""A worker's shift: never more in flight than it may, every lease brought to its end, no row begun after its time."""

import asyncio
import time
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from flows.draining import Shift


class Rows:
    """So many rows to claim; what runs at once is counted."""

    def __init__(self, count: int) -> None:
        self.left, self.flying, self.most, self.ended = list(range(count)), 0, 0, Counter[int]()

    def claim(self) -> int | None:
        return self.left.pop(0) if self.left else None

    async def run(self, row: int) -> str:
        self.flying += 1
        self.most = max(self.most, self.flying)
        await asyncio.sleep(0.001 * (row % 3))
        self.flying -= 1
        self.ended[row] += 1
        return "completed" if row % 2 else "failed"


@settings(max_examples=25, deadline=None)
@given(count=st.integers(0, 40), at_most=st.integers(1, 12))
def test_each_row_ends_once_and_no_more_than_allowed_are_in_flight(count: int, at_most: int) -> None:
    rows = Rows(count)
    shift = Shift(rows.claim, rows.run, at_most=at_most, idle=0.0, until=time.monotonic() + 60, pause=0.001)
    ends = asyncio.run(shift.work())
    assert rows.ended == Counter(range(count))
    assert sum(ends.values()) == count
    assert ends.get("completed", 0) == count // 2
    assert rows.most <= at_most
    assert rows.flying == 0


def test_a_shift_that_is_over_begins_nothing_and_ends_what_flies() -> None:
    rows = Rows(5)
    shift = Shift(rows.claim, rows.run, at_most=2, idle=60.0, until=time.monotonic() - 1, pause=0.001)
    assert asyncio.run(shift.work()) == {}
    assert len(rows.left) == 5


def test_a_shift_waits_for_work_as_long_as_it_may_be_idle() -> None:
    rows, asked = Rows(1), []

    def claim() -> int | None:
        asked.append(time.monotonic())
        return rows.claim() if len(asked) > 3 else None

    shift = Shift(claim, rows.run, at_most=2, idle=0.5, until=time.monotonic() + 60, pause=0.01)
    assert sum(asyncio.run(shift.work()).values()) == 1
    assert asked[-1] - asked[0] >= 0.4


def test_what_shares_the_loop_has_its_threads_after_the_shift_as_well() -> None:
    """A drain tells what is owed once more when its shift is over."""
    rows = Rows(2)

    async def both() -> int:
        await Shift(rows.claim, rows.run, at_most=2, idle=0.0, until=time.monotonic() + 60, pause=0.001).work()
        return await asyncio.to_thread(lambda: 7)

    assert asyncio.run(both()) == 7
