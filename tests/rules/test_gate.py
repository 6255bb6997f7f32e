"""The door: nothing passes that was not judged, in full, for this attempt, and written down."""

import dataclasses
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from blocks.ledger import Ledger
from policies.gate import Check, Evidence, Finding, Gate, Reason, check, check_each, explain, limits_json
from policies.required import REQUIRED_CHECKS, REQUIRED_GATES
from rapha.canonical import canonical
from rapha.errors import Refusal
from rapha.ledger import verify
from tasks.attempt import Attempt
from tasks.gate import Cleared, open_door, require

JOB, NOW = "sha256:" + "a" * 64, 1_800_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact(Evidence):
    good: object = True


@check("is-good", "job", "It is not good.", "Make it good.")
def is_good(e: Fact) -> object:
    return e.good


class Bench:
    """One attempt with a clock that the test sets, and simple gates under the real gates' names."""

    def __init__(self, folder: Path) -> None:
        self.now = NOW
        self.ledger = Ledger.create(folder / "ledger", Ed25519PrivateKey.generate(), "test")
        self.attempt = self.next(folder, 1)
        self.gates: dict[str, Gate[Any]] = {name: Gate(name, (is_good,)) for name in REQUIRED_GATES["seal"]}

    def next(self, folder: Path, number: int, **changes: Any) -> Attempt:
        facts: dict[str, Any] = {"job": JOB, "number": number, "nonce": f"{number:064x}", "mode": "development", **changes}
        return Attempt(**facts, folder=folder / str(number), ledger=self.ledger, clock=lambda: self.now)

    def evidence(self, previous: str = JOB, **changes: Any) -> Fact:
        return Fact(**{**self.attempt.facts(previous), **changes})

    def pass_gates(self, *names: str, previous: str = JOB) -> Cleared[Any]:
        last = None
        for name in names:
            last = require(self.gates[name], self.evidence(previous), self.attempt)
            previous = last.subject
        assert last is not None
        return last

    def verdicts(self) -> list[dict[str, Any]]:
        return [entry.body for entry in self.ledger.entries() if entry.kind == "verdict"]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    for name in REQUIRED_GATES["seal"]:
        monkeypatch.setitem(REQUIRED_CHECKS, name, frozenset({"is-good"}))
    return Bench(tmp_path)


def refused(*run: Any) -> tuple[str, ...]:
    with pytest.raises(Refusal) as refusal:
        run[0](*run[1:])
    return refusal.value.codes


def train_door(bench: Bench, last: Cleared[Any]) -> tuple[str, ...]:
    return refused(open_door, "train", bench.gates, bench.attempt, last)


def recorded(bench: Bench, *codes: str) -> None:
    assert bench.verdicts()[-1]["verdict"] == "refused"
    assert bench.verdicts()[-1]["codes"] == list(codes)


# -- a verdict


def test_a_verdict_is_not_a_truth_value(bench: Bench) -> None:
    verdict = bench.gates["intake"].judge(bench.evidence())
    with pytest.raises(TypeError):
        bool(verdict)


def test_a_verdict_without_findings_has_not_cleared(bench: Bench) -> None:
    verdict = replace(bench.gates["intake"].judge(bench.evidence()), findings=())
    assert verdict.cleared is False and verdict.to_json()["verdict"] == "refused"


def test_a_verdict_binds_job_attempt_nonce_subject_and_policy(bench: Bench) -> None:
    said = bench.gates["intake"].judge(bench.evidence()).to_json()
    assert (said["job"], said["attempt"], said["nonce"]) == (JOB, 1, bench.attempt.nonce)
    assert said["subject"] == bench.evidence().subject and said["policy"] == bench.gates["intake"].policy
    assert said["expires"] == NOW + 3600


@pytest.mark.parametrize("answer", [False, None, 1, "yes", [], {}, object(), NotImplemented, Finding("x", True)])
def test_A05_only_exactly_true_passes(bench: Bench, answer: object) -> None:
    gate = Gate("intake", (check("is-good", "job", "", "")(lambda e: answer),))
    assert refused(require, gate, bench.evidence(), bench.attempt) == ("is-good",)


@pytest.mark.parametrize("answer", [None, "", "is-good", {}, 0, iter(()), False, True, {"is-good": 1}])
def test_A05_a_set_of_rules_answers_with_a_collection_of_codes_only(bench: Bench, answer: Any) -> None:
    rules: Check[Fact] = check_each("is-good", {"is-good": Reason("job", "", "")})(lambda e: answer)
    assert refused(require, Gate("intake", (rules,)), bench.evidence(), bench.attempt) == ("is-good-odd",)


@pytest.mark.parametrize(
    "error", [ValueError, TimeoutError, RecursionError, KeyError, AssertionError, StopIteration, MemoryError]
)
def test_A01_a_check_that_crashes_or_times_out_has_not_passed(bench: Bench, error: type[Exception]) -> None:
    def crash(e: Fact) -> bool:
        raise error("a value that must not be seen")

    gate = Gate("intake", (check("is-good", "job", "", "")(crash),))
    with pytest.raises(Refusal) as refusal:
        require(gate, bench.evidence(), bench.attempt)
    assert refusal.value.codes == ("is-good-crashed",)
    assert "must not be seen" not in str(refusal.value) + json.dumps(bench.verdicts())
    assert refusal.value.__cause__ is None
    recorded(bench, "is-good-crashed")


def test_a_code_that_nobody_knows_is_odd(bench: Bench) -> None:
    rules: Check[Fact] = check_each("is-good", {})(lambda e: ["free text from a peer"])
    assert refused(require, Gate("intake", (rules,)), bench.evidence(), bench.attempt) == ("is-good-odd",)


# -- require


def test_a_pass_is_written_down_before_it_is_answered(bench: Bench) -> None:
    cleared = bench.pass_gates("intake")
    assert bench.verdicts()[-1] == cleared.verdict.to_json()
    assert (bench.attempt.folder / "evidence" / "intake.json").read_bytes() == canonical(cleared.evidence.to_json()) + b"\n"


def test_only_the_door_makes_a_cleared(bench: Bench) -> None:
    with pytest.raises(TypeError):
        Cleared(bench.evidence(), bench.gates["intake"].judge(bench.evidence()), object())


def test_a_gate_without_checks_refuses_even_where_none_are_required(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REQUIRED_CHECKS, "intake", frozenset())
    assert "gate-empty" in refused(require, Gate("intake", ()), bench.evidence(), bench.attempt)
    assert "gate-empty" in refused(require, Gate("nobody-knows-it", ()), bench.evidence(), bench.attempt)


def test_a_gate_that_nobody_requires_refuses(bench: Bench) -> None:
    assert refused(require, Gate("nobody-knows-it", (is_good,)), bench.evidence(), bench.attempt) == ("gate-incomplete",)


def test_a_removed_check_refuses(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REQUIRED_CHECKS, "intake", frozenset({"is-good", "is-signed"}))
    assert refused(require, bench.gates["intake"], bench.evidence(), bench.attempt) == ("gate-incomplete",)
    recorded(bench, "gate-incomplete")


def test_an_added_check_refuses_until_it_is_required(bench: Bench) -> None:
    more = check("is-more", "job", "", "")(lambda e: True)
    assert refused(require, Gate("intake", (is_good, more)), bench.evidence(), bench.attempt) == ("gate-incomplete",)


@pytest.mark.parametrize(
    "change",
    [
        {"job": "sha256:" + "b" * 64},
        {"attempt": 2},
        {"nonce": "f" * 64},
        {"mode": "production"},
        {"at": NOW - 301},
        {"at": NOW + 301},
    ],
)
def test_A10_evidence_of_another_job_attempt_or_time_judges_nothing(bench: Bench, change: dict[str, Any]) -> None:
    assert refused(require, bench.gates["intake"], bench.evidence(**change), bench.attempt) == ("gate-unbound",)
    said = bench.verdicts()[-1]
    assert (said["job"], said["attempt"], said["nonce"]) == (JOB, 1, bench.attempt.nonce)  # not under the other's name


@pytest.mark.parametrize("odd", [None, True, {"good": True}, object()])
def test_odd_evidence_is_refused(bench: Bench, odd: Any) -> None:
    assert refused(require, bench.gates["intake"], odd, bench.attempt) == ("evidence-odd",)
    recorded(bench, "evidence-odd")


@pytest.mark.parametrize("value", [float("nan"), 2**60, b"pixels", {1, 2}, "\ud800"])
def test_evidence_without_a_canonical_form_is_refused(bench: Bench, value: object) -> None:
    assert refused(require, bench.gates["intake"], bench.evidence(good=value), bench.attempt) == ("evidence-odd",)


def test_a_gate_that_answers_with_something_else_than_a_verdict_is_refused(bench: Bench) -> None:
    class Odd(Gate[Any]):
        def judge(self, evidence: Any) -> Any:
            return True

    assert refused(require, Odd("intake", (is_good,)), bench.evidence(), bench.attempt) == ("evidence-odd",)


def test_a_verdict_of_other_evidence_is_refused(bench: Bench) -> None:
    class Replays(Gate[Any]):
        def judge(self, evidence: Any) -> Any:
            return Gate.judge(self, replace(evidence, good=True))

    replayed = Replays("intake", (is_good,))
    assert refused(require, replayed, bench.evidence(good=False), bench.attempt) == ("gate-unbound",)


def test_other_numbers_than_the_sites_are_refused(bench: Bench) -> None:
    @dataclass(frozen=True)
    class Limits:
        most: int = 3

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Bounded(Fact):
        limits: Limits

    gate = Gate("intake", (is_good,), site=limits_json(Limits()))
    evidence = Bounded(**bench.attempt.facts(JOB), limits=Limits(most=9))
    assert refused(require, gate, evidence, bench.attempt) == ("limits-differ",)
    assert require(gate, replace(evidence, limits=Limits()), bench.attempt)


def test_the_side_is_the_jobs_only_if_all_codes_are(bench: Bench) -> None:
    sides = {}
    for other in ("job", "node"):
        second = check("is-too", other, "", "")(lambda e: False)  # type: ignore[arg-type]
        with pytest.raises(Refusal) as refusal:
            require(Gate("intake", (is_good, second)), bench.evidence(good=False), bench.attempt)
        sides[other] = refusal.value.side
    assert sides == {"job": "node", "node": "node"}  # gate-incomplete is the node's
    with pytest.raises(Refusal) as refusal:
        require(bench.gates["intake"], bench.evidence(good=False), bench.attempt)
    assert refusal.value.side == "job" and "Make it good." in refusal.value.message


def test_codes_are_explained_to_a_person() -> None:
    said = explain(Gate("intake", (is_good,)), ["is-good", "is-good-crashed"])
    assert said[0] == {"code": "is-good", "side": "job", "wrong": "It is not good.", "todo": "Make it good."}
    assert said[1]["side"] == "node" and said[1]["todo"]


# -- the door


def test_the_train_door_opens_behind_its_gates_and_only_once(bench: Bench) -> None:
    last = bench.pass_gates(*REQUIRED_GATES["train"])
    assert [v["gate"] for v in open_door("train", bench.gates, bench.attempt, last)] == list(REQUIRED_GATES["train"])
    assert train_door(bench, last) == ("door-train-opened-before",)


@pytest.mark.parametrize("gate", REQUIRED_GATES["train"])
def test_a_missing_gate_keeps_the_door_shut(bench: Bench, gate: str) -> None:
    last = bench.pass_gates(*(name for name in REQUIRED_GATES["train"] if name != gate))
    assert train_door(bench, last) == (f"gate-missing-{gate}",)


@pytest.mark.parametrize("gate", REQUIRED_GATES["train"])
def test_a_refused_gate_keeps_the_door_shut_even_if_the_flow_goes_on(bench: Bench, gate: str) -> None:
    previous, last = JOB, None
    for name in REQUIRED_GATES["train"]:
        evidence = bench.evidence(previous, good=name != gate)
        try:
            last = require(bench.gates[name], evidence, bench.attempt)
        except Refusal:
            assert name == gate
        previous = evidence.subject
    codes = train_door(bench, last if last else bench.pass_gates("intake"))
    assert f"gate-refused-{gate}" in codes or f"gate-twice-{gate}" in codes


def test_a_gate_judged_again_keeps_the_door_shut(bench: Bench) -> None:
    bench.pass_gates("intake")
    last = bench.pass_gates(*REQUIRED_GATES["train"])
    assert train_door(bench, last) == ("gate-twice-intake",)


def test_the_order_is_part_of_the_rule(bench: Bench) -> None:
    names = list(REQUIRED_GATES["train"])
    names[1], names[2] = names[2], names[1]
    assert train_door(bench, bench.pass_gates(*names)) == ("gate-order",)


def test_an_extra_gate_keeps_the_door_shut(bench: Bench) -> None:
    last = bench.pass_gates(*REQUIRED_GATES["train"], "output")
    assert train_door(bench, last) == ("gate-unexpected-output",)


def test_a_broken_chain_of_subjects_keeps_the_door_shut(bench: Bench) -> None:
    names = REQUIRED_GATES["train"]
    bench.pass_gates(*names[:4])
    last = bench.pass_gates(*names[4:], previous="sha256:" + "c" * 64)
    assert train_door(bench, last) == (f"gate-chain-{names[4]}",)


def test_an_expired_verdict_keeps_the_door_shut(bench: Bench) -> None:
    last = bench.pass_gates(*REQUIRED_GATES["train"])
    bench.now += 3600
    assert train_door(bench, last) == tuple(sorted(f"gate-expired-{name}" for name in REQUIRED_GATES["train"]))


def test_a_verdict_from_the_future_keeps_the_door_shut(bench: Bench) -> None:
    last = bench.pass_gates(*REQUIRED_GATES["train"])
    bench.now -= 61
    assert f"gate-future-{REQUIRED_GATES['train'][0]}" in train_door(bench, last)


def test_J02_passes_of_another_attempt_do_not_count(bench: Bench, tmp_path: Path) -> None:
    last = bench.pass_gates(*REQUIRED_GATES["train"])
    second = bench.next(tmp_path, 2)
    codes = refused(open_door, "train", bench.gates, second, last)
    assert codes == tuple(sorted(f"gate-missing-{name}" for name in REQUIRED_GATES["train"]))


def test_A10_old_passes_written_again_for_this_attempt_do_not_count(bench: Bench, tmp_path: Path) -> None:
    """Whoever can append to the ledger replays the verdicts of attempt 1 under the number of attempt 2."""
    last = bench.pass_gates(*REQUIRED_GATES["train"])
    second = bench.next(tmp_path, 2)
    for verdict in bench.verdicts():
        bench.ledger.append("verdict", {**verdict, "attempt": 2})
        second.keep(
            "evidence", verdict["gate"], json.loads((bench.attempt.folder / "evidence" / f"{verdict['gate']}.json").read_bytes())
        )
    codes = refused(open_door, "train", bench.gates, second, last)
    assert codes == tuple(sorted(f"gate-nonce-{name}" for name in REQUIRED_GATES["train"]))


def test_another_nonce_keeps_the_door_shut(bench: Bench, tmp_path: Path) -> None:
    last = bench.pass_gates(*REQUIRED_GATES["train"])
    codes = refused(open_door, "train", bench.gates, bench.next(tmp_path, 1, nonce="e" * 64), last)
    assert codes == tuple(sorted(f"gate-nonce-{name}" for name in REQUIRED_GATES["train"]))


def test_another_mode_keeps_the_door_shut(bench: Bench, tmp_path: Path) -> None:
    last = bench.pass_gates(*REQUIRED_GATES["train"])
    codes = refused(open_door, "train", bench.gates, bench.next(tmp_path, 1, mode="production"), last)
    assert codes == tuple(sorted(f"gate-mode-{name}" for name in REQUIRED_GATES["train"]))


@pytest.mark.parametrize("change", ["edit", "space", "remove", "swap"])
def test_evidence_that_was_changed_on_disk_keeps_the_door_shut(bench: Bench, change: str) -> None:
    last = bench.pass_gates(*REQUIRED_GATES["train"])
    kept = bench.attempt.folder / "evidence" / "policy.json"
    if change == "edit":
        kept.write_bytes(kept.read_bytes().replace(b"true", b"null"))
    elif change == "space":
        kept.write_bytes(kept.read_bytes().replace(b":true", b": true"))
    elif change == "swap":
        kept.write_bytes((kept.parent / "intake.json").read_bytes())
    else:
        kept.unlink()
    assert train_door(bench, last) == ("gate-evidence-policy",)


def test_A09_a_gate_whose_policy_changed_since_keeps_the_door_shut(bench: Bench) -> None:
    last = bench.pass_gates(*REQUIRED_GATES["train"])
    bench.gates["policy"] = Gate("policy", (is_good,), site={"most": 3})
    assert train_door(bench, last) == ("gate-policy-policy",)
    del bench.gates["policy"]
    assert train_door(bench, last) == ("gate-policy-policy",)


def test_a_check_removed_from_the_required_ones_and_the_gate_keeps_the_door_shut(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = bench.pass_gates(*REQUIRED_GATES["train"])
    monkeypatch.setitem(REQUIRED_CHECKS, "policy", frozenset())
    assert train_door(bench, last) == ("gate-checks-policy",)


def test_the_caller_must_hold_what_was_judged_last(bench: Bench) -> None:
    bench.pass_gates(*REQUIRED_GATES["train"][:-1])
    last = bench.pass_gates("retrieve", previous=bench.verdicts()[-1]["subject"])
    forged = dataclasses.replace(last, evidence=replace(last.evidence, good="other"))
    assert train_door(bench, forged) == ("door-other-subject",)


def test_J07_the_seal_door_needs_the_train_door(bench: Bench) -> None:
    last = bench.pass_gates(*REQUIRED_GATES["seal"])
    assert refused(open_door, "seal", bench.gates, bench.attempt, last) == ("door-train-not-opened-once",)


def test_a_long_training_does_not_expire_what_was_judged_before_it(bench: Bench) -> None:
    last = bench.pass_gates(*REQUIRED_GATES["train"])
    open_door("train", bench.gates, bench.attempt, last)
    bench.now += 5 * 3600
    last = bench.pass_gates("train", "output", "reattestation", previous=last.subject)
    assert len(open_door("seal", bench.gates, bench.attempt, last)) == len(REQUIRED_GATES["seal"])
    bench.now += 3600
    codes = refused(open_door, "seal", bench.gates, bench.attempt, last)
    assert codes == ("gate-expired-output", "gate-expired-reattestation", "gate-expired-train")


# -- the record


@pytest.fixture
def full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file system of 256 KiB with nothing free."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], check=True)
    try:
        monkeypatch.setitem(REQUIRED_CHECKS, "intake", frozenset({"is-good"}))
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def _fill(folder: Path, leave: int = 0) -> Path:
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as stream:
        for size in (4096, 512, 1):
            try:
                while stream.write(b"x" * size) == size:
                    pass
            except OSError:
                continue
    if leave:
        with ballast.open("r+b") as stream:
            stream.truncate(ballast.stat().st_size - leave)
    return ballast


@pytest.mark.parametrize("leave", [0, 4096, 8192])
def test_H05_a_full_disk_stops_the_stage_and_leaves_the_ledger_whole(full: Path, tmp_path: Path, leave: int) -> None:
    ledger = Ledger.create(full / "ledger", Ed25519PrivateKey.generate(), "test")
    home = tmp_path / "attempt"  # the evidence has room, the ledger has none
    attempt = Attempt(job=JOB, number=1, nonce="1" * 64, mode="development", folder=home, ledger=ledger)
    for _ in range(3):
        attempt.record("mark", filler="x" * 900)
    ballast = _fill(full, leave)
    answered = 0
    try:
        for _ in range(40):
            require(Gate("intake", (is_good,)), Fact(**attempt.facts(JOB)), attempt)
            answered += 1
    except Refusal as refusal:
        assert refusal.codes == ("ledger-unwritable",)
    else:
        pytest.fail("the disk did not fill")
    ballast.unlink()
    ledger.recover()
    assert verify(full / "ledger").ok
    assert len([e for e in ledger.entries() if e.kind == "verdict"]) == answered
    assert require(Gate("intake", (is_good,)), Fact(**attempt.facts(JOB)), attempt)


def test_H05_evidence_that_cannot_be_kept_stops_the_stage(full: Path, tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path / "ledger", Ed25519PrivateKey.generate(), "test")
    attempt = Attempt(job=JOB, number=1, nonce="1" * 64, mode="development", folder=full / "attempt", ledger=ledger)
    _fill(full)
    assert refused(require, Gate("intake", (is_good,)), Fact(**attempt.facts(JOB)), attempt) == ("evidence-unwritable",)
    assert not [entry for entry in ledger.entries() if entry.body.get("verdict") == "cleared"]


def test_H05_a_ledger_that_is_gone_stops_the_stage(bench: Bench) -> None:
    for path in bench.ledger.folder.iterdir():
        path.unlink()
    bench.ledger.folder.rmdir()
    assert refused(require, bench.gates["intake"], bench.evidence(), bench.attempt) == ("ledger-unwritable",)


def test_H04_the_door_does_not_open_on_a_ledger_that_was_cut(bench: Bench) -> None:
    last = bench.pass_gates(*REQUIRED_GATES["train"])
    with pytest.raises(Refusal):
        require(bench.gates["output"], bench.evidence(last.subject, good=False), bench.attempt)
    entries = bench.ledger.folder / "entries.jsonl"
    entries.write_bytes(b"".join(entries.read_bytes().splitlines(keepends=True)[:-1]))  # the refusal is taken out
    assert train_door(bench, last) == ("ledger-truncated",)
