"""The reading service's flows: poll finds what is new, drain brings it through the stages, read takes one study now.

    retrieve -> [arrival gate] -> analyse -> report -> store -> prove -> [completeness gate] -> done, and somebody is told

One run of drain is a worker's whole shift, with many studies in flight. Parameters are the numbers of a row and of the attempt at
it, never an identifier. What is owed is the register's to say, what was decided the ledger's; the engine shows what is running.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
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
from flows.draining import LOST, PAUSE, PUT_BACK, Shift, outlived, standing
from flows.pace import adopt
from flows.reading_view import Bar, Board
from flows.stages import ENGINE_FAILED, async_stage, stage
from flows.tidying import tidy
from policies.alerts import alert_type
from policies.node_fault import Scope, node_fault
from policies.outage import is_outage
from rapha.errors import ConfigurationError, PeerError, RaphaError, Refusal
from tasks.reading import alarms as alarming
from tasks.reading import poll as polling
from tasks.reading import tell as telling
from tasks.stage import StageBug, coded

log = logging.getLogger("rapha.reading")
RENEWALS = 6  # of a lease in its own time
FIRST_PAUSE = 60  # seconds before a failed study is tried again; doubled each time
NODE_PAUSE, ROW_PAUSE = 60, 300  # seconds before a study that was put back is tried: for the node's sake, for its endpoint's
SHIFT_SECONDS, IDLE_SECONDS = 3300.0, 45.0
MIND_SECONDS = 5.0  # between two looks at what is owed beside the studies in flight
NAMED = "{name} row {row} attempt {attempt}"  # a stage in the engine's UI

# By row and attempt: a lease that ran out may be this process's again while the attempt that lost it still runs.
_courses: dict[tuple[int, int], Course] = {}
_flying: set[tuple[int, int]] = set()


async def halt(task: Task[..., Any], run: TaskRun, state: State[Any]) -> None:
    """The state hook of the gated stages: on a refusal the study's connections end, and with them what was opened of it."""
    _, _, row, _, attempt = run.name.split(" ")  # NAMED
    course = _courses.get((int(row), int(attempt)))
    if course is not None and isinstance(await state.aresult(raise_on_failure=False), Refusal):
        course.study.close()


def _course(row: int, attempt: int) -> Course:
    """This attempt's own. `Refusal` lease-lost where another one may be at work by now."""
    course = _courses.get((row, attempt))
    if course is None or course.lost:
        raise Refusal(["lease-lost"], "this attempt no longer holds its study", gate="reading")
    return course


def _resume(row: int, attempt: int) -> str:
    return _course(row, attempt).resume()


def _retrieve(row: int, attempt: int) -> None:
    _course(row, attempt).retrieve()


def _analyse(row: int, attempt: int) -> None:
    _course(row, attempt).analyse(Bar(row).show)


def _report(row: int, attempt: int) -> None:
    _course(row, attempt).report()


def _store(row: int, attempt: int) -> None:
    _course(row, attempt).store()


def _prove(row: int, attempt: int) -> None:
    _course(row, attempt).prove()


def _complete(row: int, attempt: int) -> str:
    return _course(row, attempt).complete()


def _tell(clinic: Clinic) -> dict[str, int]:
    by = notifications(clinic.profile)
    if by is None:
        return {}
    told = telling.tell(clinic.register, by, int(time.time()))
    if told.held_up:
        raise PeerError(told.held_up, "the mail server took nothing; what is owed waits in the outbox", peer="mail")
    return {"sent": told.sent, "failed": told.failed, "escalated": told.escalated, "dead": told.dead}


resume = async_stage(_resume, "resume", named=NAMED, on_failure=[halt])
retrieve = async_stage(_retrieve, "retrieve", named=NAMED, on_failure=[halt])
analyse = async_stage(_analyse, "analyse", named=NAMED, retries=0)
report = async_stage(_report, "report", named=NAMED, retries=1, on_failure=[halt])
store = async_stage(_store, "store", named=NAMED)
prove = async_stage(_prove, "prove", named=NAMED)
complete = async_stage(_complete, "complete", named=NAMED, retries=0, on_failure=[halt])
tell = async_stage(_tell, "tell", retries=0, named="tell")  # the outbox has its own times
ask = stage(polling.poll, "poll")


@flow(name="poll", flow_run_name="poll {pacs}", retries=0, persist_result=False, result_serializer="json", log_prints=False)
def poll(pacs: str = "primary") -> dict[str, int]:
    """Asks one endpoint of the profile for what is new or changed, and writes it into the register. Counts."""
    clinic, now = _opened(), int(time.time())
    clinic.register.reap(now, letters_to=clinic.letters_to)
    found = ask(clinic.register, clinic.archive(pacs), clinic.polling(pacs), now)
    counts = {"new": found.new, "changed": found.changed, "known": found.known, "own": found.own, "questions": found.questions}
    swept = {} if found.swept is None else {"swept": found.swept}
    return {**counts, "odd": found.odd, "unproven": found.unproven, **swept}


@flow(name="drain", retries=0, persist_result=False, result_serializer="json", log_prints=False)
async def drain(seconds: float = SHIFT_SECONDS, idle: float = IDLE_SECONDS) -> dict[str, int]:
    """One worker's shift: claims what is owed, the urgent first, and brings it to its end. How many rows came to which end.

    It waits for a register that does not answer. Raises the `ConfigurationError` or `Refusal` of a node that could read nothing,
    before anything is claimed.
    """
    clinic, until = _opened(), time.monotonic() + seconds
    board = Board(clinic.worker.partition(":")[0])
    await standing(lambda: _stands(clinic), until, board.waits)
    await outlived(asyncio.to_thread(tidy, clinic), "tidy")
    shift = Shift(lambda: _claimed(clinic), lambda lease: _studied(clinic, lease), clinic.most, idle, until)
    over = asyncio.Event()
    beside = asyncio.ensure_future(_minded(clinic, shift, board, over))
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
    end = await _studied(clinic, lease, failures, settled=True)  # a person does not wait
    await _told(clinic)
    return {"row": row, "end": end, "peer": any(isinstance(one, PeerError) for one in failures)}


def _opened() -> Clinic:
    clinic = Clinic.open()
    adopt(clinic.profile)
    return clinic


def _stands(clinic: Clinic) -> None:
    """What every study needs of this node. One endpoint's own settings are looked at with its studies."""
    _ = clinic.models, clinic.limits, clinic.lease_seconds, clinic.trail, clinic.kept
    clinic.ledger.position()
    _reaped(clinic)  # what was lost is worked on in this very shift


async def _minded(clinic: Clinic, shift: Shift[StudyLease], board: Board, over: asyncio.Event) -> None:
    """While the shift lasts, and once more when it is over: takes back leases that ran out, tells, and shows what waits."""
    while True:
        last = over.is_set()
        await outlived(_looked_after(clinic, shift, board), "the register")
        await outlived(_told(clinic), "tell")
        if last:
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(over.wait(), MIND_SECONDS)


async def _looked_after(clinic: Clinic, shift: Shift[StudyLease], board: Board) -> None:
    """A worker that dies leaves its studies to whoever works on: their leases may run out long after that one's start."""
    await asyncio.to_thread(_alarmed, clinic)
    try:
        await asyncio.to_thread(_reaped, clinic)
        queue = await asyncio.to_thread(clinic.register.queue)
    except RaphaError as error:
        log.warning("the register: %s", ", ".join(error.codes))
        return
    await asyncio.to_thread(board.show, queue, dict(shift.ends), shift.brake.why)


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
        if notifications(clinic.profile) is None:
            return  # switched off: what is owed waits in the outbox
        if await asyncio.to_thread(clinic.register.owes_notice, int(time.time())):
            await tell(clinic)
    except RaphaError as error:
        log.warning("tell: %s", ", ".join(error.codes))
    except ENGINE_FAILED:
        log.warning("tell: engine-failed")


def _reaped(clinic: Clinic) -> None:
    clinic.register.reap(int(time.time()), letters_to=clinic.letters_to)


def _claimed(clinic: Clinic) -> StudyLease | None:
    """None that is still in flight here: its attempt lost the lease and is coming to its end."""
    here = {row for row, _ in list(_flying)}
    return clinic.register.claim(clinic.worker, int(time.time()), clinic.lease_seconds, but=here)


async def _studied(clinic: Clinic, lease: StudyLease, failures: list[RaphaError] | None = None, *, settled: bool = False) -> str:
    """One study through its stages, its lease kept alive meanwhile; the end it came to. failures: takes what it failed for;
    settled: it is read whether or not it is still being sent."""
    mine = (lease.row, lease.attempt)
    _flying.add(mine)
    renewing = asyncio.ensure_future(_renewed(clinic, lease))
    try:
        with tags(f"row-{lease.row}", lease.priority, lease.pacs):
            if not settled and not await asyncio.to_thread(coded(_settled), clinic, lease):
                return "unsettled"
            return await _staged(clinic, lease)
    except RaphaError as error:
        if failures is not None:
            failures.append(error)
        return await asyncio.to_thread(_ended, clinic, lease, error)
    except ENGINE_FAILED:  # of this study's tasks: the others in flight go on
        return await asyncio.to_thread(_unshown, clinic, lease)
    finally:
        renewing.cancel()
        try:
            if (course := _courses.pop(mine, None)) is not None:
                await asyncio.to_thread(course.close)
        finally:
            _flying.discard(mine)


def _settled(clinic: Clinic, lease: StudyLease) -> bool:
    """Whether the archive lists of the study what it listed when it was found; else it has been given back.

    One that is urgent, or that was fetched already, is not asked about; one that is not listed any more is the stages' affair.
    """
    settings = clinic.polling(lease.pacs)
    if lease.stage != STAGES[0] or lease.priority == "urgent" or not settings.quiet:
        return True
    seen = polling.look_up(clinic.archive(lease.pacs), settings, lease.study_uid)
    return seen is None or clinic.register.settled(lease, seen, int(time.time()), settings.quiet)


async def _staged(clinic: Clinic, lease: StudyLease) -> str:
    mine = (lease.row, lease.attempt)
    course = _courses[mine] = await asyncio.to_thread(coded(Course), clinic, lease)
    begins = await resume(*mine) if course.begun else STAGES[0]
    for name, stage_of in zip(STAGES, (retrieve, analyse, report, store, prove), strict=False):
        if STAGES.index(name) >= list(STAGES).index(begins):  # type: ignore[arg-type]
            await stage_of(*mine)
    return await complete(*mine)


async def _renewed(clinic: Clinic, lease: StudyLease) -> None:
    """Keeps the lease. With one that is lost the study's connections end: another attempt may hold it by now."""
    while True:
        await asyncio.sleep(clinic.lease_seconds / RENEWALS)
        try:
            await asyncio.to_thread(clinic.register.renew, lease, int(time.time()), clinic.lease_seconds)
        except PeerError:
            continue  # tried again at the next turn; the lease itself is the bound
        except Refusal as refusal:
            if "lease-lost" in refusal.codes:
                break
            return  # canceled: refused to the next stage
    while (course := _courses.get((lease.row, lease.attempt))) is None:
        await asyncio.sleep(PAUSE)  # it is being made
    course.cut()


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
    course = _courses.get((lease.row, lease.attempt))
    if course is not None and course.over:
        return course.over
    return _ended(clinic, lease, PeerError("engine-failed", "the engine did not take a task of this study", peer="engine"))


def _ended(clinic: Clinic, lease: StudyLease, error: RaphaError) -> str:
    """Whose fault it was decides: lost to another attempt, the node's, or this study's and its peers'."""
    course = _courses.get((lease.row, lease.attempt))
    if course is not None and course.lost:
        return _lost(lease, ["lease-lost"])
    if _scope(error):
        _alerted(clinic, lease, error)
        return _put_back(clinic, lease, error)
    try:
        return coded(_failed)(clinic, lease, error)
    except StageBug as bug:  # its end could not be written down
        return _put_back(clinic, lease, bug) if _scope(bug) else _lost(lease, bug.codes)


def _scope(error: RaphaError) -> Scope:
    return node_fault(error.codes, setting=isinstance(error, ConfigurationError), bug=isinstance(error, StageBug))


def _put_back(clinic: Clinic, lease: StudyLease, error: RaphaError) -> str:
    """Into the queue as it was, without a dead letter and without counting a try: it is the node that must be mended."""
    now, scope, codes = int(time.time()), _scope(error), sorted(error.codes)
    log.error("row %d is put back: %s", lease.row, ", ".join(codes))
    with contextlib.suppress(RaphaError):  # the ledger may be what cannot be written
        coded(lambda: clinic.attempt(lease).record("ended", state=PUT_BACK, codes=codes, row=lease.row))()
    try:
        state = clinic.register.give_back(lease, codes, now, now + (NODE_PAUSE if scope == "node" else ROW_PAUSE))
    except RaphaError as lost:
        return _lost(lease, lost.codes)
    return PUT_BACK if state == "scheduled" and scope == "node" else state


def _lost(lease: StudyLease, codes: Sequence[str]) -> str:
    log.warning("row %d: %s", lease.row, ", ".join(codes))  # the reaper finds it
    return LOST


def _failed(clinic: Clinic, lease: StudyLease, error: RaphaError) -> str:
    """What failed is tried again later while it is a peer that failed; else, and after too many tries, it is a dead letter.

    A peer that is down for everybody is no try of this study's.
    """
    now, codes, to = int(time.time()), list(error.codes), clinic.letters_to
    _alerted(clinic, lease, error)
    course = _courses.get((lease.row, lease.attempt))
    unstored = course.unstored() if course is not None else []
    try:
        clinic.attempt(lease).record("ended", state="failed", codes=sorted(error.codes), row=lease.row)
        if isinstance(error, PeerError) and is_outage(codes):
            return clinic.register.set_aside(lease, codes, now, letters_to=to, unstored=unstored)
        retry_at = now + FIRST_PAUSE * 2**lease.tries if isinstance(error, PeerError) else None
        return clinic.register.fail(lease, codes, now, retry_at=retry_at, letters_to=to, unstored=unstored)
    except RaphaError as lost:
        return _put_back(clinic, lease, lost) if _scope(lost) else _lost(lease, lost.codes)
