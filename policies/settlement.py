"""What an attestor signs for the vault: the EIP-712 document, and the rules by which a receipt may be paid."""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from policies.escrow import node_id
from rapha.canonical import is_digest, parse
from rapha.errors import Refusal

SHARES = (70, 20, 5, 5)
WINDOW = 86400  # seconds that a signature may live
MAX_RECEIPT = 1 << 20
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
        predicate = statement["predicate"]  # type: ignore[index]
        escrow = predicate["escrow"]
        claim = Claim(
            attempt=predicate["attempt"],
            chain_id=escrow["chain_id"],
            vault=escrow["vault"].lower(),
            escrow=escrow["escrow"],
            job=predicate["job"],
            node=node_id(predicate["node"]),
            records=predicate["records_unique"],
            receipt=receipt,
        )
    except (KeyError, TypeError, AttributeError):
        raise _odd() from None
    numbers = (claim.attempt, claim.chain_id, claim.records)
    if any(type(number) is not int for number in numbers) or not is_digest(claim.job) or not _is_id(claim.escrow):
        raise _odd()
    return claim


def statement_of(envelope: bytes) -> object:
    """The statement inside a DSSE envelope, its signatures not looked at: for the node's own receipt, and never to decide."""
    try:
        payload: str = parse(envelope, limit=MAX_RECEIPT, what="receipt")["payload"]
        return parse(base64.b64decode(payload, validate=True), limit=MAX_RECEIPT, what="statement")
    except (KeyError, TypeError, binascii.Error, ValueError):
        raise _odd() from None


def _odd() -> Refusal:
    return Refusal(["receipt-odd"], "the receipt does not have the fields that a settlement needs", gate="settle")


def _is_id(text: object) -> bool:
    return isinstance(text, str) and text.startswith("0x") and is_digest("sha256:" + text[2:])


def refusals(
    claim: Claim, held: Deposit, *, chain_id: int, vault: str, signer: str, now: int, expiry: int, earlier: Mapping[str, str]
) -> tuple[str, ...]:
    """Codes why this attestor (`signer`, an address) must not sign; () when it may.

    `earlier`: what it signed for before, {job: receipt, escrow: job}.
    """
    held_rules = {
        "attest-other-chain": claim.chain_id == chain_id,
        "attest-other-vault": claim.vault == vault,
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
