"""The dataset manifest: what the hospital's custodian, its data protection officer and its Caldicott Guardian have signed for,
and the gate that holds a job to it.

Three bounds, each within the one before: the environment's query (what this node may ever ask the archive), the manifest (what
was approved), the job's intent. A manifest covers one project, because the pseudonyms in its record set are that project's.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from policies.gate import Evidence
from policies.scope import Scope, outer_scope
from rapha.canonical import canonical, parse
from rapha.declaration import CodeString, Date, Declaration, Digest, Name
from rapha.errors import Refusal
from rapha.signing import MANIFEST_TYPE, document_digest, roles_signed, unsigned

APPROVERS = ("caldicott", "custodian", "dpo")
MAX_MANIFEST = 64 * 1024
SIZES = {"F32": 4, "F16": 2, "BF16": 2}
# A count of one to seven people points at people (OpenSAFELY's rule of disclosure control): eight is the least.
LEAST = 8


def _calendar_date(text: str) -> str:
    if len(text) != 8 or not text.isdecimal():  # strptime also takes shorter forms
        raise ValueError("not YYYYMMDD")
    datetime.strptime(text, "%Y%m%d")
    return text


Day = Annotated[Date, AfterValidator(_calendar_date)]
Count = Annotated[int, Field(gt=0, le=10**9)]
Time = Annotated[int, Field(gt=0, lt=2**40)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class Consent(_Strict):
    """basis: a name from the site's list; opt_outs_applied_at: when those who said no were last taken out."""

    basis: Name
    opt_outs_applied_at: Time


class ManifestScope(_Strict):
    """Modalities and body parts in DICOM's terms, and study dates, first and last included."""

    modalities: tuple[CodeString, ...] = Field(min_length=1, max_length=16)
    body_parts: tuple[CodeString, ...] = Field(min_length=1, max_length=32)
    date_from: Day
    date_to: Day

    @model_validator(mode="after")
    def _ordered(self) -> "ManifestScope":
        if self.date_from > self.date_to:
            raise ValueError("date_from is after date_to")
        return self


class OutputLimits(_Strict):
    """What one job under this manifest may have at most, and the fewest patients it may have."""

    max_records: Count
    min_patients: Count
    max_output_bytes: Count
    max_metrics: Annotated[int, Field(ge=0, le=64)]


class RecordSet(_Strict):
    """root: Merkle root of the records file (`policies.records`); count: its lines; patients: its different patients."""

    root: Digest
    count: Count
    patients: Count


class Manifest(_Strict):
    version: Annotated[int, Field(ge=1, le=1)]
    manifest_id: Name
    agreement_id: Name
    cohort: Name
    projects: tuple[Name, ...] = Field(min_length=1, max_length=16)
    purposes: tuple[Name, ...] = Field(min_length=1, max_length=16)
    consent: Consent
    scope: ManifestScope
    limits: OutputLimits
    record_set: RecordSet
    burned_in_checked: bool
    issued_at: Time
    expires_at: Time
    version_number: Count


def read_manifest(raw: bytes) -> tuple[Manifest, dict[str, Any], str]:
    """(manifest, the signed document, its digest). Raises `Refusal`: one `json-…` code, or `manifest-…` codes of its fields."""
    document = parse(raw, limit=MAX_MANIFEST, what="dataset manifest")
    if not isinstance(document, dict):
        raise Refusal(["manifest-not-an-object"], "the dataset manifest is not a JSON object", gate="manifest")
    try:
        manifest = Manifest.model_validate_json(canonical(unsigned(document)))
    except ValidationError as error:
        raise _invalid(error) from None
    return manifest, document, document_digest(document)


def _invalid(error: ValidationError) -> Refusal:
    names = {"extra_forbidden": "manifest-unknown-field", "missing": "manifest-missing-field"}
    items = error.errors(include_input=False, include_url=False)
    codes = sorted({names.get(item["type"], "manifest-bad-value") for item in items})
    # An unknown field's name is the writer's own text: only known places are named.
    places = sorted({str(item["loc"][0]) for item in items if item["loc"] and item["type"] != "extra_forbidden"})
    return Refusal(codes, f"the dataset manifest is refused; see {', '.join(places) or 'its field names'}", gate="manifest")


def scope_of(bounds: Any) -> Scope:
    """The scope of a manifest (`manifest.scope`) or of a job (`declaration.dataset`)."""
    return Scope(
        modalities=tuple(bounds.modalities),
        body_parts=tuple(bounds.body_parts),
        date_from=bounds.date_from,
        date_to=bounds.date_to,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestLimits:
    """The site's part. The defaults allow nothing: agreements, consent bases and purposes must be named.

    min_patients, min_records: fewest in a cohort, and fewest records a job may buy; never under 8. max_opt_out_age: seconds.
    """

    agreements: tuple[str, ...] = ()
    consent_bases: tuple[str, ...] = ()
    purposes: tuple[str, ...] = ()
    min_patients: int = LEAST
    min_records: int = LEAST
    max_records: int = 1_000_000
    max_output_bytes: int = 1 << 30
    max_opt_out_age: int = 31 * 86400


@dataclass(frozen=True, slots=True, kw_only=True)
class JobIntent:
    """What the job says about data: names, its scope, its cap, and the size of what it wants to take away."""

    cohort: str
    project: str
    purpose: str
    scope: Scope
    max_records: int
    max_seconds: int
    output_bytes: int
    metrics: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestEvidence(Evidence):
    """manifest: digest of the document without its signatures. signed: (role, key id), sorted. signature_fault: the code with
    which the signatures were refused, or empty. records_root, records, patients: of the records file as it is on disk.
    outer, outer_unknown_keys: the environment's query, and its keys that no manifest can be compared with.
    seen_version, seen_manifest: highest version number that this node has cleared for the cohort and project, and its digest.
    """

    manifest: str
    manifest_id: str
    agreement: str
    cohort: str
    projects: tuple[str, ...]
    purposes: tuple[str, ...]
    consent_basis: str
    opt_outs_applied_at: int
    issued_at: int
    expires_at: int
    version_number: int
    seen_version: int
    seen_manifest: str
    signed: tuple[tuple[str, str], ...]
    signature_fault: str
    outer: Scope
    outer_unknown_keys: int
    scope: Scope
    intent: JobIntent
    root: str
    count: int
    patients: int
    records_root: str
    records: int
    records_patients: int
    max_records: int
    min_patients: int
    max_output_bytes: int
    max_metrics: int
    burned_in_checked: bool
    limits: ManifestLimits


def outer_facts(query: Mapping[str, str]) -> dict[str, Any]:
    """The environment's part of the evidence."""
    outer, unknown = outer_scope(query)
    return {"outer": outer, "outer_unknown_keys": unknown}


def job_intent(declaration: Declaration) -> JobIntent:
    """The declaration's part of the evidence."""
    wanted = declaration.dataset
    return JobIntent(
        cohort=wanted.cohort,
        project=wanted.project,
        purpose=wanted.purpose,
        scope=scope_of(wanted),
        max_records=declaration.budget.max_records,
        max_seconds=declaration.run.max_seconds,
        output_bytes=sum(math.prod(tensor.shape) * SIZES[tensor.dtype] for tensor in declaration.outputs.tensors),
        metrics=len(declaration.outputs.metrics),
    )


def manifest_facts(
    manifest: Manifest, document: Mapping[str, Any], digest: str, trusted: Mapping[str, Sequence[Ed25519PublicKey]]
) -> dict[str, Any]:
    """The manifest's part of the evidence, its signatures judged by the trusted keys."""
    signed, fault = signatures(document, trusted)
    return {
        "manifest": digest,
        "manifest_id": manifest.manifest_id,
        "agreement": manifest.agreement_id,
        "cohort": manifest.cohort,
        "projects": manifest.projects,
        "purposes": manifest.purposes,
        "consent_basis": manifest.consent.basis,
        "opt_outs_applied_at": manifest.consent.opt_outs_applied_at,
        "issued_at": manifest.issued_at,
        "expires_at": manifest.expires_at,
        "version_number": manifest.version_number,
        "signed": signed,
        "signature_fault": fault,
        "scope": scope_of(manifest.scope),
        "root": manifest.record_set.root,
        "count": manifest.record_set.count,
        "patients": manifest.record_set.patients,
        "max_records": manifest.limits.max_records,
        "min_patients": manifest.limits.min_patients,
        "max_output_bytes": manifest.limits.max_output_bytes,
        "max_metrics": manifest.limits.max_metrics,
        "burned_in_checked": manifest.burned_in_checked,
    }


def signatures(
    document: Mapping[str, Any], trusted: Mapping[str, Sequence[Ed25519PublicKey]]
) -> tuple[tuple[tuple[str, str], ...], str]:
    """((role, key id), …) of the approvers who signed, and the code of the first fault, if any."""
    try:
        return tuple(sorted(roles_signed(document, MANIFEST_TYPE, trusted).items())), ""
    except Refusal as refusal:
        return (), refusal.codes[0]
