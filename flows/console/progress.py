"""What a command is doing, on a terminal: a line on stderr from the first second on, gone when it is over."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

FIRST, EVERY = 1.0, 0.5  # seconds


@contextmanager
def shown(step: str | Callable[[], str]) -> Iterator[None]:
    """step: what is done, or what says it anew each time."""
    if not sys.stderr.isatty():
        yield
        return
    over = threading.Event()
    watching = threading.Thread(target=_watched, args=(step, over), daemon=True)
    watching.start()
    try:
        yield
    finally:
        over.set()
        watching.join()


def _watched(step: str | Callable[[], str], over: threading.Event) -> None:
    began, pause = time.monotonic(), FIRST
    while not over.wait(pause):
        said, pause = step if isinstance(step, str) else step(), EVERY
        sys.stderr.write(f"\r\x1b[K{said}, {time.monotonic() - began:.0f} s")
        sys.stderr.flush()
    if pause == EVERY:
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()
