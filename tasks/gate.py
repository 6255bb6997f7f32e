"""The door. Everything that is decided goes through `require`; data and results go through `open_door`.

`require` judges, records, then answers. `open_door` trusts no caller: it reads the ledger from disk, demands one pass for
each required gate of this one attempt over one chain of subjects, and hashes the kept evidence again.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic

from policies.gate import E, E_co, Evidence, Gate, Verdict, explain, well_typed
from policies.required import REQUIRED_CHECKS, REQUIRED_GATES, Door
from rapha.canonical import digest
from rapha.errors import Refusal
from rapha.ledger import Entry
from tasks.attempt import Attempt

_KEY = object()
_FIELDS = {"verdict", "codes", "subject", "previous", "nonce", "mode", "at", "expires", "policy", "ran"}


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

    What must hold: 1 the evidence is evidence, its facts of the declared kinds, with a canonical form; 2 it is of this
    attempt, and fresh; 3 some check ran, and the checks that ran are those that the policy requires for this gate; 4 all
    passed; 5 evidence and verdict are on disk.
    """
    verdict = _judged(gate, evidence, attempt)
    codes = set(verdict.codes)
    ran = verdict.ran - {"limits"}
    if ran != REQUIRED_CHECKS.get(gate.name, frozenset()):
        codes.add("gate-incomplete")
    if not ran:
        codes.add("gate-empty")
    if not _binds(verdict, evidence, attempt):
        codes.add("gate-unbound")
    _keep(attempt, gate.name, evidence)
    record = {**verdict.to_json(), **_own(attempt), "codes": sorted(codes)}
    if codes or not verdict.cleared:
        record["verdict"] = "refused"
    attempt.ledger.append("verdict", record, at=attempt.clock())
    if record["verdict"] != "cleared":
        raise _refusal(gate, sorted(codes) or ["gate-empty"], verdict)
    return Cleared(evidence, verdict, _KEY)


def open_door(door: Door, gates: Mapping[str, Gate[Any]], attempt: Attempt, last: Cleared[Evidence]) -> list[dict[str, Any]]:
    """The verdicts behind `door` ("train", "seal" or "settle"), in order, or `Refusal`.

    What must hold: 1 the ledger's chain is whole and ends at its signed head; 2 for each required gate there is exactly one
    verdict of this job, attempt and nonce, and it passed; 3 no gate of this attempt refused; 4 each verdict's `previous` is the
    subject of the one before, the first's is the job; 5 none has expired (behind a later door: none had when the door right
    behind it opened); 6 the kept evidence hashes to the subject; 7 the required checks ran; 8 the last subject is the one that
    the caller holds; 9 the train door opens once, "seal" only after it, and "settle" only after that.
    """
    mine = [entry for entry in attempt.ledger.entries() if _is_of(entry, attempt)]
    verdicts = [entry.body for entry in mine if entry.kind == "verdict"]
    codes = _door_codes(door, verdicts, gates, attempt)
    codes += _expired(door, verdicts, mine, attempt.clock())
    if not codes and (last.subject != verdicts[-1]["subject"] or last.evidence.subject != last.subject):
        codes = ["door-other-subject"]
    attempt.record("door", door=door, opened=not codes, codes=sorted(set(codes)))
    if codes:
        raise Refusal(sorted(set(codes)), gate=f"door-{door}", subject=attempt.job)
    return verdicts


def was_opened(door: Door, attempt: Attempt) -> bool:
    """Whether this attempt opened `door`, by its ledger: for a step that resumes behind it. `Refusal` ledger-…"""
    return bool(_openings(door, [entry for entry in attempt.ledger.entries() if _is_of(entry, attempt)]))


def _judged(gate: Gate[E], evidence: E, attempt: Attempt) -> Verdict:
    """The gate's verdict; evidence that is none is refused and recorded as such."""
    try:
        if not isinstance(evidence, Evidence) or not well_typed(evidence):
            raise TypeError
        verdict = gate.judge(evidence)
        if type(verdict) is not Verdict:
            raise TypeError
        return verdict
    except (TypeError, ValueError, AttributeError, NameError, RecursionError):
        record = {**_own(attempt), "verdict": "refused", "gate": gate.name, "codes": ["evidence-odd"], "subject": attempt.job}
        attempt.ledger.append("verdict", record, at=attempt.clock())
        raise Refusal(["evidence-odd"], gate=gate.name, subject=attempt.job) from None


def _keep(attempt: Attempt, name: str, evidence: Evidence) -> None:
    try:
        attempt.keep("evidence", name, evidence.to_json())
    except OSError as error:
        raise Refusal(["evidence-unwritable"], f"the evidence cannot be kept: {error.strerror}", gate=name) from None


def _own(attempt: Attempt) -> dict[str, Any]:
    """What binds a record to this attempt, whatever the evidence claims."""
    return {"job": attempt.job, "attempt": attempt.number, "nonce": attempt.nonce, "mode": attempt.mode}


def _is_of(entry: Entry, attempt: Attempt) -> bool:
    return entry.body.get("job") == attempt.job and entry.body.get("attempt") == attempt.number


def _door_codes(door: Door, verdicts: Sequence[Mapping[str, Any]], gates: Mapping[str, Gate[Any]], attempt: Attempt) -> list[str]:
    wanted = REQUIRED_GATES[door]
    codes: list[str] = []
    names = [str(verdict.get("gate")) for verdict in verdicts]
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
        previous = verdict.get("subject", "")
    return codes


def _verdict_codes(
    verdict: Mapping[str, Any], previous: str, now: int, gates: Mapping[str, Gate[Any]], attempt: Attempt
) -> list[str]:
    name = verdict["gate"]
    gate = gates.get(name)
    if _FIELDS - set(verdict):
        return [f"gate-refused-{name}", f"gate-odd-{name}"]
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


def _expired(door: Door, verdicts: Sequence[Mapping[str, Any]], mine: Sequence[Entry], now: int) -> list[str]:
    """A long training outlives the gates before it: for these, what counts is the moment when the door behind them opened."""
    trained, sealed = _openings("train", mine), _openings("seal", mine)
    if door == "train" and trained:
        return ["door-train-opened-before"]
    if door != "train" and len(trained) != 1:
        return ["door-train-not-opened-once"]
    if door == "settle" and not sealed:
        return ["door-seal-not-opened"]
    moments = {name: sealed[-1] for name in REQUIRED_GATES["seal"]} if door == "settle" else {}
    moments |= {name: trained[0] for name in REQUIRED_GATES["train"]} if door != "train" else {}
    return [f"gate-expired-{v.get('gate')}" for v in verdicts if not moments.get(str(v.get("gate")), now) < v.get("expires", 0)]


def _openings(door: Door, entries: Iterable[Entry]) -> list[int]:
    """When this door was opened."""
    return [e.at for e in entries if e.kind == "door" and e.body.get("door") == door and e.body.get("opened") is True]


def _kept_digest(attempt: Attempt, gate: str) -> str:
    try:
        kept = (attempt.folder / "evidence" / f"{gate}.json").read_bytes()
    except OSError:
        return ""
    return digest(kept.removesuffix(b"\n"))


def _binds(verdict: Verdict, evidence: Evidence, attempt: Attempt) -> bool:
    """A verdict of another attempt, or an old one, judges nothing here."""
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
