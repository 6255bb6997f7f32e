"""The one shape of a gate: evidence in, verdict out.

    Evidence -> Gate(name, policy digest, checks) -> Verdict(findings)

Everything here is pure: no I/O, no clock, no environment. Time is a fact inside the evidence. `tasks/gate.py` is the
door that judges, records and only then answers.
"""

import dataclasses
import functools
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Never, TypeVar, Union, get_args, get_origin, get_type_hints

from rapha.canonical import digest_of

Side = Literal["job", "node"]
Mode = Literal["development", "production"]


@dataclass(frozen=True, slots=True)
class Reason:
    """What a code means to a person: what is wrong, and what to do. `side` says who can mend it."""

    side: Side
    wrong: str
    todo: str


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's answer. `check` is the check's name, `code` the reason code (empty when it passed)."""

    check: str
    ok: bool
    code: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Frozen facts about one subject of one attempt. Digests, counts, names from fixed sets; never a value from a record.

    job: digest of the declaration; attempt: from 1; nonce: the attempt's, 32 hex digits or more; at: seconds since the epoch
    when the facts were gathered; previous: subject of the gate before, or the job itself for the first gate.
    """

    job: str
    attempt: int
    nonce: str
    at: int
    previous: str
    mode: Mode

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; dataclasses become objects, tuples arrays."""
        return {"type": type(self).__name__, **{f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}}

    @property
    def subject(self) -> str:
        """`sha256:…` of the canonical form: the name of these facts everywhere else."""
        return digest_of(self.to_json())


LIMITS_DIFFER = Reason(
    "node", "The facts were judged by other numbers than this site's.", "Restart the node with one site policy."
)

E = TypeVar("E", bound=Evidence)
E_co = TypeVar("E_co", bound=Evidence, covariant=True)
E_contra = TypeVar("E_contra", bound=Evidence, contravariant=True)


@dataclass(frozen=True, slots=True)
class Check(Generic[E_contra]):
    """A named rule. `run` gives the codes that failed, `()` for a pass; every code is in `reasons`."""

    name: str
    reasons: Mapping[str, Reason]
    run: Callable[[E_contra], Collection[str]]

    def __call__(self, evidence: E_contra) -> list[Finding]:
        """One finding for each failed code, or one that passed. A crash is a failed finding, never an exception."""
        try:
            codes = self.run(evidence)
            if not isinstance(codes, tuple | list | set | frozenset):  # a text, a mapping, a generator: not an answer
                return [Finding(self.name, False, f"{self.name}-odd")]
            failed = sorted({code if code in self.reasons else f"{self.name}-odd" for code in codes})
        except Exception:  # the door's one broad except: a check that crashes has not passed
            failed = [f"{self.name}-crashed"]
        return [Finding(self.name, False, code) for code in failed] or [Finding(self.name, True)]


def check(code: str, side: Side, wrong: str, todo: str) -> Callable[[Callable[[E], object]], Check[E]]:
    """Makes a check of a predicate. Only exactly `True` passes."""

    def wrap(predicate: Callable[[E], object]) -> Check[E]:
        def run(evidence: E) -> tuple[str, ...]:
            return () if predicate(evidence) is True else (code,)

        return Check(code, {code: Reason(side, wrong, todo)}, run)

    return wrap


def check_each(name: str, reasons: Mapping[str, Reason]) -> Callable[[Callable[[E], Collection[str]]], Check[E]]:
    """Makes a check of a function that returns the codes which failed: for rules that come as a set (Rego, a scanner)."""

    def wrap(codes: Callable[[E], Collection[str]]) -> Check[E]:
        return Check(name, reasons, codes)

    return wrap


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a gate decided. Not a truth value: ask `cleared`, or better, go through the door."""

    gate: str
    job: str
    attempt: int
    nonce: str
    subject: str
    previous: str
    policy: str
    at: int
    expires: int
    mode: Mode
    findings: tuple[Finding, ...]

    def __bool__(self) -> Never:
        raise TypeError("a verdict is not a truth value; use tasks.gate.require()")

    @property
    def cleared(self) -> bool:
        """True only with at least one finding and none failed."""
        return len(self.findings) > 0 and all(finding.ok is True for finding in self.findings)

    @property
    def codes(self) -> tuple[str, ...]:
        return tuple(sorted({finding.code for finding in self.findings if finding.ok is not True}))

    @property
    def ran(self) -> frozenset[str]:
        return frozenset(finding.check for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """What the console prints of a verdict, and what binds it."""
        return {
            "verdict": "cleared" if self.cleared else "refused",
            "gate": self.gate,
            "codes": list(self.codes),
            "subject": self.subject,
            "previous": self.previous,
            "job": self.job,
            "attempt": self.attempt,
            "nonce": self.nonce,
            "policy": self.policy,
            "at": self.at,
            "expires": self.expires,
            "mode": self.mode,
            "ran": sorted(self.ran),
        }


@dataclass(frozen=True, slots=True)
class Gate(Generic[E_contra]):
    """A named set of checks under one policy. `ttl` is the life of its verdict in seconds; `site` its numbers."""

    name: str
    checks: Sequence[Check[E_contra]]
    ttl: int = 3600
    site: Mapping[str, Any] = field(default_factory=dict)

    @property
    def policy(self) -> str:
        """Digest of the numbers and the checks that this gate judges by."""
        return digest_of({"gate": self.name, "checks": sorted(c.name for c in self.checks), "site": dict(self.site)})

    @property
    def reasons(self) -> dict[str, Reason]:
        return {code: reason for c in (*self.checks, self._limits()) for code, reason in c.reasons.items()}

    def _limits(self) -> Check[E_contra]:
        """Evidence that carries the site's numbers (a field `limits`) must carry this gate's."""
        return Check(
            "limits", {"limits-differ": LIMITS_DIFFER}, lambda e: () if _limits_of(e) in (None, self.site) else ("limits-differ",)
        )

    def judge(self, evidence: E_contra) -> Verdict:
        """Runs every check on `evidence`; pure."""
        findings: Iterable[Finding] = (finding for c in (*self.checks, self._limits()) for finding in c(evidence))
        return Verdict(
            gate=self.name,
            job=evidence.job,
            attempt=evidence.attempt,
            nonce=evidence.nonce,
            subject=evidence.subject,
            previous=evidence.previous,
            policy=self.policy,
            at=evidence.at,
            expires=evidence.at + self.ttl,
            mode=evidence.mode,
            findings=tuple(findings),
        )


def well_typed(value: object) -> bool:
    """Whether every fact of evidence is exactly of the kind that its field declares: no 1 for True, no absence for an answer."""
    return all(_fits(getattr(value, name), wanted) for name, wanted in _hints(type(value)).items())  # type: ignore[arg-type]


@functools.cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {f.name: hints[f.name] for f in dataclasses.fields(kind) if f.name != "limits"}  # the gate compares these whole


def _fits(value: object, wanted: Any) -> bool:
    """What is declared in a way that is not known here fits nothing."""
    kind, parts = get_origin(wanted) or wanted, get_args(wanted)
    if kind is Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if kind in (Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if kind is Sequence:
        return isinstance(value, list | tuple) and all(_fits(item, parts[0]) for item in value)
    if kind is tuple:
        return type(value) is tuple and _fit_each(value, parts)
    if kind in (Mapping, dict):
        return isinstance(value, Mapping) and all(_fits(k, parts[0]) and _fits(v, parts[1]) for k, v in value.items())
    exactly = type(value) is kind or (kind is float and type(value) is int) or kind in (Any, object)
    return exactly and (not dataclasses.is_dataclass(kind) or well_typed(value))


def _fit_each(values: tuple[Any, ...], parts: tuple[Any, ...]) -> bool:
    if len(parts) == 2 and parts[1] is Ellipsis:
        return all(_fits(value, parts[0]) for value in values)
    return len(values) == len(parts) and all(map(_fits, values, parts))


def explain(gate: "Gate[Any]", codes: Iterable[str]) -> list[dict[str, str]]:
    """The codes in plain words, for a person."""
    known = gate.reasons
    odd = Reason("node", "The check itself failed to give an answer.", "Report this code to the node's operator.")
    return [
        {"code": code, "side": known.get(code, odd).side, "wrong": known.get(code, odd).wrong, "todo": known.get(code, odd).todo}
        for code in codes
    ]


def limits_json(limits: Any) -> dict[str, Any]:
    """A frozen dataclass of a site's numbers as the plain JSON that `Gate.site` holds."""
    plain: dict[str, Any] = _plain(limits)
    return plain


def _limits_of(evidence: Evidence) -> Any:
    return _plain(getattr(evidence, "limits", None))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"evidence cannot hold a {type(value).__name__}")
