"""How one worker keeps many studies in flight inside one flow run: claim, start, wait for whoever is first, claim again.

A flow run costs a second and a task some milliseconds, so the unit of a flow run is a worker's whole shift and not a study.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from flows.pace import pace

L = TypeVar("L")
PAUSE = 1.0  # seconds between two looks at the register when nothing ends meanwhile


@dataclass
class Shift(Generic[L]):
    """One worker's shift.

    claim: the next leased row, or None; run: brings one lease to whatever end, which it names, and raises nothing; at_most:
    rows in flight; idle: seconds without work after which the shift ends; until: monotonic time after which nothing new is begun.
    """

    claim: Callable[[], L | None]
    run: Callable[[L], Awaitable[str]]
    at_most: int
    idle: float
    until: float
    pause: float = PAUSE
    ends: Counter[str] = field(default_factory=Counter)

    async def work(self) -> dict[str, int]:
        """How many rows came to which end. What is in flight when the shift is over is brought to its end."""
        # The default has six threads on two cores. The loop ends its pool itself: who shares it may have work after the shift.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(self.at_most + 4, thread_name_prefix="stage"))
        return await self._work()

    async def _work(self) -> dict[str, int]:
        flying: set[asyncio.Future[str]] = set()
        worked = time.monotonic()
        while True:
            await self._fill(flying)
            now = time.monotonic()
            worked = now if flying else worked
            if not flying and (now > self.until or now - worked >= self.idle):
                return dict(self.ends)
            if not flying:
                await asyncio.sleep(self.pause)
                continue
            done, flying = await asyncio.wait(flying, timeout=self.pause, return_when=asyncio.FIRST_COMPLETED)
            self.ends.update(one.result() for one in done)

    async def _fill(self, flying: set[asyncio.Future[str]]) -> None:
        """Begins what there is room for, at most a batch at one look: the register is not asked fifty times in a row."""
        for _ in range(min(pace().batch, self.at_most - len(flying))):
            lease = await asyncio.to_thread(self.claim) if time.monotonic() < self.until else None
            if lease is None:
                return
            flying.add(asyncio.ensure_future(self.run(lease)))
