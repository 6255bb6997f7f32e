"""The policy gate: what an engine decided over the Rego documents, and whether that decision is ours, whole and exactly true.

What must hold: 1 the engine is one that the site names; 2 the documents that decided are the node's own and the hospital's, by
digest; 3 the answer is exactly `true`, from both; undefined, truthy or malformed is a refusal; 4 the reasons are empty; 5 the
decision is of this job, attempt, nonce and input, and in force.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from policies.gate import Check, Evidence, Gate, Reason, Side, check, check_each, limits_json
from policies.manifest import ManifestEvidence
from policies.workload import WorkloadEvidence
from rapha.canonical import digest, digest_of, is_digest

Answer = Literal["true", "false", "undefined", "odd"]
ANSWERS: tuple[Answer, ...] = ("true", "false", "undefined", "odd")
OURS, HOSPITAL = "rapha", "hospital"
TTL = 3600
_ASK = "Ask for what manifest and site allow, or ask the hospital."
_NODE = "Look at the site policy and at the gate before this one."


def _reason(side: Side, wrong: str) -> Reason:
    return Reason(side, wrong, _ASK if side == "job" else _NODE)


REASONS: dict[str, Reason] = {
    "rego-input-missing": _reason("node", "A fact that the policy needs is absent."),
    "rego-binding": _reason("node", "The facts are of another job, attempt or nonce."),
    "rego-dataset-cohort": _reason("job", "The job names another cohort than the manifest."),
    "rego-dataset-project": _reason("job", "The manifest does not cover the job's project."),
    "rego-dataset-modality": _reason("job", "The job asks for a modality outside the manifest."),
    "rego-dataset-body-part": _reason("job", "The job asks for a body part outside the manifest."),
    "rego-dataset-dates": _reason("job", "The job asks for dates outside the manifest."),
    "rego-dataset-manifest-expired": _reason("node", "The manifest is not in force for the longest run of this job."),
    "rego-dataset-not-approved": _reason("node", "The manifest lacks an approver's signature."),
    "rego-dataset-records-differ": _reason("node", "The records file is not the signed one."),
    "rego-dataset-too-small": _reason("node", "The cohort has too few patients."),
    "rego-dataset-too-many-records": _reason("job", "The job asks for more records than allowed."),
    "rego-purpose-not-in-manifest": _reason("job", "The manifest does not cover the job's purpose."),
    "rego-purpose-unknown-here": _reason("job", "The site does not allow this purpose."),
    "rego-consent-basis": _reason("node", "The site does not accept this basis of consent."),
    "rego-consent-opt-outs-stale": _reason("node", "Opt-outs were applied too long ago."),
    "rego-output-too-large": _reason("job", "The declared tensors are larger than allowed."),
    "rego-output-too-many-metrics": _reason("job", "More metrics are declared than allowed."),
    "rego-network-sandbox": _reason("node", "The sandbox would have a network."),
    "rego-network-outside-line": _reason("node", "The outside line would not be cut."),
    "rego-network-capable-code": _reason("job", "The scan saw code that can reach a network."),
    "rego-workload-digest": _reason("job", "The workload's bytes are not the declared ones."),
    "rego-workload-kind": _reason("job", "The workload's kind is not known."),
    "rego-workload-signature": _reason(
        "job", "The workload's signature document is not the declared one, or is over another workload."
    ),
    "rego-workload-signer": _reason("job", "The workload is signed by nobody whom this site has named."),
    "rego-workload-scan": _reason("job", "The compliance scan did not pass."),
    "rego-workload-base-weights": _reason("job", "The base weights are not the declared ones, or not inert."),
    "rego-workload-launcher": _reason("node", "The hospital's launcher is not the pinned one."),
    "hospital-policy-refused": Reason("node", "The hospital's own policy does not allow this job.", "Ask the hospital."),
    "policy-reason-unknown": Reason(
        "node", "The engine gave a reason that this node does not know.", "Check the loaded documents."
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyLimits:
    """The site's numbers, which the Rego documents read as `input.site`. The defaults allow nothing: purposes, consent bases,
    workload identities and the launcher must be named.

    engines: which engines may decide ("regopy", "opa"); documents: pinned digest of all Rego documents, "" to take what is loaded
    at the node's start; max_opt_out_age: seconds.
    """

    purposes: Sequence[str] = ()
    consent_bases: Sequence[str] = ()
    workload_identities: Sequence[str] = ()
    launcher: str = ""
    min_patients: int = 8
    max_records: int = 1_000_000
    max_output_bytes: int = 1 << 30
    max_metrics: int = 64
    max_opt_out_age: int = 31 * 86400
    engines: Sequence[str] = ("regopy", "opa")
    documents: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What an engine answered. documents: digest of everything that was loaded; hospital_document: of the hospital's part, or "".

    id: the engine's decision id where it gives one, else made of input, documents and nonce.
    """

    engine: str
    allow: Answer
    reasons: tuple[str, ...]
    hospital: Answer
    documents: str
    hospital_document: str
    id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyEvidence(Evidence):
    """input_digest: of the canonical input; bound_*: read back from the input that was decided on; expires: its end."""

    engine: str
    allow: Answer
    hospital: Answer
    reasons: tuple[str, ...]
    documents: str
    hospital_document: str
    expected_documents: str
    input_digest: str
    decision_id: str
    bound_job: str
    bound_attempt: int
    bound_nonce: str
    manifest: str
    workload: str
    expires: int
    limits: PolicyLimits = field(default_factory=PolicyLimits)


def answer_of(value: object) -> Answer:
    """Exactly `True` is true. `None` stands for undefined; what is neither a boolean nor that is odd."""
    if value is True:
        return "true"
    if value is False:
        return "false"
    return "undefined" if value is None else "odd"


def policy_input(
    facts: Mapping[str, Any],
    manifest: ManifestEvidence,
    workload: WorkloadEvidence,
    limits: PolicyLimits,
    network: Mapping[str, str],
) -> dict[str, Any]:
    """The engine's input, of verified evidence alone. `facts`: the attempt's own; `network`: what the node will enforce."""
    binding = {name: facts[name] for name in ("job", "attempt", "nonce", "at", "mode")}
    return {
        "binding": {**binding, "expires": facts["at"] + TTL},
        "manifest": _manifest_input(manifest),
        "workload": _workload_input(workload),
        "network": {"sandbox": network.get("sandbox"), "outside": network.get("outside")},
        "site": limits_json(limits),
    }


def _manifest_input(e: ManifestEvidence) -> dict[str, Any]:
    plain = e.to_json()
    names = (
        "job attempt nonce manifest cohort projects purposes consent_basis opt_outs_applied_at issued_at expires_at scope intent"
        " root records_root max_records min_patients max_output_bytes max_metrics"
    )
    return {
        **{name: plain[name] for name in names.split()},
        "patients": min(e.patients, e.records_patients),
        "roles": sorted(role for role, _ in e.signed) if not e.signature_fault else [],
    }


def _workload_input(e: WorkloadEvidence) -> dict[str, Any]:
    return {
        "job": e.job,
        "attempt": e.attempt,
        "nonce": e.nonce,
        "digest": e.workload,
        "found": e.found,
        "kind": e.kind,
        "signature": e.signature.declared,
        "signature_found": e.signature.found,
        "signature_subject": e.signature.workload,
        "signer": e.signature.signer,
        "scan": {
            "findings": sum(count for _, count in e.scan.counts),
            "own": e.scan.own,
            "network": e.scan.network,
            "tree": e.scan.tree,
        },
        "weights": e.weights.declared,
        "weights_found": e.weights.found,
        "weights_inert": e.weights.declared == "" or e.weights.tensors > 0,
        "launcher": e.launcher,
    }


def documents_digest(documents: Mapping[str, str]) -> str:
    """Digest of a set of Rego documents: name -> text. One more, one less or one byte changed is another digest."""
    return digest_of({name: digest(text.encode()) for name, text in documents.items()})


_SKIPPED = re.compile(r'#[^\n]*|"(?:\\.|[^"\\\n])*"|`[^`]*`')
_ROOTS = re.compile(r"(?<![\w.])[A-Za-z_]\w*")
# Roots of builtins that leave the engine, read its surroundings or load code. `rego` is allowed in `import rego.v1` alone.
FORBIDDEN_ROOTS = frozenset(
    {"aws", "azure", "graphql", "http", "io", "net", "opa", "print", "providers", "rego", "trace", "uuid", "rand"}
)


def document_codes(text: str, package: str) -> tuple[str, ...]:
    """Why a Rego document may not be loaded; `()` for one that may."""
    code = _SKIPPED.sub(" ", text)
    packages = re.findall(r"^\s*package\s+(\S+)\s*$", code, re.MULTILINE)
    codes = set()
    if packages != [package]:
        codes.add("policy-package")
    if re.search(r"^\s*import\s+rego\.v1\s*$", code, re.MULTILINE) is None:
        codes.add("policy-not-v1")
    rest = re.sub(r"^\s*import\s+rego\.v1\s*$", "", code, flags=re.MULTILINE)
    if set(_ROOTS.findall(rest)) & FORBIDDEN_ROOTS or re.search(r"\btime\s*\.\s*now_ns\b", rest):
        codes.add("policy-forbidden-builtin")
    return tuple(sorted(codes))


@check("policy-engine", "node", "The deciding engine is not one that the site names.", "Name it in the site policy.")
def engine_named(e: PolicyEvidence) -> bool:
    return e.engine in {"regopy", "opa"} and e.engine in e.limits.engines


@check(
    "policy-documents-changed",
    "node",
    "The documents that decided are not the node's own.",
    "Load the node's documents, restart.",
)
def documents_ours(e: PolicyEvidence) -> bool:
    pinned = e.limits.documents in {"", e.documents}
    return is_digest(e.documents) and e.documents == e.expected_documents and pinned


@check("hospital-policy-absent", "node", "Production needs the hospital's own policy.", "Set RAPHA_OPA_POLICY_PATH.")
def hospital_present(e: PolicyEvidence) -> bool:
    return e.mode == "development" or is_digest(e.hospital_document)


@check("policy-undefined", "node", "The engine's answer is undefined.", "Check the loaded documents; absence is a refusal.")
def defined(e: PolicyEvidence) -> bool:
    return e.allow != "undefined" and (e.hospital != "undefined" or e.hospital_document == "")


@check("policy-odd-answer", "node", "The engine's answer is not a boolean.", "Check the engine; only exactly true allows.")
def boolean(e: PolicyEvidence) -> bool:
    return e.allow in {"true", "false", "undefined"} and e.hospital in {"true", "false", "undefined"}


@check("policy-denied", "node", "The policy denies and gives no reason.", "Check the loaded documents.")
def allowed(e: PolicyEvidence) -> bool:
    return e.allow == "true" or len(e.reasons) > 0


@check_each("policy-rules", REASONS)
def rules(e: PolicyEvidence) -> tuple[str, ...]:
    """Each reason is its own code; the hospital's no is one."""
    codes = {code if code in REASONS else "policy-reason-unknown" for code in e.reasons}
    if e.hospital_document and e.hospital != "true":
        codes.add("hospital-policy-refused")
    return tuple(sorted(codes))


@check(
    "policy-unbound",
    "node",
    "The decision is of another job, attempt, nonce or input.",
    "Decide again; a decision is never reused.",
)
def bound(e: PolicyEvidence) -> bool:
    same = (e.bound_job, e.bound_attempt, e.bound_nonce) == (e.job, e.attempt, e.nonce)
    return same and is_digest(e.input_digest) and is_digest(e.manifest) and is_digest(e.workload) and e.decision_id != ""


@check("policy-decision-expired", "node", "The decision is past its end.", "Decide again.")
def in_force(e: PolicyEvidence) -> bool:
    return e.at < e.expires <= e.at + TTL


CHECKS: tuple[Check[PolicyEvidence], ...] = (
    engine_named,
    documents_ours,
    hospital_present,
    defined,
    boolean,
    allowed,
    rules,
    bound,
    in_force,
)


def policy_gate(limits: PolicyLimits) -> Gate[PolicyEvidence]:
    """The gate of a site: its verdict names these numbers in its policy digest."""
    return Gate("policy", CHECKS, ttl=TTL, site=limits_json(limits))
