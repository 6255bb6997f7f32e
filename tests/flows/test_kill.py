"""SIGKILL at points that the ledger marks: nothing is released or paid twice, the line is cut until proven clean.

A flow runs as a process of its own, waits for its job's id with everything imported, and dies at a mark. The sweep then finds
what is owed, with its clock beyond the lease, and the job is brought to its end. Where a run dies is drawn by its number.
"""

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from flows import sweeping
from flows.lease import LEASE_SECONDS
from flows.training import train
from infra import serve
from infra.demo.papers import PAYEES
from infra.demo.world import World
from infra.engine import engine_environment
from infra.processes import living_in
from rapha.canonical import digest
from rapha.declaration import read_declaration
from rapha.errors import RaphaError
from tests.fixtures.line import LineWatch, keeper_status, kept_namespaces, settled_line
from tests.fixtures.world import attempt_folder, delivered, ended, entries, register_job, register_of

FLOW = """
import sys
from flows.training import train
print("ready", flush=True)
train(sys.stdin.readline().strip())
"""
BEFORE_THE_CUT = ("intake", "escrow", "manifest", "workload", "policy", "attestation")
BEHIND_THE_CUT = ("cut", "query", "retrieve", "train", "output", "reattestation")
IN_PLACE = ("settle-sent", "settled")


@dataclass(frozen=True)
class Mark:
    """An entry of the ledger, by its kind and its gate or door, and seconds to wait after it."""

    kind: str
    name: str = ""
    wait: float = 0.0

    def matches(self, kind: str, body: dict[str, object]) -> bool:
        return self.kind == kind and (not self.name or self.name in (body.get("gate"), body.get("door")))

    @property
    def cut(self) -> bool:
        """Whether the line is down at it for certain."""
        return self.name in (*BEHIND_THE_CUT, "seal") or self.kind in ("train-started", "staging-destroyed")


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


class FlowProcess:
    """A flow in an interpreter of its own, waiting for the id of its job."""

    def __init__(self, world: World) -> None:
        everything = {**os.environ, **world.environment}
        environment = serve.base_environment(everything) | engine_environment(world.layout.root / "engine", world.ports.engine)
        environment |= {name: value for name, value in everything.items() if name.startswith("RAPHA_")}
        environment |= {"PREFECT_LOGGING_LEVEL": "CRITICAL", "PREFECT_LOGGING_TO_API_ENABLED": "false"}
        del environment[serve.READER_ALONE]
        self.log = world.layout.logs / "flow-process.log"
        self.world = world
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", FLOW],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=Path(serve.__file__).parents[1],
            )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"

    def run(self) -> str:
        """Registers a job and lets the flow have it at once: the engine's own sweep could have it otherwise."""
        job = register_job(self.world)
        assert self.process.stdin is not None
        self.process.stdin.write(job.encode() + b"\n")
        self.process.stdin.close()
        return job

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()
        assert self.process.stdout is not None
        self.process.stdout.close()


def marked(world: World, job: str, mark: Mark, flow: subprocess.Popen[bytes], seconds: float = 90.0) -> None:
    """Returns as soon as the ledger's file shows the mark, and its wait has passed."""
    until = time.monotonic() + seconds
    with (world.layout.root / "ledger" / "entries.jsonl").open("rb") as ledger:
        rest = b""
        while time.monotonic() < until:
            *lines, rest = (rest + ledger.read()).split(b"\n")
            for line in lines:
                entry = json.loads(line)
                if entry["body"].get("job") == job and mark.matches(entry["kind"], entry["body"]):
                    time.sleep(mark.wait)
                    return
            assert flow.poll() is None, f"the flow ended before its mark: {entries(world, job)[-1:]}"
            time.sleep(0.002)
    raise AssertionError(f"no mark {mark} within {seconds} s")


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
    assert [pid for inode in namespaces for pid in living_in(inode)] == []
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
        if mark.cut:
            status = keeper_status(world)
            assert status is not None
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
