"""Which waiting study is read next: urgent before high before medium before low, and none waits for ever.

A study's turn is the time it was queued plus its level's handicap; the earliest turn is next. Two studies never change places
while they wait, and what is queued later than a study's turn cannot pass it, however urgent: that bounds the wait.
"""

from typing import Literal, get_args

from rapha.errors import ConfigurationError

Priority = Literal["urgent", "high", "medium", "low"]
PRIORITIES: tuple[Priority, ...] = get_args(Priority)
# Seconds. An urgent study passes everything that has waited for less than a day at medium, three at low.
HANDICAP: dict[Priority, int] = {"urgent": 0, "high": 4 * 3600, "medium": 24 * 3600, "low": 72 * 3600}


def known_priority(word: str) -> Priority:
    """The level of that name. `ConfigurationError(priority-unknown)`: a word that is none is wrong usage, no gate's answer."""
    for level in PRIORITIES:
        if word == level:
            return level
    raise ConfigurationError(["priority-unknown"], f"a priority is one of {', '.join(PRIORITIES)}")


def turn(priority: Priority, queued_at: int) -> int:
    """The study's place, in seconds since the epoch: smaller is earlier."""
    return queued_at + HANDICAP[priority]
