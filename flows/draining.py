"""How one worker keeps many studies in flight inside one flow run: claim, start, wait for whoever is first, claim again.

A flow run costs a second and a task some milliseconds, so the unit of a flow run is a worker's whole shift and not a study. A
shift ends so that no flow run grows without end, nor the memory of its process (docs/adr/0010). No study waits for a slow one.
Past its time a shift begins nothing for `GRACE` seconds, in which it runs empty as a rule, and ends. Where something still flies
then, it goes on claiming for `OVERTIME` seconds and tries again, for a day at most.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from flows.brake import Brake
from flows.pace import pace
from rapha.errors import PeerError, RaphaError
from tasks.stage import coded

log = logging.getLogger("rapha.reading")
L = TypeVar("L")
PAUSE = 1.0  # seconds between two looks at the register when nothing ends meanwhile
GRACE, OVERTIME, LONGEST = 20.0, 300.0, 86_400.0
LOST, PUT_BACK = "lost", "put-back"  # ends that were not the study's fault


@dataclass
class Shift(Generic[L]):
    """One worker's shift.

    claim: the next leased row, or None; run: brings one lease to whatever end, which it names; at_most: rows in flight; idle:
    seconds without work after which the shift ends; until: monotonic time from which on it ends as soon as nothing flies. What
    either raises ends nothing else; after that, and after an end that was not the study's fault, claims pause (`flows.brake`).
    """

    claim: Callable[[], L | None]
    run: Callable[[L], Awaitable[str]]
    at_most: int
    idle: float
    until: float
    pause: float = PAUSE
    grace: float = GRACE
    ends: Counter[str] = field(default_factory=Counter)
    brake: Brake = field(default_factory=Brake)

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
            self._ended(done)

    async def _fill(self, flying: set[asyncio.Future[str]]) -> None:
        """Begins what there is room for, at most a batch at one look: the register is not asked fifty times in a row."""
        for _ in range(min(pace().batch, self.at_most - len(flying))):
            lease = await self._next(bool(flying))
            if lease is None:
                return
            flying.add(asyncio.ensure_future(self.run(lease)))

    async def _next(self, flying: bool) -> L | None:
        if not self._begins(flying) or not self.brake.may():
            return None
        try:
            return await asyncio.to_thread(coded(self.claim))
        except RaphaError as error:
            self.brake.pull(error.codes)
            return None

    def _begins(self, flying: bool) -> bool:
        """Whether it is a time for beginning something: see the module."""
        over = time.monotonic() - self.until
        return over < 0 or (flying and over < LONGEST and over % (self.grace + OVERTIME) >= self.grace)

    def _ended(self, done: Iterable[asyncio.Future[str]]) -> None:
        for one in done:
            end = _end(one)
            self.ends[end] += 1
            if end in (LOST, PUT_BACK):
                self.brake.pull([end])
            else:
                self.brake.release()


def _end(one: asyncio.Future[str]) -> str:
    """A bug in one study is that study's: its lease runs out, and it is tried again. What ends the process goes on."""
    error = None if one.cancelled() else one.exception()
    if error is None:
        return one.result()
    if not isinstance(error, Exception):
        raise error
    log.error("a study ended with bug-%s", type(error).__name__.lower())
    return LOST


async def standing(stands: Callable[[], None], until: float, waits: Callable[[Sequence[str]], None]) -> None:
    """Returns once `stands` does. While a peer fails it is asked again, after one second to half a minute, until then (monotonic
    time); `waits` shows why. Raises what it raises."""
    held = Brake()
    while True:
        try:
            return await asyncio.to_thread(coded(stands))
        except PeerError as error:
            if time.monotonic() > until:
                raise
            held.pull(error.codes)
            await outlived(asyncio.to_thread(waits, error.codes), "the view")
        while not held.may():
            await asyncio.sleep(PAUSE)


async def outlived(work: Coroutine[Any, Any, None], name: str) -> None:
    """Waits for work that the shift goes on without: a bug in it is logged by its type."""
    error: BaseException | None = (await asyncio.gather(work, return_exceptions=True))[0]
    if isinstance(error, Exception):
        log.error("%s: bug-%s", name, type(error).__name__.lower())
    elif error is not None:
        raise error
