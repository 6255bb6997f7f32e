"""The matrix without the engine: the real evidence of a job that passed, tampered with before the real door and ledger."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from blocks.ledger import Ledger
from policies.gate import Evidence, Finding, Gate
from policies.required import REQUIRED_GATES, Door
from rapha.errors import Refusal
from rapha.ledger import verify
from tasks.attempt import Attempt
from tasks.gate import Cleared, open_door, require, was_opened
from tests.fixtures.matrix import GATES, Judged, earlier, old, with_check

__all__ = ["earlier", "old"]
DOORS: tuple[Door, ...] = ("train", "seal", "settle")


class Again:
    """The attempt that passed, on a ledger of its own, at the time when its facts were gathered."""

    def __init__(self, folder: Path, judged: Judged) -> None:
        self.judged, self.now = judged, judged["intake"][1].at
        first = judged["intake"][1]
        ledger = Ledger.create(folder / "ledger", Ed25519PrivateKey.generate(), "again")
        self.attempt = Attempt(
            job=first.job,
            number=first.attempt,
            nonce=first.nonce,
            mode=first.mode,
            folder=folder / "attempt",
            ledger=ledger,
            clock=lambda: self.now,
        )
        self.gates = {name: gate for name, (gate, _) in judged.items()}

    def judge(self, name: str, tampered: Gate[Any] | None = None, evidence: Any = None) -> Cleared[Any]:
        gate, facts = self.judged[name]
        self.now = facts.at
        return require(tampered or gate, facts if evidence is None else evidence, self.attempt)

    def refusal(self, name: str, tampered: Gate[Any] | None = None, evidence: Any = None) -> tuple[str, ...]:
        """The codes of the refusal, which must be the ledger's last verdict too."""
        with pytest.raises(Refusal) as refused:
            self.judge(name, tampered, evidence)
        last = [entry.body for entry in self.attempt.ledger.entries() if entry.kind == "verdict"][-1]
        assert (last["verdict"], last["gate"], tuple(last["codes"])) == ("refused", name, refused.value.codes)
        assert verify(self.attempt.ledger.folder).ok
        return refused.value.codes

    def through(self, put: Callable[["Again", str], Cleared[Any]]) -> tuple[Door, tuple[str, ...]]:
        """Every gate by `put`, every door; which door stayed shut, and why."""
        last: Cleared[Any] | None = None
        for name in GATES:
            last = put(self, name)
            for door in DOORS:
                if REQUIRED_GATES[door][-1] == name:
                    try:
                        open_door(door, self.gates, self.attempt, last)
                    except Refusal as refused:
                        assert not was_opened(door, self.attempt) and verify(self.attempt.ledger.folder).ok
                        return door, refused.codes
        raise AssertionError("every door opened")


@pytest.fixture
def again(earlier: Judged, tmp_path: Path) -> Again:
    return Again(tmp_path, earlier)


def door_of(gate: str) -> Door:
    """The first door that the gate is behind."""
    return next(door for door in DOORS if gate in REQUIRED_GATES[door])


def test_the_evidence_passes_as_it_was_gathered(again: Again) -> None:
    with pytest.raises(AssertionError, match="every door opened"):
        again.through(lambda run, name: run.judge(name))
    assert was_opened("settle", again.attempt)


@pytest.mark.parametrize("gate", GATES)
def test_a_crash_in_any_check_is_its_own_refusal(again: Again, gate: str) -> None:
    def crash(e: Evidence) -> Any:
        raise TimeoutError("a value that must not be seen")

    checks = again.gates[gate].checks
    for broken in checks:
        others = [c for c in checks if c.name != broken.name]
        tampered = dataclasses.replace(again.gates[gate], checks=(*others, dataclasses.replace(broken, run=crash)))
        assert again.refusal(gate, tampered) == (f"{broken.name}-crashed",)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("answer", [None, True, 1, "", {}, iter(()), Finding("x", True)])
def test_an_answer_of_another_kind_is_odd(again: Again, gate: str, answer: Any) -> None:
    codes = again.refusal(gate, with_check(again.gates[gate], lambda _: answer))
    assert len(codes) == 1 and codes[0].endswith("-odd")


@pytest.mark.parametrize("gate", GATES)
def test_no_findings_are_no_pass(again: Again, gate: str) -> None:
    tampered = dataclasses.replace(again.gates[gate], checks=())
    assert set(again.refusal(gate, tampered)) == {"gate-empty", "gate-incomplete"}


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("odd", [True, {}, "yes", 1, object()])
def test_what_is_no_evidence_is_refused(again: Again, gate: str, odd: Any) -> None:
    assert again.refusal(gate, evidence=odd) == ("evidence-odd",)


@pytest.mark.parametrize("gate", GATES)
def test_a_fact_that_is_missing_or_of_another_kind_is_refused(again: Again, gate: str) -> None:
    """Each field of each gate alone: absent, a truthy text, a number where a truth value is due, a list, nothing at all."""
    facts = again.judged[gate][1]
    for field in dataclasses.fields(facts):
        held = getattr(facts, field.name)
        odd = [] if held is None or "None" in str(field.type) else [None]
        odd += [b"\x00", [held], {"value": held}, object()]
        odd += [int(held)] if isinstance(held, bool) else [str(held)] if isinstance(held, int) else [True]
        for value in odd:
            codes = again.refusal(gate, evidence=dataclasses.replace(facts, **{field.name: value}))
            assert field.name == "limits" or codes == ("evidence-odd",), (field.name, value, codes)


@pytest.mark.parametrize("gate", GATES)
def test_the_verdict_of_another_job_is_not_there(again: Again, gate: str) -> None:
    def put(run: Again, name: str) -> Cleared[Any]:
        if name != gate:
            return run.judge(name)
        cleared = _believed(run, name)
        run.attempt.ledger.append("verdict", {**cleared.verdict.to_json(), "job": "sha256:" + "0" * 64}, at=run.now)
        return cleared

    assert again.through(put) == (door_of(gate), (f"gate-missing-{gate}",))


@pytest.mark.parametrize(("change", "code"), [({"nonce": "0" * 64}, "nonce"), ({"policy": "sha256:" + "0" * 64}, "policy")])
@pytest.mark.parametrize("gate", GATES)
def test_an_old_verdict_under_this_attempts_number_is_seen(again: Again, gate: str, change: dict[str, str], code: str) -> None:
    def put(run: Again, name: str) -> Cleared[Any]:
        if name != gate:
            return run.judge(name)
        cleared = _believed(run, name)
        run.attempt.ledger.append("verdict", {**cleared.verdict.to_json(), **change}, at=run.now)
        run.attempt.keep("evidence", name, cleared.evidence.to_json())
        return cleared

    assert again.through(put) == (door_of(gate), (f"gate-{code}-{gate}",))


@pytest.mark.parametrize("gate", GATES)
def test_a_verdict_over_other_evidence_is_seen(again: Again, gate: str) -> None:
    def put(run: Again, name: str) -> Cleared[Any]:
        cleared = run.judge(name)
        if name == gate:
            run.attempt.keep("evidence", name, {**cleared.evidence.to_json(), "at": run.now - 60})
        return cleared

    assert again.through(put) == (door_of(gate), (f"gate-evidence-{gate}",))


@pytest.mark.parametrize("gate", GATES)
def test_a_verdict_that_has_expired_is_seen(again: Again, gate: str) -> None:
    def put(run: Again, name: str) -> Cleared[Any]:
        if name != gate:
            return run.judge(name)
        cleared = _believed(run, name)
        run.attempt.ledger.append("verdict", {**cleared.verdict.to_json(), "expires": run.now}, at=run.now)
        run.attempt.keep("evidence", name, cleared.evidence.to_json())
        return cleared

    assert again.through(put) == (door_of(gate), (f"gate-expired-{gate}",))


def test_settle_opens_only_behind_seal_and_seal_behind_train(again: Again) -> None:
    last = None
    for name in GATES:
        last = again.judge(name)
    assert last is not None
    with pytest.raises(Refusal) as refused:
        open_door("settle", again.gates, again.attempt, last)
    assert refused.value.codes == ("door-train-not-opened-once",)
    again.attempt.record("door", door="train", opened=True, codes=[])
    with pytest.raises(Refusal) as refused:
        open_door("settle", again.gates, again.attempt, last)
    assert refused.value.codes == ("door-seal-not-opened",)


def test_gates_before_a_door_do_not_expire_behind_it(again: Again) -> None:
    """Training of five hours; sealing an hour before the line is back."""
    last: Any = None
    for name in GATES:
        last = again.judge(name)
        again.now += {"train": 5 * 3600}.get(name, 0)
        for door in DOORS[:2]:
            if REQUIRED_GATES[door][-1] == name:
                open_door(door, again.gates, again.attempt, last)
    again.now = last.evidence.at + 3000
    assert open_door("settle", again.gates, again.attempt, last)
    again.now = last.evidence.at + 3600
    with pytest.raises(Refusal) as refused:
        open_door("settle", again.gates, again.attempt, last)
    assert refused.value.codes == ("gate-expired-reconnect",)


def _believed(run: Again, name: str) -> Cleared[Any]:
    """A `Cleared` that is in no ledger: made on another one."""
    aside = Ledger.create(run.attempt.folder.parent / f"aside-{name}", Ed25519PrivateKey.generate(), "aside")
    run.now = run.judged[name][1].at
    return require(*run.judged[name], dataclasses.replace(run.attempt, ledger=aside, folder=run.attempt.folder.parent / "aside"))
