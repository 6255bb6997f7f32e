"""Deliver and report: the sealed result and the receipt to the orchestrator; of everything else codes and digests only."""

from collections.abc import Sequence
from typing import Literal

from blocks.orchestrator import Orchestrator
from rapha.canonical import canonical, digest, digest_file
from rapha.errors import PeerError, Refusal
from rapha.receipt import Statement
from tasks.attempt import Attempt

State = Literal["completed", "refused", "failed"]
SEALED, RECEIPT = "sealed.bin", "receipt.json"


def deliver(attempt: Attempt, orchestrator: Orchestrator, statement: Statement) -> dict[str, str]:
    """Puts the sealed result, then the receipt, then the report; the digests that were delivered. May be repeated.

    Sends only what the ledger's one `sealed` entry of this attempt names. Raises `Refusal` deliver-not-sealed, deliver-changed;
    `PeerError` orchestrator-….
    """
    sealed = _sealed_entry(attempt)
    with (attempt.folder / SEALED).open("rb") as stream:
        found = digest_file(stream)
    receipt = (attempt.folder / RECEIPT).read_bytes()
    if (found, digest(receipt)) != (sealed["sealed"], sealed["receipt"]) or statement.digest != sealed["receipt"]:
        raise Refusal(["deliver-changed"], "the sealed result or the receipt is not the one in the ledger", gate="deliver")
    orchestrator.put(attempt.job, attempt.number, "result", attempt.folder / SEALED)
    orchestrator.put(attempt.job, attempt.number, "receipt", receipt)
    _completed(attempt, orchestrator, sealed["receipt"])
    if not _entries(attempt, "delivered"):
        attempt.record("delivered", sealed=found, receipt=sealed["receipt"])
    return {"sealed": found, "receipt": sealed["receipt"]}


def _completed(attempt: Attempt, orchestrator: Orchestrator, receipt: str) -> None:
    """An earlier report of a failure that was mended since stays as it is: result and receipt, delivered before, say more."""
    try:
        report(attempt, orchestrator, "completed", receipt=receipt)
    except PeerError as error:
        if error.codes != ("orchestrator-conflict",):
            raise


def report(
    attempt: Attempt,
    orchestrator: Orchestrator,
    state: State,
    codes: Sequence[str] = (),
    *,
    gate: str = "",
    side: str = "",
    receipt: str = "",
) -> None:
    """Tells the orchestrator how the attempt ended."""
    document = report_document(attempt, state, codes, gate=gate, side=side, receipt=receipt)
    orchestrator.put(attempt.job, attempt.number, "report", document)


def report_document(
    attempt: Attempt, state: State, codes: Sequence[str] = (), *, gate: str = "", side: str = "", receipt: str = ""
) -> bytes:
    """How an attempt ended: a state, codes, a gate's name, whose side, the receipt's digest; no text."""
    document = {
        "version": 1,
        "job": attempt.job,
        "attempt": attempt.number,
        "mode": attempt.mode,
        "state": state,
        "codes": sorted({code for code in codes if _is_code(code)} or ({"unknown"} if codes else set())),
        "gate": gate if _is_code(gate) else "",
        "side": side if side in ("job", "node") else "",
        "receipt": receipt,
    }
    return canonical(document) + b"\n"


def _is_code(text: str) -> bool:
    """Kebab-case, short: what our own gates answer with. Anything else might be text from somewhere."""
    return 0 < len(text) <= 80 and all(c in "abcdefghijklmnopqrstuvwxyz0123456789-" for c in text)


def _sealed_entry(attempt: Attempt) -> dict[str, str]:
    entries = _entries(attempt, "sealed")
    if len(entries) != 1:
        raise Refusal(["deliver-not-sealed"], "the ledger holds no sealed result of this attempt", gate="deliver")
    return entries[0]


def _entries(attempt: Attempt, kind: str) -> list[dict[str, str]]:
    return [
        entry.body
        for entry in attempt.ledger.entries()
        if entry.kind == kind and entry.body.get("job") == attempt.job and entry.body.get("attempt") == attempt.number
    ]
