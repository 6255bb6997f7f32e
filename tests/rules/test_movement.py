"""What a finished C-MOVE means: the table of status, level, round and delivered set, each cell with its result."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.movement import MOST_ROUNDS, hints, next_step

A, AB, NONE = frozenset("a"), frozenset("ab"), frozenset[str]()
#    status  delivered  before  rounds  level     step
TABLE = [
    (0x0000, AB, NONE, 1, "STUDY", "done"),
    (0xB000, AB, NONE, 1, "STUDY", "done"),  # a warning, and yet all of it came
    (0xC000, AB, NONE, 1, "STUDY", "done"),
    (0x0000, A, NONE, 1, "STUDY", "retry-missing"),  # success, and one is not there
    (0xB000, A, NONE, 1, "STUDY", "retry-missing"),
    (0xA702, A, NONE, 1, "IMAGE", "retry-missing"),
    (0x0000, NONE, NONE, 1, "STUDY", "look-closer"),  # success with nothing sent
    (0xB000, NONE, NONE, 1, "STUDY", "look-closer"),
    (0xC000, NONE, NONE, 1, "STUDY", "look-closer"),
    (0xC111, A, A, 2, "STUDY", "look-closer"),
    (0xA701, NONE, NONE, 1, "STUDY", "retry"),
    (0xA702, A, A, 3, "IMAGE", "retry"),
    (0xFE00, NONE, NONE, 2, "IMAGE", "retry"),
    (0xC000, NONE, NONE, 1, "IMAGE", "retry"),
    (0xC000, NONE, NONE, 2, "IMAGE", "failed"),
    (0x0000, A, A, 2, "IMAGE", "failed"),  # the same is missing twice
    (0xA801, NONE, NONE, 1, "STUDY", "failed"),  # the archive does not know our receiver
    (0x0000, A, NONE, MOST_ROUNDS, "IMAGE", "failed"),
]


@pytest.mark.parametrize(("status", "delivered", "before", "rounds", "level", "step"), TABLE)
def test_each_cell(status: int, delivered: frozenset[str], before: frozenset[str], rounds: int, level: str, step: str) -> None:
    assert next_step(status, AB, delivered, before=before, rounds=rounds, level=level) == step


SETS = st.frozensets(st.sampled_from("abcde"))


@given(st.integers(0, 0xFFFF), SETS, SETS, SETS, st.integers(1, 6), st.sampled_from(["STUDY", "SERIES", "IMAGE"]))
def test_sets_decide(
    status: int, wanted: frozenset[str], delivered: frozenset[str], before: frozenset[str], rounds: int, level: str
) -> None:
    step = next_step(status, wanted, delivered, before=before & delivered, rounds=rounds, level=level)
    assert (step == "done") is (wanted <= delivered)
    assert step in ("done", "failed") or rounds < MOST_ROUNDS


@given(st.integers(0, 0xFFFF), st.none() | st.integers(0, 9), st.none() | st.integers(0, 9), st.integers(0, 9), st.integers(0, 9))
def test_hints_name_a_success_that_is_none(
    status: int, completed: int | None, failed: int | None, wanted: int, came: int
) -> None:
    found = hints(status, completed, failed, wanted, came)
    assert ("move-success-incomplete" in found) is (status == 0 and came < wanted)
    assert ("move-counts-missing" in found) is (completed is None or failed is None)
