"""`rapha health`, `rapha stats`: how a node is and what it did, of each half that is configured."""

import os
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cyclopts

from blocks.halves import halves
from blocks.profile import load_profile
from blocks.reading import open_reading_register
from flows.console.progress import shown
from flows.doctor import examine
from flows.node import Node
from flows.reading_health import overall, reading_components, waits_for_a_person
from rapha.console.app import AsJson, Result
from rapha.errors import ConfigurationError, RaphaError


def register(app: cyclopts.App) -> None:
    """Adds the commands."""
    app.command(health, name="health")
    app.command(stats, name="stats")


def health(*, as_json: AsJson = False) -> Result:
    """The health of every component: up, or the code of what is wrong. Exit 4 when one is down, 2 where a setting is wrong.

    What is no component's fault and waits for a person is counted below: dead-letters. It changes no exit status.

    Example: `rapha health`
    """
    there = halves()
    with shown("looking at each component"), ThreadPoolExecutor(len(there)) as pool:
        asked = [pool.submit(_LOOKS[half], os.environ) for half in there]
        found = {name: code for one in asked for name, code in one.result().items()}
    components = {name: code or "healthy" for name, code in found.items()}
    status = overall(found.values())
    lines = [f"{name:<18} {state}" for name, state in components.items()]
    attention = _attention(os.environ) if "reading" in there else {}
    lines += [f"{code:<18} {count}" for code, count in attention.items()]
    misset = any(name.startswith("setting ") for name in found)
    data = {"overall_status": status, "components": components, "attention": attention}
    return Result(data, [status, *lines], 0 if status == "healthy" else 2 if misset else 4)


def _attention(environment: Mapping[str, str]) -> dict[str, int]:
    try:
        return waits_for_a_person(environment)
    except RaphaError:  # the register's own line says what is wrong with it
        return {}


def _training(environment: Mapping[str, str]) -> dict[str, str]:
    """A setting that is wrong is a component of its own: there may be many."""
    found = list(examine(environment))
    return {f"{one.name} {one.code}" if one.name == "setting" else one.name: one.code for one in found}


def _reading(environment: Mapping[str, str]) -> dict[str, str]:
    path = environment.get("RAPHA_PROFILE_PATH", "").strip()
    try:
        profile = load_profile(Path(path), environment) if path else None
    except ConfigurationError as error:
        return {f"setting {code}": code for code in error.codes}
    if profile is None:
        return {"setting missing-profile-path": "missing-profile-path"}
    return {"profile": "", **reading_components(environment, profile)}


_LOOKS = {"training": _training, "reading": _reading}


def stats(*, as_json: AsJson = False) -> Result:
    """Counts of jobs by state, of verdicts by gate and outcome, of codes, and how long delivered jobs took; of studies by state,
    stage and priority, of notices, and how long the oldest has waited.

    Example: `rapha stats`
    """
    there = halves()
    data = _jobs() if "training" in there else {}
    if "reading" in there:
        data["reading"] = open_reading_register(os.environ).tally(int(time.time())).to_json()
    lines = [f"{name}: {value}" for name, value in data.items() if name != "reading"]
    lines += [f"reading {name}: {value}" for name, value in data.get("reading", {}).items()]
    return Result(data, lines)


def _jobs() -> dict[str, Any]:
    node = Node.open()
    jobs = node.register.jobs(limit=100_000)
    verdicts: Counter[str] = Counter()
    codes: Counter[str] = Counter()
    for entry in node.ledger.entries():
        if entry.kind == "verdict":
            verdicts[f"{entry.body['gate']}:{entry.body['verdict']}"] += 1
            codes.update(entry.body["codes"])
    took = sorted(job.updated - job.created for job in jobs if job.state == "done")
    return {
        "jobs": dict(Counter(job.state for job in jobs)),
        "verdicts": dict(sorted(verdicts.items())),
        "codes": dict(codes.most_common()),
        "seconds_to_done": {"count": len(took), "median": took[len(took) // 2] if took else None},
        "owed": len(node.register.owed()),
        "dead_letters": len(node.register.dead_letters()),
        "deliveries_due": len(node.register.due(int(time.time()))),
    }
