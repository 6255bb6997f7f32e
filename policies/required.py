"""Which gates must have passed before each door opens, in order, and which checks each gate must have run.

Retyped by hand beside the gates themselves: a check that is taken out of a gate, or a gate out of the flow, is a refusal at the
door. To add a gate, add it to both tables (CONTRIBUTING.md has the page).
"""

from typing import Literal

Door = Literal["train", "seal", "settle"]

BEFORE_TRAINING = (
    "intake",
    "escrow",
    "manifest",
    "workload",
    "policy",
    "attestation",
    "cut",
    "query",
    "retrieve",
)

BEFORE_SEALING = (*BEFORE_TRAINING, "train", "output", "reattestation")

REQUIRED_GATES: dict[Door, tuple[str, ...]] = {
    "train": BEFORE_TRAINING,
    "seal": BEFORE_SEALING,
    "settle": (*BEFORE_SEALING, "reconnect"),
}

_ATTESTATION = frozenset(
    {
        "quote",
        "quote-tee-type",
        "quote-trailing-bytes",
        "root-not-pinned",
        "root-development",
        "enclave-debug",
        "enclave-attributes",
        "enclave-measurement",
        "enclave-signer",
        "enclave-config",
        "tcb-status",
        "tcb-qe-status",
        "collateral-old",
        "collateral-window",
        "platform-kind",
        "report-data-zero",
        "report-data-mismatch",
        "tpm",
        "tpm-nonce",
        "tpm-signer",
        "tpm-pcr-selection",
        "tpm-pcr-digest",
        "tpm-pcr-values",
        "tpm-clock-unsafe",
        "platform-not-enrolled",
        "platform-expired",
        "platform-development",
        "platform-other",
        "binding-incomplete",
        "nonce-not-fresh",
        "attestation-late",
        "clock-skew",
        "clock-set-back",
        "tpm-rollback",
        "collateral-rolled-back",
    }
)

REQUIRED_CHECKS: dict[str, frozenset[str]] = {
    "intake": frozenset(
        {
            "job-id-differs",
            "owner-mismatch",
            "signature",
            "node-differs",
            "deadline-passed",
            "run-too-long",
            "too-many-epochs",
            "dates-not-ordered",
            "recipient-unusable",
            "too-many-open-jobs",
            "attempt-not-registered",
            "blob-missing",
            "blob-differs",
            "blob-too-large",
        }
    ),
    "escrow": frozenset(
        {
            "escrow-attestors-differ",
            "escrow-chain-lies",
            "escrow-chain-not-allowed",
            "escrow-closed",
            "escrow-cohort-too-small",
            "escrow-deadline-short",
            "escrow-development-account",
            "escrow-in-use",
            "escrow-missing",
            "escrow-no-vault",
            "escrow-not-final",
            "escrow-other-chain",
            "escrow-other-node",
            "escrow-other-owner",
            "escrow-other-token",
            "escrow-other-vault",
            "escrow-payees-differ",
            "escrow-price-differs",
            "escrow-token-not-allowed",
            "escrow-too-large",
            "escrow-underfunded",
        }
    ),
    "manifest": frozenset(
        {
            "manifest-signatures",
            "manifest-approvals",
            "manifest-approvers-one-key",
            "outer-query-unknown-key",
            "outer-query-broad",
            "manifest-beyond-outer",
            "job-beyond-manifest",
            "cohort-differs",
            "project-not-allowed",
            "manifest-several-projects",
            "purpose-not-allowed",
            "purpose-unknown-here",
            "consent-basis-not-allowed",
            "opt-outs-stale",
            "agreement-unknown",
            "manifest-not-yet-valid",
            "manifest-expired",
            "manifest-version-older",
            "manifest-version-reused",
            "records-root-differs",
            "records-count-differs",
            "cohort-too-small",
            "job-too-few-records",
            "job-too-many-records",
            "job-output-too-large",
            "job-too-many-metrics",
        }
    ),
    "workload": frozenset(
        {
            "workload-digest",
            "workload-kind",
            "workload-signature-digest",
            "workload-signature",
            "workload-signature-other-subject",
            "workload-identity",
            "workload-identities-unset",
            "workload-scan",
            "workload-scan-empty",
            "workload-unpacked-differs",
            "base-weights-digest",
            "base-weights-format",
            "launcher-not-pinned",
        }
    ),
    "policy": frozenset(
        {
            "policy-engine",
            "policy-documents-changed",
            "hospital-policy-absent",
            "policy-undefined",
            "policy-odd-answer",
            "policy-denied",
            "policy-rules",
            "policy-unbound",
            "policy-decision-expired",
        }
    ),
    "attestation": _ATTESTATION,
    "cut": frozenset(
        {
            "cut-no-control",
            "cut-line-alive",
            "cut-ways-out",
            "cut-lan-down",
            "cut-other-interface",
            "cut-not-held",
            "cut-broken",
            "cut-no-namespace",
        }
    ),
    "query": frozenset(
        {
            "query-scope",
            "query-not-sent",
            "query-records-differ",
            "query-missing",
            "query-changed",
            "query-nothing",
            "query-cohort-small",
            "query-too-many",
            "query-counts-odd",
        }
    ),
    "retrieve": frozenset(
        {
            "retrieve-set-changed",
            "retrieve-missing",
            "retrieve-changed",
            "retrieve-root-differs",
            "retrieve-undecodable",
            "retrieve-burned-in",
            "retrieve-not-sealed",
            "retrieve-too-large",
            "retrieve-counts-odd",
        }
    ),
    "train": frozenset(
        {
            "train-not-completed",
            "train-not-dead",
            "train-not-isolated",
            "train-not-held",
            "train-limits-unheld",
            "train-cut-broken",
            "train-other-workload",
            "train-too-many-records",
            "train-reader-holds",
            "train-odd-output",
        }
    ),
    "output": frozenset(
        {
            "output-before-training",
            "output-folder",
            "output-kinds",
            "output-size",
            "output-weights",
            "output-metrics",
            "output-identifier",
            "output-leak-budget",
            "output-not-written",
        }
    ),
    "reattestation": _ATTESTATION | {"platform-changed"},
    "reconnect": frozenset(
        {
            "reconnect-token",
            "reconnect-holder",
            "reconnect-alive",
            "reconnect-not-sealed",
            "reconnect-no-receipt",
            "reconnect-kept",
        }
    ),
    # The reading service's gates: no door of the training run, but the same rule of which checks must have run.
    "arrival": frozenset(
        {
            "arrival-nothing",
            "arrival-set-changed",
            "arrival-missing",
            "arrival-extra",
            "arrival-conflict",
            "arrival-unsealed",
        }
    ),
    "completeness": frozenset(
        {
            "completeness-unexplained",
            "completeness-overlap",
            "completeness-content",
            "completeness-references",
            "completeness-no-report",
            "completeness-unproven",
        }
    ),
}
