"""The attestor: another party with another key, who checks a receipt and signs for the vault. The node cannot sign for it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import requests
from eth_account import Account
from eth_account.messages import encode_typed_data
from eth_keys.exceptions import BadSignature

from rapha.canonical import is_digest, parse
from rapha.errors import PeerError, Refusal

MAX_ANSWER = 1 << 16
FIELDS = {"escrow": str, "job": str, "records": int, "receipt": str, "expiry": int, "signer": str, "signature": str}


@dataclass(frozen=True, slots=True)
class Signed:
    """What one attestor signed for: escrow (0x, 64 hex), job and receipt (digests), unique records, expiry (seconds)."""

    escrow: str
    job: str
    records: int
    receipt: str
    expiry: int
    signer: str
    signature: bytes

    @property
    def claim(self) -> tuple[str, str, int, str]:
        return self.escrow, self.job, self.records, self.receipt


class Attestors:
    """The attestors of a site, each behind its own URL. `threshold` of them must sign."""

    def __init__(self, *urls: str, threshold: int = 1, timeout: float = 60.0) -> None:
        self.urls, self.threshold, self.timeout = urls, threshold, timeout

    def attest(self, receipt: bytes, *, expiry: int, accept: Callable[[Signed], bool]) -> list[Signed]:
        """Signatures of `threshold` attestors, in ascending order of the signers' addresses; what `accept` denies does not count.

        `expiry` (seconds) is when the signatures end. When too few sign: `PeerError` if those who failed would be enough, else
        the `Refusal` of those who said no.
        """
        signed: dict[str, Signed] = {}
        failed: list[PeerError] = []
        said_no: list[Refusal] = []
        for url in self.urls:
            try:
                one = self._ask(url, receipt, expiry)
                if one.expiry != expiry or not accept(one):
                    raise PeerError("attestor-other-claim", "an attestor signed for something else", peer="attestor")
                signed[one.signer] = one
            except PeerError as error:
                failed.append(error)
            except Refusal as refusal:
                said_no.append(refusal)
            if len(signed) == self.threshold:
                return sorted(signed.values(), key=lambda one: int(one.signer, 16))
        if said_no and len(signed) + len(failed) < self.threshold:
            raise said_no[0]
        raise failed[0] if failed else PeerError("attestor-too-few", "fewer attestors than must sign", peer="attestor")

    def _ask(self, url: str, receipt: bytes, expiry: int) -> Signed:
        try:
            answer = requests.post(
                f"{url.rstrip('/')}/attest",
                params={"expiry": str(expiry)},
                data=receipt,
                headers={"Content-Type": "application/vnd.dsse+json"},
                timeout=self.timeout,
                allow_redirects=False,
            )
        except requests.Timeout:
            raise PeerError("attestor-timeout", "an attestor did not answer in time", peer="attestor") from None
        except requests.RequestException:
            raise PeerError("attestor-unreachable", "an attestor does not answer", peer="attestor") from None
        return _read(answer.status_code, answer.content)


def _read(status: int, content: bytes) -> Signed:
    odd = PeerError("attestor-odd-answer", "an attestor gave an odd answer", peer="attestor")
    try:
        body = parse(content, limit=MAX_ANSWER, what="attestor's answer")
    except Refusal:
        raise odd from None
    if not isinstance(body, dict):
        raise odd
    if status != 200:
        _raise(status, body)
    if set(body) != set(FIELDS) or any(type(body[name]) is not kind for name, kind in FIELDS.items()):
        raise odd
    try:
        signature = bytes.fromhex(body["signature"].removeprefix("0x"))
    except ValueError:
        raise odd from None
    if len(signature) != 65 or not is_digest(body["job"]) or not is_digest(body["receipt"]):
        raise odd
    return Signed(**{**body, "signer": body["signer"].lower(), "signature": signature})


def _raise(status: int, body: dict[str, Any]) -> None:
    codes = body.get("codes")
    known = isinstance(codes, list) and codes and all(isinstance(code, str) and len(code) <= 64 for code in codes)
    if status == 403 and known:
        raise Refusal(list(codes or []), f"the attestor does not sign: {json.dumps(codes)}", gate="attestor")
    code = codes[0] if codes and known else "attestor-failed"
    raise PeerError(str(code), "an attestor failed", peer="attestor")


def signer_of(document: dict[str, Any], signature: bytes) -> str:
    """The address that signed an EIP-712 document; "" when nobody did."""
    try:
        return str(Account.recover_message(encode_typed_data(full_message=document), signature=signature)).lower()
    except (BadSignature, ValueError, TypeError):
        return ""
