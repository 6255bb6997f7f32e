"""The manifest stage: reads the hospital's signed manifest and its records file, and holds the job to them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from policies.manifest import (
    MAX_MANIFEST,
    ManifestEvidence,
    ManifestLimits,
    job_intent,
    manifest_facts,
    outer_facts,
    read_manifest,
)
from policies.manifest_gate import manifest_gate
from policies.records import Record, read_records, records_root
from rapha.declaration import Declaration
from rapha.errors import Refusal
from tasks.attempt import Attempt
from tasks.gate import Cleared, require

CLEARED = "manifest-cleared"
MAX_RECORDS_FILE = 1 << 30


def manifest(
    previous: Cleared[Any],
    attempt: Attempt,
    declaration: Declaration,
    manifest_path: Path,
    records_path: Path,
    trusted_keys: Mapping[str, Sequence[Ed25519PublicKey]],
    outer_query: Mapping[str, str],
    limits: ManifestLimits,
) -> Cleared[ManifestEvidence]:
    """Judges the manifest on disk against the environment's query and the job, and notes its version in the ledger.

    Raises `Refusal`: manifest-unreadable, records-unreadable, a code of the readers, or the gate's.
    """
    written, document, digest = read_manifest(_bytes(manifest_path, MAX_MANIFEST, "manifest-unreadable"))
    records = read_records(_bytes(records_path, MAX_RECORDS_FILE, "records-unreadable"))
    version, seen = last_cleared(attempt, written.cohort, written.projects)
    evidence = ManifestEvidence(
        **attempt.facts(previous.subject),
        **manifest_facts(written, document, digest, trusted_keys),
        **records_facts(records),
        **outer_facts(outer_query),
        intent=job_intent(declaration),
        seen_version=version,
        seen_manifest=seen,
        limits=limits,
    )
    cleared = require(manifest_gate(limits), evidence, attempt)
    if evidence.version_number > version:
        note = {"cohort": written.cohort, "projects": list(written.projects), "version_number": written.version_number}
        attempt.record(CLEARED, manifest=digest, **note)
    return cleared


def records_facts(records: Sequence[Record]) -> dict[str, Any]:
    """Root and counts of the records file as it is."""
    return {
        "records_root": records_root(records),
        "records": len(records),
        "records_patients": len({record.patient for record in records}),
    }


def last_cleared(attempt: Attempt, cohort: str, projects: Sequence[str]) -> tuple[int, str]:
    """(version number, digest) of the newest manifest that this node's ledger has cleared for the cohort and a project of it.

    From the ledger, so that putting an older file back (and with it somebody who has since said no) is seen.
    """
    newest = (0, "")
    for entry in attempt.ledger.entries():
        body = entry.body
        if entry.kind == CLEARED and body["cohort"] == cohort and set(body["projects"]) & set(projects):
            newest = max(newest, (int(body["version_number"]), str(body["manifest"])))
    return newest


def _bytes(path: Path, limit: int, code: str) -> bytes:
    try:
        with path.open("rb") as stream:
            raw = stream.read(limit + 1)
    except OSError as error:
        raise Refusal([code], f"a file of the dataset cannot be read: {error.strerror}", gate="manifest") from None
    if len(raw) > limit:
        raise Refusal([code], f"a file of the dataset is larger than {limit} bytes", gate="manifest")
    return raw
