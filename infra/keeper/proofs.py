"""What must be true before the line comes back: looked up by the keeper itself, in /proc, at the holders, in the ledger."""

from collections.abc import Iterable
from pathlib import Path

from blocks.channel import Channel
from infra.processes import living_in
from rapha.errors import PeerError, Refusal
from rapha.ledger import Entry, read, verify

CLOSING_KINDS = {"sealed": "sealed", "refused": "refused", "ended": "ended"}


def processes(inodes: Iterable[int]) -> int:
    """How many processes live in these process namespaces; one that hides its namespace counts."""
    return sum(len(living_in(inode)) for inode in inodes)


def holding(holders: dict[str, Path], job: str, attempt: int) -> tuple[str, ...]:
    """Names of the holders that did not answer exactly "I hold nothing of it". A dead one counts: restart it and ask again."""
    return tuple(name for name, path in sorted(holders.items()) if not _lets_go(name, path, job, attempt))


def _lets_go(name: str, path: Path, job: str, attempt: int) -> bool:
    try:
        with Channel(path, peer=name, timeout=5.0) as channel:
            return channel.call("holds", job=job, attempt=attempt).get("holds") is False
    except (PeerError, Refusal):
        return False


def ending(ledger: Path, job: str, attempt: int) -> str:
    """ "sealed", "refused" or "ended" by the ledger; "" when it shows none of them or does not verify."""
    try:
        if not verify(ledger).ok:
            return ""
        return next(filter(None, (_ending(entry, job, attempt) for entry in read(ledger))), "")
    except (OSError, Refusal, ValueError, KeyError, TypeError):
        return ""


def open_attempts(ledger: Path) -> int:
    """Attempts whose cut gate was judged and that have no ending; -1 when the ledger does not verify."""
    try:
        if not verify(ledger).ok:
            return -1
        entries = list(read(ledger))
    except (OSError, Refusal, ValueError):
        return -1
    judged = {
        (entry.body.get("job"), entry.body.get("attempt"))
        for entry in entries
        if entry.kind == "verdict" and entry.body.get("gate") == "cut"
    }
    over = {(e.body.get("job"), e.body.get("attempt")) for e in entries if _ending(e, e.body.get("job"), e.body.get("attempt"))}
    return len(judged - over)


def _ending(entry: Entry, job: object, attempt: object) -> str:
    if entry.body.get("job") != job or entry.body.get("attempt") != attempt:
        return ""
    if entry.kind == "verdict" and entry.body.get("verdict") == "refused":
        return "refused"
    if entry.kind == "door" and entry.body.get("opened") is False:
        return "refused"
    return CLOSING_KINDS.get(entry.kind, "")
