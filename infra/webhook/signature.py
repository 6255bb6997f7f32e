"""Who is calling: an HMAC-SHA256 over timestamp, nonce and body, by a key that belongs to one owner.

    message   = timestamp + LF + nonce + LF + body          (ASCII decimal seconds; the nonce as sent; the body's bytes)
    signature = hex(HMAC-SHA256(secret, message))           headers Rapha-Key-Id, Rapha-Timestamp, Rapha-Nonce, Rapha-Signature

An unknown key and a wrong signature get one answer, after the same work. A nonce is spent only under a signature that holds,
so nobody else can spend it, and is remembered for longer than its timestamp can be valid.
"""

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rapha.canonical import parse
from rapha.errors import ConfigurationError, Refusal

WINDOW = 300  # seconds, before and after
REMEMBER = 3600  # how long a nonce outlives its window, so that a clock set back opens nothing
MIN_SECRET = 32
HEADERS = ("rapha-key-id", "rapha-timestamp", "rapha-nonce", "rapha-signature")
_FORMS = (r"[A-Za-z0-9._-]{1,64}", r"[0-9]{1,12}", r"[A-Za-z0-9._~-]{16,128}", r"[0-9a-f]{64}")
_NOBODY = b"\x00" * MIN_SECRET


@dataclass(frozen=True, slots=True, repr=False)
class Key:
    """One caller's key: never printed."""

    owner: str
    secret: bytes


@dataclass(frozen=True, slots=True)
class Claims:
    """The four headers, well formed, not yet believed."""

    key_id: str
    timestamp: int
    nonce: str
    signature: str
    stamp: str


def load_keys(path: Path) -> dict[str, Key]:
    """key id -> key, from `{"keys": {id: {"owner", "secret_base64"}}}`, a file that only its owner can read."""
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigurationError(["webhook-keys-readable-by-others"], f"{path}: only its owner may read it; chmod 600 it")
        document = parse(path.read_bytes(), what="webhook keys file")
        if set(document) != {"keys"}:
            raise ValueError
        return {key_id: _key(key_id, entry) for key_id, entry in document["keys"].items()}
    except (OSError, Refusal, ValueError, TypeError, KeyError, AttributeError, binascii.Error):
        raise ConfigurationError(["webhook-keys-unreadable"], f"{path}: not a file of webhook keys") from None


def _key(key_id: str, entry: Mapping[str, str]) -> Key:
    secret = base64.b64decode(entry["secret_base64"], validate=True)
    if set(entry) != {"owner", "secret_base64"} or len(secret) < MIN_SECRET or not re.fullmatch(_FORMS[0], key_id):
        raise ValueError
    return Key(entry["owner"], secret)


def read_claims(headers: list[tuple[str, str]]) -> Claims:
    """The four headers, each exactly once and well formed, or `Refusal` webhook-headers."""
    values = []
    for name, form in zip(HEADERS, _FORMS, strict=True):
        found = [value for header, value in headers if header.lower() == name]
        if len(found) != 1 or not re.fullmatch(form, found[0]):
            raise Refusal(["webhook-headers"], "a Rapha header is missing, repeated or malformed", side="job")
        values.append(found[0])
    key_id, stamp, nonce, signature = values
    return Claims(key_id, int(stamp), nonce, signature, stamp)


def sign(secret: bytes, stamp: str, nonce: str, body: bytes) -> str:
    """The value of Rapha-Signature."""
    message = stamp.encode("ascii") + b"\n" + nonce.encode("ascii") + b"\n" + body
    return hmac.new(secret, message, hashlib.sha256).hexdigest()


def authenticate(claims: Claims, body: bytes, keys: Mapping[str, Key], now: int, spend: Callable[[str, str, int], bool]) -> str:
    """The caller's owner. `spend(key id, nonce, forget at)` answers whether the nonce is new, durably.

    Raises `Refusal` webhook-unauthorised, webhook-stale (outside the window), webhook-replayed.
    """
    key = keys.get(claims.key_id)
    wanted = sign(key.secret if key else _NOBODY, claims.stamp, claims.nonce, body)
    if not hmac.compare_digest(wanted, claims.signature) or key is None:
        raise Refusal(["webhook-unauthorised"], "no known key signed this", side="job")
    if abs(now - claims.timestamp) > WINDOW:
        raise Refusal(["webhook-stale"], "the timestamp is outside the five-minute window", side="job")
    if spend(claims.key_id, claims.nonce, claims.timestamp + WINDOW + REMEMBER) is not True:
        raise Refusal(["webhook-replayed"], "this nonce was used before", side="job")
    return key.owner
