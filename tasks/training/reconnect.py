"""Stage 13, Reconnect: the keeper is asked for the line; it proves for itself that nothing is left that could use it."""

import time

from blocks.keeper import Keeper, RestoreFacts
from policies.gate import Evidence
from policies.reconnect import RECONNECT_GATE, ReconnectEvidence
from tasks.attempt import Attempt
from tasks.gate import Cleared, require

PATIENCE = 10.0
_PASSING = {"reconnect-holder", "reconnect-alive"}


def reconnect(
    previous: Cleared[Evidence], attempt: Attempt, keeper: Keeper, token: str, receipt: str
) -> Cleared[ReconnectEvidence]:
    """Brings the line up again.

    token: from the cut's evidence; receipt: digest of what was sealed. Raises `Refusal` and leaves the line down when a
    proof fails.
    """
    facts = _restored(attempt, keeper, token)
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


def _restored(attempt: Attempt, keeper: Keeper, token: str) -> RestoreFacts:
    """Asks for up to ten seconds: what a closed connection held takes a moment to go."""
    end = time.monotonic() + PATIENCE
    while True:
        facts = keeper.restore(attempt.job, attempt.number, token)
        if facts.restored or not set(facts.codes) <= _PASSING or time.monotonic() > end:
            return facts
        time.sleep(0.2)
