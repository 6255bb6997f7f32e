"""The receipt: an in-toto Statement v1 in a DSSE envelope, and its verifier, for an auditor with one file and one key.

The file is the envelope in canonical JSON and one newline; the payload is the statement in canonical JSON. Both are checked to be
exactly that, so one changed byte anywhere, a blank or the order of two fields too, is a refusal. Fields are digests, numbers and
names from fixed sets: no text that a job chose, no time finer than an hour, no identifier.

Sources: in-toto attestation framework v1 (Statement, ResourceDescriptor), DSSE v1.0.2 (protocol, envelope), RFC 8785.
"""

import base64
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rapha.canonical import canonical, digest, parse
from rapha.declaration import Address, Digest, Name
from rapha.errors import Refusal
from rapha.signing import key_id, pae

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:rapha:training-receipt:v1"
MAX_RECEIPT = 256 * 1024
SUBJECTS = ("metrics.json", "sealed-result", "weights.safetensors")
GATES = (
    "intake",
    "escrow",
    "manifest",
    "workload",
    "policy",
    "attestation",
    "cut",
    "query",
    "retrieve",
    "train",
    "output",
    "reattestation",
)

DurationBucket = Literal["under-1m", "under-10m", "under-1h", "under-6h", "under-1d", "over-1d"]
TcbStatus = Literal[
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
]
_BUCKETS: tuple[tuple[int, DurationBucket], ...] = (
    (60, "under-1m"),
    (600, "under-10m"),
    (3600, "under-1h"),
    (21600, "under-6h"),
    (86400, "under-1d"),
)


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Escrow(_Strict):
    """Where the deposit lies: the receipt is for this chain, this vault and this deposit, and for no other."""

    chain_id: Annotated[int, Field(gt=0)]
    vault: Address
    id: Annotated[str, Field(pattern=r"^0x[0-9a-f]{64}$")]


class Platform(_Strict):
    """What ran it: digests of the DCAP quote before training and of the one before sealing, and the TCB status found."""

    quote: Digest
    requote: Digest
    tcb_status: TcbStatus


class Records(_Strict):
    """How many different records the reader handed over, and a salted commitment to which."""

    unique: Annotated[int, Field(gt=0, le=10**7)]
    commitment: Digest


class GateResult(_Strict):
    """One verdict of the attempt: the gate, the facts it judged, the policy it judged by. All of them cleared."""

    gate: Name
    subject: Digest
    policy: Digest


class Predicate(_Strict):
    """What was done. `declaration`: digest of the signed declaration as it came; `job`: the same without its signatures.

    `sealed_hour`: seconds since the epoch, whole hours; `ledger_head`: the ledger's newest hash when the receipt was made.
    """

    version: Literal[1]
    mode: Literal["development", "production"]
    job: Digest
    attempt: Annotated[int, Field(gt=0)]
    node: Name
    declaration: Digest
    escrow: Escrow
    manifest: Digest
    policy: Digest
    workload: Digest
    launcher: Digest
    platform: Platform
    records: Records
    gates: Annotated[tuple[GateResult, ...], Field(min_length=1, max_length=64)]
    leak_bits: Annotated[int, Field(ge=0)]
    duration: DurationBucket
    sealed_hour: Annotated[int, Field(gt=0, multiple_of=3600)]
    ledger_head: Digest


@dataclass(frozen=True, slots=True)
class Statement:
    """A verified receipt. `digest`: of the file's bytes, which is what is anchored; `subjects`: name -> digest of what left."""

    digest: str
    subjects: dict[str, str]
    predicate: Predicate
    document: dict[str, Any]

    @property
    def job(self) -> str:
        return self.predicate.job

    @property
    def mode(self) -> str:
        return self.predicate.mode


def duration_bucket(seconds: float) -> DurationBucket:
    """A run's length as one of six names: its exact time could say something of the records."""
    return next((name for limit, name in _BUCKETS if seconds <= limit), "over-1d")


def sign_receipt(predicate: Predicate, subjects: dict[str, str], key: Ed25519PrivateKey) -> bytes:
    """The receipt file. `subjects` must be the digests of exactly the two released files and the sealed result."""
    if set(subjects) != set(SUBJECTS):
        raise ValueError("a receipt names exactly the released files and the sealed result")
    payload = canonical(
        {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": name, "digest": {"sha256": subjects[name].removeprefix("sha256:")}} for name in SUBJECTS],
            "predicateType": PREDICATE_TYPE,
            "predicate": predicate.model_dump(mode="json"),
        }
    )
    signature = {"keyid": key_id(key.public_key()), "sig": _b64(key.sign(pae(PAYLOAD_TYPE, payload)))}
    return canonical({"payload": _b64(payload), "payloadType": PAYLOAD_TYPE, "signatures": [signature]}) + b"\n"


def verify_receipt(
    raw: bytes, key: Ed25519PublicKey, *, job: str | None = None, chain_id: int | None = None, vault: str | None = None
) -> Statement:
    """The statement in a receipt file, or `Refusal` with the code of the first thing that does not hold:

    1 the file is canonical JSON and one newline, an envelope with exactly its fields (receipt-malformed); 2 the payload type is
    in-toto's (receipt-type); 3 there is one signature, by `key` and no other (receipt-key); 4 it verifies over the payload
    (receipt-signature); 5 the payload is a statement in canonical JSON, of this predicate type (receipt-statement); 6 its
    subjects are exactly the released files and the sealed result (receipt-subjects); 7 its predicate has exactly its fields,
    each of its kind (receipt-predicate); 8 each required gate is there once, in order (receipt-gates); 9 job, chain and vault
    are those asked for (receipt-other-job, -chain, -vault).
    """
    envelope = _envelope(raw)  # 1
    if envelope["payloadType"] != PAYLOAD_TYPE:  # 2
        raise _no("receipt-type", "the payload is not an in-toto statement")
    payload = _unb64(envelope["payload"])
    _verify_signature(envelope["signatures"], payload, key)  # 3, 4
    document = _statement(payload)  # 5
    subjects = _subjects(document["subject"])  # 6
    predicate = _predicate(document["predicate"])  # 7
    if tuple(result.gate for result in predicate.gates) != GATES:  # 8
        raise _no("receipt-gates", "the receipt does not hold each required gate once, in order")
    _expect(predicate, job, chain_id, vault)  # 9
    return Statement(digest(raw), subjects, predicate, document)


def _envelope(raw: bytes) -> dict[str, Any]:
    try:
        envelope = parse(raw, limit=MAX_RECEIPT, what="receipt")
    except Refusal as refusal:
        raise _no("receipt-malformed", f"the receipt is not strict JSON: {refusal.codes[0]}") from None
    if (
        not isinstance(envelope, dict)
        or set(envelope) != {"payload", "payloadType", "signatures"}
        or canonical(envelope) + b"\n" != raw
    ):
        raise _no("receipt-malformed", "the receipt is not a DSSE envelope in canonical form")
    return envelope


def _verify_signature(signatures: object, payload: bytes, key: Ed25519PublicKey) -> None:
    if not isinstance(signatures, list) or len(signatures) != 1 or not isinstance(signatures[0], dict):
        raise _no("receipt-malformed", "a receipt has one signature")
    signature = signatures[0]
    if set(signature) != {"keyid", "sig"}:
        raise _no("receipt-malformed", "a signature has the fields keyid and sig")
    if signature["keyid"] != key_id(key):
        raise _no("receipt-key", "the receipt is signed by another key than the one pinned")
    try:
        key.verify(_unb64(signature["sig"]), pae(PAYLOAD_TYPE, payload))
    except InvalidSignature:
        raise _no("receipt-signature", "the signature does not verify over this receipt") from None


def _statement(payload: bytes) -> dict[str, Any]:
    try:
        document = parse(payload, limit=MAX_RECEIPT, what="statement")
    except Refusal:
        raise _no("receipt-statement", "the payload is not strict JSON") from None
    if (
        not isinstance(document, dict)
        or set(document) != {"_type", "subject", "predicateType", "predicate"}
        or document["_type"] != STATEMENT_TYPE
        or document["predicateType"] != PREDICATE_TYPE
        or canonical(document) != payload
    ):
        raise _no("receipt-statement", "the payload is not a training receipt's statement in canonical form")
    return document


def _subjects(value: object) -> dict[str, str]:
    wanted = [{"name": name, "digest": {"sha256": _hex_of(value, n)}} for n, name in enumerate(SUBJECTS)]
    if value != wanted:
        raise _no("receipt-subjects", "the subjects are not the two released files and the sealed result")
    return {str(item["name"]): f"sha256:{_hex_of(value, n)}" for n, item in enumerate(wanted)}


def _hex_of(value: object, n: int) -> str:
    try:
        text = value[n]["digest"]["sha256"]  # type: ignore[index]
    except (LookupError, TypeError):
        return ""
    return text if isinstance(text, str) and len(text) == 64 and set(text) <= set("0123456789abcdef") else ""


def _predicate(value: object) -> Predicate:
    try:
        predicate = Predicate.model_validate_json(canonical(value))
    except ValidationError:
        raise _no("receipt-predicate", "the predicate is not a training receipt's: a field or its kind") from None
    return predicate


def _expect(predicate: Predicate, job: str | None, chain_id: int | None, vault: str | None) -> None:
    if job is not None and predicate.job != job:
        raise _no("receipt-other-job", "the receipt is for another job")
    if chain_id is not None and predicate.escrow.chain_id != chain_id:
        raise _no("receipt-other-chain", "the receipt is for a deposit on another chain")
    if vault is not None and predicate.escrow.vault.lower() != vault.lower():
        raise _no("receipt-other-vault", "the receipt is for a deposit in another vault")


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _unb64(text: object) -> bytes:
    """Base64 with padding and no spare bits: one text for each run of bytes."""
    try:
        data = base64.b64decode(text, validate=True) if isinstance(text, str) else None
    except ValueError:
        data = None
    if data is None or _b64(data) != text:
        raise _no("receipt-malformed", "a field is not plain base64")
    return data


def _no(code: str, message: str) -> Refusal:
    return Refusal([code], message, gate="receipt", side="node")
