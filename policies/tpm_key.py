"""An attestation key's public area: is it a key that signs only what its own TPM made? Pure; asked once, at enrolment.

TPM 2.0 Library, Part 2, 8.3 (TPMA_OBJECT) and 12.2.4 (TPMT_PUBLIC); Part 1, 16 (names and qualified names).
"""

import hashlib

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from policies.tpm import ALG_SHA256, TpmFormatError

ALG_ECC = 0x0023
ENDORSEMENT = bytes.fromhex("4000000b")
FIXED_TPM, FIXED_PARENT, SENSITIVE_ORIGIN, RESTRICTED, DECRYPT, SIGN = (1 << bit for bit in (1, 4, 5, 16, 17, 18))
WANTED = FIXED_TPM | FIXED_PARENT | SENSITIVE_ORIGIN | RESTRICTED | SIGN


def object_name(public: bytes) -> bytes:
    """The name of the object with this TPM2B_PUBLIC (SHA-256 as its name algorithm). Raises `TpmFormatError` tpm-key."""
    area = public[2:]
    if len(area) < 10 or int.from_bytes(public[:2], "big") != len(area) or int.from_bytes(area[2:4], "big") != ALG_SHA256:
        raise TpmFormatError("tpm-key")
    return ALG_SHA256.to_bytes(2, "big") + hashlib.sha256(area).digest()


def qualified_name(ek_public: bytes, ak_public: bytes) -> bytes:
    """The name that a quote by this key carries, when the key is a child of this endorsement key."""
    parent = _joined(ENDORSEMENT, object_name(ek_public))
    return _joined(parent, object_name(ak_public))


def check_key(ak_public: bytes, ak_pem: str) -> None:
    """Raises `TpmFormatError` tpm-key (another key than the PEM's) or tpm-key-unrestricted (it could sign a made-up quote)."""
    object_name(ak_public)  # refuses a public area of another shape
    attributes = int.from_bytes(ak_public[6:10], "big")
    if attributes & WANTED != WANTED or attributes & DECRYPT:
        raise TpmFormatError("tpm-key-unrestricted")
    if int.from_bytes(ak_public[2:4], "big") != ALG_ECC or not ak_public.endswith(_point(ak_pem)):
        raise TpmFormatError("tpm-key")


def holds_modulus(public: bytes, modulus: bytes) -> bool:
    """Whether an RSA TPM2B_PUBLIC ends, as it must, with this modulus."""
    return int.from_bytes(public[:2], "big") == len(public) - 2 and public.endswith(_sized(modulus))


def _joined(parent: bytes, name: bytes) -> bytes:
    return ALG_SHA256.to_bytes(2, "big") + hashlib.sha256(parent + name).digest()


def _point(pem: str) -> bytes:
    try:
        key = load_pem_public_key(pem.encode())
    except ValueError:
        raise TpmFormatError("tpm-key") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
        raise TpmFormatError("tpm-key")
    numbers = key.public_numbers()
    return b"".join(_sized(value.to_bytes(32, "big")) for value in (numbers.x, numbers.y))


def _sized(value: bytes) -> bytes:
    return len(value).to_bytes(2, "big") + value
