"""Stage 1: the declaration is read again from the register's bytes, and everything that it names is fetched by digest, now."""

import itertools
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from blocks.register_rows import JobFacts
from policies.gate import Mode, Verdict, explain
from policies.intake import AdmissionEvidence, Blob, IntakeEvidence, IntakeLimits, admission_gate, intake_gate, size_cap
from rapha.canonical import digest, digest_file
from rapha.declaration import Declaration, read_declaration
from rapha.errors import Refusal
from rapha.sealed import recipient_key
from rapha.signing import JOB_TYPE, roles_signed
from tasks.attempt import Attempt
from tasks.gate import Cleared, require

OwnerKeys = Mapping[str, Sequence[Ed25519PublicKey]]
MAX_IMAGE_MANIFEST, MAX_IMAGE_MEMBERS = 4 << 20, 4096


class BlobSource(Protocol):
    """Where blobs come from: the orchestrator's block."""

    def fetch_blob(self, digest: str, folder: Path, cap: int) -> Path:
        """The blob's file in `folder`, at most `cap` bytes. `PeerError` when it cannot be had."""

    def fetch_image(self, digest: str, folder: Path, cap: int) -> Path:
        """The OCI archive under an image manifest's digest, which the caller checks."""


@dataclass(frozen=True)
class Admission:
    """A declaration that may come in: nothing was recorded, nothing fetched."""

    declaration: Declaration
    document: Mapping[str, Any]
    job: str
    verdict: Verdict


def admit(
    raw: bytes,
    *,
    sender: str | None,
    owner_keys: OwnerKeys,
    node_id: str,
    limits: IntakeLimits,
    mode: Mode,
    now: int,
    open_jobs: int = 0,
) -> Admission:
    """Strict parse and the admission gate, without side effects. `sender` None takes the declaration's word for its owner.

    Raises `Refusal` with the reader's codes or the gate's.
    """
    declaration, document, job = read_declaration(raw)
    said = _said(declaration, document, job, declaration.owner if sender is None else sender, owner_keys, node_id, limits)
    bound: dict[str, Any] = {"job": job, "attempt": 0, "nonce": "0" * 64, "at": now, "previous": job, "mode": mode}
    gate = admission_gate(limits)
    verdict = gate.judge(AdmissionEvidence(**bound, **said, open_jobs=open_jobs))
    if not verdict.cleared:
        side = "job" if all(gate.reasons[code].side == "job" for code in verdict.codes if code in gate.reasons) else "node"
        words = "; ".join(f"{reason['wrong']} {reason['todo']}" for reason in explain(gate, verdict.codes))
        raise Refusal(verdict.codes, words, gate=gate.name, side=side, subject=job)
    return Admission(declaration, document, job, verdict)


def intake(
    raw: bytes,
    attempt: Attempt,
    *,
    owner_keys: OwnerKeys,
    facts: JobFacts,
    orchestrator: BlobSource,
    blobs: Path,
    node_id: str,
    limits: IntakeLimits,
) -> Cleared[IntakeEvidence]:
    """The first gate. `raw` is the declaration as registered, `facts` the register's, `blobs` the folder for what is fetched
    (as sha256/<hex>).

    Raises `Refusal` (gate "intake") and what `orchestrator` raises: `PeerError` is worth another try.
    """
    declaration, document, job = read_declaration(raw)
    wanted = wanted_blobs(declaration)
    said = _said(declaration, document, job, facts.owner, owner_keys, node_id, limits)
    fetched = tuple(_fetched(kind, name, declaration, orchestrator, blobs / "sha256", limits) for kind, name in wanted.items())
    evidence = IntakeEvidence(
        **attempt.facts(attempt.job),
        **said,
        open_jobs=facts.open_jobs,
        registered=facts.registered,
        registered_attempt=facts.attempt,
        registered_nonce=facts.nonce,
        kinds=tuple(wanted),
        blobs=fetched,
    )
    return require(intake_gate(limits), evidence, attempt)


def wanted_blobs(declaration: Declaration) -> dict[str, str]:
    """kind -> digest, of everything that the declaration names and the node must fetch."""
    workload = declaration.workload
    base = {"base-weights": workload.base_weights} if workload.base_weights else {}
    return {"workload": workload.digest, "signature": workload.signature, **base}


def _said(
    declaration: Declaration,
    document: Mapping[str, Any],
    job: str,
    sender: str,
    owner_keys: OwnerKeys,
    node_id: str,
    limits: IntakeLimits,
) -> dict[str, Any]:
    signer, codes = _signer(document, owner_keys.get(sender, ()))
    return {
        "declaration": job,
        "owner": declaration.owner,
        "sender": sender,
        "signer": signer,
        "signature_codes": codes,
        "node": declaration.node,
        "this_node": node_id,
        "deadline": declaration.deadline,
        "max_seconds": declaration.run.max_seconds,
        "epochs": declaration.run.epochs,
        "date_from": declaration.dataset.date_from,
        "date_to": declaration.dataset.date_to,
        "recipient_usable": _can_seal_to(declaration.recipient),
        "limits": limits,
    }


def _signer(document: Mapping[str, Any], keys: Sequence[Ed25519PublicKey]) -> tuple[str, tuple[str, ...]]:
    try:
        return roles_signed(document, JOB_TYPE, {"ai-team": keys}).get("ai-team", ""), ()
    except Refusal as refusal:
        return "", refusal.codes


def _can_seal_to(recipient: str) -> bool:
    try:
        recipient_key(recipient)
    except Refusal:
        return False
    return True


def _fetched(
    kind: str, wanted: str, declaration: Declaration, orchestrator: BlobSource, folder: Path, limits: IntakeLimits
) -> Blob:
    cap = size_cap(kind, limits)
    if kind == "workload" and declaration.workload.kind == "oci":
        path = folder / wanted.removeprefix("sha256:")
        if not path.is_file() or _image_digest(path, wanted) != wanted:
            path = orchestrator.fetch_image(wanted, folder, cap)
        return Blob(kind, wanted, _image_digest(path, wanted), path.stat().st_size)
    path = orchestrator.fetch_blob(wanted, folder, cap)
    return Blob(kind, wanted, _file_digest(path), path.stat().st_size)


def _file_digest(path: Path) -> str:
    with path.open("rb") as stream:
        return digest_file(stream)


def _image_digest(path: Path, wanted: str) -> str:
    """An image is named by its manifest, which lies inside the archive: the digest of its bytes, or "" where it is not there."""
    name = "blobs/sha256/" + wanted.removeprefix("sha256:")
    try:
        with tarfile.open(path, "r:") as archive:
            for member in itertools.islice(archive, MAX_IMAGE_MEMBERS):
                if member.name.removeprefix("./") == name and member.isreg() and member.size <= MAX_IMAGE_MANIFEST:
                    stream = archive.extractfile(member)
                    return digest(stream.read()) if stream else ""
    except tarfile.TarError:
        return ""
    return ""
