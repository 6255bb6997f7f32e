"""TPM 2.0 quotes: reading TPMS_ATTEST and TPMT_SIGNATURE, and verifying one under an enrolled key. Pure.

Structures: TPM 2.0 Library, Part 2, 10.12.8 (TPMS_ATTEST), 10.11.1 (TPMS_CLOCK_INFO), 10.12.1 (TPMS_QUOTE_INFO), 11.3.4
(TPMT_SIGNATURE).
Sizes and types are bounded before any key is used.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from rapha.canonical import MAX_INTEGER

MAX_PART = 2048
GENERATED = b"\xffTCG"
ST_ATTEST_QUOTE = 0x8018
ALG_SHA256, ALG_ECDSA, ALG_RSASSA = 0x000B, 0x0018, 0x0014
MAX_BANKS = 4


class TpmFormatError(ValueError):
    """The TPM's evidence is not what it must be. Its text is a reason code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attest:
    """A TPMS_ATTEST of a quote. clock: ms; selection: (hash algorithm, PCR indices) for each bank; extra: the verifier's
    nonce."""

    signer: str
    extra: bytes
    clock: int
    reset_count: int
    restart_count: int
    safe: bool
    selection: tuple[tuple[int, tuple[int, ...]], ...]
    digest: bytes


class _Reader:
    def __init__(self, raw: bytes) -> None:
        self.raw, self.at = raw, 0

    def take(self, count: int) -> bytes:
        if self.at + count > len(self.raw):
            raise TpmFormatError("tpm-malformed")
        self.at += count
        return self.raw[self.at - count : self.at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def sized(self) -> bytes:
        return self.take(self.number(2))

    def end(self) -> None:
        if self.at != len(self.raw):
            raise TpmFormatError("tpm-malformed")


def read_attest(raw: bytes) -> Attest:
    """The fields of a quote. Raises `TpmFormatError` tpm-too-large, tpm-magic, tpm-type (a certify, not a quote) or
    tpm-malformed."""
    if len(raw) > MAX_PART:
        raise TpmFormatError("tpm-too-large")
    reader = _Reader(raw)
    if reader.take(4) != GENERATED:
        raise TpmFormatError("tpm-magic")
    if reader.number(2) != ST_ATTEST_QUOTE:
        raise TpmFormatError("tpm-type")
    signer, extra = reader.sized().hex(), reader.sized()
    clock, resets, restarts, safe = reader.number(8), reader.number(4), reader.number(4), reader.number(1)
    if clock > MAX_INTEGER:  # 285,000 years of milliseconds, and no JSON integer
        raise TpmFormatError("tpm-malformed")
    reader.take(8)  # firmware version: enrolled PCRs speak for the firmware
    selection = _selection(reader)
    digest = reader.sized()
    reader.end()
    return Attest(
        signer=signer,
        extra=extra,
        clock=clock,
        reset_count=resets,
        restart_count=restarts,
        safe=safe == 1,
        selection=selection,
        digest=digest,
    )


def _selection(reader: _Reader) -> tuple[tuple[int, tuple[int, ...]], ...]:
    count = reader.number(4)
    if count > MAX_BANKS:
        raise TpmFormatError("tpm-malformed")
    banks = []
    for _ in range(count):
        algorithm, bitmap = reader.number(2), reader.take(reader.number(1))
        banks.append((algorithm, tuple(8 * i + bit for i, byte in enumerate(bitmap) for bit in range(8) if byte >> bit & 1)))
    return tuple(banks)


def verify_signature(attest: bytes, signature: bytes, ak_pem: str) -> bool:
    """Whether a TPMT_SIGNATURE (ECDSA P-256 or RSASSA, SHA-256) over `attest` is by the key in `ak_pem`.

    Raises `TpmFormatError` tpm-too-large, tpm-malformed, tpm-signature-scheme or tpm-key.
    """
    if len(signature) > MAX_PART or len(attest) > MAX_PART:
        raise TpmFormatError("tpm-too-large")
    reader = _Reader(signature)
    scheme, hashed = reader.number(2), reader.number(2)
    if hashed != ALG_SHA256 or scheme not in (ALG_ECDSA, ALG_RSASSA):
        raise TpmFormatError("tpm-signature-scheme")
    parts = [reader.sized() for _ in range(2 if scheme == ALG_ECDSA else 1)]
    reader.end()
    try:
        return _verified(load_pem_public_key(ak_pem.encode()), scheme, parts, attest)
    except ValueError:
        raise TpmFormatError("tpm-key") from None


def _verified(key: object, scheme: int, parts: list[bytes], attest: bytes) -> bool:
    try:
        if scheme == ALG_ECDSA and isinstance(key, ec.EllipticCurvePublicKey):
            r, s = (int.from_bytes(part, "big") for part in parts)
            key.verify(encode_dss_signature(r, s), attest, ec.ECDSA(SHA256()))
        elif scheme == ALG_RSASSA and isinstance(key, rsa.RSAPublicKey):
            key.verify(parts[0], attest, padding.PKCS1v15(), SHA256())
        else:
            raise TpmFormatError("tpm-signature-scheme")
    except InvalidSignature:
        return False
    return True


def pcr_digest(values: Mapping[int, bytes]) -> bytes:
    """The digest that a quote over these PCRs of the SHA-256 bank holds: SHA-256 of the values in order of index."""
    return hashlib.sha256(b"".join(values[index] for index in sorted(values))).digest()
