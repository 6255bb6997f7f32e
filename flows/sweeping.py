"""The sweep: what no event started, whose worker died, what is still owed to somebody."""

import logging
import time
from collections.abc import Callable
from typing import Any

from flows.ending import free_line, owe_report, send_due, withhold
from flows.node import Node
from rapha.errors import RaphaError
from tasks.attempt import Attempt

log = logging.getLogger("rapha.sweep")


def swept(start: Callable[[str, str], None]) -> dict[str, Any]:
    """Counts of what was done. `start(job, key)` starts a run; the same key again starts nothing."""
    node, now = Node.open(), int(time.time())
    reaped = node.register.reap(now)
    for job in reaped:
        _record_loss(node, job)
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


def _record_loss(node: Node, job: str) -> None:
    """A killed worker wrote no end; without one the keeper keeps the line down. From Settle on an attempt resumes in place."""
    status = node.register.status(job)
    if status is None or status.state == "owing":
        return
    folder = node.state / "attempts" / job.removeprefix("sha256:") / str(status.attempt)
    attempt = Attempt(job=job, number=status.attempt, nonce="", mode=node.settings.mode, folder=folder, ledger=node.ledger)
    _quietly(lambda: attempt.record("ended", state="crashed", codes=list(status.codes), side="node", gate=""))
    _quietly(lambda: withhold(attempt))
    if status.state == "dead":
        _quietly(lambda: owe_report(node, attempt, "failed", status.codes, gate="", side="node"))


def _quietly(step: Callable[[], Any]) -> Any:
    try:
        return step()
    except RaphaError as error:
        log.warning("%s", ", ".join(error.codes))
        return None
