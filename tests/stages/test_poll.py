"""Polls of an archive that answers by the rules of matching, over a real register."""

import secrets
from dataclasses import dataclass, field

import pytest

from blocks.reading import ReadingRegister
from policies.polling import DAY, PollSettings
from rapha.errors import PeerError, Refusal
from tasks.reading.poll import poll

NOW = 1_800_000_000
TODAY, YESTERDAY = "20270115", "20270114"
SETTINGS = PollSettings(pacs="pacs", most=5, smallest=60)


@dataclass
class Shelves:
    """Studies by UID: (date, time, {series: [instances]}). It cuts its answers off at `limit` and says nothing."""

    studies: dict = field(default_factory=dict)
    limit: int = 5
    refuses: bool = False
    counts: bool = False
    asked: list = field(default_factory=list)

    def find_studies(self, keys):
        self.asked.append(dict(keys))
        found = [uid for uid, (date, time, _) in self.studies.items() if within(date, keys.get("StudyDate")) and
                 within(time, keys.get("StudyTime"))]  # fmt: skip
        if self.refuses and len(found) > self.limit:
            raise PeerError("dimse-too-many", "too many", peer="pacs")
        return [{"0020000D": value(uid), "00100020": value("HOSP-1")} for uid in found[: self.limit]]

    def find_series(self, study):
        series = self.studies[study][2]
        extra = (lambda n: {"00201209": value(n)}) if self.counts else (lambda n: {})
        return [{"0020000E": value(uid), "00080060": value("CT"), **extra(len(inside))} for uid, inside in series.items()]

    def find_instances(self, study):
        return [{"0020000E": value(s), "00080018": value(i)} for s, inside in self.studies[study][2].items() for i in inside]


def value(one):
    return {"vr": "UI", "Value": [one]}


def within(text, key):
    first, _, last = (key or "").partition("-")
    return not key or first <= text <= (last or first)


@pytest.fixture
def register(tmp_path):
    opened = ReadingRegister.at(tmp_path / "r.sqlite", secrets.token_bytes(32))
    yield opened
    opened.close()


def test_more_studies_than_the_limit_are_all_found(register):
    for refuses in (False, True):
        studies = {
            f"1.{refuses:d}.{n}": (TODAY, f"{n // 3:02d}{n % 3:02d}00.5", {f"1.{refuses:d}.{n}.1": ["1"]}) for n in range(60)
        }
        outcome = poll(register, Shelves(studies, refuses=refuses), SETTINGS, NOW)
        assert (outcome.new, outcome.known) == (60, 0) and outcome.questions > 12
    assert len(register.queue(1000)) == 120


def test_too_many_in_the_smallest_window_refuses_and_keeps_the_rest_and_the_watermark(register):
    studies = {f"1.{n}": (TODAY, "080000", {"1.1": ["1"]}) for n in range(6)} | {"2.1": (YESTERDAY, "080000", {"2.2": ["1"]})}
    with pytest.raises(Refusal) as error:
        poll(register, Shelves(studies), SETTINGS, NOW)
    assert error.value.codes == ("window-too-dense",)
    assert register.watermark("pacs") is None and register.row_of("pacs", "2.1") is not None
    assert poll(register, Shelves(studies, limit=10), PollSettings(pacs="pacs", most=10), NOW + 1).new == 1


@pytest.mark.parametrize("counts", [True, False])
def test_a_late_series_reopens_our_report_does_not(register, counts):
    shelves = Shelves({"1.2": (TODAY, "080000", {"1.2.1": ["a", "b"]})}, counts=counts)
    assert poll(register, shelves, SETTINGS, NOW).new == 1
    lease = register.claim("w", NOW, 60)
    register.own_series(lease, "9.9.1")
    register.finish(lease, NOW + 1)
    shelves.studies["1.2"][2]["9.9.1"] = ["report"]
    assert (outcome := poll(register, shelves, SETTINGS, NOW + 300)).known == 1 and outcome.rows == ()
    shelves.studies["1.2"][2]["1.2.2"] = ["c"]
    assert poll(register, shelves, SETTINGS, NOW + 600).rows == (lease.row,)
    assert register.claim("w", NOW + 600, 60).order == 1


def test_a_corrected_instance_reopens_though_the_count_is_the_same(register):
    shelves = Shelves({"1.2": (TODAY, "080000", {"1.2.1": ["a", "b"]})})
    poll(register, shelves, SETTINGS, NOW)
    register.finish(register.claim("w", NOW, 60), NOW)
    shelves.studies["1.2"][2]["1.2.1"][1] = "corrected"
    assert poll(register, shelves, SETTINGS, NOW + 300).changed == 1


def test_a_study_of_our_own_reports_alone_is_not_read(register):
    own = PollSettings(pacs="pacs", own_roots=("9.9",))
    outcome = poll(register, Shelves({"1.2": (TODAY, "080000", {"9.9.1": ["a"]})}), own, NOW)
    assert (outcome.own, outcome.new) == (1, 0) and register.queue() == []


def test_the_watermark_moves_only_when_the_poll_came_to_its_end(register):
    class Broken(Shelves):
        def find_series(self, study):
            raise PeerError("dimse-timeout", "no answer", peer="pacs")

    with pytest.raises(PeerError):
        poll(register, Broken({"1.2": (TODAY, "080000", {})}), SETTINGS, NOW)
    assert register.watermark("pacs") is None
    shelves = Shelves()
    poll(register, shelves, SETTINGS, NOW)
    assert register.watermark("pacs").at == NOW
    poll(register, shelves, SETTINGS, NOW + 10 * DAY)
    assert shelves.asked[-1]["StudyDate"].startswith(YESTERDAY[:6]), "what the node slept through is asked for"
