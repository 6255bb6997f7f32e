"""The escrow stage: reads the deposit at a final block, claims it for this job, and has the gate judge.

A deposit that exists but is not final yet is a `PeerError(escrow-not-final)`: the engine tries again, within its bounds.
"""

from typing import Any

from blocks.chain import Chain, Escrow, Final
from policies.escrow import Asked, EscrowEvidence, EscrowLimits, Held, escrow_gate, node_id, owner_id
from policies.gate import Evidence
from rapha.canonical import MAX_INTEGER
from rapha.declaration import Declaration
from rapha.errors import PeerError
from tasks.attempt import Attempt
from tasks.gate import Cleared, require

CLAIMED, RELEASED = "escrow-claimed", "escrow-released"


def escrow(
    previous: Cleared[Evidence], attempt: Attempt, declaration: Declaration, chain: Chain, limits: EscrowLimits, node: str
) -> Cleared[EscrowEvidence]:
    """Clears a job whose deposit is final, open, sufficient and ours. `node` is this node's own name.

    Raises `PeerError` (escrow-not-final, chain-…) to be tried again, `Refusal` for a rule's no.
    """
    gate = escrow_gate(limits)
    asked, facts = _asked(declaration), _read(chain, declaration, node)

    def evidence(claimed_by: str) -> EscrowEvidence:
        return EscrowEvidence(**attempt.facts(previous.subject), asked=asked, **facts, claimed_by=claimed_by, limits=limits)

    holder = claimant(attempt, asked.escrow)
    if not holder and gate.judge(evidence("")).cleared:
        attempt.record(CLAIMED, escrow=asked.escrow)
        holder = claimant(attempt, asked.escrow)
    return require(gate, evidence("" if holder == attempt.job else holder), attempt)


def claimant(attempt: Attempt, escrow_id: str) -> str:
    """The job that holds the deposit on this node: the first in the ledger that claimed it and did not let go of it; or ""."""
    claims: list[str] = []
    for entry in attempt.ledger.entries():
        if entry.kind not in (CLAIMED, RELEASED) or entry.body.get("escrow") != escrow_id:
            continue
        job = str(entry.body["job"])
        if entry.kind == RELEASED:
            claims = [held for held in claims if held != job]
        elif job not in claims:
            claims.append(job)
    return claims[0] if claims else ""


def release(attempt: Attempt, escrow_id: str) -> None:
    """Lets go of the deposit after a final refusal, so that a corrected declaration may name it. Not after `settle-sent`."""
    if claimant(attempt, escrow_id) == attempt.job and not _sent(attempt, escrow_id):
        attempt.record(RELEASED, escrow=escrow_id)


def _sent(attempt: Attempt, escrow_id: str) -> bool:
    return any(entry.kind == "settle-sent" and entry.body.get("escrow") == escrow_id for entry in attempt.ledger.entries())


def _asked(declaration: Declaration) -> Asked:
    budget = declaration.budget
    return Asked(
        escrow=budget.escrow,
        chain_id=budget.chain_id,
        vault=budget.vault.lower(),
        token=budget.token.lower(),
        node=node_id(declaration.node),
        owner=owner_id(declaration.owner),
        price=budget.price_per_record,
        max_records=budget.max_records,
        max_seconds=declaration.run.max_seconds,
        deadline=declaration.deadline,
    )


def _read(chain: Chain, declaration: Declaration, node: str) -> dict[str, Any]:
    """The facts that come from the chain and from this node's configuration."""
    at, held = chain.final(), None
    seen, code = chain.seen_chain_id(), chain.code_digest(at.number)
    if not code and chain.code_digest():
        raise PeerError("escrow-not-final", "the vault itself is not final yet", peer="chain")
    if code and seen == chain.chain_id:
        held = _final_escrow(chain, declaration.budget.escrow, at)
    return {
        "held": _held(held),
        "node": node_id(node),
        "site_chain": chain.chain_id,
        "site_vault": chain.vault,
        "site_token": chain.token,
        "seen_chain": seen,
        "vault_code": code,
        "final": at.number,
        "newest": at.newest,
    }


def _final_escrow(chain: Chain, escrow_id: str, at: Final) -> Escrow:
    held = chain.escrow(escrow_id, at.number)
    if held.status == "none" and chain.escrow(escrow_id).status != "none":
        raise PeerError("escrow-not-final", "the deposit is on the chain, but not final yet", peer="chain")
    if held.status == "open" and (newest := chain.escrow(escrow_id)).status != "open":
        return newest  # a settlement or refund that is not final yet is still not a deposit to work for
    return held


def _held(held: Escrow | None) -> Held:
    if held is None:
        held = Escrow("none", "", "", "", "", 0, 0, 0, 0, (), (), 0, "", "")
    return Held(
        status=held.status,
        node=held.node,
        owner=held.owner,
        token=held.token,
        price=min(held.price, MAX_INTEGER),  # beyond it no declared price can be equal
        max_records=held.max_records,
        deadline=held.deadline,
        threshold=held.threshold,
        payees=held.payees,
        attestors=held.attestors,
    )
