"""Settling: an attestor signs for the receipt, the vault pays for it, and nothing pays twice.

Resumable in place. A transaction is kept on disk and named in the ledger (`settle-sent`) before it is sent; a resume asks the
vault first, then sends the same bytes again, or others with the same nonce, so that however often and wherever it dies, at most
one of them counts; and the vault settles a deposit once. `settled` is recorded when the vault says so at a final block.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from blocks.attestor import Attestors, Signed, signer_of
from blocks.chain import Chain, Escrow, Reverted, Transaction
from policies.settlement import Claim, read_claim, split, statement_of, typed_data
from rapha.canonical import digest, parse
from rapha.errors import PeerError, Refusal
from tasks.attempt import Attempt

SENT, SETTLED, REFUND_SENT, REFUNDED = "settle-sent", "settled", "refund-sent", "refunded"
SIGNATURE_LIFE = 3600
MAX_TRANSACTIONS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """What was paid, in smallest units. credits: hospital, node owner, onboarder, protocol; rest: back to the payer."""

    escrow: str
    receipt: str
    records: int
    amount: int
    credits: tuple[int, int, int, int]
    rest: int
    transaction: str
    block: int

    def to_json(self) -> dict[str, Any]:
        return {
            "escrow": self.escrow,
            "receipt": self.receipt,
            "records": self.records,
            "amount": self.amount,
            "credits": list(self.credits),
            "rest": self.rest,
            "transaction": self.transaction,
            "block": self.block,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """Seconds: how long one call waits for finality before it raises, between looks, and before a fee is raised."""

    wait: float = 120.0
    poll: float = 0.5
    stall: float = 30.0


UNHURRIED = Patience()


def settle(
    attempt: Attempt, receipt_path: Path, attestors: Attestors, chain: Chain, patience: Patience = UNHURRIED
) -> Settlement:
    """Pays for the receipt and returns once that is final.

    Raises `PeerError` (settle-not-final, attestor-…, chain-…) to be called again; `Refusal` where no call will ever succeed:
    receipt-odd, receipt-other-job, receipt-other-vault, settle-other-receipt, settle-refunded, settle-too-late, settle-reverted,
    an attestor's codes.
    """
    receipt = receipt_path.read_bytes()
    claim = read_claim(statement_of(receipt), digest(receipt))
    if (claim.job, claim.attempt) != (attempt.job, attempt.number):
        raise Refusal(["receipt-other-job"], "the receipt is of another job or attempt", gate="settle")
    if (claim.chain_id, claim.vault) != (chain.chain_id, chain.vault):
        raise Refusal(["receipt-other-vault"], "the receipt is for another chain or vault than this node's", gate="settle")
    if chain.seen_chain_id() != chain.chain_id:
        raise PeerError("chain-other", "the RPC address serves another chain than configured", peer="chain")
    sender = _Sender(attempt, chain, SENT, claim.escrow, patience)
    until = time.monotonic() + patience.wait
    while (done := _settled(attempt, chain, claim, sender)) is None:
        held = chain.escrow(claim.escrow)
        if held.status == "open":
            _push(sender, chain, claim, partial(_call, attempt, chain, claim, held, attestors, receipt))
        if time.monotonic() > until:
            raise PeerError("settle-not-final", "the settlement is not final yet", peer="chain")
        time.sleep(patience.poll)
    return done


def refund(attempt: Attempt, escrow_id: str, chain: Chain, patience: Patience = UNHURRIED) -> int:
    """Credits the whole deposit to its payer after the deadline; the amount. A refund that is done is success.

    Raises `Refusal` refund-settled, refund-missing, refund-too-early; `PeerError` to be called again.
    """
    sender = _Sender(attempt, chain, REFUND_SENT, escrow_id, patience)
    until = time.monotonic() + patience.wait
    while (held := chain.escrow(escrow_id, chain.final().number)).status != "refunded":
        newest = chain.escrow(escrow_id)
        if newest.status in ("settled", "none"):
            code = "refund-settled" if newest.status == "settled" else "refund-missing"
            raise Refusal([code], "there is nothing to refund", gate="refund")
        if newest.status == "open":
            if attempt.clock() <= newest.deadline:
                raise Refusal(["refund-too-early"], "the deposit's deadline has not passed", gate="refund")
            sender.push(lambda: chain.refund_call(escrow_id))
        if time.monotonic() > until:
            raise PeerError("refund-not-final", "the refund is not final yet", peer="chain")
        time.sleep(patience.poll)
    if not _recorded(attempt, REFUNDED, escrow_id):
        attempt.record(REFUNDED, escrow=escrow_id, amount=held.deposit)
    return held.deposit


def _push(sender: "_Sender", chain: Chain, claim: Claim, call: Callable[[], Any]) -> None:
    try:
        sender.push(call)
    except Refusal:
        if chain.escrow(claim.escrow).status == "open":
            raise
        # Another sender was first: attestor and vault say no to us now, and the next look says whether it was for this receipt.


def _settled(attempt: Attempt, chain: Chain, claim: Claim, sender: "_Sender") -> Settlement | None:
    """The settlement once it is final; None while it is not."""
    newest = chain.escrow(claim.escrow)
    if newest.status == "refunded":
        raise Refusal(["settle-refunded"], "the deposit was refunded before it could be settled", gate="settle")
    if newest.status != "settled":
        return None
    if (newest.job, newest.receipt, newest.records) != (claim.job, claim.receipt, claim.records):
        raise Refusal(["settle-other-receipt"], "the deposit was settled for another job or receipt", gate="settle")
    final = chain.final()
    if chain.escrow(claim.escrow, final.number).status != "settled":
        return None
    done = _facts(claim, newest, sender.landed(), final.number)
    if not _recorded(attempt, SETTLED, claim.escrow):
        attempt.record(SETTLED, **done.to_json())
    return done


def _facts(claim: Claim, held: Escrow, transaction: str, block: int) -> Settlement:
    amount = held.records * held.price
    return Settlement(
        escrow=claim.escrow,
        receipt=claim.receipt,
        records=held.records,
        amount=amount,
        credits=split(amount),
        rest=held.deposit - amount,
        transaction=transaction,
        block=block,
    )


def _call(attempt: Attempt, chain: Chain, claim: Claim, held: Escrow, attestors: Attestors, receipt: bytes) -> Any:
    """The vault's call, signed for by the attestors and tried before it is sent."""
    now = attempt.clock()
    if now >= held.deadline:
        raise Refusal(["settle-too-late"], "the deposit's deadline has passed; it will be refunded", gate="settle")
    expiry = min(held.deadline, now + SIGNATURE_LIFE)
    signed = attestors.attest(receipt, expiry=expiry, accept=partial(_acceptable, claim, held))
    call = chain.settle_call(claim.escrow, claim.job, claim.records, claim.receipt, expiry, [one.signature for one in signed])
    try:
        chain.try_call(call)
    except Reverted as error:
        raise Refusal(["settle-reverted"], f"the vault would refuse the settlement: {error.error}", gate="settle") from None
    return call


def _acceptable(claim: Claim, held: Escrow, one: Signed) -> bool:
    """Whether the vault would count this signature: for the very claim, by an attestor of the deposit."""
    document = typed_data(claim, held.price, one.expiry)
    return (
        one.claim == (claim.escrow, claim.job, claim.records, claim.receipt)
        and one.signer in held.attestors
        and signer_of(document, one.signature) == one.signer
    )


def _recorded(attempt: Attempt, kind: str, escrow_id: str) -> bool:
    return any(
        entry.kind == kind and entry.body.get("escrow") == escrow_id and entry.body.get("job") == attempt.job
        for entry in attempt.ledger.entries()
    )


class _Sender:
    """The transactions of one purpose of one attempt: kept, recorded, sent; raised in fee when they stall, under one nonce."""

    def __init__(self, attempt: Attempt, chain: Chain, kind: str, escrow_id: str, patience: Patience) -> None:
        self.attempt, self.chain, self.kind, self.escrow, self.patience = attempt, chain, kind, escrow_id, patience
        self.sent_at = 0.0

    def kept(self) -> list[Transaction]:
        paths = sorted((self.attempt.folder / "settle").glob(f"{self.kind}-*.json"))
        return [Transaction.from_json(parse(path.read_bytes(), what="kept transaction")) for path in paths]

    def landed(self) -> str:
        """The hash of ours that is in a block; "" when somebody else's did it."""
        return next((kept.hash for kept in self.kept() if self.chain.mined(kept)), "")

    def push(self, call: Callable[[], Any]) -> None:
        """One step towards a mined transaction. `call` makes the contract call, asked only when one must be signed."""
        kept = self.kept()
        if not kept:
            self._send_new(call(), None)
        elif any(self.chain.mined(one) is not None for one in kept) or self.chain.nonce() > kept[-1].nonce:
            # In a block and the deposit still open: it reverted (an expired signature), or another transaction has the nonce.
            self._send_new(call(), None)
        elif not self.sent_at:
            self._send(kept[-1])
        elif time.monotonic() - self.sent_at > self.patience.stall:
            self._send_new(call(), kept[-1])

    def _send_new(self, call: Any, replaces: Transaction | None) -> None:
        count = len(self.kept())
        if count >= MAX_TRANSACTIONS:
            raise Refusal(["settle-too-many-transactions"], "the chain took none of the transactions", gate="settle")
        made = self.chain.sign(call, replaces=replaces)
        self.attempt.keep("settle", f"{self.kind}-{count:02d}", made.to_json())
        self._send(made)

    def _send(self, made: Transaction) -> None:
        if not any(e.kind == self.kind and e.body.get("transaction") == made.hash for e in self.attempt.ledger.entries()):
            self.attempt.record(self.kind, escrow=self.escrow, transaction=made.hash, nonce=made.nonce)
        self.chain.send(made)
        self.sent_at = time.monotonic()
