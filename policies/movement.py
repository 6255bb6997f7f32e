"""What a finished C-MOVE, C-GET or WADO-RS means, judged by sets. Pure.

    delivered = wanted                         done, whatever the archive says of it
    0xC000 and the like, nothing delivered     look closer: the study, then each series, then the instances
    some delivered                             retry what is missing, closer: a series of which nothing came, else its instances
    nothing delivered                          retry; refused twice: look closer; broken off twice, or by instance: failed
    a list of instances, refused               its halves, down to single ones: one that cannot be sent keeps no other back

A status and its counts are hints: archives leave counts out, count wrongly, and answer success with nothing sent (PS3.4 C.4.2.1.6
makes counts optional in the final answer). What decides is which instances arrived, also when there was no final answer at all.
"""

from collections.abc import Set
from typing import Literal

Step = Literal["done", "retry-missing", "look-closer", "retry", "failed"]
Level = Literal["STUDY", "SERIES", "IMAGE"]
SUCCESS, WARNING, CANCELED = 0x0000, 0xB000, 0xFE00
OUT_OF_RESOURCES = (0xA701, 0xA702)  # of the archive, or of the destination: ours was full
DESTINATION_UNKNOWN = 0xA801
UNABLE = 0xC000
MOST_ROUNDS = 6
MOST_IN_VAIN = 16  # requests by instance, one after the other: a list of 500 is down to single ones after ten


def next_step(
    status: int | None,
    wanted: Set[str],
    delivered: Set[str],
    *,
    before: Set[str],
    rounds: int,
    level: str = "STUDY",
    tries: int | None = None,
) -> Step:
    """What to do after a round that ended with `status`, None where the association broke before the final answer.

    wanted: instances that the archive lists; delivered: those of them that arrived so far; before: those that had arrived when
    the round began; rounds: how many were made; level: at which one the round asked; tries: how many rounds in a row asked there
    and brought nothing, this one too, all of them where it is not said.
    """
    if wanted <= delivered:
        return "done"
    if status == DESTINATION_UNKNOWN or rounds >= MOST_ROUNDS:
        return "failed"
    if (delivered & wanted) - before:
        return "retry-missing"
    if level != "IMAGE" and status is not None and (0xC000 <= status <= 0xCFFF or status in (SUCCESS, WARNING)):
        return "look-closer"  # it cannot, or says that it sent and nothing came
    if status in (*OUT_OF_RESOURCES, CANCELED) or (tries or rounds) < 2:
        return "retry"
    return "look-closer" if level != "IMAGE" and status is not None else "failed"  # refused twice: it may not serve this level


def closer(level: Level) -> Level:
    """The level at which a retrieval goes on that is to look closer, or for what is missing."""
    return "SERIES" if level == "STUDY" else "IMAGE"


def in_vain(status: int, completed: int | None) -> bool:
    """Whether an answer to a list of instances, of which none came, is a reason to ask for its halves.

    A failure that the list may be the reason of: not that somebody is out of resources, not an unknown destination, not a cancel
    (PS3.4 table C.4-2). An archive that does not match lists says success, of nothing.
    """
    if status == SUCCESS or 0xB000 <= status <= 0xBFFF:
        return completed == 0
    return status != CANCELED and not 0xA700 <= status <= 0xA8FF


def hints(
    status: int | None, completed: int | None, failed: int | None, wanted: int, came: int, *, counted: bool = True
) -> tuple[str, ...]:
    """Codes of what the archive said that is not so: for the audit trail and the capability record, never for the decision.

    counted: whether the protocol has counts, and they are of `wanted`.
    """
    if status is None:
        return ("move-broken-off",)
    found = []
    if status == SUCCESS and came < wanted:
        found.append("move-success-incomplete")
    if counted and (completed is None or failed is None):
        found.append("move-counts-missing")
    elif counted and completed != came:
        found.append("move-counts-wrong")
    if status == WARNING and came == wanted:
        found.append("move-warning-complete")
    return tuple(found)
