"""Each required gate removed, crashed, timed out, fed odd evidence, and replayed: the flow fails with that code, nothing leaves.

One row a case. The whole flow runs each time, in this process, against the real world; only the named gate's stage is tampered
with, as somebody could who changes that one module. `failed_run` holds what must be true afterwards.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from blocks import attester, chain, opa, orchestrator
from blocks.opa import RegoEngine
from blocks.register import Register
from infra.demo.world import World
from policies.gate import Evidence, Gate
from rapha.errors import PeerError, Refusal
from tasks.attempt import Attempt
from tasks.gate import Cleared, require
from tests.fixtures.matrix import (
    GATES,
    STAGES,
    TRIES,
    Judged,
    answering,
    at_gate,
    believed,
    earlier,
    failed_run,
    old,
    quick_retries,
    replay,
    silent,
    with_check,
)

Patch = pytest.MonkeyPatch
PATIENT = "ÅNGSTRÖM^ASTRID"
__all__ = ["earlier", "old"]

# Whole runs of every gate are long; these go through the engine in `make test`, the others in `make soak`. Every kind of every
# gate is in `make test` all the same: against the real door and a real ledger, in test_gate_matrix_stages.py.
IN_EVERY_RUN = ("escrow", "attestation", "output", "reconnect")


def rest_in_soak(rows: Sequence[Any]) -> list[Any]:
    """The rows, those of other gates marked `soak`. A row is a gate's name, or a tuple that begins with it."""
    marked = []
    for row in rows:
        values = (row,) if isinstance(row, str) else row
        named = f"{values[0]}-{values[3]}" if len(values) > 3 else values[0]
        marks = () if values[0] in IN_EVERY_RUN else (pytest.mark.soak,)
        marked.append(pytest.param(*values, id=named, marks=marks))
    return marked


# -- removed


@pytest.mark.parametrize("gate", GATES)
def test_a_gate_that_is_removed_is_missing_at_the_door(here: World, monkeypatch: Patch, gate: str) -> None:
    """The stage gathers its facts and goes on as if they had been judged."""
    at_gate(monkeypatch, gate, lambda g, e, a: believed(g, e))
    run = failed_run(here)
    assert (run.state, run.codes) == ("refused", (f"gate-missing-{gate}",))


# -- crashed


@pytest.mark.parametrize("gate", rest_in_soak(GATES))
def test_a_gate_whose_check_crashes_has_not_passed(here: World, monkeypatch: Patch, gate: str) -> None:
    def crash(e: Evidence) -> object:
        raise ValueError(PATIENT)

    at_gate(monkeypatch, gate, lambda g, e, a: require(with_check(g, crash), e, a))
    run = failed_run(here)
    assert run.state == "refused" and len(run.codes) == 1 and run.codes[0].endswith("-crashed")


@pytest.mark.parametrize("gate", ["intake", "cut", "train", "reconnect"])
def test_a_stage_that_crashes_ends_the_attempt_by_its_kind_of_error_alone(here: World, monkeypatch: Patch, gate: str) -> None:
    def crash(*_: Any) -> Cleared[Any]:
        raise KeyError(PATIENT)

    at_gate(monkeypatch, gate, crash)
    run = failed_run(here)
    assert (run.state, run.codes) == ("crashed", ("bug-keyerror",))
    assert PATIENT not in str(run.error)


# -- timed out


def _raising(owner: Any, name: str, error: PeerError) -> Callable[[Patch], list[Any]]:
    """A block's verb that fails as it does when the peer beyond it does not answer."""

    def patch(monkeypatch: Patch) -> list[Any]:
        calls: list[Any] = []

        def fail(*args: Any, **_: Any) -> Any:
            calls.append(args)
            raise error

        monkeypatch.setattr(owner, name, fail)
        return calls

    return patch


def _register_silent(stage: str) -> Callable[[Patch], list[Any]]:
    """For a stage that asks no peer, the register, which it must be entered in, does not answer."""

    def patch(monkeypatch: Patch) -> list[Any]:
        real, calls = Register.stage, []

        def entered(self: Register, lease: Any, name: str, now: int) -> None:
            if name == stage:
                calls.append(name)
                raise PeerError("register-unavailable", "no answer", peer="register")
            real(self, lease, name, now)

        monkeypatch.setattr(Register, "stage", entered)
        return calls

    return patch


def _second_evidence(monkeypatch: Patch) -> list[Any]:
    """The attester answers before training, and not before sealing."""
    real, calls = attester.Attester.evidence, []

    def evidence(self: Any, report_data: bytes) -> Any:
        calls.append(report_data)
        if len(calls) > 1:
            raise PeerError("attester-timeout", "no answer", peer="attester")
        return real(self, report_data)

    monkeypatch.setattr(attester.Attester, "evidence", evidence)
    return calls[1:]


TIMEOUTS: dict[str, tuple[Callable[[Patch], list[Any]], str, int]] = {
    "intake": (
        _raising(orchestrator.Orchestrator, "fetch_blob", PeerError("orchestrator-unreachable", PATIENT)),
        "orchestrator-unreachable",
        TRIES,
    ),
    "escrow": (_raising(chain.Chain, "final", PeerError("chain-unreachable", PATIENT)), "chain-unreachable", TRIES),
    "manifest": (_register_silent("manifest"), "register-unavailable", 1),
    "workload": (_register_silent("workload"), "register-unavailable", 1),
    "policy": (_raising(RegoEngine, "decide", PeerError("policy-engine-timeout", PATIENT)), "policy-engine-timeout", TRIES),
    "attestation": (
        _raising(attester.Attester, "evidence", PeerError("attester-timeout", PATIENT)),
        "attester-timeout",
        TRIES,
    ),
    "cut": (lambda m: silent(m, "keeper", "cut"), "keeper-timeout", TRIES),
    "query": (lambda m: silent(m, "reader", "query"), "reader-timeout", TRIES),
    "retrieve": (lambda m: silent(m, "reader", "fetch"), "reader-timeout", TRIES),
    "train": (lambda m: silent(m, "launcher", "wait"), "launcher-timeout", 1),
    "output": (_register_silent("output"), "register-unavailable", 1),
    "reattestation": (_second_evidence, "attester-timeout", 0),
    "reconnect": (lambda m: silent(m, "keeper", "restore"), "keeper-timeout", TRIES),
}


@pytest.mark.parametrize("gate", GATES)
def test_a_peer_that_does_not_answer_is_a_dead_letter_after_its_retries(here: World, monkeypatch: Patch, gate: str) -> None:
    silence, code, tries = TIMEOUTS[gate]
    quick_retries(monkeypatch, gate)
    calls = silence(monkeypatch)
    run = failed_run(here)
    ends = {("dead", (code,))}
    if gate == "retrieve":  # a retry over a new connection may meet a reader that has no attempt begun there
        ends.add(("dead", ("reader-not-begun",)))
    assert (run.state, run.codes) in ends
    assert len(calls) == tries or not tries
    assert PATIENT not in str(run.error)


# -- odd evidence


def _evidence(**changes: Any) -> Callable[[Patch, str], None]:
    """Facts of another kind in the gate's evidence."""

    def patch(monkeypatch: Patch, gate: str) -> None:
        at_gate(monkeypatch, gate, lambda g, e, a: require(g, dataclasses.replace(e, **changes), a))

    return patch


def _not_evidence(value: Any) -> Callable[[Patch, str], None]:
    return lambda monkeypatch, gate: at_gate(monkeypatch, gate, lambda g, e, a: require(g, value, a))


def _no_findings(monkeypatch: Patch, gate: str) -> None:
    at_gate(monkeypatch, gate, lambda g, e, a: require(dataclasses.replace(g, checks=()), e, a))


def _truthy(monkeypatch: Patch, gate: str) -> None:
    """A check that answers `1` where `()` or a code is an answer."""
    at_gate(monkeypatch, gate, lambda g, e, a: require(with_check(g, lambda _: 1), e, a))


def _answer(peer: str, verb: str, **changes: Any) -> Callable[[Patch, str], None]:
    def patch(monkeypatch: Patch, gate: str) -> None:
        quick_retries(monkeypatch, gate)
        answering(monkeypatch, peer, verb, lambda answer: {**answer, **changes})

    return patch


def _empty_blob(monkeypatch: Patch, gate: str) -> None:
    def fetch(self: Any, digest: str, folder: Path, cap: int) -> Path:
        empty = folder / "empty"
        folder.mkdir(parents=True, exist_ok=True)
        empty.write_bytes(b"")
        return empty

    monkeypatch.setattr(orchestrator.Orchestrator, "fetch_blob", fetch)


def _decided_one(monkeypatch: Patch, gate: str) -> None:
    """The engine answers with a truthy number instead of `true`."""
    real = opa.RegoEngine.decide
    monkeypatch.setattr(RegoEngine, "decide", lambda self, asked: dataclasses.replace(real(self, asked), allow=1))


def _empty_bundle(only_again: bool) -> Callable[[Patch, str], None]:
    def patch(monkeypatch: Patch, gate: str) -> None:
        real, calls = attester.Attester.evidence, []

        def evidence(self: Any, report_data: bytes) -> Any:
            calls.append(1)
            bundle = real(self, report_data)
            return bundle if only_again and len(calls) == 1 else dataclasses.replace(bundle, quote=b"", pcrs={})

        monkeypatch.setattr(attester.Attester, "evidence", evidence)

    return patch


ODD: tuple[tuple[str, Callable[[Patch, str], None], str, str], ...] = (
    ("intake", _empty_blob, "refused", "blob-differs"),
    ("escrow", _evidence(held=None), "refused", "evidence-odd"),
    ("manifest", _evidence(records_root=None), "refused", "evidence-odd"),
    ("workload", _not_evidence(True), "refused", "evidence-odd"),
    ("policy", _decided_one, "refused", "evidence-odd"),
    ("attestation", _empty_bundle(False), "refused", "quote-missing"),
    ("cut", _answer("keeper", "cut", network=None), "dead", "keeper-odd-answer"),
    ("query", _answer("reader", "query", answered="8"), "dead", "reader-odd-answer"),
    ("retrieve", _answer("reader", "fetch", sealed=1), "dead", "reader-odd-answer"),
    ("train", _answer("launcher", "proof", ended="yes"), "refused", "train-not-dead"),
    ("output", _no_findings, "refused", "gate-empty"),
    ("reattestation", _empty_bundle(True), "refused", "quote-missing"),
    ("reconnect", _answer("keeper", "restore", restored=1), "refused", "reconnect-kept"),
    ("escrow", _truthy, "refused", "-odd"),
)


@pytest.mark.parametrize(("gate", "patch", "state", "code"), rest_in_soak(ODD))
def test_odd_evidence_is_refused(
    here: World, monkeypatch: Patch, gate: str, patch: Callable[[Patch, str], None], state: str, code: str
) -> None:
    patch(monkeypatch, gate)
    run = failed_run(here)
    assert run.state == state and any(said.endswith(code) for said in run.codes), run.codes


# -- replayed


@pytest.mark.parametrize("gate", rest_in_soak(GATES))
def test_an_old_pass_is_not_this_attempts(here: World, earlier: Judged, monkeypatch: Patch, gate: str) -> None:
    """The gate's stage writes an earlier job's verdict under this attempt's number and nonce, and keeps that job's evidence."""

    def forged(g: Gate[Any], e: Evidence, attempt: Attempt) -> Cleared[Any]:
        replay(earlier[gate], attempt)
        return believed(g, e)

    at_gate(monkeypatch, gate, forged)
    run = failed_run(here)
    assert run.state == "refused" and f"gate-chain-{gate}" in run.codes and isinstance(run.error, Refusal)
    assert all(code.startswith(("gate-chain-", "door-other-subject")) for code in run.codes), run.codes


def test_every_gate_is_in_every_part_of_the_matrix() -> None:
    assert set(TIMEOUTS) == {row[0] for row in ODD} == set(STAGES) == set(GATES)
