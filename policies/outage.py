"""Which failures say that a peer is down for every study alike, and how long is waited then. Pure.

Such a failure is no word about the study that met it, so it is not counted against it. The list is closed: what is not in it was
an answer, or may have been caused by this very study (a process that died over it, an association that was broken off inside it),
and counts.
"""

from collections.abc import Iterable

FIRST_PAUSE, LONGEST_PAUSE = 60, 900  # seconds; fifteen minutes are what a mended archive may stay unnoticed for
# A night and the working day after it: long enough for an archive to be mended. After that nobody mends it by themselves, and the
# study's letter says that a person must look.
OUTAGE_SECONDS = 86_400
PROBE_SECONDS = 60  # for one study to show that an endpoint is back, while the others still wait
# The archive cannot be reached or takes nobody: no other study of this endpoint would fare better just now.
UNREACHABLE = frozenset(
    {
        "dimse-unreachable",
        "dimse-rejected",
        "dimse-aborted",
        "tls-certificate-expired",
        "tls-certificate-untrusted",
        "tls-handshake-failed",
        "tls-name-differs",
        "pacs-unreachable",
        "pacs-unavailable",
        "pacs-login",
        "stow-unavailable",
        "stow-login",
    }
)
# Out of order for everybody as well, but not a reason to leave the archive alone: it is a part of this node, its disk, or an
# archive that answers others (one that falls silent may do so at one query, one that is full still gives what it has).
OUT_OF_ORDER = frozenset(
    {
        "audit-unwritable",
        "dimse-pool",
        "dimse-timeout",
        "engine-failed",
        "engine-unreachable",
        "journal-unwritable",
        "kept-unwritable",
        "launcher-unreachable",
        "receiver-missing",
        "receiver-unreachable",
        "register-unavailable",
        "retrieve-not-kept",
        "store-full",
        "study-disk",
        "study-no-decoder",
        "study-unreachable",
        "validator-missing",
    }
)


def is_outage(codes: Iterable[str]) -> bool:
    """Whether a failure with these codes is a peer's for everybody; False where one of them is not."""
    told = set(codes)
    return bool(told) and told <= UNREACHABLE | OUT_OF_ORDER


def is_unreachable(codes: Iterable[str]) -> bool:
    """Whether the archive's endpoint is down, so that its other studies wait too."""
    return not UNREACHABLE.isdisjoint(codes)


def pause(failures: int, spread: float) -> int:
    """Seconds until the next try after the n-th failure: doubling from half a minute to a minute, at most LONGEST_PAUSE.

    spread: 0 to 1, drawn anew each time, so that what failed together does not come back together.
    """
    longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(max(0, failures - 1), 10))
    return int(longest * (0.5 + spread / 2))


def is_over(since: int, now: int) -> bool:
    """Whether the outage, first met at `since` (seconds since the epoch), has lasted too long to be waited for."""
    return now - since >= OUTAGE_SECONDS
