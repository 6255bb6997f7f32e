"""`rapha manifest build | sign | check`: the custodian's dataset manifest, from a scoped query to the gate's own verdict."""

import base64
import binascii
import datetime as dt
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Literal

import cyclopts
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from blocks.pacs import DicomWeb
from policies.gate import Mode, Verdict, explain
from policies.manifest import (
    MAX_MANIFEST,
    JobIntent,
    Manifest,
    ManifestEvidence,
    ManifestLimits,
    job_intent,
    manifest_facts,
    outer_facts,
    read_manifest,
    scope_of,
)
from policies.manifest_gate import manifest_gate
from policies.minimise import project_key
from policies.records import read_records, records_root, write_records
from policies.site import read_section
from rapha.canonical import canonical, digest, parse
from rapha.console.app import AsJson, Result, group
from rapha.declaration import read_declaration
from rapha.errors import ConfigurationError
from rapha.files import read_regular
from rapha.signing import MANIFEST_TYPE, load_private, load_trusted, sign
from tasks.shared.collect import collect_records
from tasks.training.manifest import records_facts

Role = Literal["custodian", "dpo", "caldicott"]
DAY = 86400
MAX_LABELS = 64 << 20


def register(app: cyclopts.App) -> None:
    manifests = group(app, "manifest", "The hospital's dataset manifest: what was approved, and its records.")
    manifests.command(build)
    manifests.command(sign_manifest, name="sign")
    manifests.command(check)


def build(
    path: Path,
    *,
    records: Path,
    cohort: str,
    project: str,
    purpose: list[str],
    agreement: str,
    consent_basis: str,
    opt_outs_applied: str,
    modality: list[str],
    body_part: list[str],
    date_from: str,
    date_to: str,
    labels: Path | None = None,
    min_patients: int = 8,
    max_records: int | None = None,
    max_output_bytes: int = 1 << 26,
    max_metrics: int = 8,
    days: int = 30,
    version_number: int = 1,
    burned_in_checked: bool = False,
    as_json: AsJson = False,
) -> Result:
    """Ask the archive for a cohort and write its manifest to PATH, unsigned, and its records file.

    Reads RAPHA_DICOMWEB_BASE_URL and RAPHA_PHI_HMAC_KEY_BASE64. Every instance is hashed as it streams past; nothing is kept.

    Example: `rapha manifest build m.json --records r.jsonl --cohort chest-dx --project chest-lesion --purpose research
    --agreement dua-1 --consent-basis opt-out-applied --opt-outs-applied 2026-11-20
    --modality DX --body-part CHEST --date-from 20240101 --date-to 20241231`

    Parameters
    ----------
    path
        Where to write the manifest.
    records
        Where to write the records file; it stays in the hospital.
    opt_outs_applied
        When those who said no were last taken out: a date, or a time as RFC 3339 has it (UTC where it names no zone).
    labels
        JSON object of SOP Instance UID to class number, from the hospital's own reports.
    burned_in_checked
        Somebody has looked for text burned into the images.
    """
    who = {"agreement_id": agreement, "cohort": cohort, "projects": [project], "purposes": purpose}
    scope = {"modalities": modality, "body_parts": body_part, "date_from": date_from, "date_to": date_to}
    limits = {"min_patients": min_patients, "max_output_bytes": max_output_bytes, "max_metrics": max_metrics}
    document = _draft(who, scope, {"max_records": max_records or 1, **limits}, version_number, days)
    document |= {"consent": {"basis": consent_basis, "opt_outs_applied_at": _time(opt_outs_applied)}}
    document |= {"burned_in_checked": burned_in_checked}
    bounds = scope_of(read_manifest(canonical(document))[0].scope)  # strict before the archive is asked
    archive = DicomWeb(_variable("RAPHA_DICOMWEB_BASE_URL"))
    key = project_key(_hospital_key(), project)
    found = collect_records(archive, bounds, key, _labels(labels), progress=_show if sys.stderr.isatty() else None)
    if not found:
        raise ConfigurationError(["manifest-no-records"], "the archive holds nothing within this scope")
    patients = len({record.patient for record in found})
    document["record_set"] = {"root": records_root(found), "count": len(found), "patients": patients}
    document["limits"]["max_records"] = max_records or len(found)
    records.touch(mode=0o600)
    records.write_bytes(write_records(found))
    path.write_text(json.dumps(document, indent=2) + "\n")
    said = f"{len(found)} records of {patients} patients; next: rapha manifest sign {path} --role custodian --key KEY.pem"
    return Result({"manifest": str(path), "records": str(records), **document["record_set"]}, [said])


def _draft(who: dict[str, Any], scope: dict[str, Any], limits: dict[str, Any], version_number: int, days: int) -> dict[str, Any]:
    """A manifest before its records are known."""
    now = int(time.time())
    return {
        "version": 1,
        "manifest_id": f"{who['cohort']}-{version_number}",
        **who,
        "scope": scope,
        "limits": limits,
        "record_set": {"root": "sha256:" + "0" * 64, "count": 1, "patients": 1},
        "issued_at": now,
        "expires_at": now + days * DAY,
        "version_number": version_number,
    }


def sign_manifest(path: Path, *, key: Path, role: Role, out: Path | None = None, as_json: AsJson = False) -> Result:
    """Add one approver's signature to the manifest at PATH.

    Example: `rapha manifest sign manifest.json --role dpo --key dpo.pem`

    Parameters
    ----------
    path
        The manifest.
    key
        The approver's Ed25519 private key (PEM, readable by its owner alone).
    role
        Custodian, dpo or caldicott; each signs with a key of their own.
    out
        Where to write it; in place, when left out.
    """
    _, document, name = read_manifest(_bytes(path))
    others = [entry for entry in document.get("signatures", []) if entry.get("role") != role]
    signed = sign({**document, "signatures": others}, MANIFEST_TYPE, load_private(key), role)
    (out or path).write_bytes(canonical(signed) + b"\n")
    roles = sorted(entry["role"] for entry in signed["signatures"])
    return Result({"manifest": name, "roles": roles, "path": str(out or path)}, [f"{name} signed by: {', '.join(roles)}"])


def check(
    path: Path | None = None,
    *,
    records: Path | None = None,
    trust: Path | None = None,
    site: Path | None = None,
    job: Path | None = None,
    as_json: AsJson = False,
) -> Result:
    """Hold the manifest at PATH to this node's rules, by the gate itself; nothing is written.

    What is not given is read from the node's configuration: RAPHA_DATASET_MANIFEST_PATH, RAPHA_DATASET_RECORDS_PATH,
    RAPHA_TRUST_DIR, RAPHA_SITE_POLICY_PATH, RAPHA_DICOMWEB_STUDY_QUERY_JSON. Versions that this node has seen are not looked up.

    Example: `rapha manifest check manifest.json --job job.json`

    Parameters
    ----------
    job
        A declaration to hold to it as well; without one, the widest job that the manifest allows is assumed.
    """
    manifest, document, name = read_manifest(_bytes(path or Path(_variable("RAPHA_DATASET_MANIFEST_PATH"))))
    found = read_records(_bytes(records or Path(_variable("RAPHA_DATASET_RECORDS_PATH")), 1 << 30))
    limits = _limits(site or Path(_variable("RAPHA_SITE_POLICY_PATH")))
    declared = read_declaration(_bytes(job)) if job else None
    evidence = ManifestEvidence(
        job=declared[2] if declared else digest(b"no job"),
        attempt=0,
        nonce=digest(b"no attempt").removeprefix("sha256:"),
        at=int(time.time()),
        previous=declared[2] if declared else digest(b"no job"),
        mode=_mode(),
        **manifest_facts(manifest, document, name, _trusted(trust)),
        **records_facts(found),
        **outer_facts(_query()),
        intent=job_intent(declared[0]) if declared else widest(manifest),
        seen_version=0,
        seen_manifest="",
        limits=limits,
    )
    return _verdict(manifest_gate(limits).judge(evidence), limits, manifest, name)


def widest(manifest: Manifest) -> JobIntent:
    """The most that a job could ask under a manifest."""
    limits = manifest.limits
    return JobIntent(
        cohort=manifest.cohort,
        project=manifest.projects[0],
        purpose=manifest.purposes[0],
        scope=scope_of(manifest.scope),
        max_records=limits.max_records,
        max_seconds=0,
        output_bytes=limits.max_output_bytes,
        metrics=limits.max_metrics,
    )


def _verdict(verdict: Verdict, limits: ManifestLimits, manifest: Manifest, name: str) -> Result:
    reasons = explain(manifest_gate(limits), verdict.codes)
    counts = {"records": manifest.record_set.count, "patients": manifest.record_set.patients}
    data = {**verdict.to_json(), "manifest": name, **counts, "reasons": reasons}
    head = f"{data['verdict']}  manifest {name}: {counts['records']} records of {counts['patients']} patients"
    lines = [head, *(f"{reason['code']}: {reason['wrong']} {reason['todo']}" for reason in reasons)]
    return Result(data, lines, 3 if verdict.codes else 0)


def _trusted(trust: Path | None) -> dict[str, list[Ed25519PublicKey]]:
    return load_trusted(trust or Path(_variable("RAPHA_TRUST_DIR")) / "manifest")


def _limits(path: Path) -> ManifestLimits:
    site = parse(_bytes(path), what="site policy")
    section = site.get("manifest") if isinstance(site, dict) else None
    if not isinstance(section, dict):
        raise ConfigurationError(["site-policy-section-missing"], "the site policy has no section 'manifest'")
    return read_section(ManifestLimits, section, "manifest")


def _query() -> dict[str, str]:
    query = parse(_variable("RAPHA_DICOMWEB_STUDY_QUERY_JSON").encode(), what="study query")
    if not isinstance(query, dict) or not all(isinstance(value, str) for value in query.values()):
        raise ConfigurationError(["bad-dicomweb-study-query-json"], "RAPHA_DICOMWEB_STUDY_QUERY_JSON is not an object of strings")
    return query


def _mode() -> Mode:
    return "development" if os.environ.get("RAPHA_ENABLE_HOSPITAL_DATA_INTEGRATION") == "false" else "production"


def _hospital_key() -> bytes:
    try:
        return base64.b64decode(_variable("RAPHA_PHI_HMAC_KEY_BASE64"), validate=True)
    except binascii.Error:
        raise ConfigurationError(["bad-phi-hmac-key-base64"], "RAPHA_PHI_HMAC_KEY_BASE64 is not base64") from None


def _variable(name: str) -> str:
    value = os.environ.get(name, "").strip()
    if not value:
        raise ConfigurationError([f"missing-{name.removeprefix('RAPHA_').lower().replace('_', '-')}"], f"{name} is not set")
    return value


def _time(text: str) -> int:
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        raise ConfigurationError(["time-malformed"], "--opt-outs-applied is neither a date nor a time") from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)).timestamp())


def _labels(path: Path | None) -> dict[str, int]:
    labels = parse(_bytes(path, MAX_LABELS), limit=MAX_LABELS, what="labels file") if path else {}
    if not isinstance(labels, dict) or not all(type(value) is int and value >= 0 for value in labels.values()):
        raise ConfigurationError(["labels-malformed"], "the labels file is not an object of SOP Instance UIDs and class numbers")
    return labels


def _bytes(path: Path, limit: int = MAX_MANIFEST * 4) -> bytes:
    raw = read_regular(path, limit, "file-unreadable")
    if len(raw) > limit:
        raise ConfigurationError(["file-too-large"], f"{path} is larger than {limit} bytes")
    return raw


def _show(done: int, total: int) -> None:
    sys.stderr.write(f"\r{done} of {total} records hashed")
    sys.stderr.flush()
