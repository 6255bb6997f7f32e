"""The attester: the process beside the TPM and the TEE that answers the gate's challenge. What it sends proves nothing by itself.

Verbs: `evidence` (report_data) -> a DCAP quote over it and a TPM quote over that quote's digest; `identity` and `activate` for
enrolment.
Every part is bounded in size here, before anyone parses it.
"""

import base64
import binascii
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blocks.channel import Channel
from policies.quote import MAX_QUOTE
from policies.tpm import MAX_PART
from rapha.errors import PeerError, Refusal

PEER = "attester"
MAX_PCRS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """One answer. attest: TPMS_ATTEST; signature: TPMT_SIGNATURE; pcrs: SHA-256 bank, index -> 32 bytes; ak_pem: as claimed."""

    quote: bytes
    attest: bytes
    signature: bytes
    pcrs: dict[int, bytes]
    ak_pem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a machine says of itself at enrolment. ak_public, ek_public: TPM2B_PUBLIC; ek_certificate: DER; quote: DCAP, for
    the PCK chain in it."""

    kind: str
    ak_pem: str
    ak_name: str
    ak_qualified_name: str
    ak_public: bytes
    ek_public: bytes
    ek_certificate: bytes
    pcrs: dict[int, bytes]
    quote: bytes


class Attester:
    """A client of the process at `socket`. `timeout` in seconds bounds how long evidence may take."""

    def __init__(self, socket: Path, *, timeout: float = 30.0) -> None:
        self.socket, self.timeout = socket, timeout

    def evidence(self, report_data: bytes) -> Bundle:
        """Evidence over these 64 bytes. Raises `PeerError`, or `Refusal` attestation-too-large or attestation-malformed."""
        answer = self._call("evidence", report_data=report_data.hex())
        return Bundle(
            quote=_bytes(answer, "quote", MAX_QUOTE),
            attest=_bytes(answer, "attest", MAX_PART),
            signature=_bytes(answer, "signature", MAX_PART),
            pcrs=_pcrs(answer),
            ak_pem=_text(answer, "ak_pem"),
        )

    def identity(self) -> Identity:
        """The machine's keys, for enrolment by a person who stands at it."""
        answer = self._call("identity")
        return Identity(
            kind=_text(answer, "kind"),
            ak_pem=_text(answer, "ak_pem"),
            ak_name=_text(answer, "ak_name"),
            ak_qualified_name=_text(answer, "ak_qualified_name"),
            ak_public=_bytes(answer, "ak_public", MAX_PART),
            ek_public=_bytes(answer, "ek_public", MAX_PART),
            ek_certificate=_bytes(answer, "ek_certificate", 4 * MAX_PART),
            pcrs=_pcrs(answer),
            quote=_bytes(answer, "quote", MAX_QUOTE),
        )

    def activate(self, credential: bytes) -> bytes:
        """The secret that only the TPM with this EK and AK can take out of `credential` (TPM2_ActivateCredential)."""
        return _bytes(self._call("activate", credential=base64.b64encode(credential).decode()), "secret", 64)

    def _call(self, verb: str, **fields: Any) -> dict[str, Any]:
        with Channel(self.socket, peer=PEER, timeout=self.timeout) as channel:
            return channel.call(verb, **fields)


def _bytes(answer: dict[str, Any], name: str, limit: int) -> bytes:
    text = answer.get(name)
    if not isinstance(text, str):
        raise Refusal(["attestation-malformed"], f"the attester's answer has no {name}", gate="attestation")
    if len(text) > (limit + 3) * 4 // 3:
        raise Refusal(["attestation-too-large"], f"the attester's {name} is larger than {limit} bytes", gate="attestation")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Refusal(["attestation-malformed"], f"the attester's {name} is not base64", gate="attestation") from None


def _text(answer: dict[str, Any], name: str) -> str:
    text = answer.get(name)
    if not isinstance(text, str) or len(text) > MAX_PART:
        raise PeerError("attester-odd-answer", f"the attester's {name} is missing or over-long", peer=PEER)
    return text


def _pcrs(answer: dict[str, Any]) -> dict[int, bytes]:
    given = answer.get("pcrs")
    if not isinstance(given, dict) or len(given) > MAX_PCRS:
        raise Refusal(["attestation-malformed"], "the attester's PCR values are not an object of at most 24", gate="attestation")
    try:
        return read_pcrs(given)
    except ValueError:
        raise Refusal(["attestation-malformed"], "a PCR value is not 32 bytes in hex", gate="attestation") from None


def read_pcrs(given: dict[str, Any]) -> dict[int, bytes]:
    """index -> 32 bytes, in order of index, from {"0": "<64 hex>"}. Raises `ValueError`."""
    values: dict[int, bytes] = {}
    for index, value in given.items():
        if not isinstance(value, str) or len(value) != 64 or not index.isdecimal() or str(int(index)) != index:
            raise ValueError("not a PCR value")
        values[int(index)] = bytes.fromhex(value)
    return dict(sorted(values.items()))
