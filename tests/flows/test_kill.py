"""SIGKILL at points that the ledger marks: nothing is released or paid twice, the line is cut until proven clean.

A flow runs as a process of its own, waits for its job's id with everything imported, and dies at a mark. The sweep then finds
what is owed, with its clock beyond the lease, and the job is brought to its end. Where a run dies is drawn by its number.
"""

import random
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from flows import sweeping
from flows.lease import LEASE_SECONDS
from flows.training import train
from infra.demo.papers import PAYEES
from infra.demo.world import World
from rapha.canonical import digest
from rapha.declaration import read_declaration
from rapha.errors import RaphaError
from tests.fixtures.line import LineWatch, keeper_status, kept_namespaces, ours_in, settled_line
from tests.fixtures.running import BEFORE_THE_CUT, BEHIND_THE_CUT, IN_PLACE, FlowProcess, Mark, marked
from tests.fixtures.world import attempt_folder, delivered, ended, entries, register_of

MARKS = (
    *(Mark("verdict", gate) for gate in (*BEFORE_THE_CUT, *BEHIND_THE_CUT, "reconnect")),
    Mark("attestation-nonce", "attestation"),
    Mark("door", "train"),
    Mark("train-started"),
    Mark("train-started", wait=1.0),
    Mark("train-started", wait=2.0),
    Mark("door", "seal"),
    Mark("staging-destroyed"),
    Mark("sealed"),
    *(Mark(kind) for kind in IN_PLACE),
    Mark("delivered"),
)


def drawn(seed: int) -> Mark:
    """The point of this number: the first five are one of each kind of ground, the others are drawn from all."""
    generator = random.Random(f"kill {seed}")
    grounds = (
        [Mark("settle-sent")],
        [Mark("train-started", wait=1.0)],
        [mark for mark in MARKS if mark.name in BEFORE_THE_CUT],
        [mark for mark in MARKS if mark.cut],
        [Mark("sealed"), Mark("settled"), Mark("verdict", "reconnect")],
    )
    mark = generator.choice(grounds[seed] if seed < len(grounds) else MARKS)
    return Mark(mark.kind, mark.name, mark.wait + generator.choice((0.0, 0.0, 0.05, 0.3)))


@pytest.fixture(scope="session")
def _revived(hospital: World) -> Iterator[threading.Event]:
    """The supervisor's watch, in one thread to the end: what it starts dies with the thread that started it."""
    active, over = threading.Event(), threading.Event()

    def until() -> bool:
        active.wait()
        return over.is_set()

    thread = threading.Thread(target=hospital.group.watch, args=(until,), daemon=True)
    thread.start()
    yield active
    over.set()
    active.set()
    thread.join(30)


@pytest.fixture
def watched(here: World, _revived: threading.Event) -> Iterator[World]:
    """The world with its processes brought back when they die, and its line watched all the time."""
    _revived.set()
    with LineWatch(here) as watch:
        yield here
        assert watch.violations == []
        assert watch.up > 10
        assert watch.down > 10
        assert watch.asked > 10
    _revived.clear()
    for member in here.group.members:
        member.deaths.clear()


def credits_of(world: World) -> list[int]:
    chain = world.chain_client("node")
    return [chain.credit(world.chain["accounts"][role]) for role in PAYEES]


def recovered(world: World, job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweeps with a clock beyond the lease until the job has ended; what the sweep starts is run here."""
    monkeypatch.setattr(sweeping, "time", SimpleNamespace(time=lambda: time.time() + LEASE_SECONDS + 1))
    until = time.monotonic() + 100

    def start(owed: str, _key: str) -> None:
        if owed == job:
            train(job)

    while (status := register_of(world).status(job)) is None or status.state != "done":
        assert time.monotonic() < until, status
        if status is not None and status.state in ("dead", "refused"):
            register_of(world).retry(job, now=int(time.time()))
        with suppress(RaphaError):
            sweeping.swept(start)


def check_once(world: World, job: str, before: list[int]) -> None:
    """One settlement, one result, one receipt; what the vault paid for is what was delivered."""
    said = entries(world, job)
    settled = [entry.body for entry in said if entry.kind == "settled"]
    assert len(settled) == 1
    assert [new - old for new, old in zip(credits_of(world), before, strict=True)] == list(settled[0]["credits"])
    attempt = settled[0]["attempt"]
    sent = delivered(world, job)
    assert {name for name in sent if not name.endswith("/report")} == {f"{attempt}/result", f"{attempt}/receipt"}
    receipt = world.layout.root / "orchestrator" / "jobs" / job.removeprefix("sha256:") / str(attempt) / "receipt"
    declaration, _, _ = read_declaration(register_of(world).document(job))
    held = world.chain_client("node").escrow(declaration.budget.escrow)
    assert (held.status, held.receipt, held.job) == ("settled", digest(receipt.read_bytes()), job)
    assert [entry.body["attempt"] for entry in said if entry.kind == "delivered"] == [attempt]


def check_clean(world: World, namespaces: set[int]) -> None:
    """Nothing of any attempt is left: no process, no staging, nothing in the launcher's memory; the line is back."""
    status = settled_line(world)
    assert (status["tokens"], status["unknown"], status["line_up"]) == ([], False, True)
    assert [pid for inode in namespaces for pid in ours_in(inode)] == []
    assert list((world.layout.root / "staging").iterdir()) == []
    launcher = next(member.process for member in world.group.members if member.name == "launcher")
    assert launcher is not None
    assert [
        path for place in ("media", "mnt", "srv", "opt") for path in Path(f"/proc/{launcher.pid}/root/{place}").glob("rapha-*")
    ] == []


def killed_at(world: World, mark: Mark, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a job, kills its flow at the mark, brings it to its end; every promise is checked."""
    before = credits_of(world)
    flow = FlowProcess(world)
    try:
        job = flow.run()
        marked(world, job, mark, flow.process)
        flow.kill()
        status = keeper_status(world)
        assert status is not None
        if mark.cut and not any(entry.kind == "sealed" for entry in entries(world, job)):  # a wait may carry it beyond the cut
            assert (status["tokens"], status["line_up"]) == ([f"{job}#1"], False)
        namespaces = kept_namespaces(world)
        recovered(world, job, monkeypatch)
    finally:
        flow.close()
    assert ended(world, job).state == "done"
    check_once(world, job, before)
    check_clean(world, namespaces)
    return job


@pytest.mark.parametrize("seed", range(5))
def test_J09_a_flow_killed_at_a_mark_pays_once_and_ends_well(seed: int, watched: World, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = drawn(seed)
    job = killed_at(watched, mark, monkeypatch)
    status = ended(watched, job)
    if mark.kind in IN_PLACE:
        assert status.attempt == 1
    if mark.cut:
        assert status.attempt == 2
        lost = [entry.body["state"] for entry in entries(watched, job) if entry.kind == "ended" and entry.body["attempt"] == 1]
        assert lost == ["crashed"]
        assert not (attempt_folder(watched, job) / "receipt.json").exists()


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(5, 100))
def test_J09_a_hundred_kills(seed: int, watched: World, monkeypatch: pytest.MonkeyPatch) -> None:
    killed_at(watched, drawn(seed), monkeypatch)


def killed_beside(world: World, name: str, mark: Mark, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a job, kills another process of the node at the mark, lets the flow end as it will; then as above."""
    before = credits_of(world)
    flow = FlowProcess(world)
    try:
        job = flow.run()
        marked(world, job, mark, flow.process)
        victim = next(member.process for member in world.group.members if member.name == name)
        assert victim is not None
        victim.kill()
        namespaces = kept_namespaces(world)
        flow.process.wait(100)
        namespaces |= kept_namespaces(world)
        recovered(world, job, monkeypatch)
    finally:
        flow.close()
    check_once(world, job, before)
    check_clean(world, namespaces)
    return job


@pytest.mark.parametrize("name", ["keeper", "reader"])
def test_C14_a_process_killed_while_training_ends_the_attempt(name: str, watched: World, monkeypatch: pytest.MonkeyPatch) -> None:
    job = killed_beside(watched, name, Mark("train-started", wait=1.0), monkeypatch)
    assert ended(watched, job).attempt == 2
    lost = [entry.body for entry in entries(watched, job) if entry.kind == "ended" and entry.body["attempt"] == 1]
    assert [body["side"] for body in lost] == ["node"]
    assert not (attempt_folder(watched, job) / "receipt.json").exists()


BESIDE = ("keeper", "reader", "launcher", "engine", "attester", "archive")


@pytest.mark.soak
@pytest.mark.parametrize(
    "mark", [Mark("verdict", gate) for gate in ("attestation", "cut", "query", "retrieve", "train", "output")]
)
@pytest.mark.parametrize("name", BESIDE)
def test_C14_a_process_killed_at_every_mark(name: str, mark: Mark, watched: World, monkeypatch: pytest.MonkeyPatch) -> None:
    killed_beside(watched, name, mark, monkeypatch)
