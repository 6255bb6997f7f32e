"""What is asked by the archive's own day, and what is said of its polls."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest

from policies.polling import DAY, PollSettings, PollState, keys_of, poll_code, poll_window, sweep_window

NOW = 1_800_000_000  # 2027-01-15 08:00 UTC
BERLIN = PollSettings(pacs="p", overlap=0, skew=0, zone=ZoneInfo("Europe/Berlin"))


def test_summer_and_winter_have_their_own_midnight():
    for month, hour in ((1, 23), (7, 22)):  # the UTC hour at which the next day begins there
        before, after = datetime(2027, month, 15, hour - 1, 59, tzinfo=UTC), datetime(2027, month, 15, hour, tzinfo=UTC)
        asked = [keys_of(poll_window(at, at, BERLIN)) for at in (int(before.timestamp()), int(after.timestamp()))]
        assert asked == [{"StudyDate": f"2027{month:02d}15"}, {"StudyDate": f"2027{month:02d}16"}]


def test_over_a_change_of_the_clocks_no_gap():
    began = datetime(2027, 3, 27, tzinfo=UTC)
    moments = [int((began + timedelta(minutes=20 * n)).timestamp()) for n in range(200)]
    windows = [poll_window(mark, now, BERLIN) for mark, now in pairwise(moments)]
    assert all(earlier.last + 1 >= later.first for earlier, later in pairwise(windows))


def test_without_a_zone_a_window_is_wider_by_all_there_are():
    asks = PollSettings(pacs="p", overlap=0, skew=0)
    noon = NOW // DAY * DAY + DAY // 2
    assert keys_of(poll_window(noon - 1, noon, asks)) == {"StudyDate": "20270114-20270116"}
    assert keys_of(poll_window(noon, noon, asks)) == {"StudyDate": "20270115-20270116"}


def test_the_sweep_ends_where_the_polls_window_begins():
    asks = PollSettings(pacs="p", zone=UTC, sweep=30 * DAY)
    window = poll_window(NOW - 300, NOW, asks)
    assert keys_of(window) == {"StudyDate": "20270114-20270115"}
    behind = sweep_window(window, NOW, asks)
    assert behind and keys_of(behind) == {"StudyDate": "20261216-20270113"}
    assert sweep_window(window, NOW, PollSettings(pacs="p", zone=UTC)) is None
    assert sweep_window(poll_window(NOW - 40 * DAY, NOW, asks), NOW, asks) is None, "the poll itself looks further back"


@pytest.mark.parametrize(
    ("age", "stale"), [(0, False), (299, False), (900, False), (901, True), (-900, False), (-901, True)], ids=str
)
@pytest.mark.parametrize("ever", [True, False])
def test_three_intervals_without_a_poll_are_stale(age, stale, ever):
    """Never polled: since the first look."""
    state = PollState(pacs="p", since=NOW - (5 * DAY if ever else age), polled_at=NOW - age if ever else None)
    assert poll_code(state, NOW, 300, 0) == ("poll-stale" if stale else "")
    assert poll_code(state, NOW, None, 0) == "", "no schedule polls it"


def test_a_run_of_its_own_takes_seconds_to_start():
    state = PollState(pacs="p", since=NOW, polled_at=NOW - 60)
    assert poll_code(state, NOW, 1, 0) == "" and poll_code(state, NOW + 1, 1, 0) == "poll-stale"


def test_what_the_last_polls_said_of_themselves():
    well = {"pacs": "p", "since": NOW - 9 * DAY, "polled_at": NOW, "swept_at": NOW - DAY}
    assert poll_code(PollState(**well), NOW, 300, DAY) == ""
    assert poll_code(PollState(**well, odd=1, unproven=1), NOW, 300, DAY) == "poll-answer-odd"
    assert poll_code(PollState(**well, odd=1), NOW, None, DAY) == "poll-answer-odd"
    assert poll_code(PollState(**well, unproven=1), NOW, 300, DAY) == "poll-unproven"
    late = {**well, "swept_at": NOW - 3 * DAY - 1}
    assert poll_code(PollState(**late, odd=1), NOW, 300, DAY) == "poll-sweep-stale"
    assert poll_code(PollState(**late), NOW, 300, 0) == ""
