"""Which failures are a peer's for everybody, and how long is waited then."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.outage import (
    FIRST_PAUSE,
    LONGEST_PAUSE,
    OUT_OF_ORDER,
    OUTAGE_SECONDS,
    UNREACHABLE,
    is_outage,
    is_over,
    is_unreachable,
    pause,
)

# Written down a second time: each was an answer, or may have been caused by the study itself.
COUNTED = [
    "archive-incomplete",
    "archive-set-changed",
    "channel-closed",
    "commitment-not-offered",
    "commitment-timeout",
    "dimse-find-refused",
    "dimse-hung-up",
    "dimse-no-context",
    "dimse-slow",
    "launcher-gone",
    "lease-expired",
    "pacs-instance-too-large",
    "pacs-retrieve",
    "pacs-status",
    "pacs-truncated",
    "receiver-gone",
    "report-not-committed",
    "report-not-there",
    "store-refused",
    "stow-status",
    "study-gone",
    "study-timeout",
    "validator-failed",
    "validator-timeout",
]


@pytest.mark.parametrize("code", COUNTED)
def test_an_answer_about_a_study_is_no_outage(code: str) -> None:
    assert not is_outage([code]) and not is_outage([code, "dimse-unreachable"])


@pytest.mark.parametrize("code", sorted(UNREACHABLE | OUT_OF_ORDER))
def test_a_peer_that_is_down_for_everybody_is_one(code: str) -> None:
    assert is_outage([code]) and is_unreachable([code]) is (code in UNREACHABLE)


def test_nothing_said_is_no_outage() -> None:
    assert not is_outage([]) and not is_unreachable([])
    assert is_outage(["dimse-unreachable"]) and is_unreachable(["dimse-unreachable"])


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_pauses_grow_to_a_quarter_of_an_hour_and_no_further(failures: int, spread: float) -> None:
    waited = pause(failures, spread)
    assert FIRST_PAUSE // 2 <= waited <= LONGEST_PAUSE == 900
    assert pause(failures + 1, spread) >= waited
    assert pause(failures, 0.0) * 2 >= pause(failures, 1.0) - 1, "what failed together is spread over half of the pause"


def test_the_first_pauses_double() -> None:
    assert [pause(n, 1.0) for n in range(1, 7)] == [60, 120, 240, 480, 900, 900]


def test_an_outage_is_waited_out_for_a_day() -> None:
    assert not is_over(1000, 1000 + OUTAGE_SECONDS - 1) and is_over(1000, 1000 + OUTAGE_SECONDS) and OUTAGE_SECONDS == 24 * 3600
