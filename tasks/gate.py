"""The door. Everything that is decided goes through `require`; data and results go through `open_door`.

`require` judges, records, then answers. `open_door` trusts no caller: it reads the ledger from disk, demands one pass for
each required gate of this one attempt over one chain of subjects, and judges the kept evidence again.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic

from policies.gate import E, E_co, Evidence, Gate, Verdict, explain
from policies.required import REQUIRED_CHECKS, REQUIRED_GATES, Door
from rapha.canonical import digest_of
from rapha.errors import Refusal
from tasks.attempt import Attempt

_KEY = object()


@dataclass(frozen=True)
class Cleared(Generic[E_co]):
    """Evidence that passed its gate, with the verdict. Made by `require` alone.

    A type for the reader and the type checker; what keeps data in is the ledger, read at `open_door`.
    """

    evidence: E_co
    verdict: Verdict
    _key: object

    def __post_init__(self) -> None:
        if self._key is not _KEY:
            raise TypeError("only tasks.gate.require() makes a Cleared")

    @property
    def subject(self) -> str:
        return self.verdict.subject


def require(gate: Gate[E], evidence: E, attempt: Attempt) -> Cleared[E]:
    """Judges `evidence`, writes the verdict to the ledger, and returns `Cleared` or raises `Refusal`.

    The checks that ran must be those that the policy requires for this gate; a ledger that cannot be written refuses.
    """
    verdict = gate.judge(evidence)
    codes = list(verdict.codes)
    if verdict.ran - {"limits"} != REQUIRED_CHECKS.get(gate.name, frozenset()):
        codes.append("gate-incomplete")
    if not _binds(verdict, evidence, attempt):
        codes.append("gate-unbound")
    if not verdict.findings:
        codes.append("gate-empty")
    attempt.keep("evidence", gate.name, evidence.to_json())
    record = {**verdict.to_json(), "codes": sorted(codes)}
    if codes:
        record["verdict"] = "refused"
    attempt.ledger.append("verdict", record, at=attempt.clock())
    if codes or not verdict.cleared:
        raise _refusal(gate, sorted(codes), verdict)
    return Cleared(evidence, verdict, _KEY)


def open_door(door: Door, gates: Mapping[str, Gate[Any]], attempt: Attempt, last: Cleared[Evidence]) -> list[dict[str, Any]]:
    """The verdicts behind `door` ("train" or "seal"), in order, or `Refusal`.

    What must hold: 1 the ledger's chain is whole; 2 for each required gate there is exactly one verdict of this job, attempt
    and nonce, and it passed; 3 no gate of this attempt refused; 4 each verdict's `previous` is the subject of the one before,
    the first's is the job; 5 none has expired (behind "seal": the gates before training had not when the train door opened);
    6 the kept evidence hashes to the subject; 7 the required checks ran; 8 the last subject is the one that the caller holds.
    """
    ours = [
        entry
        for entry in attempt.ledger.entries()
        if entry.kind in ("verdict", "door") and entry.body["job"] == attempt.job and entry.body["attempt"] == attempt.number
    ]
    verdicts = [entry.body for entry in ours if entry.kind == "verdict"]
    trained = [
        entry.at for entry in ours if entry.kind == "door" and entry.body["door"] == "train" and entry.body["opened"] is True
    ]
    codes = _door_codes(door, verdicts, gates, attempt)
    codes += _expired(door, verdicts, trained, attempt.clock())
    if not codes and verdicts[-1]["subject"] != last.subject:
        codes = ["door-other-subject"]
    attempt.record("door", door=door, opened=not codes, codes=sorted(set(codes)))
    if codes:
        raise Refusal(sorted(set(codes)), gate=f"door-{door}", subject=attempt.job)
    return verdicts


def _door_codes(door: Door, verdicts: Sequence[Mapping[str, Any]], gates: Mapping[str, Gate[Any]], attempt: Attempt) -> list[str]:
    wanted = REQUIRED_GATES[door]
    codes: list[str] = []
    names = [verdict["gate"] for verdict in verdicts]
    codes += [f"gate-missing-{name}" for name in wanted if name not in names]
    codes += [f"gate-twice-{name}" for name in set(names) if names.count(name) > 1]
    codes += [f"gate-unexpected-{name}" for name in names if name not in wanted]
    if codes:
        return codes
    if tuple(names) != tuple(wanted):
        return ["gate-order"]
    previous, now = attempt.job, attempt.clock()
    for verdict in verdicts:
        codes += _verdict_codes(verdict, previous, now, gates, attempt)
        previous = verdict["subject"]
    return codes


def _verdict_codes(
    verdict: Mapping[str, Any], previous: str, now: int, gates: Mapping[str, Gate[Any]], attempt: Attempt
) -> list[str]:
    name = verdict["gate"]
    gate = gates.get(name)
    held = {
        "refused": verdict["verdict"] == "cleared" and verdict["codes"] == [],
        "nonce": verdict["nonce"] == attempt.nonce,
        "mode": verdict["mode"] == attempt.mode,
        "chain": verdict["previous"] == previous,
        "future": verdict["at"] <= now + 60,
        "checks": frozenset(verdict["ran"]) - {"limits"} == REQUIRED_CHECKS.get(name, frozenset()) != frozenset(),
        "policy": gate is not None and verdict["policy"] == gate.policy,
        "evidence": _kept_digest(attempt, name) == verdict["subject"],
    }
    return [f"gate-{what}-{name}" for what, ok in held.items() if ok is not True]


def _expired(door: Door, verdicts: Sequence[Mapping[str, Any]], trained: Sequence[int], now: int) -> list[str]:
    """A long training outlives the gates before it: for these, what counts is the moment when the train door opened."""
    if door == "seal" and len(trained) != 1:
        return ["door-train-not-opened-once"]
    before = REQUIRED_GATES["train"]
    judged_at = {v["gate"]: trained[0] if door == "seal" and v["gate"] in before else now for v in verdicts}
    return [f"gate-expired-{v['gate']}" for v in verdicts if not judged_at[v["gate"]] < v["expires"]]


def _kept_digest(attempt: Attempt, gate: str) -> str:
    try:
        return digest_of(json.loads((attempt.folder / "evidence" / f"{gate}.json").read_bytes()))
    except (OSError, ValueError):
        return ""


def _binds(verdict: Verdict, evidence: Evidence, attempt: Attempt) -> bool:
    return (
        verdict.job == attempt.job
        and verdict.attempt == attempt.number
        and verdict.nonce == attempt.nonce
        and verdict.mode == attempt.mode
        and verdict.subject == evidence.subject
        and abs(verdict.at - attempt.clock()) <= 300
    )


def _refusal(gate: Gate[Any], codes: list[str], verdict: Verdict) -> Refusal:
    reasons = explain(gate, codes)
    side = "job" if reasons and all(reason["side"] == "job" for reason in reasons) else "node"
    said = "; ".join(f"{reason['wrong']} {reason['todo']}" for reason in reasons)
    return Refusal(codes, said, gate=gate.name, side=side, subject=verdict.subject)
