"""What a finished C-MOVE or C-GET means, judged by sets. Pure.

    delivered = wanted                         done, whatever the archive says of it
    0xC000 and the like, nothing delivered     look closer: ask again series by series, then instance by instance
    some delivered                             retry what is missing, at instance level
    nothing delivered                          retry; twice the same: failed

A status and its counts are hints: archives leave counts out, count wrongly, and answer success with nothing sent (PS3.4 C.4.2.1.6
makes counts optional in the final answer). What decides is which instances arrived, also when there was no final answer at all.
"""

from collections.abc import Set
from typing import Literal

Step = Literal["done", "retry-missing", "look-closer", "retry", "failed"]
SUCCESS, WARNING, CANCELED = 0x0000, 0xB000, 0xFE00
OUT_OF_RESOURCES = (0xA701, 0xA702)  # of the archive, or of the destination: ours was full
DESTINATION_UNKNOWN = 0xA801
MOST_ROUNDS = 4


def next_step(
    status: int | None, wanted: Set[str], delivered: Set[str], *, before: Set[str], rounds: int, level: str = "STUDY"
) -> Step:
    """What to do after a round that ended with `status`, None where the association broke before the final answer.

    wanted: instances that the archive lists; delivered: those of them that arrived so far; before: those that had arrived when
    the round began; rounds: how many were made; level: at which one the round asked.
    """
    if wanted <= delivered:
        return "done"
    if status == DESTINATION_UNKNOWN or rounds >= MOST_ROUNDS:
        return "failed"
    if (delivered & wanted) - before:
        return "retry-missing"
    if level != "IMAGE" and status is not None and (0xC000 <= status <= 0xCFFF or status in (SUCCESS, WARNING)):
        return "look-closer"  # it cannot, or says that it sent and nothing came
    if status in (*OUT_OF_RESOURCES, CANCELED) or rounds < 2:
        return "retry"
    return "failed"


def hints(status: int | None, completed: int | None, failed: int | None, wanted: int, came: int) -> tuple[str, ...]:
    """Codes of what the archive said that is not so: for the audit trail and the capability record, never for the decision."""
    if status is None:
        return ("move-broken-off",)
    found = []
    if status == SUCCESS and came < wanted:
        found.append("move-success-incomplete")
    if completed is None or failed is None:
        found.append("move-counts-missing")
    elif completed != came:
        found.append("move-counts-wrong")
    if status == WARNING and came == wanted:
        found.append("move-warning-complete")
    return tuple(found)
