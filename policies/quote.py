"""Reading a DCAP quote's bytes: version, TEE type, the report that is compared, and the canonical length. Pure; proves nothing.

Layouts: Intel SGX ECDSA Quote Library Reference, appendix A.3 (version 3) and Intel TDX DCAP Quoting Library API, appendix A.3
(versions 4 and 5). Whether the bytes are genuine is `blocks.dcap`'s question; this reader is the second opinion on what they say.
"""

import hashlib
import struct
from dataclasses import dataclass

from rapha.canonical import digest

MAX_QUOTE = 64 * 1024
HEADER = 48
SGX_BODY, TD10_BODY, TD15_BODY = 384, 584, 648
QE_REPORT = 6  # certification data of versions 4 and 5: the quoting enclave's report, and within it
PCK_CHAIN = 5  # certification data: the chain itself, leaf first
SGX, TDX = 0x00000000, 0x00000081
TEE_NAMES = {SGX: "sgx", TDX: "tdx"}
_BODY_TYPES = {1: (SGX, SGX_BODY), 2: (TDX, TD10_BODY), 3: (TDX, TD15_BODY)}


class QuoteFormatError(ValueError):
    """The bytes are not a quote of a known layout. Its text is a reason code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuoteBody:
    """What a quote says of itself. Hex fields are lower case, whole and in the order of the bytes.

    measurement: MRENCLAVE (32 bytes) or MRTD (48); runtime: RTMR0..3 of a TD; attributes: SGX flags and XFRM (16 bytes) or
    TDATTRIBUTES (8); config: SGX CONFIGID, CONFIGSVN, ISVEXTPRODID and ISVFAMILYID, or a TD's MRCONFIGID, MROWNER,
    MROWNERCONFIG and (TD 1.5) MRSERVICETD; seam: MRSIGNERSEAM and SEAMATTRIBUTES of a TD; length: bytes that the quote's own
    fields account for.
    """

    version: int
    tee: str
    length: int
    measurement: str
    runtime: tuple[str, ...]
    signer: str
    isv_prod_id: int
    isv_svn: int
    attributes: str
    misc_select: int
    config: str
    seam: str
    report_data: str


def read_quote(raw: bytes) -> QuoteBody:
    """The quote's own statements. Raises `QuoteFormatError` quote-too-large, quote-malformed or quote-version-unknown."""
    if len(raw) > MAX_QUOTE:
        raise QuoteFormatError("quote-too-large")
    try:
        version, _, tee = struct.unpack_from("<HHI", raw)
        tee, start, size = _shape(raw, version, tee)
        (signed,) = struct.unpack_from("<I", raw, start + size)
        length = start + size + 4 + signed
        ends, kind, _ = _signature_parts(raw, version, start + size + 4)
    except struct.error:
        raise QuoteFormatError("quote-malformed") from None
    body = raw[start : start + size]
    if not length == ends <= len(raw) or kind != PCK_CHAIN:
        raise QuoteFormatError("quote-malformed")
    return _sgx(version, length, body) if tee == SGX else _td(version, length, body)


def certificate_chain(raw: bytes) -> bytes:
    """The PEM text of the PCK certificate chain inside a quote that `read_quote` accepts."""
    version, _, tee = struct.unpack_from("<HHI", raw)
    _, start, size = _shape(raw, version, tee)
    return _signature_parts(raw, version, start + size + 4)[2]


def canonical_quote(raw: bytes) -> bytes:
    """The quote without what its own length fields do not account for: what is hashed and stored."""
    return raw[: read_quote(raw).length]


def quote_digest(raw: bytes) -> str:
    """`sha256:…` of the canonical quote."""
    return digest(canonical_quote(raw))


def tpm_nonce(raw: bytes) -> bytes:
    """The 32 bytes that a TPM quote must carry to be about this DCAP quote: SHA-256 of the canonical quote."""
    return hashlib.sha256(canonical_quote(raw)).digest()


def _shape(raw: bytes, version: int, tee: int) -> tuple[int, int, int]:
    """(TEE type, where the report starts, its size)."""
    if version == 3 and tee == SGX:
        return SGX, HEADER, SGX_BODY
    if version == 4 and tee in TEE_NAMES:
        return tee, HEADER, SGX_BODY if tee == SGX else TD10_BODY
    if version == 5 and tee in TEE_NAMES:
        kind, size = struct.unpack_from("<HI", raw, HEADER)
        if _BODY_TYPES.get(kind) == (tee, size):
            return tee, HEADER + 6, size
    raise QuoteFormatError("quote-version-unknown")


def _signature_parts(raw: bytes, version: int, at: int) -> tuple[int, int, bytes]:
    """(where the signature data's own parts end, the certification data's type, that data): no slack is left between them."""
    at += 64 + 64  # the report's signature and the attestation key
    if version == 3:
        return _certified(raw, at)
    outer, size = struct.unpack_from("<HI", raw, at)
    end, kind, data = _certified(raw, at + 6)
    if outer != QE_REPORT or end != at + 6 + size:
        raise QuoteFormatError("quote-malformed")
    return end, kind, data


def _certified(raw: bytes, at: int) -> tuple[int, int, bytes]:
    """The quoting enclave's report and its signature, authentication data, then certification data."""
    at += SGX_BODY + 64
    (size,) = struct.unpack_from("<H", raw, at)
    at += 2 + size
    kind, size = struct.unpack_from("<HI", raw, at)
    return at + 6 + size, kind, raw[at + 6 : at + 6 + size]


def _sgx(version: int, length: int, body: bytes) -> QuoteBody:
    prod, svn = struct.unpack_from("<HH", body, 256)
    return QuoteBody(
        version=version,
        tee="sgx",
        length=length,
        measurement=body[64:96].hex(),
        runtime=(),
        signer=body[128:160].hex(),
        isv_prod_id=prod,
        isv_svn=svn,
        attributes=body[48:64].hex(),
        misc_select=int.from_bytes(body[16:20], "little"),
        config=(body[192:256] + body[260:262] + body[32:48] + body[304:320]).hex(),
        seam="",
        report_data=body[320:384].hex(),
    )


def _td(version: int, length: int, body: bytes) -> QuoteBody:
    return QuoteBody(
        version=version,
        tee="tdx",
        length=length,
        measurement=body[136:184].hex(),
        runtime=tuple(body[at : at + 48].hex() for at in range(328, 520, 48)),
        signer="",
        isv_prod_id=0,
        isv_svn=0,
        attributes=body[120:128].hex(),
        misc_select=0,
        config=(body[184:328] + body[600:648]).hex(),
        seam=body[64:120].hex(),
        report_data=body[520:584].hex(),
    )
