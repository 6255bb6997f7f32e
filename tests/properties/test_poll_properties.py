"""Full days: an archive that cuts its answers off, and studies without a time among them. Everything is found, or it is said."""

import secrets
from collections.abc import Iterator
from fnmatch import fnmatchcase
from itertools import count

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from blocks.reading import ReadingRegister
from policies.polling import FIRST, FURTHER, LONGEST_CS, PollSettings, wider
from rapha.errors import Refusal
from tasks.reading.poll import poll
from tests.fixtures.listing import Kept, Listed

NOW = 1_800_000_000  # 2027-01-15 08:00 UTC
LIMIT = 4
DAYS = st.sampled_from(["20270114", "20270115"])
TIMES = st.one_of(st.just(""), st.integers(0, 86_399).map(lambda at: f"{at // 3600:02d}{at // 60 % 60:02d}{at % 60:02d}"))
MODALITIES = st.sampled_from(["CT", "CR", "C", "MR", "XA", "SM", "PT", "US", "DX", "OT", "_X", "0", "A" * 16])
STUDIES = st.lists(st.tuples(DAYS, TIMES, MODALITIES), max_size=16)
MATCHING = st.sampled_from(["wildcard", "exact", "ignored"])
NUMBERS = count()


@pytest.fixture(scope="module")
def register(tmp_path_factory) -> Iterator[ReadingRegister]:
    opened = ReadingRegister.at(tmp_path_factory.mktemp("polls") / "r.sqlite", secrets.token_bytes(32))
    yield opened
    opened.close()


def polled(register, studies, matching, refuses):
    """(found everything, what was said: a refusal's code, "unproven" or ""), of an archive of its own."""
    kept, pacs = [Kept(f"1.{n}", date, time, modality) for n, (date, time, modality) in enumerate(studies)], f"p{next(NUMBERS)}"
    archive = Listed(kept, limit=LIMIT, refuses=refuses, by_modality=matching)
    try:
        said = "unproven" if poll(register, archive, PollSettings(pacs=pacs, most=LIMIT, smallest=1), NOW).unproven else ""
    except Refusal as refusal:
        said = refusal.codes[0]
        assert register.watermark(pacs) is None, "nothing is passed over"
    return all(register.row_of(pacs, one.uid) for one in kept), said


@settings(max_examples=30, deadline=None)
@given(STUDIES, MATCHING, st.booleans())
@example([("20270115", "080000", "CT")] * 3 + [("20270115", "090000", "CT"), ("20270115", "", "CT")], "wildcard", False)
@example([("20270115", f"{n:02d}0000", "MR") for n in range(4)] + [("20270115", "", "CT")], "wildcard", False)
@example([("20270115", "", "CT")] * 9, "exact", True)
def test_everything_is_found_or_the_poll_says_that_it_may_not_be(register, studies, matching, refuses):
    found, said = polled(register, studies, matching, refuses)
    assert found or said in ("window-too-dense", "unproven")


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(DAYS, TIMES, MODALITIES), max_size=16), st.booleans())
def test_where_no_modality_of_a_day_is_too_many_everything_is_found_and_proven(register, studies, refuses):
    fewest = []
    for one in studies:
        if sum((kept[0], kept[2]) == (one[0], one[2]) for kept in fewest) < LIMIT - 1:
            fewest.append(one)
    assert polled(register, fewest, "wildcard", refuses) == (True, "")


@settings(max_examples=15, deadline=None)
@given(STUDIES, MATCHING)
def test_what_is_seen_and_in_no_range_of_times_refuses_where_nothing_is_proven(register, studies, matching):
    """A day of one modality, full: one study without a time among those that the archive shows, others may be behind it."""
    day = [("20270115", "", "CT")] + [("20270115", f"{n:02d}0000", "CT") for n in range(LIMIT + 3)]
    assert polled(register, day + studies, matching, False)[1] == "window-too-dense"


@given(st.text(st.sampled_from(FURTHER), min_size=1, max_size=LONGEST_CS), st.data())
def test_the_narrower_patterns_leave_no_value_out(value, data):
    """Every CS matches one of the patterns that a pattern that it matches is split into, and only one."""
    value = data.draw(st.sampled_from(FIRST)) + value[1:]
    pattern = ""
    while pattern.endswith("*") or not pattern:
        (pattern,) = (one for one in wider(pattern) if fnmatchcase(value, one))
    assert pattern == value
