"""Stage 13, Reconnect: the keeper is asked for the line; it proves for itself that nothing is left that could use it."""

from blocks.keeper import Keeper
from policies.gate import Evidence
from policies.reconnect import RECONNECT_GATE, ReconnectEvidence
from tasks.attempt import Attempt
from tasks.gate import Cleared, require


def reconnect(
    previous: Cleared[Evidence], attempt: Attempt, keeper: Keeper, token: str, receipt: str
) -> Cleared[ReconnectEvidence]:
    """Brings the line up again. `token`: from the cut's evidence; `receipt`: digest of what was sealed. Raises `Refusal` and leaves
    the line down when a proof fails."""
    facts = keeper.restore(attempt.job, attempt.number, token)
    evidence = ReconnectEvidence(
        **attempt.facts(previous.subject),
        restored=facts.restored,
        token_matched=facts.token_matched,
        holders=facts.holders,
        holding=facts.holding,
        processes=facts.processes,
        ending=facts.ending,
        line_up=facts.line_up,
        codes=facts.codes,
        receipt=receipt,
    )
    return require(RECONNECT_GATE, evidence, attempt)
