"""How many associations this process has open with one archive at once: an archive has its own limit, and refuses beyond it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from blocks.endpoint import Endpoint
from rapha.errors import PeerError

_pools: dict[tuple[str, str, int, int], threading.BoundedSemaphore] = {}
_making = threading.Lock()
_held = threading.local()


@contextmanager
def slot(endpoint: Endpoint) -> Iterator[None]:
    """One of the endpoint's `pool_size` places, waited for; any number where it has none.

    A thread that has a place already goes on with it: it would wait for itself. Raises `PeerError(dimse-pool)` after
    `whole_seconds`, in which every association must have ended.
    """
    if endpoint.pool_size is None:
        yield
        return
    key = (endpoint.name, endpoint.host, endpoint.port, endpoint.pool_size)
    mine: set[tuple[str, str, int, int]] = _held.__dict__.setdefault("keys", set())
    if key in mine:
        yield
        return
    with _making:
        pool = _pools.setdefault(key, threading.BoundedSemaphore(endpoint.pool_size))
    if not pool.acquire(timeout=endpoint.whole_seconds):
        raise PeerError("dimse-pool", "every association of the pool is in use", peer="pacs")
    mine.add(key)
    try:
        yield
    finally:
        mine.discard(key)
        pool.release()
