"""Where it is not a study's fault: nothing is claimed for a moment, for the next study would fail as this one did."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

log = logging.getLogger("rapha.reading")
FIRST, MOST = 1.0, 30.0  # seconds; the most is what an urgent study may have to wait for once all is well again


@dataclass
class Brake:
    """Doubles its pause from `FIRST` to `MOST` seconds while what is tried in between fails too; one that succeeds ends it.

    why: codes; () where it does not hold.
    """

    clock: Callable[[], float] = time.monotonic
    why: tuple[str, ...] = ()
    _pause: float = 0.0
    _until: float = 0.0
    _trying: bool = False

    def may(self) -> bool:
        """Whether a row may be claimed now. After a pause one may, to see; the next only after another."""
        now = self.clock()
        if self._pause and now < self._until:
            return False
        self._trying, self._until = self._pause > 0, now + self._pause
        return True

    def pull(self, codes: Sequence[str]) -> None:
        """A claim failed, or a study for no fault of its own. Many at one moment are one reason to wait."""
        now = self.clock()
        if self._pause and now < self._until and not self._trying:
            return
        self._pause = min(MOST, 2 * self._pause or FIRST)
        self._trying, self._until, self.why = False, now + self._pause, tuple(codes)
        log.warning("nothing is claimed for %d s: %s", self._pause, ", ".join(codes))

    def release(self) -> None:
        """A study came to an end that says that this node works."""
        self._pause, self._trying, self.why = 0.0, False, ()
