"""Stage complete: the closing statement of a study, from the register's sets, through the completeness gate into the ledger."""

from typing import Any

from blocks.ledger import Position
from blocks.reading import ReadingRegister, StudyLease
from policies.completeness import COMPLETENESS_GATE, ArrivalEvidence, CompletenessEvidence, Proof, completeness_facts
from tasks.attempt import Attempt
from tasks.gate import Cleared, require


def complete(
    previous: Cleared[ArrivalEvidence],
    lease: StudyLease,
    attempt: Attempt,
    register: ReadingRegister,
    *,
    report: str,
    proof: Proof,
) -> Cleared[CompletenessEvidence]:
    """report: digest of the stored report, "" where nothing was analysed. Raises `Refusal` completeness-…."""
    states = [one for one in register.instances(lease.row) if one.after]
    facts: dict[str, Any] = completeness_facts(
        {one.name: one.sha256 for one in states if one.sha256},
        {one.name: one.opened_sha256 for one in states if one.analysed},
        {one.name: (one.opened_sha256, one.reason) for one in states if one.reason and not one.analysed},
        {one.name: one.referenced_sha256 for one in states if one.referenced},
        sum(one.conflict for one in states),
    )
    facts["arrived_set"] = previous.evidence.content_set
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
