"""The reading service's flows: poll finds what is new, drain brings it through the stages, read takes one study now.

    retrieve -> [arrival gate] -> analyse -> report -> store -> prove -> [completeness gate] -> done, and somebody is told

One run of drain is a worker's whole shift, with many studies in flight. A parameter is a row's number, never an identifier. What
is owed is the register's to say, what was decided the ledger's; the engine shows what is running.
"""

import asyncio
import contextlib
import logging
import time
from typing import Any

from prefect import flow, runtime, tags
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from blocks.audit import Act
from blocks.mail import notifications
from blocks.reading import StudyLease
from blocks.reading_rows import STAGES
from flows.clinic import Clinic
from flows.course import Course
from flows.draining import Shift
from flows.pace import adopt
from flows.reading_view import Bar, Board
from flows.stages import ENGINE_FAILED, async_stage, stage
from flows.tidying import tidy
from policies.alerts import alert_type
from rapha.errors import PeerError, RaphaError, Refusal
from tasks.reading import alarms as alarming
from tasks.reading import poll as polling
from tasks.reading import tell as telling

log = logging.getLogger("rapha.reading")
RENEWALS = 6  # of a lease in its own time
FIRST_PAUSE = 60  # seconds before a failed study is tried again; doubled each time
SHIFT_SECONDS, IDLE_SECONDS = 3300.0, 45.0
MIND_SECONDS = 5.0  # between two looks at what is owed beside the studies in flight

_courses: dict[int, Course] = {}


async def halt(task: Task[..., Any], run: TaskRun, state: State[Any]) -> None:
    """The state hook of the gated stages: on a refusal the study's connections end, and with them what was opened of it."""
    row = int(run.name.rpartition(" ")[2])
    course = _courses.get(row)
    if course is not None and isinstance(await state.aresult(raise_on_failure=False), Refusal):
        course.study.close()


def _resume(row: int) -> str:
    return _courses[row].resume()


def _retrieve(row: int) -> None:
    _courses[row].retrieve()


def _analyse(row: int) -> None:
    _courses[row].analyse(Bar(row).show)


def _report(row: int) -> None:
    _courses[row].report()


def _store(row: int) -> None:
    _courses[row].store()


def _prove(row: int) -> None:
    _courses[row].prove()


def _complete(row: int) -> str:
    return _courses[row].complete()


def _tell(clinic: Clinic) -> dict[str, int]:
    by = notifications(clinic.profile)
    if by is None:
        return {}
    told = telling.tell(clinic.register, by, int(time.time()))
    if told.held_up:
        raise PeerError(told.held_up, "the mail server took nothing; what is owed waits in the outbox", peer="mail")
    return {"sent": told.sent, "failed": told.failed, "escalated": told.escalated, "dead": told.dead}


resume = async_stage(_resume, "resume", on_failure=[halt])
retrieve = async_stage(_retrieve, "retrieve", on_failure=[halt])
analyse = async_stage(_analyse, "analyse", retries=0)
report = async_stage(_report, "report", retries=1, on_failure=[halt])
store = async_stage(_store, "store")
prove = async_stage(_prove, "prove")
complete = async_stage(_complete, "complete", retries=0, on_failure=[halt])
tell = async_stage(_tell, "tell", retries=0, named="tell")  # the outbox has its own times
ask = stage(polling.poll, "poll")


@flow(name="poll", flow_run_name="poll {pacs}", retries=0, persist_result=False, result_serializer="json", log_prints=False)
def poll(pacs: str = "primary") -> dict[str, int]:
    """Asks one endpoint of the profile for what is new or changed, and writes it into the register. Counts."""
    clinic, now = _opened(), int(time.time())
    clinic.register.reap(now)
    found = ask(clinic.register, clinic.archive(pacs), clinic.polling(pacs), now)
    counts = {"new": found.new, "changed": found.changed, "known": found.known, "own": found.own, "questions": found.questions}
    swept = {} if found.swept is None else {"swept": found.swept}
    return {**counts, "odd": found.odd, "unproven": found.unproven, **swept}


@flow(name="drain", retries=0, persist_result=False, result_serializer="json", log_prints=False)
async def drain(seconds: float = SHIFT_SECONDS, idle: float = IDLE_SECONDS) -> dict[str, int]:
    """One worker's shift: claims what is owed, the urgent first, and brings it to its end. How many rows came to which end."""
    clinic = _opened()
    await asyncio.to_thread(clinic.register.reap, int(time.time()))  # first: what was lost is worked on in this very shift
    await asyncio.to_thread(tidy, clinic)
    shift = Shift(lambda: _claimed(clinic), lambda lease: _studied(clinic, lease), clinic.most, idle, time.monotonic() + seconds)
    over = asyncio.Event()
    beside = asyncio.ensure_future(_minded(clinic, shift, over))
    try:
        return await shift.work()
    finally:
        over.set()
        await beside


def named() -> str:
    """The run's name in the UI."""
    return f"read row {runtime.flow_run.parameters['row']}"


@flow(name="read", flow_run_name=named, retries=0, persist_result=False, result_serializer="json", log_prints=False)
async def read(row: int) -> dict[str, Any]:
    """One study now, whatever waits before it: its end, and whether it was a peer that failed."""
    clinic = _opened()
    lease = await asyncio.to_thread(clinic.register.claim, clinic.worker, int(time.time()), clinic.lease_seconds, row=row)
    if lease is None:
        return {"row": row, "end": "not-owed", "peer": False}
    failures: list[RaphaError] = []
    end = await _studied(clinic, lease, failures)
    await _told(clinic)
    return {"row": row, "end": end, "peer": any(isinstance(one, PeerError) for one in failures)}


def _opened() -> Clinic:
    clinic = Clinic.open()
    adopt(clinic.profile)
    return clinic


async def _minded(clinic: Clinic, shift: Shift[StudyLease], over: asyncio.Event) -> None:
    """While the shift lasts, and once more when it is over: takes back leases that ran out, tells, and shows what waits."""
    board = Board(clinic.worker.partition(":")[0])
    while True:
        last = over.is_set()
        await _looked_after(clinic, shift, board)
        await _told(clinic)
        if last:
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(over.wait(), MIND_SECONDS)


async def _looked_after(clinic: Clinic, shift: Shift[StudyLease], board: Board) -> None:
    """A worker that dies leaves its studies to whoever works on: their leases may run out long after that one's start."""
    await asyncio.to_thread(_alarmed, clinic)
    try:
        await asyncio.to_thread(clinic.register.reap, int(time.time()))
        queue = await asyncio.to_thread(clinic.register.queue)
    except RaphaError as error:
        log.warning("the register: %s", ", ".join(error.codes))
        return
    await asyncio.to_thread(board.show, queue, dict(shift.ends))


def _alarmed(clinic: Clinic) -> None:
    """What the receiver turned away is written into the audit trail; what cannot be written now stays with the receiver."""
    try:
        receiver = clinic.receiver()
        if receiver is not None:
            with receiver:
                alarming.alarms(receiver, clinic.trail, clinic.person)
    except RaphaError as error:
        log.warning("the receiver's alarms: %s", ", ".join(error.codes))


async def _told(clinic: Clinic) -> None:
    """One round, where something is owed. A server that is down is seen in the engine, and tried again at the next round."""
    try:
        if await asyncio.to_thread(clinic.register.owes_notice, int(time.time())):
            await tell(clinic)
    except RaphaError as error:
        log.warning("tell: %s", ", ".join(error.codes))
    except ENGINE_FAILED:
        log.warning("tell: engine-failed")


def _claimed(clinic: Clinic) -> StudyLease | None:
    return clinic.register.claim(clinic.worker, int(time.time()), clinic.lease_seconds)


async def _studied(clinic: Clinic, lease: StudyLease, failures: list[RaphaError] | None = None) -> str:
    """One study through its stages, its lease kept alive meanwhile; the end it came to. failures: takes what it failed for."""
    renewing = asyncio.ensure_future(_renewed(clinic, lease))
    try:
        with tags(f"row-{lease.row}", lease.priority, lease.pacs):
            return await _staged(clinic, lease)
    except RaphaError as error:
        if failures is not None:
            failures.append(error)
        return await asyncio.to_thread(_failed, clinic, lease, error)
    except ENGINE_FAILED:  # of this study's tasks: the others in flight go on
        return await asyncio.to_thread(_unshown, clinic, lease)
    finally:
        renewing.cancel()
        course = _courses.pop(lease.row, None)
        if course is not None:
            await asyncio.to_thread(course.close)


async def _staged(clinic: Clinic, lease: StudyLease) -> str:
    _courses[lease.row] = await asyncio.to_thread(Course, clinic, lease)
    row, course = lease.row, _courses[lease.row]
    begins = await resume(row) if course.begun else STAGES[0]
    for name, stage_of in zip(STAGES, (retrieve, analyse, report, store, prove), strict=False):
        if STAGES.index(name) >= list(STAGES).index(begins):  # type: ignore[arg-type]
            await stage_of(row)
    return await complete(row)


async def _renewed(clinic: Clinic, lease: StudyLease) -> None:
    """Keeps the lease. One that is lost ends here; the next write of its stages is refused."""
    while True:
        await asyncio.sleep(clinic.lease_seconds / RENEWALS)
        try:
            await asyncio.to_thread(clinic.register.renew, lease, int(time.time()), clinic.lease_seconds)
        except Refusal:
            return
        except PeerError:
            continue  # tried again at the next turn; the lease itself is the bound


def _alerted(clinic: Clinic, lease: StudyLease, error: RaphaError) -> None:
    """A failure that an intruder would cause is a security alert in the audit trail as well."""
    if kind := alert_type(error.codes):
        subject = f"urn:rapha:reading:{lease.row}"
        try:
            clinic.trail.record(
                "alert", Act(person=clinic.person, type=kind, subject=subject), outcome=8, reason=" ".join(error.codes)
            )
        except RaphaError as unwritten:
            log.error("row %d: %s", lease.row, ", ".join(unwritten.codes))  # the study's own failure goes on


def _unshown(clinic: Clinic, lease: StudyLease) -> str:
    """The engine is a view: a study that was through by then is through, any other is tried again from its stage."""
    course = _courses.get(lease.row)
    if course is not None and course.over:
        return course.over
    return _failed(clinic, lease, PeerError("engine-failed", "the engine did not take a task of this study", peer="engine"))


def _failed(clinic: Clinic, lease: StudyLease, error: RaphaError) -> str:
    """What failed is tried again later while it is a peer that failed; else, and after too many tries, it is a dead letter."""
    now = int(time.time())
    _alerted(clinic, lease, error)
    retry_at = now + FIRST_PAUSE * 2**lease.tries if isinstance(error, PeerError) else None
    try:
        clinic.attempt(lease).record("ended", state="failed", codes=sorted(error.codes), row=lease.row)
        return clinic.register.fail(lease, list(error.codes), now, retry_at=retry_at)
    except RaphaError as lost:
        log.warning("row %d: %s", lease.row, ", ".join(lost.codes))  # the reaper finds it
        return "lost"
