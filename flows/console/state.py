"""`rapha health`, `rapha stats`, `rapha dead-letters`: how a node is, what it did, what it gave up on."""

import os
import time
from collections import Counter
from typing import Any

import cyclopts

from flows.doctor import examine
from flows.node import Node
from rapha.canonical import digest
from rapha.console.app import AsJson, Result
from rapha.errors import Refusal


def register(app: cyclopts.App) -> None:
    """Adds the commands."""
    app.command(health, name="health")
    app.command(stats, name="stats")
    letters = cyclopts.App(name="dead-letters", help="What a peer failed for good, or what crashed too often.")
    letters.command(list_letters, name="list")
    letters.command(show, name="show")
    letters.command(replay, name="replay")
    letters.command(discard, name="discard")
    app.command(letters)


def health(*, as_json: AsJson = False) -> Result:
    """The health of every component: up, or the code of what is wrong. Exit 4 when one is down.

    Example: `rapha health`
    """
    findings = list(examine(os.environ))
    down = [finding for finding in findings if not finding.ok]
    components = {finding.name: "healthy" if finding.ok else finding.code for finding in findings}
    status = "healthy" if findings and not down else "unhealthy"
    lines = [f"{name:<18} {state}" for name, state in components.items()]
    return Result({"overall_status": status, "components": components}, [status, *lines], 0 if status == "healthy" else 4)


def stats(*, as_json: AsJson = False) -> Result:
    """Counts of jobs by state, of verdicts by gate and outcome, of codes, and how long delivered jobs took.

    Example: `rapha stats`
    """
    node = Node.open()
    jobs = node.register.jobs(limit=100_000)
    verdicts: Counter[str] = Counter()
    codes: Counter[str] = Counter()
    for entry in node.ledger.entries():
        if entry.kind == "verdict":
            verdicts[f"{entry.body['gate']}:{entry.body['verdict']}"] += 1
            codes.update(entry.body["codes"])
    took = sorted(job.updated - job.created for job in jobs if job.state == "done")
    data: dict[str, Any] = {
        "jobs": dict(Counter(job.state for job in jobs)),
        "verdicts": dict(sorted(verdicts.items())),
        "codes": dict(codes.most_common()),
        "seconds_to_done": {"count": len(took), "median": took[len(took) // 2] if took else None},
        "owed": len(node.register.owed()),
        "dead_letters": len(node.register.dead_letters()),
        "deliveries_due": len(node.register.due(int(time.time()))),
    }
    return Result(data, [f"{name}: {value}" for name, value in data.items()])


def list_letters(*, as_json: AsJson = False) -> Result:
    """Every dead letter that nobody has resolved, oldest first.

    Example: `rapha dead-letters list`
    """
    found = [_plain(letter) for letter in Node.open().register.dead_letters()]
    lines = [f"{letter['id']}  {letter['job']}  {letter['stage']}  {' '.join(letter['codes'])}" for letter in found]
    return Result({"dead_letters": found}, lines or ["none"])


def show(letter: int, *, as_json: AsJson = False) -> Result:
    """One dead letter.

    Example: `rapha dead-letters show 3`
    """
    found = _letter(Node.open(), letter)
    return Result(found, [f"{name}: {value}" for name, value in found.items()])


def replay(letter: int, *, as_json: AsJson = False) -> Result:
    """Owe the job again: from Settle on in place, else all gates in a new attempt.

    Example: `rapha dead-letters replay 3`
    """
    node = Node.open()
    found = _letter(node, letter)
    node.register.retry(found["job"], now=int(time.time()))
    return Result({"job": found["job"], "replayed": letter}, [f"owed again: {found['job']}"])


def discard(letter: int, *, why: str, as_json: AsJson = False) -> Result:
    """Give a job up for good; the reason goes into the ledger as its digest, the job is cancelled.

    Example: `rapha dead-letters discard 3 --why "the team withdrew"`
    """
    node = Node.open()
    found = _letter(node, letter)
    if not why.strip():
        raise Refusal(["reason-missing"], "say why with --why")
    state = node.register.cancel(found["job"], now=int(time.time()))
    node.ledger.append("dead-letter-discarded", {"job": found["job"], "attempt": found["attempt"], "why": digest(why.encode())})
    return Result({"job": found["job"], "discarded": letter, "state": state, "why": why}, [f"{state}: {found['job']}"])


def _letter(node: Node, wanted: int) -> dict[str, Any]:
    for letter in node.register.dead_letters():
        found = _plain(letter)
        if found["id"] == wanted:
            return found
    raise Refusal(["dead-letter-unknown"], "no unresolved dead letter has this number")


def _plain(letter: Any) -> dict[str, Any]:
    return {
        "id": letter.id,
        "job": letter.job,
        "attempt": letter.attempt,
        "kind": letter.kind,
        "stage": letter.stage,
        "codes": list(letter.codes),
        "at": letter.at,
    }
