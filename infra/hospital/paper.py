"""The paper that covers the embedded hospital's cohort: the records file, the manifest, the three approvers' signatures."""

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydicom import dcmread

from blocks.part10 import content_digest
from infra.hospital.cohort import DATES, NAME, PROJECT, Cohort
from policies.manifest import APPROVERS, ManifestLimits, read_manifest
from policies.minimise import project_key, pseudonym
from policies.records import Record, records_root, write_records
from rapha.canonical import canonical
from rapha.signing import MANIFEST_TYPE, sign, write_private, write_public

AGREEMENT = "dua-2026-001"
CONSENT = "opt-out-applied"
PURPOSE = "diagnostic-model-research"
OUTER_QUERY = {"Modality": "DX", "BodyPartExamined": "CHEST", "StudyDate": f"{DATES[0]}-{DATES[1]}"}


@dataclass(frozen=True, slots=True)
class Paper:
    """manifest, records: the two files' bytes; root, count, patients: of the record set."""

    manifest: bytes
    records: bytes
    root: str
    count: int
    patients: int


def make_records(cohort: Cohort, hospital_key: bytes, project: str = PROJECT) -> list[Record]:
    """One record for each image within the cohort's bounds, under the project's pseudonyms."""
    key = project_key(hospital_key, project)
    return [
        Record(
            record=pseudonym(key, "record", image.uid),
            patient=pseudonym(key, "patient", str(dcmread(io.BytesIO(image.file), stop_before_pixels=True).PatientID)),
            content=content_digest(image.file),
            label=image.label,
        )
        for image in cohort.inside
    ]


def manifest_document(records: Iterable[Record], *, now: int, version_number: int = 1, **changes: Any) -> dict[str, Any]:
    """The demo's manifest, unsigned: in force for 30 days. `changes` replace whole fields."""
    listed = list(records)
    patients = len({record.patient for record in listed})
    document: dict[str, Any] = {
        "version": 1,
        "manifest_id": f"{NAME}-{version_number}",
        "agreement_id": AGREEMENT,
        "cohort": NAME,
        "projects": [PROJECT],
        "purposes": [PURPOSE],
        "consent": {"basis": CONSENT, "opt_outs_applied_at": now - 86400},
        "scope": {"modalities": ["DX"], "body_parts": ["CHEST"], "date_from": DATES[0], "date_to": DATES[1]},
        "limits": {"max_records": 10_000, "min_patients": 8, "max_output_bytes": 1 << 26, "max_metrics": 8},
        "record_set": {"root": records_root(listed), "count": len(listed), "patients": patients},
        "burned_in_checked": True,
        "issued_at": now - 60,
        "expires_at": now + 30 * 86400,
        "version_number": version_number,
    }
    return {**document, **changes}


def sign_manifest(document: Mapping[str, Any], keys: Mapping[str, Ed25519PrivateKey]) -> bytes:
    """The manifest's file, signed by each key in its role. Raises `Refusal` when it would not be read back."""
    signed: dict[str, Any] = dict(document)
    for role, key in sorted(keys.items()):
        signed = sign(signed, MANIFEST_TYPE, key, role)
    raw = canonical(signed) + b"\n"
    read_manifest(raw)
    return raw


def make_paper(cohort: Cohort, hospital_key: bytes, keys: Mapping[str, Ed25519PrivateKey], *, now: int) -> Paper:
    """The records file and the signed manifest of the demo's cohort. keys: role -> private key, for each of the approvers."""
    records = make_records(cohort, hospital_key)
    document = manifest_document(records, now=now)
    root, count, patients = document["record_set"].values()
    return Paper(sign_manifest(document, keys), write_records(records), root, count, patients)


def approver_keys(private: Path, trust: Path) -> dict[str, Ed25519PrivateKey]:
    """New keys for the approvers: private/<role>.pem, and trust/<role>/demo.pem for the node."""
    keys = {role: write_private(private / f"{role}.pem") for role in APPROVERS}
    for role, key in keys.items():
        write_public(trust / role / "demo.pem", key.public_key())
    return keys


def site_section() -> dict[str, Any]:
    """The section `manifest` of the demo's site policy."""
    return {"agreements": [AGREEMENT], "consent_bases": [CONSENT], "purposes": [PURPOSE]}


def site_limits() -> ManifestLimits:
    return ManifestLimits(**site_section())
