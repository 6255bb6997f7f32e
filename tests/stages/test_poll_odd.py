"""Polls in which one study is odd, or one cannot be listed: its siblings are registered, nothing is lost silently."""

import logging
import secrets

import pytest

from blocks.reading import ReadingRegister
from policies.polling import DAY, PollSettings
from rapha.errors import PeerError
from tasks.reading.poll import MOST_FAILED, look_up, poll
from tests.fixtures.listing import Kept, Listed

NOW = 1_800_000_000  # 2027-01-15 08:00 UTC
SETTINGS = PollSettings(pacs="pacs", most=5)


@pytest.fixture
def register(tmp_path):
    opened = ReadingRegister.at(tmp_path / "r.sqlite", secrets.token_bytes(32))
    yield opened
    opened.close()


@pytest.mark.parametrize("level", ["study", "series", "instance"])
def test_a_study_without_a_uid_is_counted_and_its_siblings_are_registered(register, caplog, level):
    """It was a failed peer, and no study of that archive was found any more. What is said of it outlasts the poll: see health."""
    archive = Listed([Kept("1.1"), Kept("1.2", odd=level), Kept("1.3", date="20270114")])
    caplog.set_level(logging.WARNING)
    outcome = poll(register, archive, SETTINGS, NOW)
    assert (outcome.new, outcome.odd) == (2, 1)
    assert register.row_of("pacs", "1.3") and register.row_of("pacs", "1.2") is None
    assert register.watermark("pacs").at == NOW and register.poll_state("pacs", NOW).odd == 1
    assert "poll-answer-odd" in caplog.text and "HOSP" not in caplog.text and "1.2" not in caplog.text
    archive.studies[1].odd = ""
    again = poll(register, archive, SETTINGS, NOW + 300)
    assert (again.new, again.odd, register.poll_state("pacs", NOW).odd) == (1, 0, 0), "it is looked at again"


def test_an_odd_study_that_many_questions_list_is_one(register):
    archive = Listed([Kept("2.1", odd="study")] + [Kept(f"1.{n}", time=f"{n:02d}0000") for n in range(9)], limit=5)
    assert poll(register, archive, SETTINGS, NOW).odd == 1


def test_a_study_that_cannot_be_listed_keeps_the_watermark_and_holds_up_no_other(register):
    archive = Listed([Kept("1.1"), Kept("1.2", fails="dimse-timeout"), Kept("1.3")])
    poll(register, Listed([]), SETTINGS, NOW - 300)
    with pytest.raises(PeerError) as error:
        poll(register, archive, SETTINGS, NOW)
    assert error.value.codes == ("dimse-timeout",) and len(register.queue()) == 2
    mark = register.watermark("pacs")
    assert (mark.at, mark.polled_at) == (NOW - 300, NOW - 300)


def test_an_archive_that_answers_nothing_below_is_not_asked_for_each_study(register):
    archive = Listed([Kept(f"1.{n}", fails="dimse-timeout") for n in range(4 + MOST_FAILED)], limit=99)
    with pytest.raises(PeerError):
        poll(register, archive, PollSettings(pacs="pacs"), NOW)
    assert archive.questions("SERIES") == MOST_FAILED


def test_what_is_odd_in_other_ways_is_no_bug(register):
    """Values where DICOM JSON has none of them: of an archive's own DICOMweb."""

    class Odd(Listed):
        def find_studies(self, keys):
            shapes = ["CT", {"Value": "CT"}, {"Value": [["CT"]]}, {"Value": None}]
            return [
                {**answer, "00080061": shape, "00201208": {"Value": ["9" * 5000]}}
                for answer, shape in zip(super().find_studies(keys), shapes, strict=True)
            ]

    archive = Odd([Kept(f"1.{n}") for n in range(4)])
    assert poll(register, archive, SETTINGS, NOW).new == 4


def test_by_hand_an_odd_study_is_refused():
    """`rapha read` of such a study says so."""
    with pytest.raises(PeerError) as error:
        look_up(Listed([Kept("1.2", odd="series")]), SETTINGS, "1.2")
    assert error.value.codes == ("poll-answer-odd",)


def test_a_poll_after_days_of_failure_looks_at_all_of_them(register):
    poll(register, Listed([]), SETTINGS, NOW)
    archive = Listed([Kept("1.2", fails="dimse-timeout")])
    for day in (1, 2):
        with pytest.raises(PeerError):
            poll(register, archive, SETTINGS, NOW + day * DAY)
    archive.studies[0].fails = ""
    assert poll(register, archive, SETTINGS, NOW + 3 * DAY).new == 1


def test_a_watermark_that_is_set_back_during_a_poll_stays_there(register):
    class SetBack(Listed):
        def find_studies(self, keys):
            register.put_watermark("pacs", NOW - 9 * DAY)
            return super().find_studies(keys)

    poll(register, Listed([]), SETTINGS, NOW)
    poll(register, SetBack([]), SETTINGS, NOW + 300)
    assert (register.watermark("pacs").at, register.watermark("pacs").polled_at) == (NOW - 9 * DAY, NOW + 300)
    assert poll(register, Listed([Kept("1.1", date="20270107")]), SETTINGS, NOW + 600).new == 1
    assert register.watermark("pacs").at == NOW + 600
