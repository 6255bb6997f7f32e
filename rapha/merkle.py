"""Merkle tree hash of RFC 6962 section 2.1: leaves and nodes hash under different prefixes, so neither passes for the other."""

import hashlib
import hmac
from collections.abc import Iterable, Sequence


def leaf_hash(leaf: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + leaf).digest()


def merkle_root(leaves: Iterable[bytes]) -> str:
    """`sha256:…` of the tree over `leaves` in their order; the empty tree is the hash of nothing."""
    level = [leaf_hash(leaf) for leaf in leaves]
    if not level:
        return "sha256:" + hashlib.sha256(b"").hexdigest()
    while len(level) > 1:
        level = _above(level)
    return "sha256:" + level[0].hex()


def inclusion_proof(leaves: Sequence[bytes], index: int) -> tuple[str, ...]:
    """The audit path of leaf `index`, lowest first, as hex digests (RFC 6962 section 2.1.1). Raises `IndexError`."""
    if not 0 <= index < len(leaves):
        raise IndexError("no such leaf")
    level, path = [leaf_hash(leaf) for leaf in leaves], list[str]()
    while len(level) > 1:
        sibling = index ^ 1
        if sibling < len(level):
            path.append(level[sibling].hex())
        level, index = _above(level), index // 2
    return tuple(path)


def includes(root: str, leaf: bytes, index: int, count: int, path: Sequence[str]) -> bool:
    """Whether `path` proves that `leaf` is number `index` of the `count` leaves under `root` (RFC 9162 section 2.1.3.2)."""
    if not 0 <= index < count:
        return False
    node, last, rest = leaf_hash(leaf), count - 1, [_sibling(text) for text in path]
    while last:
        if index % 2 or index < last:
            sibling = rest.pop(0) if rest else None
            if sibling is None:
                return False
            node = _join(sibling, node) if index % 2 else _join(node, sibling)
        index, last = index // 2, last // 2
    return not rest and hmac.compare_digest("sha256:" + node.hex(), root)


def _sibling(text: str) -> bytes | None:
    try:
        node = bytes.fromhex(text)
    except ValueError:
        return None
    return node if len(node) == 32 else None


def _join(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def _above(level: list[bytes]) -> list[bytes]:
    """An odd one out goes up unchanged: the same tree as splitting at the largest power of two below the length."""
    return [_join(level[i], level[i + 1]) if i + 1 < len(level) else level[i] for i in range(0, len(level), 2)]
