"""Cut, train and reconnect as stages: a real ledger and door, a real keeper and launcher, a reader that only counts."""

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from policies.cut import CutEvidence, CutLimits, cut_gate
from policies.gate import Check, Evidence, Gate
from policies.required import BEFORE_TRAINING, REQUIRED_CHECKS
from policies.train import TrainLimits, train_gate
from rapha.errors import PeerError, Refusal
from tasks.attempt import Attempt
from tasks.gate import Cleared, require
from tasks.training.cut import cut
from tasks.training.reconnect import reconnect
from tasks.training.train import train
from tests.fixtures.isolation import LIMITS, SAY, World, job_of, make_world

LINES = CutLimits()
TRAINING = TrainLimits(sandbox=LIMITS)
GOOD = SAY + "line.recv(1)\nopen('/out/metrics.json', 'w').write('{}')\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload(Evidence):
    kind: str
    workload: str
    folder: str
    launcher: str
    weights: dict[str, str]


@dataclass
class Counting:
    """The reader's side of the lines: answers each request with nothing, counts."""

    ends: list[int] = field(default_factory=list)
    handed: int = 3
    unique: int = 3
    total: int = 10
    commitment: str = job_of("commitment")
    salt: str = "00" * 32
    destroyed: bool = True

    def attach(self, fds: list[int]) -> None:
        self.ends = list(fds)
        threading.Timer(0.8, self._answer).start()

    def _answer(self) -> None:
        for fd in self.ends:
            with contextlib.suppress(OSError):
                os.write(fd, b"x")

    def counts(self) -> "Counting":
        return self

    def finish(self) -> "Counting":
        for fd in self.ends:
            os.close(fd)
        self.ends = []
        return self


@pytest.fixture(scope="module")
def node() -> Iterator[World]:
    made = make_world()
    yield made
    made.close()


@pytest.fixture
def world(node: World) -> World:
    node.refresh()
    return node


def easy(name: str) -> Gate[Any]:
    """A gate of another area that says yes, with its real checks' names."""
    return Gate(name, [Check(check, {}, lambda e: ()) for check in sorted(REQUIRED_CHECKS[name])])


GATES: dict[str, Gate[Any]] = {
    **{name: easy(name) for name in BEFORE_TRAINING},
    "cut": cut_gate(LINES),
    "train": train_gate(TRAINING),
}


@dataclass
class Run:
    """One attempt up to the train door."""

    world: World
    name: str
    source: str = GOOD

    def __post_init__(self) -> None:
        self.attempt = Attempt(
            job=job_of(self.name),
            number=1,
            nonce="ab" * 32,
            mode="development",
            folder=self.world.folder / self.name,
            ledger=self.world.ledger,
        )
        self.spec = self.world.spec(self.source)
        self.reader = Counting()
        self.progress: list[tuple[int, int]] = []

    def pass_by(self, names: tuple[str, ...], previous: str) -> Cleared[Evidence]:
        for name in names:
            facts = self.attempt.facts(previous)
            launcher, workload = self.spec.launcher_digest, self.spec.workload_digest
            extra = {"kind": "source", "workload": workload, "folder": "", "launcher": launcher, "weights": {"declared": ""}}
            cleared = require(GATES[name], Workload(**facts, **extra) if name == "workload" else Evidence(**facts), self.attempt)
            previous = cleared.subject
        return cleared

    def cut(self, limits: CutLimits = LINES) -> Cleared[CutEvidence]:
        before = self.pass_by(BEFORE_TRAINING[: BEFORE_TRAINING.index("cut")], self.attempt.job)
        with self.world.keeper() as keeper:
            return cut(before, self.attempt, keeper, limits)

    def train(self, *, cap: int = 5, seconds: int | None = None, **changes: Any) -> Cleared[Any]:
        line = self.cut()
        self.token = line.evidence.token
        last = self.pass_by(("query", "retrieve"), line.subject)
        with self.world.keeper() as keeper, self.world.launcher() as launcher:
            return train(
                last,
                self.attempt,
                GATES,
                self.reader,
                launcher,
                keeper,
                replace(self.spec, **changes),
                TRAINING,
                cap,
                lambda handed, total: self.progress.append((handed, total)),
                seconds=seconds,
            )


def test_cut_train_seal_reconnect(world: World) -> None:
    run = Run(world, "whole")
    trained = run.train()
    assert trained.evidence.exit == "completed" and trained.evidence.left == 0 and trained.evidence.cut == ()
    assert run.progress and run.progress[0] == (3, 10)
    assert (run.attempt.folder / "outputs" / "metrics.json").read_text() == "{}"
    run.attempt.record("sealed", receipt=job_of("receipt"))
    with world.keeper() as keeper:
        back = reconnect(trained, run.attempt, keeper, run.token, job_of("receipt"))
        assert back.evidence.line_up and keeper.status()["tokens"] == []


def codes_of(run: Run, **options: Any) -> tuple[str, ...]:
    with pytest.raises(Refusal) as refusal:
        run.train(**options)
    return refusal.value.codes


def test_records_beyond_the_cap_refuse(world: World) -> None:
    assert codes_of(Run(world, "cap"), cap=2) == ("train-too-many-records",)


def test_a_reader_that_keeps_its_key_refuses(world: World) -> None:
    run = Run(world, "key")
    run.reader.destroyed = False
    assert codes_of(run) == ("train-reader-holds",)


def test_C16_E26_a_failed_trainer_leaves_no_outputs(world: World) -> None:
    run = Run(world, "failed", GOOD + "raise SystemExit(3)")
    assert set(codes_of(run)) == {"train-not-completed", "train-odd-output"}
    assert not (run.attempt.folder / "outputs").exists()


def test_I03_a_job_has_no_more_time_than_it_declared(world: World) -> None:
    run = Run(world, "longer", SAY + "import time\ntime.sleep(30)")
    started = time.monotonic()
    assert "train-not-completed" in codes_of(run, seconds=2)
    assert time.monotonic() - started < 20 and not (run.attempt.folder / "outputs").exists()


def test_other_bytes_than_the_workload_gate_judged_refuse(world: World) -> None:
    run = Run(world, "bytes")
    other = world.spec(GOOD + "pass\n")
    changes = {"workload": other.workload, "workload_digest": other.workload_digest}
    assert codes_of(run, **changes) == ("train-other-workload",)


def test_C02_a_line_that_comes_up_in_training_refuses_and_leaves_nothing(world: World) -> None:
    run = Run(world, "broken", SAY + "import time\ntime.sleep(30)")
    timer = threading.Timer(3.0, lambda: world.inside("ip", "link", "set", "portB", "up"))
    timer.start()
    codes = codes_of(run)
    timer.join()
    assert {"train-cut-broken", "train-not-completed"} <= set(codes)
    assert not (run.attempt.folder / "outputs").exists()


def test_a_skipped_gate_keeps_the_train_door_shut(world: World) -> None:
    run = Run(world, "skipped")
    line = run.cut()
    with world.keeper() as keeper, world.launcher() as launcher, pytest.raises(Refusal) as refusal:
        train(line, run.attempt, GATES, run.reader, launcher, keeper, run.spec, TRAINING, 5, lambda *_: None)
    assert "gate-missing-query" in refusal.value.codes
    assert run.reader.ends == []


@pytest.mark.parametrize("peer", ["keeper", "launcher"])
def test_sigkill_of_a_peer_in_training_is_a_failed_peer(world: World, peer: str) -> None:
    run = Run(world, f"killed-{peer}", SAY + "import time\ntime.sleep(30)")
    timer = threading.Timer(3.0, lambda: world.kill(peer))
    timer.start()
    with pytest.raises(PeerError):
        run.train()
    timer.join()
    assert not (run.attempt.folder / "outputs").exists()


def test_cut_by_other_lines_than_the_policy_names_refuses(world: World) -> None:
    run = Run(world, "lines")
    GATES["cut"] = cut_gate(replace(LINES, lan=("portC",)))
    try:
        with pytest.raises(Refusal) as refusal:
            run.cut(replace(LINES, lan=("portC",)))
    finally:
        GATES["cut"] = cut_gate(LINES)
    assert {"cut-other-interface", "cut-lan-down"} == set(refusal.value.codes)


def test_cut_without_control_refuses(world: World) -> None:
    world.inside("ip", "link", "set", "portB", "down")
    with pytest.raises(Refusal) as refusal:
        Run(world, "control").cut()
    assert refusal.value.codes == ("cut-no-control",)


def test_reconnect_before_the_seal_refuses_and_the_line_stays_down(world: World) -> None:
    run = Run(world, "early")
    line = run.cut()
    with world.keeper() as keeper:
        with pytest.raises(Refusal) as refusal:
            reconnect(line, run.attempt, keeper, line.evidence.token, job_of("receipt"))
        assert {"reconnect-not-sealed", "reconnect-kept"} == set(refusal.value.codes)
        assert keeper.status()["line_up"] is False
    kept = json.loads(Path(run.attempt.folder / "evidence" / "reconnect.json").read_text())
    assert kept["restored"] is False
