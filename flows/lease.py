"""Keeping an attempt's lease while its flow runs: a thread that renews it, and tells when it is lost."""

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from blocks.register import Register
from blocks.register_rows import Lease
from rapha.errors import PeerError, RaphaError, Refusal

LEASE_SECONDS = 120
RENEW_SECONDS = 20


class Held:
    """A lease that is renewed every `RENEW_SECONDS` until the block ends. `check()` raises what ended it, at a stage's start.

    A database that does not answer is no reason to stop at once: the lease has six times the renewal's pause to live.
    """

    def __init__(self, register: Register, lease: Lease, *, clock: Callable[[], float] = time.time) -> None:
        self._register, self.lease, self._clock = register, lease, clock
        self._over = threading.Event()
        self._lost: RaphaError | None = None
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def enter(self, stage: str) -> None:
        """Writes down the stage that begins. Raises `Refusal` lease-lost or job-cancelled."""
        self.check()
        self._register.stage(self.lease, stage, int(self._clock()))

    def check(self) -> None:
        """Raises what ended the lease, if something did."""
        if self._lost is not None:
            raise self._lost

    def _renew(self) -> None:
        while not self._over.wait(RENEW_SECONDS):
            try:
                self._register.renew(self.lease, int(self._clock()), LEASE_SECONDS)
            except Refusal as refusal:
                self._lost = refusal
                return
            except PeerError:
                continue  # tried again at the next turn; the lease itself is the bound

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join(5)
