"""A receipt against the chain: is it the one that the vault paid on, and is that settled beyond recall? Read-only JSON-RPC.

In production the vault is read at the chain's `finalized` block: a settlement just seen may still be undone. A development
chain has no finality, so there it is the newest block, and the answer says `development`.
"""

import json
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any

from rapha.canonical import parse
from rapha.errors import ConfigurationError, PeerError, Refusal
from rapha.receipt import Statement

ESCROW_OF = "0x83a265a7"  # the first four bytes of keccak-256 of "escrowOf(bytes32)"
SETTLED = 2  # RaphaVault.Status.Settled
MAX_ANSWER = 1 << 20


@dataclass(frozen=True, slots=True)
class Anchor:
    """What the vault says of the deposit: `block` is the tag that was read at."""

    state: str
    block: str
    chain_id: int
    vault: str
    escrow: str
    records: int

    def to_json(self) -> dict[str, Any]:
        return {
            "state": self.state,
            "block": self.block,
            "chain_id": self.chain_id,
            "vault": self.vault,
            "escrow": self.escrow,
            "records": self.records,
        }


def check_anchor(statement: Statement, url: str) -> Anchor:
    """The settled anchor of `statement`, or `Refusal`; `PeerError(chain-…)` when the chain does not answer. What must hold:

    1 the chain is the receipt's (anchor-other-chain); 2 the vault is a contract there (anchor-no-vault); 3 the deposit is settled
    (anchor-not-settled), 4 for this job (anchor-other-job), 5 on this receipt (anchor-other-receipt), 6 for as many records
    (anchor-other-records).
    """
    escrow = statement.predicate.escrow
    block = "finalized" if statement.mode == "production" else "latest"
    if _number(_call(url, "eth_chainId", [])) != escrow.chain_id:
        raise _no("anchor-other-chain", "the RPC address serves another chain than the receipt's")
    if len(str(_call(url, "eth_getCode", [escrow.vault, block]))) <= 2:
        raise _no("anchor-no-vault", "there is no contract at the receipt's vault address")
    words = _words(_call(url, "eth_call", [{"to": escrow.vault, "data": ESCROW_OF + escrow.id[2:]}, block]))
    status, records, job, receipt = int(words[2], 16), int(words[3], 16), words[4], words[5]
    held = {
        "anchor-not-settled": status == SETTLED,
        "anchor-other-job": f"sha256:{job}" == statement.job,
        "anchor-other-receipt": f"sha256:{receipt}" == statement.digest,
        "anchor-other-records": records == statement.predicate.records.unique,
    }
    failed = [code for code, ok in held.items() if ok is not True]
    if failed:
        raise _no(failed[0], "the vault does not hold a settlement on this receipt")
    return Anchor("settled", block, escrow.chain_id, escrow.vault, escrow.id, records)


def _call(url: str, method: str, params: list[Any]) -> Any:
    try:
        scheme = urllib.parse.urlsplit(url).scheme
    except ValueError:  # a bracket that is not closed
        scheme = ""
    if scheme not in ("http", "https"):
        raise ConfigurationError(["rpc-url"], "the RPC address must be an http or https URL")
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310  checked above
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310
            document = parse(answer.read(MAX_ANSWER + 1), limit=MAX_ANSWER, what="chain's answer")
    except (OSError, HTTPException, Refusal):
        raise PeerError("chain-unreachable", "the chain's RPC address does not answer", peer="chain") from None
    if not isinstance(document, dict) or document.get("error") is not None or document.get("result") is None:
        raise PeerError("chain-odd-answer", f"the chain refused {method}", peer="chain")
    return document["result"]


def _number(value: object) -> int:
    try:
        return int(str(value), 16)
    except ValueError:
        raise PeerError("chain-odd-answer", "the chain's id is not a number", peer="chain") from None


def _words(value: object) -> list[str]:
    """The 32-byte words of an ABI answer: an offset, then payer, status, records, job, receipt and the terms."""
    text = str(value).removeprefix("0x").lower()
    words = [text[n : n + 64] for n in range(0, len(text), 64)]
    if len(words) < 6 or len(words[-1]) != 64 or not set(text) <= set("0123456789abcdef"):
        raise PeerError("chain-odd-answer", "the vault's answer is not a deposit's", peer="chain")
    return words


def _no(code: str, message: str) -> Refusal:
    return Refusal([code], message, gate="receipt", side="node")
