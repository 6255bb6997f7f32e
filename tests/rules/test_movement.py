"""What a finished retrieval means: status × counts × delivered set, retyped, each cell with its result."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.movement import MOST_ROUNDS, closer, hints, in_vain, next_step

ABC = frozenset("abc")
ALL, SOME, NONE = ABC, frozenset("a"), frozenset[str]()
LAST = MOST_ROUNDS
RIGHT, MISSING, WRONG = "right", "missing", "wrong"

# Every status × what arrived × counts, of a first round at study level, wanted = {a, b, c}. The counts' columns hold the hints,
# which never change the step: `!` success is not so, `?` counts missing, `#` counts wrong, `~` warning though all came.
#  status   delivered  step             right  missing  wrong
MATRIX = [
    (0x0000, ALL, "done", "", "?", "#"),
    (0x0000, SOME, "retry-missing", "!", "!?", "!#"),
    (0x0000, NONE, "look-closer", "!", "!?", "!#"),
    (0xB000, ALL, "done", "~", "?~", "#~"),
    (0xB000, SOME, "retry-missing", "", "?", "#"),
    (0xB000, NONE, "look-closer", "", "?", "#"),
    (0xC000, ALL, "done", "", "?", "#"),
    (0xC000, SOME, "retry-missing", "", "?", "#"),
    (0xC000, NONE, "look-closer", "", "?", "#"),
    (0xCFFF, ALL, "done", "", "?", "#"),
    (0xCFFF, SOME, "retry-missing", "", "?", "#"),
    (0xCFFF, NONE, "look-closer", "", "?", "#"),
    (0xA701, ALL, "done", "", "?", "#"),
    (0xA701, SOME, "retry-missing", "", "?", "#"),
    (0xA701, NONE, "retry", "", "?", "#"),
    (0xA702, ALL, "done", "", "?", "#"),
    (0xA702, SOME, "retry-missing", "", "?", "#"),
    (0xA702, NONE, "retry", "", "?", "#"),
    (0xA801, ALL, "done", "", "?", "#"),
    (0xA801, SOME, "failed", "", "?", "#"),
    (0xA801, NONE, "failed", "", "?", "#"),
    (0xA900, ALL, "done", "", "?", "#"),
    (0xA900, SOME, "retry-missing", "", "?", "#"),
    (0xA900, NONE, "retry", "", "?", "#"),
    (0xFE00, ALL, "done", "", "?", "#"),
    (0xFE00, SOME, "retry-missing", "", "?", "#"),
    (0xFE00, NONE, "retry", "", "?", "#"),
    (None, ALL, "done", ">", ">", ">"),
    (None, SOME, "retry-missing", ">", ">", ">"),
    (None, NONE, "retry", ">", ">", ">"),
]
SIGNS = {
    "!": "move-success-incomplete",
    "?": "move-counts-missing",
    "#": "move-counts-wrong",
    "~": "move-warning-complete",
    ">": "move-broken-off",
}
CELLS = [
    (status, came, counts, step, said)
    for status, came, step, *saids in MATRIX
    for counts, said in zip((RIGHT, MISSING, WRONG), saids, strict=True)
]


@pytest.mark.parametrize(("status", "came", "counts", "step", "said"), CELLS)
def test_each_cell_of_a_first_round(status: int | None, came: frozenset[str], counts: str, step: str, said: str) -> None:
    assert next_step(status, ABC, came, before=NONE, rounds=1) == step
    completed, failed = len(came), 3 - len(came)
    given = {RIGHT: (completed, failed), MISSING: (None, None), WRONG: (completed + 1, failed)}[counts]
    assert hints(status, *given, 3, completed) == tuple(SIGNS[sign] for sign in said)


#    status  delivered before rounds level    step
LATER = [
    (0x0000, SOME, SOME, 2, "STUDY", "look-closer"),  # nothing new, and it was asked as a whole
    (0xB000, SOME, SOME, 2, "STUDY", "look-closer"),
    (0xC111, SOME, SOME, 2, "STUDY", "look-closer"),
    (0xA900, NONE, NONE, 2, "STUDY", "look-closer"),  # refused twice: it may not serve the level
    (0x0110, NONE, NONE, 3, "SERIES", "look-closer"),
    (0xA900, NONE, NONE, 2, "IMAGE", "failed"),
    (0x0000, SOME, SOME, 2, "IMAGE", "failed"),  # the same is missing twice
    (0xB000, SOME, SOME, 2, "IMAGE", "failed"),
    (0xC000, NONE, NONE, 1, "IMAGE", "retry"),
    (0xC000, NONE, NONE, 2, "IMAGE", "failed"),
    (0xA702, SOME, NONE, 1, "IMAGE", "retry-missing"),
    (0xA702, SOME, SOME, 3, "IMAGE", "retry"),  # it may have room again
    (0xA701, NONE, NONE, 3, "STUDY", "retry"),
    (0xFE00, NONE, NONE, 2, "IMAGE", "retry"),
    (None, NONE, NONE, 2, "STUDY", "failed"),  # broke off twice with nothing
    (None, SOME, NONE, 2, "STUDY", "retry-missing"),
    (None, SOME, SOME, 2, "IMAGE", "failed"),
    (0x0000, SOME, NONE, LAST, "IMAGE", "failed"),
    (0xA701, NONE, NONE, LAST, "STUDY", "failed"),
    (None, SOME, NONE, LAST, "STUDY", "failed"),
    (0xA801, ALL, SOME, LAST, "IMAGE", "done"),
]


@pytest.mark.parametrize(("status", "came", "before", "rounds", "level", "step"), LATER)
def test_each_cell_of_a_later_round(
    status: int | None, came: frozenset[str], before: frozenset[str], rounds: int, level: str, step: str
) -> None:
    assert next_step(status, ABC, came, before=before, rounds=rounds, level=level) == step


def test_a_retrieval_goes_from_the_study_to_its_series_to_their_instances() -> None:
    assert [closer(level) for level in ("STUDY", "SERIES", "IMAGE")] == ["SERIES", "IMAGE", "IMAGE"]  # type: ignore[arg-type]


# A list of instances of which none came: whether its halves are asked for, by what was answered and how many it says it sent.
#  status   none   some   no count
LISTS = [
    (0x0000, True, False, False),  # success, of nothing: it does not match lists
    (0xB000, True, False, False),
    (0xC000, True, True, True),
    (0xC001, True, True, True),
    (0xCFFF, True, True, True),
    (0xA900, True, True, True),
    (0x0110, True, True, True),
    (0x0122, True, True, True),
    (0xA700, False, False, False),  # out of resources: nobody is helped by more questions
    (0xA701, False, False, False),
    (0xA702, False, False, False),
    (0xA801, False, False, False),
    (0xFE00, False, False, False),
]


@pytest.mark.parametrize(("status", "none", "some", "uncounted"), LISTS)
def test_each_cell_of_a_list_of_which_nothing_came(status: int, none: bool, some: bool, uncounted: bool) -> None:
    assert (in_vain(status, 0), in_vain(status, 3), in_vain(status, None)) == (none, some, uncounted)


def test_what_has_no_counts_is_not_blamed_for_them() -> None:
    assert hints(0x0000, None, None, 3, 3, counted=False) == ()
    assert hints(0x0000, None, None, 3, 2, counted=False) == ("move-success-incomplete",)
    assert hints(None, None, None, 3, 2, counted=False) == ("move-broken-off",)


def test_what_broke_off_once_at_its_level_is_asked_for_once_more_there() -> None:
    def step(status: int | None, tries: int) -> str:
        return next_step(status, ABC, SOME, before=SOME, rounds=3, level="IMAGE", tries=tries)

    assert [step(None, 1), step(None, 2), step(0xC000, 1), step(0xC000, 2)] == ["retry", "failed"] * 2


SETS = st.frozensets(st.sampled_from("abcde"))


@given(st.none() | st.integers(0, 0xFFFF), SETS, SETS, SETS, st.integers(1, 6), st.sampled_from(["STUDY", "SERIES", "IMAGE"]))
def test_sets_decide(
    status: int | None, wanted: frozenset[str], delivered: frozenset[str], before: frozenset[str], rounds: int, level: str
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
