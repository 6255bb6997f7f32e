"""UIDs that follow from what they name, so that a repeat of the same work is the same object (PS3.5 B.2: 2.25 and a UUID)."""

import hashlib
from collections.abc import Iterable

_VERSION, _VARIANT = 8 << 76, 0b10 << 62  # UUID version 8: a value of our own making (RFC 9562 section 5.8)


def derived_uid(what: str, facts: Iterable[str]) -> str:
    """`2.25.<128 bits>` of SHA-256 over `what` and the facts, in their order; at most 44 characters."""
    total = hashlib.sha256(b"rapha uid v1\n" + what.encode() + b"\n")
    for fact in facts:
        raw = fact.encode()
        total.update(b"%d:%b\n" % (len(raw), raw))
    number = int.from_bytes(total.digest()[:16], "big")
    number = number & ~(0xF << 76) & ~(0b11 << 62) | _VERSION | _VARIANT
    return f"2.25.{number}"
