"""Which questions a poll asks, and which of two waiting studies is next."""

from datetime import UTC
from zoneinfo import ZoneInfo

import pytest

from policies.polling import DAY, FoundSeries, PollSettings, Window, is_own, keys_of, listing, poll_window, split
from policies.priority import HANDICAP, PRIORITIES, known_priority, turn
from rapha.errors import ConfigurationError, Refusal

NOW = 1_800_000_000  # 2027-01-15 08:00:00 UTC
MIDNIGHT = NOW // DAY * DAY
SETTINGS = PollSettings(pacs="pacs", overlap=3600, skew=900, first=2 * DAY, zone=UTC)


def test_the_first_poll_looks_back_and_the_next_ones_overlap():
    assert keys_of(poll_window(None, NOW, SETTINGS)) == {"StudyDate": "20270113-20270115"}
    assert keys_of(poll_window(NOW - 300, NOW, SETTINGS)) == {"StudyDate": "20270115"}
    assert keys_of(poll_window(NOW - 5 * DAY, NOW, SETTINGS)) == {"StudyDate": "20270110-20270115"}


def test_a_fast_or_slow_clock_of_the_archive_is_allowed_for():
    before = MIDNIGHT + DAY - 100  # 100 s before midnight: a study may be dated tomorrow already
    assert keys_of(poll_window(before, before, SETTINGS)) == {"StudyDate": "20270115-20270116"}
    after = MIDNIGHT + 3600 + 100  # overlap reaches 100 s past midnight, the skew behind it
    assert keys_of(poll_window(after, after, SETTINGS)) == {"StudyDate": "20270114-20270115"}


def test_the_archives_local_day_counts():
    tokyo = PollSettings(pacs="pacs", overlap=0, skew=0, zone=ZoneInfo("Asia/Tokyo"))
    late = MIDNIGHT + 20 * 3600
    assert keys_of(poll_window(late, late, tokyo)) == {"StudyDate": "20270116"}


def test_a_clock_that_went_back_is_refused():
    poll_window(NOW + 900, NOW, SETTINGS)
    with pytest.raises(Refusal) as error:
        poll_window(NOW + 901, NOW, SETTINGS)
    assert error.value.codes == ("clock-behind-watermark",)


def test_a_window_is_split_by_days_and_then_in_the_day():
    first, second = split(Window(MIDNIGHT, MIDNIGHT + 3 * DAY - 1), 60)
    assert (keys_of(first), keys_of(second)) == ({"StudyDate": "20270115"}, {"StudyDate": "20270116-20270117"})
    morning, evening = split(first, 60)
    assert keys_of(morning) == {"StudyDate": "20270115", "StudyTime": "000000-115959.999999"}
    assert keys_of(evening) == {"StudyDate": "20270115", "StudyTime": "120000-235959.999999"}


def test_below_the_smallest_window_it_refuses():
    with pytest.raises(Refusal) as error:
        split(Window(MIDNIGHT, MIDNIGHT + 59), 60)
    assert error.value.codes == ("window-too-dense",)


def test_only_the_uid_says_whose_a_series_is():
    assert is_own("1.2.99.7", ("1.2.99",)) and is_own("1.2.99.7", ("1.2.99.",))
    assert not is_own("1.2.991.7", ("1.2.99",)) and not is_own("1.2.3", ("",)) and not is_own("1.2.3", ())


def test_the_listing_tells_every_change_and_no_order():
    one, two = FoundSeries(series_uid="1", instances=2, contents="a"), FoundSeries(series_uid="2", instances=1)
    assert listing([one, two], 3) == listing([two, one], 4)
    others = [
        listing([one], 3),
        listing([one, FoundSeries(series_uid="2", instances=2)], 3),
        listing([FoundSeries(series_uid="1", instances=2, contents="b"), two], 3),
        listing([FoundSeries(series_uid="3", instances=2, contents="a"), two], 3),
        listing([], 3),
        listing([], 4),
    ]
    assert len({listing([one, two], 3), *others}) == 7


def test_urgent_first_and_nobody_waits_for_ever():
    turns = [turn(level, NOW) for level in PRIORITIES]
    assert turns == sorted(turns) and len(set(turns)) == 4
    assert turn("low", NOW) < turn("urgent", NOW + HANDICAP["low"] + 1)


def test_a_priority_that_is_unknown_is_refused():
    assert known_priority("urgent") == "urgent"
    for word in ("", "URGENT", "stat"):
        with pytest.raises(ConfigurationError) as error:
            known_priority(word)
        assert error.value.codes == ("priority-unknown",)
