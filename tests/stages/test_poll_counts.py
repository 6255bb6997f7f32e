"""How much a poll asks: what is below a study only where its counts changed, are missing, or were compared too long ago."""

import secrets

import pytest

from blocks.reading import ReadingRegister
from policies.polling import PollSettings, study_counts
from rapha.errors import PeerError
from tasks.reading.poll import poll
from tests.fixtures.listing import Kept, Listed

NOW, HOURS = 1_800_000_000, 3600
SETTINGS = PollSettings(pacs="pacs")


@pytest.fixture
def register(tmp_path):
    opened = ReadingRegister.at(tmp_path / "r.sqlite", secrets.token_bytes(32))
    yield opened
    opened.close()


def below(archive):
    return archive.questions("SERIES") + archive.questions("IMAGE")


def test_a_hundred_unchanged_studies_cost_one_question(register):
    series = {f"1.{n}.{s}": [f"1.{n}.{s}.1"] for n in range(100) for s in range(4)}
    archive = Listed([Kept(f"1.{n}", series={u: i for u, i in series.items() if u.startswith(f"1.{n}.")}) for n in range(100)])
    assert poll(register, archive, SETTINGS, NOW).new == 100
    archive.asked.clear()
    again = poll(register, archive, SETTINGS, NOW + 300)
    assert (again.known, again.new, again.changed, len(archive.asked)) == (100, 0, 0, 1)


def test_without_counts_everything_is_listed_each_time(register):
    archive = Listed([Kept("1.1")], counts=False)
    for turn in (1, 2, 3):
        poll(register, archive, SETTINGS, NOW + 300 * turn)
        assert archive.questions("SERIES") == turn


@pytest.mark.parametrize("what", ["instance", "series", "gone"])
def test_other_counts_are_listed_and_reopen(register, what):
    archive = Listed([Kept("1.1", series={"1.1.1": ["a", "b"], "1.1.2": ["c"]})])
    poll(register, archive, SETTINGS, NOW)
    register.finish(register.claim("w", NOW, 60), NOW)
    series = archive.studies[0].series
    if what == "instance":
        series["1.1.1"].append("d")
    elif what == "series":  # as many instances as before
        series["1.1.1"], series["1.1.3"] = ["a"], ["b"]
    else:
        del series["1.1.2"]
    assert poll(register, archive, SETTINGS, NOW + 300).changed == 1


def test_our_own_report_is_listed_once_and_reopens_nothing(register):
    archive = Listed([Kept("1.1")])
    poll(register, archive, SETTINGS, NOW)
    lease = register.claim("w", NOW, 60)
    register.own_series(lease, "9.9")
    register.finish(lease, NOW)
    archive.studies[0].series["9.9"] = ["report"]
    for turn in (1, 2, 3):
        assert poll(register, archive, SETTINGS, NOW + 300 * turn).changed == 0
    assert archive.questions("SERIES") == 2, "once when it was new, once when our report was in it"


def test_a_corrected_instance_at_the_same_counts_is_found_after_six_hours(register):
    archive = Listed([Kept("1.1", series={"1.1.1": ["a", "b"]})])
    poll(register, archive, SETTINGS, NOW)
    register.finish(register.claim("w", NOW, 60), NOW)
    archive.studies[0].series["1.1.1"][1] = "corrected"
    assert poll(register, archive, SETTINGS, NOW + 6 * HOURS).changed == 0
    assert poll(register, archive, SETTINGS, NOW + 6 * HOURS + 1).changed == 1


def test_what_came_while_a_study_was_listed_is_listed_the_next_time(register):
    """The counts are those of before the listing."""

    class Arriving(Listed):
        def find_instances(self, study):
            found = super().find_instances(study)
            if len(self.studies[0].series["1.1.1"]) < 3:
                self.studies[0].series["1.1.1"].append("late")
            return found

    archive = Arriving([Kept("1.1", series={"1.1.1": ["a", "b"]})])
    poll(register, archive, SETTINGS, NOW)
    register.finish(register.claim("w", NOW, 60), NOW)
    assert poll(register, archive, SETTINGS, NOW + 300).changed == 1


def test_a_listing_that_failed_leaves_the_old_counts(register):
    archive = Listed([Kept("1.1")])
    poll(register, archive, SETTINGS, NOW)
    register.finish(register.claim("w", NOW, 60), NOW)
    archive.studies[0].series["1.1.2"], archive.studies[0].fails = ["x"], "dimse-timeout"
    with pytest.raises(PeerError):
        poll(register, archive, SETTINGS, NOW + 300)
    archive.studies[0].fails = ""
    assert poll(register, archive, SETTINGS, NOW + 600).changed == 1


def test_a_clock_that_ran_ahead_keeps_nothing_from_being_listed(register):
    archive = Listed([Kept("1.1", series={"1.1.1": ["a", "b"]})])
    poll(register, archive, SETTINGS, NOW + 1000)
    archive.studies[0].series["1.1.1"][1] = "corrected"
    register.put_watermark("pacs", NOW - 300)
    poll(register, archive, SETTINGS, NOW)
    assert archive.questions("SERIES") == 2


def test_another_archives_counts_are_its_own(register):
    archive = Listed([Kept("1.1")])
    poll(register, archive, SETTINGS, NOW)
    assert poll(register, archive, PollSettings(pacs="other"), NOW).new == 1


def test_counts_are_two_numbers_or_none():
    assert study_counts("4", "100") == "4/100" != study_counts("41", "00")
    for series, instances in (("", "1"), ("1", ""), ("1", "x"), ("-1", "2"), ("1", "٣"), ("1", "9" * 10)):
        assert study_counts(series, instances) == ""
