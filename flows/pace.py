"""How fast a worker goes, as the profile says: what it begins at a time, what runs at once, how often a peer is tried again.

A flow adopts the pace at its start; it holds for that run and for the tasks of it.
"""

import asyncio
from contextlib import AbstractAsyncContextManager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field

from blocks.profile import Profile

MOST_STUDIES, MOST_RETRIES = 50, 3


@dataclass(frozen=True)
class Pace:
    """batch: studies begun at one look at the register; threads: stages of studies that run at once, None: one for each study in
    flight; retries: how often a peer that failed is tried again within a stage."""

    batch: int = MOST_STUDIES
    threads: int | None = None
    retries: int = MOST_RETRIES
    _turns: list[asyncio.Semaphore] = field(default_factory=list, repr=False, compare=False)

    def turn(self) -> AbstractAsyncContextManager[None]:
        """A stage's turn among those that run at once."""
        if self.threads is None:
            return nullcontext()
        if not self._turns:
            self._turns.append(asyncio.Semaphore(self.threads))
        return self._turns[0]


_DEFAULT = Pace()
_PACE: ContextVar[Pace] = ContextVar("pace")


def pace() -> Pace:
    """The one that this run has adopted, or the default."""
    return _PACE.get(_DEFAULT)


def adopt(profile: Profile) -> Pace:
    """From here on, in this context: `workflow.batch_size`, `workflow.worker_threads`, `performance.max_retries`."""
    values = profile.values
    threads = values.get("workflow.worker_threads")
    adopted = Pace(
        batch=int(values.get("workflow.batch_size", MOST_STUDIES)),
        threads=None if threads is None else int(threads),
        retries=int(values.get("performance.max_retries", MOST_RETRIES)),
    )
    _PACE.set(adopted)
    return adopted
