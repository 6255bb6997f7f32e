"""Stage complete: the closing statement of a study, from the register's sets, through the completeness gate into the ledger."""

from typing import Any

from blocks.ledger import Position
from blocks.reading import ReadingRegister, StudyLease
from policies.completeness import COMPLETENESS_GATE, CompletenessEvidence, Proof, completeness_facts
from policies.gate import Evidence
from tasks.attempt import Attempt
from tasks.gate import Cleared, require


def complete(
    previous: Cleared[Evidence], lease: StudyLease, attempt: Attempt, register: ReadingRegister, *, report: str, proof: Proof
) -> Cleared[CompletenessEvidence]:
    """report: digest of the stored report, "" where nothing was analysed. Raises `Refusal` completeness-…."""
    states = [one for one in register.instances(lease.row) if one.after]
    received = {one.name: one.sha256 for one in states if one.sha256}
    facts: dict[str, Any] = completeness_facts(
        received,
        {one.name: one.sha256 for one in states if one.analysed},
        {one.name: one.reason for one in states if one.reason and not one.analysed},
        [one.name for one in states if one.referenced],
    )
    evidence = CompletenessEvidence(
        **attempt.facts(previous.subject), **facts, report=report, validated=report != "", proof=proof
    )
    return require(COMPLETENESS_GATE, evidence, attempt)


def was_completed(attempt: Attempt, since: Position) -> bool:
    """Whether the ledger holds this attempt's cleared statement: without it a study is not done. since: where the ledger stood
    when the attempt began. Raises `Refusal` ledger-…."""
    return any(
        entry.kind == "verdict"
        and entry.body.get("job") == attempt.job
        and entry.body.get("attempt") == attempt.number
        and entry.body.get("nonce") == attempt.nonce
        and entry.body.get("gate") == COMPLETENESS_GATE.name
        and entry.body.get("verdict") == "cleared"
        for entry in attempt.ledger.since(since)
    )
