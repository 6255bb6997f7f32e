"""The sweep: what no event started, whose worker died, what is still owed to somebody."""

import logging
import time
from collections.abc import Callable
from typing import Any

from blocks.register_rows import Lost
from flows.ending import free_line, owe_report, send_due, withhold
from flows.node import Node
from rapha.errors import RaphaError
from tasks.attempt import Attempt

log = logging.getLogger("rapha.sweep")


def swept(start: Callable[[str, str], None]) -> dict[str, Any]:
    """Counts of what was done. `start(job, key)` starts a run; the same key again starts nothing."""
    node, now = Node.open(), int(time.time())
    reaped = node.register.reap(now)
    for lost in reaped:
        _record_loss(node, lost)
    _quietly(lambda: _record_forgotten(node))
    freed = _quietly(lambda: free_line(node, 5.0)) is True
    owed = node.register.owed()
    for job in owed:
        _start(node, start, job)
    sent = _quietly(lambda: send_due(node))
    return {"reaped": len(reaped), "line_free": freed, "started": len(owed), "sent": sent or 0}


def _start(node: Node, start: Callable[[str, str], None], job: str) -> None:
    status = node.register.status(job)
    if status is not None:
        start(job, f"{job}:{status.attempt}:{status.state}:{status.updated}")


def _record_loss(node: Node, lost: Lost) -> None:
    """A killed worker wrote no end; without one the keeper keeps the line down. From Settle on an attempt resumes in place.

    Another worker may hold the job's next attempt by now: what is ended here is the one that was lost, and no other.
    """
    if lost.state == "owing":
        return
    folder = node.state / "attempts" / lost.job.removeprefix("sha256:") / str(lost.attempt)
    attempt = Attempt(job=lost.job, number=lost.attempt, nonce="", mode=node.settings.mode, folder=folder, ledger=node.ledger)
    _quietly(lambda: attempt.record("ended", state="crashed", codes=list(lost.codes), side="node", gate=""))
    _quietly(lambda: withhold(attempt))
    if lost.state == "dead":
        _quietly(lambda: owe_report(node, attempt, "failed", lost.codes, gate="", side="node"))


def _record_forgotten(node: Node) -> None:
    """An end that an earlier sweep took note of and was killed before it wrote down: the keeper waits for it for ever."""
    with node.keeper() as keeper:
        tokens = keeper.status()["tokens"]
    if not tokens:
        return  # as nearly always; the ledger is long
    ended = {(e.body.get("job"), e.body.get("attempt")) for e in node.ledger.entries() if e.kind == "ended"}
    for token in tokens:
        job, _, number = str(token).rpartition("#")
        status = node.register.status(job)
        alive = status is None or (status.attempt == int(number) and status.state in ("running", "owing"))
        if status is not None and not alive and (job, int(number)) not in ended:
            _record_loss(node, Lost(job=job, attempt=int(number), state=status.state, codes=("lease-lost",)))


def _quietly(step: Callable[[], Any]) -> Any:
    try:
        return step()
    except RaphaError as error:
        log.warning("%s", ", ".join(error.codes))
        return None
