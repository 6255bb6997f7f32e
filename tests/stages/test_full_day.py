"""One full day of an archive that cuts its answers off: what is proven, what is refused, what is said, and what that costs."""

import secrets
from datetime import UTC

import pytest

from blocks.reading import ReadingRegister
from policies.polling import PollSettings
from rapha.errors import Refusal
from tasks.reading.poll import poll
from tests.fixtures.listing import Kept, Listed

NOW = 1_800_000_000 + 4 * 3600  # 2027-01-15 12:00 UTC
DAY = PollSettings(pacs="pacs", most=4, first=3600, overlap=3600, zone=UTC)  # this day alone
DAYS = PollSettings(pacs="pacs", most=4, zone=UTC)
TIMED = [Kept(f"1.{n}", time=f"{n:02d}0000") for n in range(7)]  # of one modality, more than the limit


@pytest.fixture
def register(tmp_path):
    opened = ReadingRegister.at(tmp_path / "r.sqlite", secrets.token_bytes(32))
    yield opened
    opened.close()


def refused(register, archive, settings):
    with pytest.raises(Refusal) as error:
        poll(register, archive, settings, NOW)
    assert register.watermark("pacs") is None
    return error.value.codes == ("window-too-dense",)


def test_where_the_archive_shows_none_without_a_time_it_is_said(register):
    for matching in ("wildcard", "exact", "ignored"):
        settings = PollSettings(pacs=matching, most=4, first=3600, zone=UTC)
        outcome = poll(register, Listed(TIMED, limit=4, by_modality=matching), settings, NOW)
        assert (outcome.new, outcome.unproven, register.poll_state(matching, NOW).unproven) == (7, 1, 1)


@pytest.mark.parametrize("matching", ["wildcard", "ignored"])
def test_one_without_a_time_in_the_days_own_answer_refuses(register, matching):
    assert refused(register, Listed([Kept("2.1", time=""), *TIMED], limit=4, by_modality=matching), DAY)
    assert len(register.queue()) == 8, "what was seen is registered all the same"


def test_one_without_a_time_that_its_modality_shows_refuses(register):
    archive = Listed([*TIMED, Kept("2.1", time="", modality="MR")], limit=4)
    assert refused(register, archive, DAY) and register.row_of("pacs", "2.1")


def test_one_without_a_time_that_several_days_show_refuses(register):
    class Turned(Listed):
        def find_studies(self, keys):
            self.studies.sort(key=lambda one: one.uid, reverse="-" in keys["StudyDate"])
            return super().find_studies(keys)

    assert refused(register, Turned([*TIMED, Kept("2.1", time="")], limit=4), DAYS)


def test_what_comes_while_a_day_is_asked_for_refuses_nothing(register):
    class Arriving(Listed):
        def find_studies(self, keys):
            if keys.get("ModalitiesInStudy") == "M*":
                self.studies.append(Kept("3.1", modality="MR", time="115959"))
            return super().find_studies(keys)

    assert poll(register, Arriving([*TIMED], limit=4), DAY, NOW).unproven == 1


def test_studies_that_no_modality_lists_are_no_proof(register):
    """An archive that has not worked out the modalities of some."""
    some = [Kept(f"2.{n}", time=f"1{n}0000", modality="") for n in range(3)]
    other = [Kept(f"3.{n}", time=f"2{n}0000", modality="MR") for n in range(3)]
    assert poll(register, Listed([*other, *some], limit=4), DAY, NOW).unproven == 1


@pytest.mark.parametrize("refuses", [True, False])
def test_an_archive_that_does_not_match_by_modality_is_asked_once(register, refuses):
    archive = Listed(TIMED, limit=4, by_modality="ignored", refuses=refuses)
    poll(register, archive, DAY, NOW)
    assert sum("ModalitiesInStudy" in asked for _, asked in archive.asked if isinstance(asked, dict)) == 1


def test_a_day_that_is_proven_costs_its_modalities(register):
    archive = Listed([Kept(f"1.{n}", time="", modality=f"{'CMUX'[n % 4]}R") for n in range(12)], limit=4)
    outcome = poll(register, archive, DAY, NOW)
    assert (outcome.new, outcome.unproven) == (12, 0) and outcome.questions < 60
