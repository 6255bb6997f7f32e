"""The workload stage: what a job would run is read, unpacked read-only and scanned; nothing of it is started here.

Afterwards `attempt.folder / "workload"` holds exactly the files that were judged, and is what the sandbox mounts as /workload.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from blocks.launcher import tree_digest
from policies.scan import counted
from policies.wheels import table
from policies.workload import (
    MAX_SIGNATURE,
    ROLE,
    ScanFacts,
    SignatureFacts,
    WeightsFacts,
    WorkloadEvidence,
    WorkloadLimits,
    workload_gate,
)
from rapha.canonical import digest, digest_file, is_digest, parse
from rapha.declaration import Declaration
from rapha.errors import Refusal
from rapha.signing import WORKLOAD_TYPE, roles_signed
from tasks.attempt import Attempt
from tasks.gate import Cleared, require
from tasks.scanning.forms import inert_weights
from tasks.scanning.scan import Scanned, scan
from tasks.scanning.unpack import digest_tree, remove, seal

FOLDER = "workload"
_FIELDS = {"version", "workload", "kind", "entry_point", "signatures"}


def workload(
    previous: Cleared[Any],
    attempt: Attempt,
    declaration: Declaration,
    blobs: Path,
    trusted_keys: Mapping[str, Sequence[Ed25519PublicKey]],
    trainer_command: Path,
    limits: WorkloadLimits,
    known_wheels: Iterable[Mapping[str, str]] = (),
) -> Cleared[WorkloadEvidence]:
    """Judges the fetched workload, its signature, the base weights and the hospital's launcher.

    blobs: folder with `sha256/<hex>` (or `blobs/sha256/<hex>`) files; trainer_command: the launcher script; known_wheels: the
    hospital's own rows. Raises `Refusal`: workload-not-fetched, launcher-unreadable, or the gate's codes.
    """
    wanted = declaration.workload
    path = blob_path(blobs, wanted.digest)
    folder = attempt.folder / FOLDER
    if folder.exists():
        remove(folder)
    found = scan(
        path, folder, table(known_wheels), limits.scan(), kind=wanted.kind, declared=wanted.digest, entry_point=wanted.entry_point
    )
    seal(folder)
    evidence = WorkloadEvidence(
        **attempt.facts(previous.subject),
        workload=wanted.digest,
        found=found.manifest if wanted.kind == "oci" else _digest(path),
        kind=wanted.kind,
        entry_point=wanted.entry_point,
        signature=signature_facts(blobs, wanted.signature, trusted_keys),
        weights=weights_facts(blobs, wanted.base_weights),
        scan=scan_facts(found, folder),
        folder=tree_digest(folder),
        launcher=launcher_digest(trainer_command),
        limits=limits,
    )
    return require(workload_gate(limits), evidence, attempt)


def blob_path(blobs: Path, name: str) -> Path:
    """Where intake stored a blob. Only a whole digest names one."""
    if not is_digest(name):
        raise Refusal(["workload-not-fetched"], "a blob is not named by a digest", gate="workload", side="job")
    hexed = name.removeprefix("sha256:")
    for path in (blobs / "sha256" / hexed, blobs / "blobs" / "sha256" / hexed):
        if path.is_file() and not path.is_symlink():
            return path
    raise Refusal(["workload-not-fetched"], "a blob of the workload is not among those that intake fetched", gate="workload")


def launcher_digest(command: Path) -> str:
    """SHA-256 of the hospital's launcher script."""
    try:
        return _digest(command)
    except OSError:
        raise Refusal(["launcher-unreadable"], "RAPHA_TRAINER_COMMAND cannot be read", gate="workload") from None


def scan_facts(found: Scanned, folder: Path) -> ScanFacts:
    """Counts and digests of a scan, and the tree's digest read again from disk."""
    report = found.report
    return ScanFacts(
        files=report.files,
        own=report.own,
        known=report.known,
        size=report.size,
        tree=report.tree,
        unpacked=digest_tree(folder),
        wheels=report.wheels,
        network=report.network,
        counts=tuple(counted(report.remarks).items()),
    )


def signature_facts(blobs: Path, declared: str, trusted: Mapping[str, Sequence[Ed25519PublicKey]]) -> SignatureFacts:
    """What the signature document says, by whom; a fault is a fact, for the gate to refuse."""
    path = blob_path(blobs, declared)
    if path.stat().st_size > MAX_SIGNATURE:
        return SignatureFacts(declared=declared, found=_digest(path), fault="workload-signature-malformed")
    raw = path.read_bytes()
    try:
        document = parse(raw, limit=MAX_SIGNATURE, what="workload signature")
        if not isinstance(document, dict) or set(document) != _FIELDS or document["version"] != 1:
            raise Refusal(["signature-malformed"])
        if not all(isinstance(document[name], str) for name in ("workload", "kind", "entry_point")):
            raise Refusal(["signature-malformed"])
        signed = roles_signed(document, WORKLOAD_TYPE, {ROLE: trusted.get(ROLE, ())})
    except Refusal as refusal:
        return SignatureFacts(declared=declared, found=digest(raw), fault=_fault(refusal.codes[0]))
    return SignatureFacts(
        declared=declared,
        found=digest(raw),
        workload=document["workload"],
        kind=document["kind"],
        entry_point=document["entry_point"],
        signer=signed.get(ROLE, ""),
    )


def weights_facts(blobs: Path, declared: str | None) -> WeightsFacts:
    """Digest and form of the base weights; they are never loaded."""
    if declared is None:
        return WeightsFacts()
    path = blob_path(blobs, declared)
    return WeightsFacts(declared=declared, found=_digest(path), size=path.stat().st_size, tensors=inert_weights(path))


def _fault(code: str) -> str:
    return f"workload-{code}" if code.startswith("signature-") else "workload-signature-malformed"


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return digest_file(stream)
