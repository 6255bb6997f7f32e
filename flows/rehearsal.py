"""A dry run: what this node would say of a declaration, by its real gates and numbers, with nothing written, sent or fetched."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blocks.ledger import Ledger
from flows.node import Node
from policies.gate import Verdict
from policies.workload import ScanFacts, SignatureFacts, WeightsFacts, WorkloadEvidence
from rapha.canonical import digest
from rapha.declaration import Declaration, read_declaration
from rapha.errors import Refusal
from rapha.ledger import Entry
from tasks.attempt import Attempt
from tasks.gate import Cleared
from tasks.training.manifest import manifest
from tasks.training.policy import policy
from tasks.training.workload import blob_path, launcher_digest, workload

NONCE = "0" * 64


class RehearsalLedger(Ledger):
    """The node's ledger to read; what is appended stays in memory."""

    def __init__(self, real: Ledger) -> None:
        self.folder, self._real, self._said = real.folder, real, list[Entry]()

    def append(self, kind: str, body: dict[str, Any], *, at: int | None = None) -> Entry:
        entry = Entry.make(len(self._said), "", int(time.time()) if at is None else at, kind, body)
        self._said.append(entry)
        return entry

    def entries(self) -> Iterator[Entry]:
        yield from self._real.entries()
        yield from self._said

    @property
    def verdicts(self) -> list[dict[str, Any]]:
        return [entry.body for entry in self._said if entry.kind == "verdict"]


def rehearse(raw: bytes, node: Node, admitted: Cleared[Any] | Verdict) -> tuple[list[dict[str, Any]], list[str]]:
    """(the verdicts of manifest, workload and policy as JSON, names of gates that could only be assumed).

    Stops at the first refusal. The workload is judged where its bytes have been fetched before; else its facts are taken as
    declared, and "workload" is among the assumed.
    """
    declaration, _, job = read_declaration(raw)
    ledger = RehearsalLedger(node.ledger)
    with tempfile.TemporaryDirectory(prefix="rapha-rehearsal-") as folder:
        attempt = Attempt(job=job, number=1, nonce=NONCE, mode=node.settings.mode, folder=Path(folder), ledger=ledger)
        try:
            assumed = _judged(node, attempt, declaration, _Start(job, admitted))
        except Refusal:
            if not ledger.verdicts or ledger.verdicts[-1]["verdict"] == "cleared":
                raise
            assumed = []  # the verdict says it, with everything that binds it
        finally:
            _make_writable(Path(folder))
    return ledger.verdicts, assumed


class _Start:
    """Where the chain of subjects begins: the admission's verdict."""

    def __init__(self, job: str, admitted: Cleared[Any] | Verdict) -> None:
        self.subject = admitted.subject or job


def _judged(node: Node, attempt: Attempt, declaration: Declaration, start: Any) -> list[str]:
    settings, limits = node.settings, node.limits
    listed = manifest(
        start,
        attempt,
        declaration,
        settings.path("RAPHA_DATASET_MANIFEST_PATH"),
        settings.path("RAPHA_DATASET_RECORDS_PATH"),
        node.trusted("manifest"),
        settings.outer_query,
        limits.manifest,
    )
    scanned, assumed = _workload(node, attempt, declaration, listed)
    previous: Any = listed if assumed else scanned
    evidence = scanned if isinstance(scanned, WorkloadEvidence) else scanned.evidence
    line = settings.text("RAPHA_WAN_INTERFACE")
    policy(previous, attempt, listed.evidence, evidence, node.engine, limits.policy, outside_line=line)
    return assumed


def _workload(node: Node, attempt: Attempt, declaration: Declaration, listed: Cleared[Any]) -> tuple[Any, list[str]]:
    blobs, trainer = node.state / "blobs", node.settings.path("RAPHA_TRAINER_COMMAND")
    try:
        blob_path(blobs, declaration.workload.digest)
        blob_path(blobs, declaration.workload.signature)
    except Refusal:
        return _as_declared(node, attempt, declaration, listed), ["workload"]
    trusted, wheels = node.trusted("workload"), node.known_wheels()
    return workload(listed, attempt, declaration, blobs, trusted, trainer, node.limits.workload, wheels), []


def _as_declared(node: Node, attempt: Attempt, declaration: Declaration, listed: Cleared[Any]) -> WorkloadEvidence:
    """The workload's facts as they will be if it is what the declaration says, signed by an identity of the site's list."""
    wanted, site = declaration.workload, node.limits.workload
    signer = site.identities[0] if site.identities else ""
    return WorkloadEvidence(
        **attempt.facts(listed.subject),
        workload=wanted.digest,
        found=wanted.digest,
        kind=wanted.kind,
        entry_point=wanted.entry_point,
        signature=SignatureFacts(
            declared=wanted.signature,
            found=wanted.signature,
            workload=wanted.digest,
            kind=wanted.kind,
            entry_point=wanted.entry_point,
            signer=signer,
        ),
        weights=WeightsFacts(declared=wanted.base_weights or "", found=wanted.base_weights or ""),
        scan=ScanFacts(files=1, own=1, known=0, size=1, tree=digest(b""), unpacked=digest(b""), wheels="", network=0, counts=()),
        folder=digest(b""),
        launcher=launcher_digest(node.settings.path("RAPHA_TRAINER_COMMAND")),
        limits=site,
    )


def _make_writable(folder: Path) -> None:
    """The workload stage makes what it unpacks read-only; a folder that goes away must be writable."""
    for path in (folder, *folder.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o700)
