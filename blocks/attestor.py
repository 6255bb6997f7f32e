"""The attestor: another party with another key, who checks a receipt and signs for the vault. The node cannot sign for it."""

import json
from dataclasses import dataclass
from typing import Any

import requests

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

    def attest(self, receipt: bytes, *, expiry: int) -> list[Signed]:
        """Signatures of `threshold` attestors over one claim, in ascending order of the signers' addresses.

        `expiry` (seconds) is when the signatures end; all must carry the same. Raises the `Refusal` of an attestor that says no,
        `PeerError` attestor-too-few when not enough answer.
        """
        signed: dict[str, Signed] = {}
        failure: PeerError | None = None
        for url in self.urls:
            try:
                one = self._ask(url, receipt, expiry)
            except PeerError as error:
                failure = error
                continue
            signed[one.signer] = one
            if len(signed) == self.threshold:
                return _agreed(list(signed.values()))
        raise failure or PeerError("attestor-too-few", "fewer attestors signed than the deposit asks for", peer="attestor")

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


def _agreed(signed: list[Signed]) -> list[Signed]:
    if len({(one.claim, one.expiry) for one in signed}) != 1:
        raise Refusal(["attestors-disagree"], "the attestors signed for different claims", gate="attestor")
    return sorted(signed, key=lambda one: int(one.signer, 16))
