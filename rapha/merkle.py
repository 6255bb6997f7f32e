"""Merkle tree hash of RFC 6962 section 2.1: leaves and nodes hash under different prefixes, so neither passes for the other."""

import hashlib
from collections.abc import Iterable


def leaf_hash(leaf: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + leaf).digest()


def merkle_root(leaves: Iterable[bytes]) -> str:
    """`sha256:…` of the tree over `leaves` in their order; the empty tree is the hash of nothing."""
    level = [leaf_hash(leaf) for leaf in leaves]
    if not level:
        return "sha256:" + hashlib.sha256(b"").hexdigest()
    while len(level) > 1:
        # An odd one out goes up unchanged: the same tree as splitting at the largest power of two below the length.
        level = [
            hashlib.sha256(b"\x01" + level[i] + level[i + 1]).digest() if i + 1 < len(level) else level[i]
            for i in range(0, len(level), 2)
        ]
    return "sha256:" + level[0].hex()
