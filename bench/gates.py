"""Every gate of one job, over the evidence that a real run of the demo left: judged, kept, recorded, and the doors opened."""

import dataclasses
import hashlib
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import flows.limits
from bench.row import Row, beside
from blocks.ledger import Ledger
from policies.gate import Evidence, Gate
from policies.required import REQUIRED_GATES, Door
from rapha.canonical import canonical, parse
from tasks.attempt import Attempt
from tasks.gate import Cleared, open_door, require

DOORS: dict[str, Door] = {gates[-1]: door for door, gates in REQUIRED_GATES.items()}  # last gate before it -> door
DEMO = ("-m", "infra.demo", "--studies", "48", "--json")
Judged = list[tuple[Gate[Any], Evidence]]


def rows() -> list[Row]:
    """Thirteen gates and three doors, beside the least that a register of decisions could do with the same bytes."""
    with tempfile.TemporaryDirectory(prefix="rapha-bench-") as name:
        folder = Path(name)
        judged = evidence_of_a_run(folder / "demo")
        ours, peer = _Judging(judged, folder), _writing(judged, folder)
        checks = sum(len(gate.checks) for gate, _ in judged)
        note = f"{len(judged)} gates, {checks} checks, {len(DOORS)} doors, real ledger; evidence of a real run"
        said = "SHA-256 of the same evidence and one durable SQLite row a gate"
        return [beside("gates: all of one job", ours, peer, before=ours.prepare, peer_name=said, runs=7, note=note)]


def evidence_of_a_run(workdir: Path) -> Judged:
    """Runs the demo's job once and reads back what each of its gates judged, in order."""
    done = subprocess.run([sys.executable, *DEMO, "--workdir", str(workdir)], capture_output=True, check=False, env=_bare())
    if done.returncode != 0:
        raise RuntimeError(f"the demo ended with {done.returncode}: {done.stderr.decode(errors='replace')[-500:]}")
    (attempt,) = (workdir / "attempts").glob("*/*")
    gates = flows.limits.gates(flows.limits.limits_of(parse((workdir / "site.json").read_bytes(), what="site policy")))
    kept = {name: json.loads((attempt / "evidence" / f"{name}.json").read_bytes()) for name in REQUIRED_GATES["settle"]}
    return [(gates[name], rebuilt(document)) for name, document in kept.items()]


def rebuilt(document: Mapping[str, Any]) -> Evidence:
    """The evidence object whose JSON this is; what is not restored exactly is an error."""
    kind = next(kind for kind in _kinds(Evidence) if kind.__name__ == document["type"])
    made: Evidence = _typed({name: value for name, value in document.items() if name != "type"}, kind)
    if canonical(made.to_json()) != canonical(dict(document)):
        raise RuntimeError(f"{kind.__name__} is not restored from its JSON")
    return made


class _Judging:
    """One run: every gate through the door of `require`, each of the three doors opened behind its last gate."""

    def __init__(self, judged: Judged, folder: Path) -> None:
        self._judged, self._folder, self._runs = judged, folder, 0
        self._gates = {gate.name: gate for gate, _ in judged}

    def prepare(self) -> None:
        """A new attempt's folder and ledger."""
        self._runs += 1
        folder, first = self._folder / f"run-{self._runs}", self._judged[0][1]
        ledger = Ledger.create(folder / "ledger", Ed25519PrivateKey.generate(), "bench")
        bound = {"job": first.job, "number": first.attempt, "nonce": first.nonce, "mode": first.mode}
        self._attempt = Attempt(**bound, folder=folder / "attempt", ledger=ledger)  # type: ignore[arg-type]

    def __call__(self) -> None:
        for gate, evidence in self._judged:
            attempt = dataclasses.replace(self._attempt, clock=lambda at=evidence.at: at)  # type: ignore[misc]
            cleared: Cleared[Any] = require(gate, evidence, attempt)
            if gate.name in DOORS:
                open_door(DOORS[gate.name], self._gates, attempt, cleared)


def _writing(judged: Judged, folder: Path) -> Callable[[], None]:
    database = sqlite3.connect(folder / "peer.db", isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    database.execute("CREATE TABLE verdict (gate TEXT, subject TEXT)")
    documents = [(gate.name, canonical(evidence.to_json())) for gate, evidence in judged]

    def run() -> None:
        for name, raw in documents:
            database.execute("INSERT INTO verdict VALUES (?, ?)", (name, hashlib.sha256(raw).hexdigest()))

    return run


def _bare() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("RAPHA_")}


def _kinds(kind: type[Any]) -> Iterator[type[Any]]:
    for found in kind.__subclasses__():
        yield found
        yield from _kinds(found)


def _typed(value: Any, kind: Any) -> Any:
    """JSON as the type that a field of evidence declares: dataclasses, tuples and unions of them."""
    origin, arguments = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        hints = get_type_hints(kind)
        return kind(**{name: _typed(given, hints[name]) for name, given in value.items()})  # type: ignore[operator]
    if origin in (Union, types.UnionType):
        inner = [argument for argument in arguments if argument is not type(None)]
        return None if value is None else _typed(value, inner[0])
    if origin is tuple:
        of = [arguments[0]] * len(value) if len(arguments) == 2 and arguments[1] is Ellipsis else list(arguments)
        return tuple(_typed(one, its) for one, its in zip(value, of, strict=True))
    return value
