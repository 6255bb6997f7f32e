"""Columns that hold identifiers: AES-256-GCM bound to their row, and keyed hashes to find them by.

Keys are derived from one 32-byte key (HKDF-SHA256, RFC 5869). A ciphertext moved to another row, column or table does not open.
Nonces are 96 random bits: fit for 2^32 values under one key (NIST SP 800-38D, 8.3).
"""

import base64
import binascii
import hmac
import secrets
from itertools import pairwise

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from rapha.errors import ConfigurationError, PeerError

NONCE = 12
MIN_DISTINCT = 16  # 32 random bytes have fewer distinct values about once in 10^10 keys


class SealedColumns:
    """The two uses of a register's key."""

    def __init__(self, key: bytes) -> None:
        """Raises `ConfigurationError` weak-register-key for any key that is not 32 bytes or looks like a pattern."""
        if len(key) != 32 or len(set(key)) < MIN_DISTINCT or len({(b - a) % 256 for a, b in pairwise(key)}) < 8:
            raise ConfigurationError(["weak-register-key"], "the register's key must be 32 random bytes")
        self._cipher = AESGCM(_derived(key, b"rapha reading register: sealed columns"))
        self._names = _derived(key, b"rapha reading register: names")

    def name(self, kind: str, value: str) -> str:
        """The value's name: HMAC-SHA256, 64 hex digits; another for each kind."""
        return hmac.new(self._names, f"{kind}\0{value}".encode(), "sha256").hexdigest()

    def seal(self, value: str, *place: str | int) -> bytes:
        """nonce || ciphertext || tag. `place`: table, column and row."""
        nonce = secrets.token_bytes(NONCE)
        return nonce + self._cipher.encrypt(nonce, value.encode(), _bound(place))

    def open(self, sealed: bytes, *place: str | int) -> str:
        """The value. `PeerError` register-tampered where it was not sealed for this place under this key."""
        try:
            return self._cipher.decrypt(sealed[:NONCE], sealed[NONCE:], _bound(place)).decode()
        except (InvalidTag, ValueError):
            raise PeerError("register-tampered", "a sealed column does not open in its place", peer="register") from None


def column_key(text: str) -> bytes:
    """The key in a setting's base64. `ConfigurationError` bad-register-key."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ConfigurationError(["bad-register-key"], "RAPHA_REGISTER_KEY_BASE64 is not base64") from None


def _derived(key: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(key)


def _bound(place: tuple[str | int, ...]) -> bytes:
    return "\0".join(str(part) for part in place).encode()
