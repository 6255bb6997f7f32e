"""What an attestor signs for the vault: the EIP-712 document, and the rules by which a receipt may be paid."""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from policies.escrow import DEVELOPMENT_CHAINS, node_id
from policies.gate import Mode
from rapha.canonical import canonical, parse
from rapha.errors import Refusal
from rapha.receipt import MAX_RECEIPT, Predicate

SHARES = (70, 20, 5, 5)
WINDOW = 86400  # seconds that a signature may live
FIELDS = (
    ("escrow", "bytes32"),
    ("job", "bytes32"),
    ("node", "bytes32"),
    ("records", "uint256"),
    ("amount", "uint256"),
    ("receipt", "bytes32"),
    ("expiry", "uint256"),
)


def split(amount: int) -> tuple[int, int, int, int]:
    """Hospital, node owner, onboarder, protocol: 70/20/5/5 per cent rounded down, the remainder to the hospital."""
    owner, onboarder, protocol = (amount * share // 100 for share in SHARES[1:])
    return amount - owner - onboarder - protocol, owner, onboarder, protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a receipt claims. escrow: 0x and 64 hex digits; job, receipt: digests; node: its name's id in the vault."""

    mode: Mode
    attempt: int
    chain_id: int
    vault: str
    escrow: str
    job: str
    node: str
    records: int
    receipt: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Deposit:
    """What the vault holds at a final block, as far as a payment depends on it."""

    status: str
    node: str
    price: int
    max_records: int
    deadline: int
    attestors: tuple[str, ...]


def read_claim(statement: object, receipt: str) -> Claim:
    """The claim of an in-toto Statement whose DSSE envelope has the digest `receipt`. `Refusal` receipt-odd for others."""
    try:
        predicate = Predicate.model_validate_json(canonical(statement["predicate"]))  # type: ignore[index]
    except (KeyError, TypeError, ValueError):
        raise _odd() from None
    return Claim(
        mode=predicate.mode,
        attempt=predicate.attempt,
        chain_id=predicate.escrow.chain_id,
        vault=predicate.escrow.vault.lower(),
        escrow=predicate.escrow.id,
        job=predicate.job,
        node=node_id(predicate.node),
        records=predicate.records.unique,
        receipt=receipt,
    )


def statement_of(envelope: bytes) -> object:
    """The statement inside a DSSE envelope, its signatures not looked at: for the node's own receipt, and never to decide."""
    try:
        payload: str = parse(envelope, limit=MAX_RECEIPT, what="receipt")["payload"]
        return parse(base64.b64decode(payload, validate=True), limit=MAX_RECEIPT, what="statement")
    except (KeyError, TypeError, binascii.Error, ValueError):
        raise _odd() from None


def _odd() -> Refusal:
    return Refusal(["receipt-odd"], "the receipt does not have the fields that a settlement needs", gate="settle")


def refusals(
    claim: Claim, held: Deposit, *, chain_id: int, vault: str, signer: str, now: int, expiry: int, earlier: Mapping[str, str]
) -> tuple[str, ...]:
    """Codes why this attestor (`signer`, an address) must not sign; () when it may.

    `earlier`: what it signed for before, {job: receipt, escrow: job}.
    """
    held_rules = {
        "attest-other-chain": claim.chain_id == chain_id,
        "attest-other-vault": claim.vault == vault,
        "attest-development-receipt": claim.mode == "production" or chain_id in DEVELOPMENT_CHAINS,
        "attest-escrow-closed": held.status == "open",
        "attest-other-node": claim.node == held.node,
        "attest-no-records": claim.records > 0,
        "attest-over-cap": claim.records <= held.max_records,
        "attest-not-appointed": signer in held.attestors,
        "attest-too-late": now < held.deadline,
        "attest-expiry": now < expiry <= min(held.deadline, now + WINDOW),
        "attest-other-receipt": earlier.get(claim.job, claim.receipt) == claim.receipt,
        "attest-other-job": earlier.get(claim.escrow, claim.job) == claim.job,
    }
    return tuple(code for code, ok in held_rules.items() if ok is not True)


def typed_data(claim: Claim, price: int, expiry: int) -> dict[str, Any]:
    """The EIP-712 document; the amount comes from the deposit's own price."""
    return {
        "types": {
            "EIP712Domain": [
                {"name": "name", "type": "string"},
                {"name": "version", "type": "string"},
                {"name": "chainId", "type": "uint256"},
                {"name": "verifyingContract", "type": "address"},
            ],
            "Settlement": [{"name": name, "type": kind} for name, kind in FIELDS],
        },
        "primaryType": "Settlement",
        "domain": {"name": "RaphaVault", "version": "1", "chainId": claim.chain_id, "verifyingContract": claim.vault},
        "message": {
            "escrow": claim.escrow,
            "job": _hex(claim.job),
            "node": claim.node,
            "records": claim.records,
            "amount": claim.records * price,
            "receipt": _hex(claim.receipt),
            "expiry": expiry,
        },
    }


def _hex(digest: str) -> str:
    return "0x" + digest.removeprefix("sha256:")
