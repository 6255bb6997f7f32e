"""A study that is still being sent waits, on both of the register's databases; an urgent one, and a person, do not."""

import asyncio
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from blocks.endpoint import Endpoint
from blocks.profile import Profile
from blocks.reading import FoundSeries, FoundStudy, ReadingRegister
from blocks.reading_quiet import LONGEST_QUIET, MOST_TURNS
from blocks.reading_rows import StudyLease
from flows import reading as flow
from flows.clinic import Clinic
from policies.polling import PollSettings
from rapha.errors import Refusal
from tasks.reading.poll import poll
from tests.fixtures.postgres import running_postgres

QUIET, TITLES = 30, {"ae_title": "A", "calling_ae_title": "B"}


@pytest.fixture(scope="module")
def postgres() -> Iterator[object]:
    with running_postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def register(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ReadingRegister]:
    url = f"sqlite:///{tmp_path}/r.sqlite" if request.param == "sqlite" else request.getfixturevalue("postgres").fresh()
    opened = ReadingRegister(url, secrets.token_bytes(32))
    yield opened
    opened.close()


def study(count: int, *own: str) -> FoundStudy:
    series = [FoundSeries(series_uid="1.1.1", instances=count), *(FoundSeries(series_uid=one, instances=1) for one in own)]
    return FoundStudy(study_uid="1.1", series=tuple(series))


def found(register: ReadingRegister, count: int, now: int, priority: str = "medium") -> str:
    return register.found("p", study(count), now, priority, QUIET).outcome


def taken(register: ReadingRegister, now: int) -> StudyLease:
    lease = register.claim("w", now, 60)
    assert lease is not None
    return lease


def waits_until(register: ReadingRegister, due: int) -> StudyLease:
    assert register.claim("w", due - 1, 60) is None
    return taken(register, due)


def test_a_new_study_waits_and_a_change_moves_it_on(register: ReadingRegister) -> None:
    assert found(register, 1, 100) == "new"
    assert register.claim("w", 129, 60) is None
    assert found(register, 2, 125) == "changed" and found(register, 2, 140) == "known"
    assert waits_until(register, 155).order == 0


def test_one_that_never_stops_is_due_after_an_hour(register: ReadingRegister) -> None:
    for turn, now in enumerate(range(0, LONGEST_QUIET + 200, 20)):
        found(register, turn, now)
    waits_until(register, LONGEST_QUIET)


def test_a_change_brings_no_retry_forward(register: ReadingRegister) -> None:
    found(register, 1, 100)
    register.fail(taken(register, 130), ["x"], 131, retry_at=1000)
    found(register, 2, 140)
    waits_until(register, 1000)


def test_an_urgent_study_waits_for_nothing(register: ReadingRegister) -> None:
    found(register, 1, 100, "urgent")
    lease = taken(register, 100)
    register.finish(lease, 101)
    assert found(register, 2, 200) == "changed" and taken(register, 200).order == 1


@pytest.mark.parametrize("level", ["urgent", "high"])
def test_one_that_becomes_urgent_waits_no_longer(register: ReadingRegister, level: str) -> None:
    found(register, 1, 100)
    register.set_priority(1, level)
    assert (register.claim("w", 100, 60) is not None) is (level == "urgent")


def test_urgency_does_not_shorten_the_pause_after_a_failure(register: ReadingRegister) -> None:
    found(register, 1, 100)
    register.fail(taken(register, 130), ["x"], 131, retry_at=1000)
    register.set_priority(1, "urgent")
    waits_until(register, 1000)


def test_a_person_does_not_wait(register: ReadingRegister) -> None:
    found(register, 1, 100)
    assert register.claim("w", 101, 60, row=1) is not None


@pytest.mark.parametrize("end", ["finish", "fail"])
def test_what_changes_when_it_is_done_or_worked_on_waits_too(register: ReadingRegister, end: str) -> None:
    found(register, 1, 100)
    lease = taken(register, 130)
    found(register, 2, 140)
    if end == "finish":
        assert register.finish(lease, 145) == "scheduled"
    else:
        assert register.fail(lease, ["x"], 145) == "scheduled"
    lease = waits_until(register, 170)
    assert lease.order == 1
    register.finish(lease, 171)
    found(register, 3, 200)
    assert waits_until(register, 230).order == 2


def test_a_list_that_grew_gives_it_back_ten_times_at_most_and_counts_no_try(register: ReadingRegister) -> None:
    found(register, 1, 0)
    now = 0
    for turn in range(MOST_TURNS):
        now += QUIET
        lease = waits_until(register, now)
        assert not register.settled(lease, study(2 + turn), now, QUIET)
        with pytest.raises(Refusal) as refused:
            register.enter(lease, "analyse", now)
        assert refused.value.codes == ("lease-lost",)
    lease = waits_until(register, now + QUIET)
    assert (lease.tries, lease.order, lease.content_at) == (0, 0, now)
    assert register.settled(lease, study(99), now + QUIET, QUIET), "read as it is by then"
    register.finish(lease, now + QUIET)
    found(register, 200, now + 100)
    assert not register.settled(taken(register, now + 130), study(201), now + 130, QUIET), "a new opening has ten of its own"


def test_a_list_that_is_the_same_is_read_whatever_we_added_to_it(register: ReadingRegister) -> None:
    found(register, 1, 0)
    lease = taken(register, 30)
    register.own_series(lease, "1.1.9")
    assert register.settled(lease, study(1, "1.1.9"), 31, QUIET) and register.study(1).state == "in-progress"
    assert not register.settled(lease, study(1, "1.1.8"), 31, QUIET)


def test_a_change_that_a_poll_saw_meanwhile_opens_nothing_twice(register: ReadingRegister) -> None:
    found(register, 1, 0)
    lease = taken(register, 30)
    found(register, 2, 31)
    assert register.settled(lease, study(2), 32, QUIET) and register.finish(lease, 33) == "completed", (
        "all of it is still to come"
    )
    found(register, 3, 100)
    lease = taken(register, 130)
    found(register, 4, 131)
    assert not register.settled(lease, study(5), 132, QUIET)
    lease = waits_until(register, 162)
    assert lease.order == 1, "one change, one opening"
    assert register.finish(lease, 163) == "completed"


class Shelves:
    """An archive that lists one study of so many images."""

    def __init__(self) -> None:
        self.count, self.asked = 1, 0

    def find_studies(self, keys: Mapping[str, str]) -> list[dict[str, Any]]:
        self.asked += 1
        return [{"0020000D": {"vr": "UI", "Value": ["1.1"]}}] if self.count else []

    def find_series(self, study: str) -> list[dict[str, Any]]:
        return [{"0020000E": {"vr": "UI", "Value": ["1.1.1"]}, "00201209": {"vr": "IS", "Value": [self.count]}}]

    def find_instances(self, study: str) -> list[dict[str, Any]]:
        raise AssertionError("the series are counted")


def clinic(register: ReadingRegister, shelves: Shelves, quiet: int = QUIET) -> Clinic:
    settings = PollSettings(pacs="p", quiet=quiet)
    return cast(Clinic, SimpleNamespace(register=register, archive=lambda _: shelves, polling=lambda _: settings))


def test_the_flow_asks_the_archive_once_more_before_it_fetches(register: ReadingRegister) -> None:
    shelves, now = Shelves(), int(time.time())
    at = clinic(register, shelves)
    assert poll(register, shelves, PollSettings(pacs="p", quiet=QUIET), now).new == 1
    assert register.claim("w", now + QUIET - 1, 60) is None, "the poll passes it on"
    lease = register.claim("w", now, 600, row=1)
    assert lease is not None and flow._settled(at, lease), "the poll and the question see the same"
    shelves.count = 2
    assert not flow._settled(at, lease) and register.study(1).state == "scheduled"
    lease = register.claim("w", now, 600, row=1)
    assert lease is not None and flow._settled(at, lease)
    shelves.count = 0
    assert flow._settled(at, lease), "what is gone is found gone by the stage that fetches"


def test_who_need_not_wait_is_not_asked_about(register: ReadingRegister) -> None:
    shelves, now = Shelves(), int(time.time())
    register.found("p", study(7), now, "urgent")
    lease = register.claim("w", now, 600)
    assert lease is not None and flow._settled(clinic(register, shelves), lease)
    register.finish(lease, now)
    register.found("p", FoundStudy(study_uid="1.2"), now)
    lease = register.claim("w", now, 600)
    assert lease is not None and flow._settled(clinic(register, shelves, quiet=0), lease)
    lease = register.enter(lease, "analyse", now)
    assert flow._settled(clinic(register, shelves), lease) and shelves.asked == 0


@pytest.mark.parametrize(("sent", "asked", "end"), [(True, False, "unsettled"), (False, False, "staged"), (True, True, "staged")])
def test_what_is_still_being_sent_comes_to_no_stage_unless_a_person_asked(
    register: ReadingRegister, monkeypatch: pytest.MonkeyPatch, sent: bool, asked: bool, end: str
) -> None:
    async def staged(*_: object) -> str:
        return "staged"

    monkeypatch.setattr(flow, "_staged", staged)
    monkeypatch.setattr(flow, "_settled", lambda *_: not sent)
    register.found("p", study(1), 0)
    at = cast(Clinic, SimpleNamespace(register=register, lease_seconds=60))
    assert asyncio.run(flow._studied(at, taken(register, 0), settled=asked)) == end


def test_an_answer_that_nobody_expected_fails_that_study_alone(
    register: ReadingRegister, monkeypatch: pytest.MonkeyPatch
) -> None:
    def odd(*_: object) -> bool:
        raise ValueError("Nightingale^Florence")

    failed: list[tuple[str, ...]] = []
    monkeypatch.setattr(flow, "_settled", odd)
    monkeypatch.setattr(flow, "_failed", lambda clinic, lease, error: failed.append(error.codes) or "dead")
    register.found("p", study(1), 0)
    at = cast(Clinic, SimpleNamespace(register=register, lease_seconds=60))
    assert asyncio.run(flow._studied(at, taken(register, 0))) == "dead" and failed == [("bug-valueerror",)]


@pytest.mark.parametrize(("said", "seconds"), [({}, 30), ({"workflow.quiet_seconds": 0}, 0), ({"workflow.quiet_seconds": 7}, 7)])
def test_the_profile_says_how_long(tmp_path: Path, said: dict[str, int], seconds: int) -> None:
    profile = Profile(mode="development", endpoints={"p": Endpoint(name="p", host="h", port=1, **TITLES)}, values=said)
    assert Clinic({"RAPHA_STATE_DIR": str(tmp_path)}, profile).polling("p").quiet == seconds
