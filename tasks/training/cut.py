"""Stage 7, Cut: the outside line goes down, and is proven down, before any data is asked for."""

from blocks.keeper import CutFacts, Keeper
from policies.cut import CutEvidence, CutLimits, cut_gate
from policies.gate import Evidence
from tasks.attempt import Attempt
from tasks.gate import Cleared, require


def cut(previous: Cleared[Evidence], attempt: Attempt, keeper: Keeper, limits: CutLimits) -> Cleared[CutEvidence]:
    """Cuts and proves. Raises `Refusal`, or `PeerError` when the keeper does not answer or serves another attempt."""
    facts: CutFacts = keeper.cut(attempt.job, attempt.number)
    evidence = CutEvidence(
        **attempt.facts(previous.subject),
        control=facts.control,
        control_at=facts.control_at,
        after=facts.after,
        after_any=facts.after_any,
        token=facts.token,
        held=facts.held,
        broken=facts.broken,
        network=facts.network,
        limits=limits,
    )
    return require(cut_gate(limits), evidence, attempt)
