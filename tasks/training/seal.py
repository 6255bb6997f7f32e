"""Seal: behind the last door the release is encrypted to its recipient and a receipt is signed.

Order: door · staging key seen to be destroyed · hash the release again · encrypt · sign · receipt on disk · ledger. Nothing here
needs the staging key, so no receipt exists while it does. Before the ledger's `sealed` entry nothing that was written here
counts: a repeat after a crash writes it anew. After it, a repeat gives the same result.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError

from policies.gate import Evidence, Gate
from rapha.canonical import digest, digest_file, digest_of, parse
from rapha.declaration import Declaration
from rapha.errors import Refusal
from rapha.files import replace_durably
from rapha.receipt import Predicate, Statement, duration_bucket, sign_receipt, verify_receipt
from rapha.sealed import recipient_key, seal_files
from tasks.attempt import Attempt
from tasks.gate import Cleared, open_door

SEALED, RECEIPT = "sealed.bin", "receipt.json"
FILES = ("weights.safetensors", "metrics.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class SealFacts:
    """What the receipt says beyond the verdicts and the declaration; each a digest or a number that a gate has seen.

    declaration: of the signed declaration's bytes as they came; quote, requote: before training and before sealing; policy: of
    the policy documents; records_unique, commitment: the reader's own count and salted commitment; least_records: the site's
    smallest count that may be told; seconds: how long training ran.
    """

    declaration: str
    manifest: str
    policy: str
    launcher: str
    quote: str
    requote: str
    tcb_status: str
    records_unique: int
    commitment: str
    least_records: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedResult:
    """What may be delivered: two files and their digests, and the verified statement."""

    sealed: Path
    sealed_digest: str
    receipt: Path
    receipt_digest: str
    statement: Statement


def seal(
    previous: Cleared[Evidence],
    attempt: Attempt,
    gates: Mapping[str, Gate[Any]],
    declaration: Declaration,
    facts: SealFacts,
    receipt_key: Ed25519PrivateKey,
    destroy: Callable[[], Mapping[str, Any]],
) -> SealedResult:
    """Opens the door "seal" and makes the sealed result and the receipt of this attempt, once.

    `destroy` makes sure that the reader has forgotten the staging key and answers with its facts, `destroyed` among them.
    Raises `Refusal`: codes of the door, seal-key-not-destroyed, seal-release-changed, seal-few-records, seal-predicate,
    recipient-key, seal-kept-changed.
    """
    verdicts = open_door("seal", gates, attempt, previous)
    _destroyed(attempt, destroy)
    return _kept(attempt, receipt_key) or _made(attempt, verdicts, declaration, facts, receipt_key)


def _made(
    attempt: Attempt, verdicts: list[dict[str, Any]], declaration: Declaration, facts: SealFacts, key: Ed25519PrivateKey
) -> SealedResult:
    output = _output_evidence(attempt, verdicts)
    files = _release(attempt, output)
    sealed = attempt.folder / SEALED
    replace_durably(
        sealed,
        lambda stream: seal_files(files, recipient_key(declaration.recipient), stream, job=attempt.job, attempt=attempt.number),
    )
    subjects = {name: digest(content) for name, content in files.items()}
    subjects["sealed-result"] = _digest_of_file(sealed)
    raw = sign_receipt(_predicate(attempt, verdicts, declaration, facts, output), subjects, key)
    replace_durably(attempt.folder / RECEIPT, lambda stream: stream.write(raw))
    attempt.record("sealed", sealed=subjects["sealed-result"], receipt=digest(raw))
    return _result(attempt, raw, key)


def _kept(attempt: Attempt, key: Ed25519PrivateKey) -> SealedResult | None:
    """The result that this attempt has sealed already, if the ledger says so; it must still be what the ledger says."""
    entries = [entry.body for entry in attempt.ledger.entries() if entry.kind == "sealed" and _is_ours(entry.body, attempt)]
    if not entries:
        return None
    try:
        raw = (attempt.folder / RECEIPT).read_bytes()
        same = digest(raw) == entries[-1]["receipt"] and _digest_of_file(attempt.folder / SEALED) == entries[-1]["sealed"]
    except OSError:
        same = False
    if not same or len(entries) != 1:
        raise _no("seal-kept-changed", "the sealed result or the receipt is not the one in the ledger")
    return _result(attempt, raw, key)


def _is_ours(body: Mapping[str, Any], attempt: Attempt) -> bool:
    return body.get("job") == attempt.job and body.get("attempt") == attempt.number


def _result(attempt: Attempt, raw: bytes, key: Ed25519PrivateKey) -> SealedResult:
    """Verified as its reader will verify it, before anyone else has it."""
    statement = verify_receipt(raw, key.public_key(), job=attempt.job)
    return SealedResult(
        sealed=attempt.folder / SEALED,
        sealed_digest=statement.subjects["sealed-result"],
        receipt=attempt.folder / RECEIPT,
        receipt_digest=statement.digest,
        statement=statement,
    )


def _output_evidence(attempt: Attempt, verdicts: list[dict[str, Any]]) -> dict[str, Any]:
    """The output gate's kept facts: those that the door's verdict names, and no other."""
    subject = next(verdict["subject"] for verdict in verdicts if verdict["gate"] == "output")
    evidence = parse((attempt.folder / "evidence" / "output.json").read_bytes(), what="output evidence")
    if not isinstance(evidence, dict) or digest_of(evidence) != subject:
        raise _no("seal-release-changed", "the output evidence is not the one that was judged")
    return evidence


def _release(attempt: Attempt, output: Mapping[str, Any]) -> dict[str, bytes]:
    folder = attempt.folder / "release"
    try:
        names = {path.name for path in folder.iterdir()}
        files = {name: (folder / name).read_bytes() for name in FILES}
    except OSError:
        raise _no("seal-release-changed", "the release cannot be read") from None
    wanted = {"weights.safetensors": output["release"]["weights"], "metrics.json": output["release"]["metrics"]}
    if names != set(FILES) or {name: digest(content) for name, content in files.items()} != wanted:
        raise _no("seal-release-changed", "the release is not the one that the output gate cleared")
    return files


def _predicate(
    attempt: Attempt, verdicts: list[dict[str, Any]], declaration: Declaration, facts: SealFacts, output: Mapping[str, Any]
) -> Predicate:
    if facts.records_unique < facts.least_records:
        raise _no("seal-few-records", "fewer records were handed over than the site's smallest count that may be told")
    budget = declaration.budget
    try:
        return Predicate.model_validate(
            {
                "version": 1,
                "mode": attempt.mode,
                "job": attempt.job,
                "attempt": attempt.number,
                "node": declaration.node,
                "declaration": facts.declaration,
                "escrow": {"chain_id": budget.chain_id, "vault": budget.vault, "id": budget.escrow},
                "manifest": facts.manifest,
                "policy": facts.policy,
                "workload": declaration.workload.digest,
                "launcher": facts.launcher,
                "platform": {"quote": facts.quote, "requote": facts.requote, "tcb_status": facts.tcb_status},
                "records": {"unique": facts.records_unique, "commitment": facts.commitment},
                "gates": tuple({"gate": v["gate"], "subject": v["subject"], "policy": v["policy"]} for v in verdicts),
                "leak_bits": sum(output["leak"].values()),
                "duration": duration_bucket(facts.seconds),
                "sealed_hour": attempt.clock() // 3600 * 3600,
                "ledger_head": [entry.hash for entry in attempt.ledger.entries()][-1],
            }
        )
    except ValidationError:
        raise _no("seal-predicate", "a fact for the receipt is missing or of another kind") from None


def _destroyed(attempt: Attempt, destroy: Callable[[], Mapping[str, Any]]) -> None:
    facts = destroy()
    if facts.get("destroyed") is not True:
        raise _no("seal-key-not-destroyed", "the reader does not say that the staging key is gone")
    if not any(entry.kind == "staging-destroyed" and _is_ours(entry.body, attempt) for entry in attempt.ledger.entries()):
        attempt.record("staging-destroyed")


def _digest_of_file(path: Path) -> str:
    with path.open("rb") as stream:
        return digest_file(stream)


def _no(code: str, message: str) -> Refusal:
    return Refusal([code], message, gate="seal", side="node")
