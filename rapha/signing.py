"""Signatures on JSON documents: Ed25519 over the DSSE pre-authentication encoding of the document's canonical form.

A signed document carries its signatures beside its fields: `"signatures": [{"keyid", "role", "sig"}]`. What is signed is
PAE(type; role=<role>, canonical(document without "signatures")) (DSSE v1.0.2): the role is signed with it, so a signature made
in one role does not count in another, even for a key that is trusted in both. A key's id is the SHA-256 of its DER
SubjectPublicKeyInfo. Which keys may sign in which role is the verifier's own list, never the document's.
"""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from rapha.canonical import canonical, digest
from rapha.errors import ConfigurationError, Refusal
from rapha.files import read_regular

JOB_TYPE = "application/vnd.rapha.job.v1+json"
MANIFEST_TYPE = "application/vnd.rapha.manifest.v1+json"
WORKLOAD_TYPE = "application/vnd.rapha.workload.v1+json"
MAX_SIGNATURES = 16
MAX_KEY = 64 * 1024


def pae(payload_type: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def key_id(key: Ed25519PublicKey) -> str:
    return digest(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def unsigned(document: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name != "signatures"}


def document_digest(document: Mapping[str, Any]) -> str:
    """Digest of the document without its signatures: a job's id, a manifest's digest."""
    return digest(canonical(unsigned(document)))


def sign(document: Mapping[str, Any], payload_type: str, key: Ed25519PrivateKey, role: str) -> dict[str, Any]:
    """The document with one more signature."""
    body = unsigned(document)
    signature = {
        "keyid": key_id(key.public_key()),
        "role": role,
        "sig": base64.b64encode(key.sign(_message(payload_type, role, canonical(body)))).decode(),
    }
    return {**body, "signatures": [*document.get("signatures", []), signature]}


def roles_signed(
    document: Mapping[str, Any], payload_type: str, trusted: Mapping[str, Sequence[Ed25519PublicKey]]
) -> dict[str, str]:
    """role -> key id, for each role under which a key trusted for it has signed. A bad signature refuses the document.

    Raises `Refusal` signature-missing, signature-malformed, signature-untrusted (a key or role that is not in `trusted`),
    signature-invalid.
    """
    entries = document.get("signatures")
    if not isinstance(entries, list) or not entries:
        raise Refusal(["signature-missing"], "the document is not signed", side="job")
    if len(entries) > MAX_SIGNATURES:
        raise Refusal(["signature-malformed"], "too many signatures", side="job")
    payload = canonical(unsigned(document))
    signed: dict[str, str] = {}
    for entry in entries:
        role, keyid = _verified(entry, payload_type, payload, trusted)
        signed[role] = keyid
    return signed


def _message(payload_type: str, role: str, payload: bytes) -> bytes:
    return pae(f"{payload_type}; role={role}", payload)


def _verified(
    entry: object, payload_type: str, payload: bytes, trusted: Mapping[str, Sequence[Ed25519PublicKey]]
) -> tuple[str, str]:
    if (
        not isinstance(entry, dict)
        or set(entry) != {"keyid", "role", "sig"}
        or not all(isinstance(v, str) for v in entry.values())
    ):
        raise Refusal(["signature-malformed"], "a signature has other fields than keyid, role and sig", side="job")
    key = {key_id(key): key for key in trusted.get(entry["role"], ())}.get(entry["keyid"])
    if key is None:
        raise Refusal(["signature-untrusted"], "a signature is by a key that is not trusted in its role", side="job")
    try:
        key.verify(base64.b64decode(entry["sig"], validate=True), _message(payload_type, entry["role"], payload))
    except (InvalidSignature, ValueError):
        raise Refusal(["signature-invalid"], "a signature does not verify over this document", side="job") from None
    return entry["role"], entry["keyid"]


def load_private(path: Path) -> Ed25519PrivateKey:
    """An Ed25519 private key from a PEM file that only its owner can read."""
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigurationError(["key-readable-by-others"], f"{path}: only its owner may read a private key; chmod 600 it")
        key = load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigurationError(["key-unreadable"], f"{path}: not a readable PEM private key ({type(error).__name__})") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError(["key-kind"], f"{path}: not an Ed25519 key")
    return key


def load_public(path: Path) -> Ed25519PublicKey:
    """An Ed25519 public key from a PEM file."""
    try:
        key = load_pem_public_key(read_regular(path, MAX_KEY, "key-unreadable"))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigurationError(["key-unreadable"], f"{path}: not a readable PEM public key ({type(error).__name__})") from None
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigurationError(["key-kind"], f"{path}: not an Ed25519 key")
    return key


def load_trusted(folder: Path) -> dict[str, list[Ed25519PublicKey]]:
    """role -> keys, from `folder/<role>/*.pem`. An absent folder trusts nobody."""
    if not folder.is_dir():
        return {}
    return {
        role.name: [load_public(path) for path in sorted(role.glob("*.pem"))]
        for role in sorted(folder.iterdir())
        if role.is_dir()
    }


def write_private(path: Path, key: Ed25519PrivateKey | None = None) -> Ed25519PrivateKey:
    """Writes a (new) private key with mode 0600 and returns it."""
    key = key or Ed25519PrivateKey.generate()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.chmod(0o600)  # it may have been there, readable
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return key


def write_public(path: Path, key: Ed25519PublicKey) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
