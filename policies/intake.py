"""Intake: may this declaration become a run of this node?

What must hold: 1 the job's id is the digest of the declaration; 2 its owner is who sent it and who is registered, and signed it
in the role "ai-team"; 3 it names this node; 4 its deadline lies ahead; 5 its time and epochs are within the site's numbers;
6 its dates are dates, in order; 7 its recipient's key can be sealed to; 8 its owner has no more jobs open than the site allows;
9 this attempt is the one that the register holds; 10 everything that it names by digest was fetched, and is what it names.

`ADMISSION` judges 1 to 8 alone, without side effects: the webhook and `rapha job check` ask it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from types import MappingProxyType

from policies.gate import Check, Evidence, Gate, Reason, check, check_each, limits_json


@dataclass(frozen=True, slots=True)
class IntakeLimits:
    """The site's numbers. Times in seconds, sizes in bytes."""

    max_seconds: int = 4 * 3600
    max_epochs: int = 1000
    max_open_jobs: int = 16
    max_workload_bytes: int = 8 << 30
    max_base_weights_bytes: int = 8 << 30
    max_signature_bytes: int = 64 << 10


@dataclass(frozen=True, slots=True)
class Blob:
    """One thing fetched by digest. kind: "workload", "signature" or "base-weights"; size in bytes."""

    kind: str
    wanted: str
    found: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionEvidence(Evidence):
    """What a declaration says, beside what this node knows by itself."""

    declaration: str
    owner: str
    sender: str
    signer: str
    signature_codes: tuple[str, ...]
    node: str
    this_node: str
    deadline: int
    max_seconds: int
    epochs: int
    date_from: str
    date_to: str
    recipient_usable: bool
    open_jobs: int
    limits: IntakeLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class IntakeEvidence(AdmissionEvidence):
    """`registered_attempt` and `registered_nonce` are the register's for this job; `kinds` what the declaration asks to fetch."""

    registered: bool
    registered_attempt: int
    registered_nonce: str
    kinds: tuple[str, ...]
    blobs: tuple[Blob, ...]


@check("job-id-differs", "node", "The job's id is not the digest of its declaration.", "Submit the declaration again.")
def job_id(e: AdmissionEvidence) -> bool:
    return e.declaration == e.job


@check("owner-mismatch", "job", "The declaration names another owner than the one who sent it.", "Send it with the owner's key.")
def owner(e: AdmissionEvidence) -> bool:
    return e.owner == e.sender and e.owner != ""


SIGNATURE_REASONS: Mapping[str, Reason] = MappingProxyType(
    {
        "signature-missing": Reason("job", "The declaration is not signed.", "Sign it: rapha job sign."),
        "signature-role-missing": Reason("job", "Nobody signed in the role ai-team.", "Sign it in the role ai-team."),
        "signature-malformed": Reason("job", "A signature is not well formed.", "Sign it again: rapha job sign."),
        "signature-untrusted": Reason(
            "job", "A signature is by a key that this node does not know for this owner.", "Have the key enrolled at the node."
        ),
        "signature-invalid": Reason("job", "A signature does not fit the declaration.", "Sign what is sent, as it is sent."),
    }
)


@check_each("signature", SIGNATURE_REASONS)
def signature(e: AdmissionEvidence) -> tuple[str, ...]:
    if e.signature_codes:
        return e.signature_codes
    return () if e.signer else ("signature-role-missing",)


@check("node-differs", "job", "The declaration is for another node.", "Send it to the node that it names.")
def this_node(e: AdmissionEvidence) -> bool:
    return e.node == e.this_node and e.this_node != ""


@check("deadline-passed", "job", "The deadline has passed.", "Declare a later deadline and sign again.")
def deadline(e: AdmissionEvidence) -> bool:
    return e.deadline > e.at


@check("run-too-long", "job", "The run may take longer than this site allows.", "Declare fewer seconds.")
def seconds(e: AdmissionEvidence) -> bool:
    return 0 < e.max_seconds <= e.limits.max_seconds


@check("too-many-epochs", "job", "The run has more epochs than this site allows.", "Declare fewer epochs.")
def epochs(e: AdmissionEvidence) -> bool:
    return 0 < e.epochs <= e.limits.max_epochs


@check("dates-not-ordered", "job", "The dates are not a period of the calendar.", "Declare date_from no later than date_to.")
def dates(e: AdmissionEvidence) -> bool:
    return is_day(e.date_from) and is_day(e.date_to) and e.date_from <= e.date_to


@check("recipient-unusable", "job", "Nothing can be sealed to the recipient's key.", "Declare a fresh X25519 public key.")
def recipient(e: AdmissionEvidence) -> bool:
    return e.recipient_usable


@check("too-many-open-jobs", "job", "This owner has as many jobs open as the site allows.", "Wait until one has ended.")
def backlog(e: AdmissionEvidence) -> bool:
    return 0 <= e.open_jobs <= e.limits.max_open_jobs


@check("attempt-not-registered", "node", "The register does not hold this attempt.", "Start jobs through the register only.")
def registered(e: IntakeEvidence) -> bool:
    return e.registered and e.registered_attempt == e.attempt and e.registered_nonce == e.nonce


@check("blob-missing", "job", "Something that the declaration names was not fetched.", "Upload it to the orchestrator first.")
def fetched(e: IntakeEvidence) -> bool:
    return tuple(blob.kind for blob in e.blobs) == e.kinds and set(e.kinds) >= {"workload", "signature"}


@check("blob-differs", "job", "Something fetched has another digest than the declaration names.", "Upload what was declared.")
def same(e: IntakeEvidence) -> bool:
    return all(blob.found == blob.wanted for blob in e.blobs)


@check("blob-too-large", "job", "Something that the declaration names is larger than this site allows.", "Make it smaller.")
def sized(e: IntakeEvidence) -> bool:
    return all(0 < blob.size <= size_cap(blob.kind, e.limits) for blob in e.blobs)


ADMISSION_CHECKS: tuple[Check[AdmissionEvidence], ...] = (
    job_id,
    owner,
    signature,
    this_node,
    deadline,
    seconds,
    epochs,
    dates,
    recipient,
    backlog,
)


def admission_gate(limits: IntakeLimits) -> Gate[AdmissionEvidence]:
    """The pre-check: no register, nothing fetched, nothing recorded."""
    return Gate("admission", ADMISSION_CHECKS, site=limits_json(limits))


def intake_gate(limits: IntakeLimits) -> Gate[IntakeEvidence]:
    """The first gate of a run."""
    return Gate("intake", (*ADMISSION_CHECKS, registered, fetched, same, sized), site=limits_json(limits))


def size_cap(kind: str, limits: IntakeLimits) -> int:
    """The largest blob of a kind, in bytes; 0 for a kind that nobody knows."""
    caps = {
        "workload": limits.max_workload_bytes,
        "signature": limits.max_signature_bytes,
        "base-weights": limits.max_base_weights_bytes,
    }
    return caps.get(kind, 0)


def is_day(text: str) -> bool:
    """Whether `text` is YYYYMMDD of the calendar."""
    try:
        day = date(int(text[:4]), int(text[4:6]), int(text[6:]))
    except ValueError:
        return False
    return day.strftime("%Y%m%d") == text
