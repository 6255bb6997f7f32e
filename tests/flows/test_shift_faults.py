"""What a fault costs a worker's shift: of the register, of the node, of one study, of a lease that another attempt has by now."""

import asyncio
import json
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from blocks.ledger import Ledger
from blocks.models import site_list
from blocks.reading import FoundSeries, FoundStudy, ReadingRegister, StudyLease
from flows import draining, reading
from flows.brake import MOST, Brake
from flows.clinic import Clinic
from flows.draining import Shift
from policies.polling import PollSettings
from rapha.errors import ConfigurationError, PeerError, Refusal
from tasks.stage import coded
from tests.fixtures.clinic import _papers
from tests.fixtures.studies import RADIOLOGY

PORTS = {"dimse": 9, "web": 9, "receiver": 9, "engine": 9}


def owed(register: ReadingRegister, rows: int, pacs: str = "primary") -> None:
    for number in range(1, rows + 1):
        series = (FoundSeries(series_uid=f"1.2.{number}.1", instances=1),)
        register.found(pacs, FoundStudy(study_uid=f"1.2.{number}", series=series), int(time.time()) - 10)


def tries(register: ReadingRegister, row: int) -> int:
    """As the next to claim it is told."""
    lease = register.claim("asks", int(time.time()), 60, row=row)
    assert lease is not None
    register.give_back(lease, [], int(time.time()), 0)
    return lease.tries


def until(seen: Callable[[], object], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not seen():
        assert time.monotonic() < end
        time.sleep(0.01)


# -- a lease that lapses


class FakeCourse:
    """Says which course each stage ran on. The first one's first stage waits until its connections end."""

    made: ClassVar[list["FakeCourse"]] = []

    def __init__(self, clinic: Any, lease: StudyLease) -> None:
        self.lease, self.register, self.begun, self.over, self.lost = lease, clinic.register, False, "", False
        self.ran, self.closed, self.ended = list[str](), 0, threading.Event()
        self.study = SimpleNamespace(close=self.ended.set)
        self.made.append(self)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: self._enter(name)

    def _enter(self, name: str) -> None:
        self.ran.append(name)
        self.lease = self.register.enter(self.lease, name, int(time.time()))

    def retrieve(self) -> None:
        self._enter("retrieve")
        if self is self.made[0]:
            assert self.ended.wait(20)
            if self.lost:
                raise PeerError("study-gone", "the study reader closed the connection", peer="study")

    def complete(self) -> str:
        self.ran.append("complete")
        self.over = self.register.finish(self.lease, int(time.time()))
        return self.over

    def unstored(self) -> list[Any]:
        return []

    def cut(self) -> None:
        self.lost = True
        self.ended.set()

    def close(self) -> None:
        self.closed += 1


def as_stage(body: Callable[..., Any]) -> Callable[..., Any]:
    """What the engine's task does, without the engine."""

    async def run(*args: Any) -> Any:
        return await asyncio.to_thread(coded(body), *args)

    return run


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A clinic of which nothing but the register is real."""
    monkeypatch.setattr(FakeCourse, "made", [])
    monkeypatch.setattr(reading, "Course", FakeCourse)
    for name in ("resume", "retrieve", "analyse", "report", "store", "prove", "complete"):
        monkeypatch.setattr(reading, name, as_stage(getattr(reading, f"_{name}")))
    register = ReadingRegister.at(tmp_path / "r.sqlite", secrets.token_bytes(32))
    owed(register, 1)
    attempt = SimpleNamespace(record=lambda *_, **__: None)
    clinic = SimpleNamespace(register=register, lease_seconds=3, worker="w:1", person="x", trail=None, letters_to="")
    clinic.attempt, clinic.polling = lambda _: attempt, lambda name: PollSettings(pacs=name)
    yield clinic


@pytest.mark.parametrize("hung_up", [True, False])
def test_an_attempt_whose_lease_was_claimed_again_here_ends_on_its_own_course(fakes: Any, hung_up: bool) -> None:
    """hung_up: its stage waits until the connections end; else it ends by itself before anybody saw that the lease is lost."""
    register, fakes.lease_seconds = fakes.register, 9 if hung_up else 600

    async def both() -> tuple[str, str]:
        now = int(time.time())
        first = register.claim("w:1", now, 5)
        old = asyncio.create_task(reading._studied(fakes, first))
        await asyncio.to_thread(until, lambda: FakeCourse.made and FakeCourse.made[0].ran)
        register.renew(first, now - 5, 5)  # its time is over
        assert [one.state for one in register.reap(now)] == ["scheduled"]
        assert reading._claimed(fakes) is None, "it still flies here"
        second = register.claim("w:1", now, 600)
        new = asyncio.create_task(reading._studied(fakes, second))
        if not hung_up:
            await asyncio.to_thread(until, lambda: len(FakeCourse.made) == 2)
            FakeCourse.made[0].ended.set()
        return await old, await new

    assert asyncio.run(both()) == ("lost", "completed")
    old, new = FakeCourse.made
    assert old.ran == (["retrieve"] if hung_up else ["retrieve", "analyse"])
    assert (old.lost, old.closed, new.lost, new.closed) == (hung_up, 1, False, 1)
    assert new.ran == ["retrieve", "analyse", "report", "store", "prove", "complete"]
    assert register.study(1).state == "completed" and register.dead_letters() == []
    assert reading._courses == {} and reading._flying == set()


def test_a_refusal_halts_the_connections_of_its_own_attempt_alone(fakes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = SimpleNamespace(row=1)
    courses = {(1, attempt): FakeCourse(fakes, lease) for attempt in (1, 2)}  # type: ignore[arg-type]
    monkeypatch.setattr(reading, "_courses", courses)

    async def refused(raise_on_failure: bool) -> Refusal:
        return Refusal(["arrival-missing"])

    run: Any = SimpleNamespace(name=reading.NAMED.format(name="retrieve", row=1, attempt=2))
    asyncio.run(reading.halt(reading.poll, run, SimpleNamespace(aresult=refused)))  # type: ignore[arg-type]
    assert [courses[1, attempt].ended.is_set() for attempt in (1, 2)] == [False, True]


def test_a_study_that_is_over_is_claimed_here_again(fakes: Any) -> None:
    FakeCourse.made.append(FakeCourse(fakes, None))  # type: ignore[arg-type]
    lease = reading._claimed(fakes)
    assert lease is not None
    assert asyncio.run(reading._studied(fakes, lease)) == "completed"
    series = (FoundSeries(series_uid="1.2.1.1", instances=2),)
    fakes.register.found("primary", FoundStudy(study_uid="1.2.1", series=series), int(time.time()))
    assert reading._claimed(fakes) is not None


# -- what a claim or a run raises


def worked(claim: Callable[[], Any], run: Callable[[Any], Any], **more: Any) -> dict[str, int]:
    options = {"at_most": 5, "idle": 0.3, "until": time.monotonic() + 60, "pause": 0.02, **more}
    return asyncio.run(Shift(claim, run, **options).work())


@pytest.mark.parametrize("error", [PeerError("register-unavailable", "locked", peer="register"), OSError(24, "no descriptors")])
def test_a_shift_outlives_claims_that_fail(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.brake.FIRST", 0.05)
    answers, ended = [1, error, error, 2, 3, None], list[int]()

    def claim() -> int | None:
        answer = answers.pop(0) if answers else None
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def run(row: int) -> str:
        await asyncio.sleep(0.2)
        ended.append(row)
        return "completed"

    assert worked(claim, run, idle=1.0) == {"completed": 3}
    assert sorted(ended) == [1, 2, 3]


def test_a_bug_in_one_study_ends_that_study_alone(caplog: pytest.LogCaptureFixture) -> None:
    rows = [1, 2, 3]

    async def run(row: int) -> str:
        await asyncio.sleep(0.05 * row)
        if row == 2:
            raise OSError(28, "No space left on /patients/of/Jane^Doe")
        return "completed"

    assert worked(lambda: rows.pop(0) if rows else None, run) == {"completed": 2, "lost": 1}
    assert "bug-oserror" in caplog.text and "Jane" not in caplog.text


@pytest.mark.parametrize("end", [KeyboardInterrupt, asyncio.CancelledError])
def test_what_ends_a_process_ends_the_shift(end: type[BaseException]) -> None:
    rows = [1]

    async def run(_: int) -> str:
        await asyncio.sleep(0.05)
        raise end

    with pytest.raises(end):
        worked(lambda: rows.pop(0) if rows else None, run)


def test_a_shift_that_is_canceled_ends() -> None:
    rows = [1]

    async def run(_: int) -> str:
        await asyncio.sleep(60)
        return "completed"

    async def canceled() -> None:
        shift = Shift(lambda: rows.pop(0) if rows else None, run, at_most=5, idle=1, until=time.monotonic() + 60, pause=0.02)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(shift.work(), 0.3)

    asyncio.run(canceled())


def test_work_beside_the_shift_outlives_its_bugs_and_ends_with_it(caplog: pytest.LogCaptureFixture) -> None:
    async def raises(error: BaseException) -> None:
        raise error

    asyncio.run(draining.outlived(raises(ValueError("Jane^Doe")), "view"))
    assert "view: bug-valueerror" in caplog.text and "Jane" not in caplog.text
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(draining.outlived(raises(asyncio.CancelledError()), "view"))


# -- the end of a shift


def test_a_slow_study_keeps_no_other_waiting_past_the_shifts_time(monkeypatch: pytest.MonkeyPatch) -> None:
    queue, begun, may_end = ["slow"], dict[str, float](), asyncio.Event()
    started = time.monotonic()

    def claim() -> str | None:
        return queue.pop(0) if queue else None

    async def run(row: str) -> str:
        begun[row] = time.monotonic() - started
        if row == "slow":
            await may_end.wait()
        return "completed"

    async def shift() -> dict[str, int]:
        work = Shift(claim, run, at_most=5, idle=60, until=started + 0.2, pause=0.02, grace=0.3)
        working = asyncio.create_task(work.work())
        await asyncio.sleep(0.3)
        queue.append("urgent")  # in the time in which it would run empty
        await asyncio.sleep(0.1)
        assert "urgent" not in begun
        while "urgent" not in begun:
            await asyncio.sleep(0.02)
        may_end.set()
        return await asyncio.wait_for(working, 5)

    assert asyncio.run(asyncio.wait_for(shift(), 10)) == {"completed": 2}
    assert begun["urgent"] < 2


def test_a_shift_ends_as_soon_as_nothing_flies_past_its_time() -> None:
    started, left = time.monotonic(), Counter[str]()

    def claim() -> int:
        left["claimed"] += 1
        return left["claimed"]

    async def run(number: int) -> str:
        await asyncio.sleep(0.04 * (1 + number % 3))  # so that something flies at any moment
        return "completed"

    async def shift() -> dict[str, int]:
        work = Shift(claim, run, at_most=5, idle=60, until=started + 0.3, pause=0.02, grace=5.0)
        return await asyncio.wait_for(work.work(), 4)

    assert asyncio.run(shift())["completed"] == left["claimed"], "work that never ceases keeps no shift alive"


# -- the brake


def test_the_brake_doubles_while_what_is_tried_fails_and_a_success_ends_it() -> None:
    now = [100.0]
    brake = Brake(clock=lambda: now[0])
    assert brake.may() and brake.may()
    waits = []
    for _ in range(8):
        brake.pull(["ledger-unwritable"])
        brake.pull(["ledger-unwritable"])  # of the same moment
        assert brake.why == ("ledger-unwritable",)
        began = now[0]
        while not brake.may():
            now[0] += 0.5
        assert not brake.may(), "one at a time"
        waits.append(now[0] - began)
    assert waits == [1, 2, 4, 8, 16, MOST, MOST, MOST]
    brake.release()
    assert brake.may() and brake.may() and brake.why == ()


# -- the node's own faults


@pytest.fixture
def clinic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clinic:
    """Keys, profile, ledger, models and register of a node beside which nothing runs."""
    environment = _papers(tmp_path, PORTS, "C-GET")
    (tmp_path / "models.json").write_text(json.dumps(site_list([RADIOLOGY])))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    made = Clinic.open()
    owed(made.register, 3)
    return made


def drained(clinic: Clinic, seconds: float) -> Shift[StudyLease]:
    """Some seconds of a shift, without the engine."""
    until = time.monotonic() + seconds
    shift = Shift(lambda: reading._claimed(clinic), lambda lease: reading._studied(clinic, lease), 1, 60, until, pause=0.02)
    asyncio.run(shift.work())
    return shift


def unharmed(clinic: Clinic, code: str, rows: Sequence[int] = (1, 2, 3)) -> None:
    """Every row is owed as before, at least one says why, and none was given up on or has lost a try."""
    studies = [clinic.register.study(row) for row in rows]
    assert [one.state for one in studies] == ["scheduled"] * 3
    assert {one.codes for one in studies} <= {(), (code,)} and any(one.codes for one in studies)
    assert clinic.register.dead_letters() == [] and [tries(clinic.register, row) for row in rows] == [0, 0, 0]


def _no_lock(folder: Path) -> None:
    """No user may open it, root neither."""
    lock = folder / "state" / "ledger" / "ledger.lock"
    lock.unlink(missing_ok=True)
    lock.mkdir()


@pytest.mark.parametrize(
    ("broken", "code"),
    [
        (lambda folder: (folder / "models.json").unlink(), "models-missing"),
        (_no_lock, "ledger-unreadable"),
        (lambda folder: (folder / "keys" / "audit.pem").write_text("no key"), "key-unreadable"),
    ],
)
def test_a_node_that_can_read_nothing_claims_nothing(clinic: Clinic, tmp_path: Path, broken: Any, code: str) -> None:
    broken(tmp_path)
    with pytest.raises((ConfigurationError, Refusal)) as raised:
        asyncio.run(reading.drain.fn(seconds=5, idle=0))
    assert code in raised.value.codes
    rows = clinic.register.queue()
    assert [(one.state, one.attempt) for one in rows] == [("scheduled", 0)] * 3 and clinic.register.dead_letters() == []


def test_a_launch_script_that_is_gone_is_told_before_anything_is_claimed(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAPHA_TRAINER_COMMAND", str(tmp_path / "gone.py"))
    with pytest.raises(ConfigurationError) as raised:
        asyncio.run(reading.drain.fn(seconds=5, idle=0))
    assert raised.value.codes == ("trainer-command-missing",)
    assert [one.attempt for one in clinic.register.queue()] == [0, 0, 0]


def test_a_ledger_that_cannot_be_written_costs_no_study_a_try_and_pauses_claims(clinic: Clinic, tmp_path: Path) -> None:
    _no_lock(tmp_path)
    shift = drained(clinic, 1.5)
    assert 1 <= shift.ends["put-back"] <= 2 and sum(shift.ends.values()) == shift.ends["put-back"]
    assert shift.brake.why == ("put-back",)
    unharmed(clinic, "ledger-unreadable")


def test_a_ledger_that_breaks_under_the_end_of_a_study_costs_it_no_try(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    def unwritable(*_: Any, **__: Any) -> None:
        raise Refusal(["ledger-unwritable"])

    monkeypatch.setattr(Ledger, "append", unwritable)  # the study reader is not there: a peer's fault, which cannot be recorded
    assert drained(clinic, 0.5).ends.keys() == {"put-back"}
    unharmed(clinic, "ledger-unwritable")


def test_a_folder_that_cannot_be_made_costs_no_study_a_try(clinic: Clinic, tmp_path: Path) -> None:
    (tmp_path / "state" / "reading").write_text("in the way")
    assert drained(clinic, 0.5).ends.keys() == {"put-back"}
    unharmed(clinic, "bug-notadirectoryerror")


def test_a_setting_that_breaks_in_the_middle_of_a_shift_costs_no_study_a_try(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise ConfigurationError(["models-other"], "a model package is not the one that the site's list names")

    monkeypatch.setattr(reading, "Course", broken)
    assert drained(clinic, 0.5).ends.keys() == {"put-back"}
    unharmed(clinic, "models-other")


def test_an_endpoint_that_is_no_more_keeps_only_its_own_studies_waiting(clinic: Clinic) -> None:
    for row in (1, 2, 3):
        clinic.register.cancel(row, int(time.time()))
    owed(clinic.register, 3, "renamed")
    shift = drained(clinic, 0.5)
    assert shift.ends == {"scheduled": 3} and shift.brake.why == (), "all were looked at, without a pause"
    now = int(time.time())
    assert all(one.next_at > now + 200 for one in clinic.register.queue())
    unharmed(clinic, "pacs-unknown", (4, 5, 6))


def test_a_peers_fault_is_still_counted_and_a_refusal_still_a_dead_letter(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([PeerError("study-gone", "gone", peer="study"), Refusal(["models-none"]), Refusal(["arrival-conflict"])])

    def course(*_: Any) -> None:
        raise next(answers)

    monkeypatch.setattr(reading, "Course", course)
    ends = drained(clinic, 1.6).ends
    assert ends["dead"] == 1 and ends["put-back"] == 1 and ends["scheduled"] == 1
    assert [one.codes for one in clinic.register.dead_letters()] == [("arrival-conflict",)]
    assert [tries(clinic.register, row) for row in (1, 2)] == [1, 0]


def test_a_shift_waits_for_a_register_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draining, "PAUSE", 0.05)
    monkeypatch.setattr("flows.brake.FIRST", 0.05)
    waited = list[Any]()

    def stands() -> None:
        if len(waited) < 2:
            raise PeerError("register-unavailable", "the database is away", peer="register")

    asyncio.run(draining.standing(stands, time.monotonic() + 30, waited.append))
    assert waited == [("register-unavailable",)] * 2
    with pytest.raises(PeerError):
        asyncio.run(draining.standing(lambda: _raise("register-unavailable"), time.monotonic() - 1, waited.append))


def _raise(code: str) -> None:
    raise PeerError(code, code)


# -- what is looked after beside it


def test_with_mail_switched_off_the_engine_is_not_asked_to_tell(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    from blocks.reading import Notice

    now, told = int(time.time()), list[int]()
    lease = clinic.register.claim("w", now, 60)
    assert lease is not None
    notice = Notice(kind="critical", recipient_group="radiology", template="critical")
    clinic.register.finish(lease, now, notices=[notice])
    assert clinic.register.owes_notice(now)

    async def tell(_: Clinic) -> None:
        told.append(1)

    monkeypatch.setattr(reading, "tell", tell)
    asyncio.run(reading._told(clinic))
    assert told == []
    monkeypatch.setattr(reading, "notifications", lambda _: object())
    asyncio.run(reading._told(clinic))
    assert told == [1]


def test_a_view_that_breaks_ends_neither_reaping_nor_telling(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds, told = list[int](), list[int]()

    class Broken:
        def show(self, *_: Any) -> None:
            rounds.append(1)
            raise RuntimeError("the view")

    async def tells(_: Clinic) -> None:
        told.append(1)
        raise KeyError("told")

    monkeypatch.setattr(reading, "MIND_SECONDS", 0.05)
    monkeypatch.setattr(reading, "_told", tells)

    async def minded() -> None:
        over, shift = asyncio.Event(), SimpleNamespace(ends={}, brake=Brake())
        beside = asyncio.create_task(reading._minded(clinic, shift, Broken(), over))  # type: ignore[arg-type]
        await asyncio.sleep(0.5)
        over.set()
        await beside

    asyncio.run(minded())
    assert len(rounds) > 2 and len(told) == len(rounds)
