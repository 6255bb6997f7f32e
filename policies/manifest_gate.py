"""The checks of the manifest gate. The manifest and the evidence are in `policies.manifest`.

What must hold: 1 the three approvers signed, three keys, each trusted in its role; 2 environment's query ⊇ manifest ⊇ job;
3 cohort, project, purpose, consent basis and agreement are ones that manifest and site know; 4 it is in force until the longest
run ends, and opt-outs were applied lately; 5 it is not older than one this node has seen, nor another under its number; 6 the
records file is the signed one; 7 no count is so small that it points at people; 8 what the job takes is within its limits.
"""

from policies.gate import Check, Gate, Reason, check, check_each, limits_json
from policies.manifest import APPROVERS, LEAST, ManifestEvidence, ManifestLimits
from rapha.canonical import is_digest

_AGAIN = "Have the custodian write, and the approvers sign, a new manifest."
_NARROW = "Ask for what the manifest allows, or ask the hospital for another manifest."
_QUERY = "Use Modality, BodyPartExamined and StudyDate, with terms and dates, in RAPHA_DICOMWEB_STUDY_QUERY_JSON."
_SITE = "Add it to the site policy's section `manifest` if the hospital agrees, else have a new manifest signed."

SIGNATURE_FAULTS = {
    "signature-missing": Reason("node", "The manifest is not signed.", _AGAIN),
    "signature-malformed": Reason("node", "A signature of the manifest is malformed.", _AGAIN),
    "signature-untrusted": Reason("node", "A signature is by a key that this node does not trust in its role.", _AGAIN),
    "signature-invalid": Reason("node", "A signature does not fit the manifest: it was changed after signing.", _AGAIN),
}


@check_each("manifest-signatures", SIGNATURE_FAULTS)
def signatures_hold(e: ManifestEvidence) -> tuple[str, ...]:
    return () if e.signature_fault == "" else (e.signature_fault,)


@check("manifest-approvals", "node", "Custodian, data protection officer and Caldicott Guardian have not all signed.", _AGAIN)
def approved(e: ManifestEvidence) -> bool:
    return tuple(sorted(role for role, _ in e.signed)) == APPROVERS


@check("manifest-approvers-one-key", "node", "One key has signed in two roles.", "Give each approver a key of their own.")
def approvers_differ(e: ManifestEvidence) -> bool:
    keys = [key for _, key in e.signed]
    return len(keys) == len(set(keys)) and all(is_digest(key) for key in keys)


@check("outer-query-unknown-key", "node", "The environment's query has a key that no manifest can be held against.", _QUERY)
def outer_known(e: ManifestEvidence) -> bool:
    return e.outer_unknown_keys == 0


@check("outer-query-broad", "node", "The environment's query is bound by neither date nor body part, or has a wildcard.", _QUERY)
def outer_bounded(e: ManifestEvidence) -> bool:
    texts = (*e.outer.modalities, *e.outer.body_parts, e.outer.date_from, e.outer.date_to)
    return bool(e.outer.body_parts or e.outer.date_from) and not any(mark in text for text in texts for mark in "*?")


@check("manifest-beyond-outer", "node", "The manifest is wider than the environment's query.", "Narrow the manifest.")
def within_outer(e: ManifestEvidence) -> bool:
    return e.outer.contains(e.scope)


@check("job-beyond-manifest", "job", "The job asks for studies outside the manifest.", _NARROW)
def intent_within(e: ManifestEvidence) -> bool:
    return e.scope.contains(e.intent.scope)


@check("cohort-differs", "job", "The job names another cohort than the manifest.", _NARROW)
def cohort_same(e: ManifestEvidence) -> bool:
    return bool(e.cohort) and e.intent.cohort == e.cohort


@check("project-not-allowed", "job", "The manifest does not cover the job's project.", _NARROW)
def project_allowed(e: ManifestEvidence) -> bool:
    return e.intent.project in e.projects


@check("manifest-several-projects", "node", "Pseudonyms belong to one project, and the manifest names several.", _AGAIN)
def one_project(e: ManifestEvidence) -> bool:
    return len(e.projects) == 1


@check("purpose-not-allowed", "job", "The manifest does not cover the job's purpose.", _NARROW)
def purpose_allowed(e: ManifestEvidence) -> bool:
    return e.intent.purpose in e.purposes


@check("purpose-unknown-here", "node", "The site's policy does not know this purpose.", _SITE)
def purpose_known(e: ManifestEvidence) -> bool:
    return e.intent.purpose in e.limits.purposes


@check("consent-basis-not-allowed", "node", "The site's policy does not accept this basis of consent.", _SITE)
def consent_allowed(e: ManifestEvidence) -> bool:
    return e.consent_basis in e.limits.consent_bases


@check("opt-outs-stale", "node", "Opt-outs were last applied too long ago, or in the future.", _AGAIN)
def opt_outs_fresh(e: ManifestEvidence) -> bool:
    return e.opt_outs_applied_at <= e.issued_at and 0 <= e.at - e.opt_outs_applied_at <= e.limits.max_opt_out_age


@check("agreement-unknown", "node", "The site's policy does not know this agreement.", _SITE)
def agreement_known(e: ManifestEvidence) -> bool:
    return e.agreement in e.limits.agreements


@check("manifest-not-yet-valid", "node", "The manifest is dated in the future.", "Check the clocks, then the manifest.")
def issued(e: ManifestEvidence) -> bool:
    return e.issued_at <= e.at


@check("manifest-expired", "node", "The manifest ends before the longest run of this job would.", _AGAIN)
def in_force(e: ManifestEvidence) -> bool:
    return e.at + e.intent.max_seconds < e.expires_at


@check("manifest-version-older", "node", "This node has cleared a newer version of the manifest.", "Put the newest in its place.")
def version_not_older(e: ManifestEvidence) -> bool:
    return e.version_number >= e.seen_version


@check(
    "manifest-version-reused",
    "node",
    "Another manifest was cleared under this version number.",
    "Raise version_number, sign again.",
)
def version_not_reused(e: ManifestEvidence) -> bool:
    return is_digest(e.manifest) and (e.version_number != e.seen_version or e.manifest == e.seen_manifest)


@check(
    "records-root-differs",
    "node",
    "The records file is not the one that was signed for.",
    "Put the signed records file in its place.",
)
def records_signed(e: ManifestEvidence) -> bool:
    return is_digest(e.root) and e.records_root == e.root


@check("records-count-differs", "node", "The manifest miscounts its records or patients.", _AGAIN)
def records_counted(e: ManifestEvidence) -> bool:
    return e.records == e.count and e.records_patients == e.patients


@check(
    "cohort-too-small", "node", "The cohort has so few patients or records that its size points at people.", "Widen the cohort."
)
def cohort_large_enough(e: ManifestEvidence) -> bool:
    least = max(LEAST, e.limits.min_patients, e.min_patients)
    return e.records_patients >= least and e.records >= max(least, e.limits.min_records)


@check(
    "job-too-few-records", "job", "The job would be given so few records that they point at people.", "Raise budget.max_records."
)
def job_large_enough(e: ManifestEvidence) -> bool:
    return e.intent.max_records >= max(LEAST, e.limits.min_records)


@check("job-too-many-records", "job", "The job asks for more records than manifest or site allow.", "Lower budget.max_records.")
def job_small_enough(e: ManifestEvidence) -> bool:
    return e.intent.max_records <= min(e.max_records, e.limits.max_records)


@check("job-output-too-large", "job", "The declared tensors are larger than manifest or site allow.", "Declare a smaller model.")
def output_small_enough(e: ManifestEvidence) -> bool:
    return 0 < e.intent.output_bytes <= min(e.max_output_bytes, e.limits.max_output_bytes)


@check("job-too-many-metrics", "job", "The job declares more metrics than the manifest allows.", "Declare fewer metrics.")
def metrics_few_enough(e: ManifestEvidence) -> bool:
    return e.intent.metrics <= e.max_metrics


CHECKS: tuple[Check[ManifestEvidence], ...] = (
    signatures_hold,
    approved,
    approvers_differ,
    outer_known,
    outer_bounded,
    within_outer,
    intent_within,
    cohort_same,
    project_allowed,
    one_project,
    purpose_allowed,
    purpose_known,
    consent_allowed,
    opt_outs_fresh,
    agreement_known,
    issued,
    in_force,
    version_not_older,
    version_not_reused,
    records_signed,
    records_counted,
    cohort_large_enough,
    job_large_enough,
    job_small_enough,
    output_small_enough,
    metrics_few_enough,
)


def manifest_gate(limits: ManifestLimits) -> Gate[ManifestEvidence]:
    """The gate of a site: its verdict names these numbers in its policy digest."""
    return Gate("manifest", CHECKS, site=limits_json(limits))
