"""The daily sweep: what comes late under an old date is read, what was there before the node is not; and whose day it is."""

import secrets
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from blocks.reading import ReadingRegister
from policies.polling import DAY, PollSettings
from rapha.errors import PeerError, Refusal
from tasks.reading.poll import poll
from tests.fixtures.listing import Kept, Listed

NOW = 1_800_000_000  # 2027-01-15 08:00 UTC
SETTINGS = PollSettings(pacs="pacs", sweep=30 * DAY, zone=UTC)
OLD, OLDER, LONG_AGO = "20270105", "20261220", "20200101"


@pytest.fixture
def register(tmp_path):
    opened = ReadingRegister.at(tmp_path / "r.sqlite", secrets.token_bytes(32))
    yield opened
    opened.close()


def swept(register, archive, day, settings=SETTINGS):
    """The poll of this day; its sweep is due."""
    outcome = poll(register, archive, settings, NOW + day * DAY)
    assert outcome.swept is not None
    return outcome


def test_what_was_there_at_the_first_sweep_is_not_read(register):
    archive = Listed([Kept("1.1", date=OLD), Kept("1.2", date=OLDER), Kept("1.3")])
    outcome = swept(register, archive, 0)
    assert (outcome.new, outcome.swept) == (1, 2)
    assert swept(register, archive, 1).new == 0 and len(register.queue()) == 1
    assert not [study for level, study in archive.asked if level != "STUDY" and study != "1.3"], (
        "what is left alone is not asked for"
    )


def test_what_comes_later_under_an_old_date_is_read(register):
    """A slide archive with the day of the specimen, a modality that was offline over the weekend."""
    archive = Listed([Kept("1.1", date=OLD)])
    swept(register, archive, 0)
    archive.studies += [Kept("1.2", date=OLD), Kept("1.3", date=OLDER), Kept("1.4", date=LONG_AGO)]
    outcome = swept(register, archive, 1)
    assert (outcome.new, len(outcome.rows)) == (2, 2) and register.row_of("pacs", "1.4") is None, "not from before the 30 days"
    assert swept(register, archive, 2).new == 0


@pytest.mark.parametrize("what", ["instance", "series"])
def test_a_late_series_of_an_older_study_is_read(register, what):
    """Of a study that was left alone until then, and of one that was read: then it is opened again."""
    archive = Listed([Kept("1.1", date=OLD), Kept("1.2")])
    poll(register, archive, SETTINGS, NOW)
    register.finish(register.claim("w", NOW, 60), NOW)
    poll(register, Listed([]), PollSettings(pacs="pacs", zone=UTC), NOW + 5 * DAY - 300)
    for one in archive.studies:
        if what == "series":
            one.series["7.7"] = ["x"]
        else:
            one.series[f"{one.uid}.1"].append("x")
    outcome = swept(register, archive, 5)
    assert (outcome.new, outcome.changed) == (1, 1)


def test_a_sweep_is_made_once_a_day(register):
    archive = Listed([])
    made = [poll(register, archive, SETTINGS, NOW + hour * 3600).swept for hour in range(49)]
    assert [hour for hour, studies in enumerate(made) if studies is not None] == [0, 24, 48]
    assert poll(register, archive, PollSettings(pacs="other"), NOW).swept is None, "0 days are none"


def test_a_sweep_lists_nothing_below_what_is_unchanged(register):
    archive = Listed([Kept(f"1.{n}") for n in range(20)])
    poll(register, archive, SETTINGS, NOW)
    poll(register, Listed([]), PollSettings(pacs="pacs", zone=UTC), NOW + 10 * DAY - 300)
    archive.asked.clear()
    outcome = swept(register, archive, 10)
    assert (outcome.swept, outcome.known, len(archive.asked)) == (20, 20, 2)


def test_a_first_sweep_that_fails_is_a_first_sweep_again_and_the_poll_stands(register):
    class Halting(Listed):
        def find_studies(self, keys):
            if keys["StudyDate"] < "2027011":
                raise PeerError("dimse-timeout", "no answer", peer="pacs")
            return super().find_studies(keys)

    with pytest.raises(PeerError):
        poll(register, Halting([Kept("1.1", date=OLD), Kept("1.2")]), SETTINGS, NOW)
    assert register.watermark("pacs").at == NOW and register.row_of("pacs", "1.2")
    archive = Listed([Kept("1.1", date=OLD)])
    assert poll(register, archive, SETTINGS, NOW + 300).swept is None, "not at every poll"
    outcome = poll(register, archive, SETTINGS, NOW + 3600)
    assert (outcome.swept, outcome.new) == (1, 0)


def test_looking_further_back_begins_there_anew(register):
    archive = Listed([Kept("1.1", date=OLD), Kept("1.2", date=OLDER)])
    short = PollSettings(pacs="pacs", sweep=15 * DAY, zone=UTC)
    assert swept(register, archive, 0, short).swept == 1
    archive.studies.append(Kept("1.3", date=OLD))
    outcome = swept(register, archive, 1)
    assert (outcome.swept, outcome.new) == (3, 1), "the older one was there, of the newer days one is new"


def test_looking_less_far_back_for_a_while_begins_nothing_anew(register):
    archive = Listed([])
    swept(register, archive, 0)
    swept(register, archive, 1, PollSettings(pacs="pacs", sweep=15 * DAY, zone=UTC))
    archive.studies.append(Kept("1.1", date=OLDER))
    assert swept(register, archive, 2).new == 1


def test_a_day_that_is_too_full_for_the_sweep_refuses_and_is_no_end(register):
    archive = Listed([Kept(f"1.{n}", date=OLD, time="") for n in range(9)], limit=5, by_modality="ignored")
    settings = PollSettings(pacs="pacs", most=5, sweep=30 * DAY, zone=UTC)
    with pytest.raises(Refusal) as error:
        poll(register, archive, settings, NOW)
    assert error.value.codes == ("window-too-dense",)
    state = register.poll_state("pacs", NOW)
    assert (state.swept_at, state.polled_at, state.sweep_next) == (None, NOW, NOW + 3600)


def test_an_odd_study_of_a_sweep_is_said_until_a_sweep_without_one(register):
    archive = Listed([Kept("1.1", date=OLD)])
    swept(register, archive, 0)
    archive.studies.append(Kept("1.2", date=OLD, odd="instance"))
    assert swept(register, archive, 1).odd == 1
    poll(register, archive, SETTINGS, NOW + DAY + 300)
    assert register.poll_state("pacs", NOW).odd == 1, "a poll does not see it, and does not unsay it"
    archive.studies[-1].odd = ""
    swept(register, archive, 2)
    assert register.poll_state("pacs", NOW).odd == 0 and register.row_of("pacs", "1.2")


def test_a_clock_that_ran_ahead_does_not_put_off_the_sweep(register):
    swept(register, Listed([]), 100)
    register.put_watermark("pacs", NOW)
    assert swept(register, Listed([]), 1).swept == 0


@pytest.mark.parametrize(
    "zone", ["Asia/Tokyo", "Australia/Sydney", "Pacific/Kiritimati", "Pacific/Pago_Pago", "America/New_York"]
)
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("hour", [0, 8, 23])
def test_a_study_of_just_now_is_found_at_once_wherever_it_is(register, zone, known, hour):
    local = datetime(2027, 1, 15, hour, 30, tzinfo=ZoneInfo(zone))
    archive = Listed([Kept("1.1", date=f"{local:%Y%m%d}", time=f"{local:%H%M%S}")])
    settings = PollSettings(pacs="pacs", zone=ZoneInfo(zone) if known else None)
    now = int(local.timestamp())
    poll(register, Listed([]), settings, now - 300)
    assert poll(register, archive, settings, now).new == 1
