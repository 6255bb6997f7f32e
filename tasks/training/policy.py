"""The policy stage: puts what the manifest and workload gates verified to the engine, and its answer to the gate."""

from typing import Any

from blocks.opa import PolicyEngine
from policies.manifest import ManifestEvidence
from policies.policy import PolicyEvidence, PolicyLimits, policy_gate, policy_input
from policies.workload import WorkloadEvidence
from rapha.canonical import digest_of
from rapha.errors import Refusal
from tasks.attempt import Attempt
from tasks.gate import Cleared, require


def policy(
    previous: Cleared[Any],
    attempt: Attempt,
    manifest_facts: ManifestEvidence,
    workload_facts: WorkloadEvidence,
    engine: PolicyEngine,
    limits: PolicyLimits,
    *,
    outside_line: str,
) -> Cleared[PolicyEvidence]:
    """One decision, for this attempt alone. `outside_line`: the interface that the keeper will cut (RAPHA_WAN_INTERFACE).

    Raises `PeerError` when the engine cannot be asked; `Refusal` policy-undecidable, policy-odd-answer, or the gate's codes.
    """
    facts = attempt.facts(previous.subject)
    _same_attempt(manifest_facts, workload_facts, attempt)
    # The launcher has no other mode than a network namespace of its own; what is asked here is whether there is a line to cut.
    network = {"sandbox": "none", "outside": "cut" if outside_line else "open"}
    asked = policy_input(facts, manifest_facts, workload_facts, limits, network)
    decision = engine.decide(asked)
    evidence = PolicyEvidence(
        **facts,
        engine=decision.engine,
        allow=decision.allow,
        hospital=decision.hospital,
        reasons=decision.reasons,
        documents=decision.documents,
        hospital_document=decision.hospital_document,
        expected_documents=engine.documents,
        input_digest=digest_of(asked),
        decision_id=decision.id,
        bound_job=asked["binding"]["job"],
        bound_attempt=asked["binding"]["attempt"],
        bound_nonce=asked["binding"]["nonce"],
        manifest=manifest_facts.subject,
        workload=workload_facts.subject,
        expires=asked["binding"]["expires"],
        limits=limits,
    )
    return require(policy_gate(limits), evidence, attempt)


def _same_attempt(manifest: ManifestEvidence, workload: WorkloadEvidence, attempt: Attempt) -> None:
    """Facts of another attempt are not put to the engine at all: an old allow is not replayed."""
    for evidence in (manifest, workload):
        if (evidence.job, evidence.attempt, evidence.nonce) != (attempt.job, attempt.number, attempt.nonce):
            raise Refusal(["policy-unbound"], "the facts are of another job or attempt", gate="policy", subject=attempt.job)
