"""How an attempt ends that does not end well: recorded, the line freed only where that is proven safe, the sender told."""

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast, get_args

from blocks.register import End
from blocks.register_rows import Lease
from flows.node import Node
from rapha.canonical import digest
from rapha.declaration import read_declaration
from rapha.errors import PeerError, RaphaError, Refusal
from tasks.attempt import Attempt
from tasks.gate import was_opened
from tasks.training import escrow as escrowing
from tasks.training.deliver import RECEIPT, SEALED, State, report_document

log = logging.getLogger("rapha.ending")
LINE_SECONDS = 15.0
QUARANTINE = "withheld"
LEAVES = ("release", SEALED, RECEIPT)
Kind = Literal["result", "receipt", "report"]
_TOLD: dict[str, State] = {"refused": "refused", "cancelled": "refused", "failed": "failed", "crashed": "failed"}


@dataclass
class Ending:
    """What the state hook needs to know of a run: its lease, its attempt, and the error that ended it."""

    node: Node
    lease: Lease
    attempt: Attempt
    error: RaphaError | None = field(default=None)

    @property
    def codes(self) -> tuple[str, ...]:
        return self.error.codes if self.error is not None else ("attempt-crashed",)

    def state(self, how: str) -> End:
        """refused, failed, cancelled or crashed."""
        if how == "cancelled" or "job-cancelled" in self.codes:
            return "cancelled"
        if isinstance(self.error, Refusal):
            return "refused"
        return "failed" if isinstance(self.error, PeerError) else "crashed"


def conclude(ending: Ending, how: str = "") -> None:
    """Writes the end into ledger and register, frees the line if the keeper's proofs allow it, and tells the orchestrator.

    Each step stands alone: one that fails is left to the sweep, and none of them opens anything.
    """
    node, attempt, state = ending.node, ending.attempt, ending.state(how)
    side = ending.error.side if isinstance(ending.error, Refusal) else "node"
    gate = ending.error.gate if isinstance(ending.error, Refusal) else ""
    steps = (
        lambda: attempt.record("ended", state=state, codes=sorted(ending.codes), side=side, gate=gate),
        lambda: node.register.finish(ending.lease, state, ending.codes, side, now=int(time.time())),
        lambda: withhold(attempt),
        lambda: _let_go_of_escrow(ending, state, side),
        lambda: owe_report(node, attempt, _TOLD[state], ending.codes, gate=gate, side=side),
        lambda: free_line(node),
        lambda: send_due(node, attempt.job),
    )
    for step in steps:
        try:
            step()
        except RaphaError as error:
            log.warning("left to the sweep: %s", ", ".join(error.codes))


def _let_go_of_escrow(ending: Ending, state: str, side: str) -> None:
    """A final job-side refusal frees the deposit for a corrected declaration."""
    if state == "refused" and side == "job":
        declaration, _, _ = read_declaration(ending.lease.document)
        escrowing.release(ending.attempt, declaration.budget.escrow)


def withhold(attempt: Attempt) -> None:
    """What was made to leave goes into quarantine, unless the last door opened: no step finds it under its name again."""
    if was_opened("settle", attempt):
        return
    quarantine = attempt.folder / QUARANTINE
    try:
        for path in [attempt.folder / name for name in LEAVES if (attempt.folder / name).exists()]:
            quarantine.mkdir(mode=0o700, exist_ok=True)
            path.rename(quarantine / path.name)
    except OSError as error:
        raise PeerError("quarantine-unwritable", f"the release cannot be withheld: {error.strerror}", peer="disk") from None


def owe_report(node: Node, attempt: Attempt, state: State, codes: tuple[str, ...], *, gate: str, side: str) -> None:
    """A row in the outbox, and the document that it names."""
    document = report_document(attempt, state, codes, gate=gate, side=side)
    path = attempt.folder / "report.json"
    try:
        path.write_bytes(document)
    except OSError as error:
        raise PeerError("report-unwritable", f"the report cannot be kept: {error.strerror}", peer="disk") from None
    node.register.owe(attempt.job, attempt.number, "report", digest(document), path, now=int(time.time()))


def send_due(node: Node, job: str | None = None) -> int:
    """Sends what the outbox holds (of one job, or what is due); how many went."""
    sent = 0
    for delivery in node.register.due(int(time.time()), job=job):
        try:
            content = Path(delivery.path).read_bytes()
            if digest(content) != delivery.digest:
                raise PeerError("delivery-changed", "a document of the outbox is not the one that was owed", peer="register")
            node.orchestrator.put(delivery.job, delivery.attempt, _kind(delivery.kind), content)
            node.register.delivered(delivery.id)
            sent += 1
        except RaphaError as error:
            node.register.undelivered(delivery.id, error.codes[0], now=int(time.time()))
        except OSError:
            node.register.undelivered(delivery.id, "delivery-unreadable", now=int(time.time()))
    return sent


def _kind(text: str) -> Kind:
    for kind in get_args(Kind):
        if kind == text:
            return cast(Kind, kind)
    raise PeerError("delivery-kind", "the outbox names a kind of document that there is not", peer="register")


def free_line(node: Node, seconds: float = LINE_SECONDS) -> bool:
    """Asks the keeper to give back the tokens of attempts that are over; True when it holds none. It looks for itself."""
    until = time.monotonic() + seconds
    while True:
        with node.keeper() as keeper:
            kept = keeper.sweep()["kept"]
        if not kept or time.monotonic() > until:
            return not kept
        time.sleep(0.5)  # what a killed connection held takes a moment to go
