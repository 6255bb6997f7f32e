"""The study reader's side of the warm validators: started, asked, ended after their time, started again.

A report is put before one of them as before the plain program (`blocks.validators.check`), and what it says is judged by the same
`verdict`. Where none can be had (no JPype, Java, Saxon or bubblewrap) the plain program is asked, and the log says so once.
"""

import os
import queue
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from blocks.channel import receive, send
from blocks.validators import SAXON, SECONDS, TEMPLATE, Checked, check, verdict
from infra.launcher.bare import bare
from infra.launcher.syscalls import filter_file
from rapha.errors import PeerError, Refusal
from rapha.files import in_memory

HOME = Path(__file__).resolve().parents[2]
ROOMS = ("infra", "blocks", "rapha")  # what the process imports of ours
Popen = subprocess.Popen[bytes]


class NotWarm(Exception):
    """A process did not come to its first word: none can be had here. No failure: the plain program is asked."""


class WarmValidator:
    """At most `most` processes; the first is started at once, another when all that are warm are being asked."""

    def __init__(self, most: int = 0) -> None:
        """most: 0 for one fewer than there are processors, at least one."""
        # bubblewrap ends with the thread that started it; a session's thread ends with its study.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="validators")
        self._plain = threading.Event()
        self._all = [Process(self._start) for _ in range(most or max(1, len(os.sched_getaffinity(0)) - 1))]
        self._free: queue.LifoQueue[Process] = queue.LifoQueue()
        for one in self._all:
            self._free.put(one)
        self._all[-1].start()  # the last in is the first out

    def check(self, tool: str, report: bytes, *, seconds: float = SECONDS) -> Checked:
        """As `blocks.validators.check`, whose codes it raises."""
        if tool != TEMPLATE or self._plain.is_set():
            return check(tool, report, seconds=seconds)
        one = self._free.get()  # the others wait here, outside their own time
        try:
            return verdict(tool, one.ask(report, seconds))
        except NotWarm:
            self._say_plain()
        finally:
            self._free.put(one)
        return check(tool, report, seconds=seconds)

    def pids(self) -> list[int]:
        """Of those that were started: bubblewrap's, whose child the process is."""
        return [one.process.pid for one in self._all if one.process is not None]

    def close(self) -> None:
        for one in self._all:
            one.end()
        self._starter.shutdown()

    def _start(self, line: socket.socket) -> Popen:
        return self._starter.submit(_started, line).result()

    def _say_plain(self) -> None:
        if not self._plain.is_set():
            self._plain.set()
            print("study: validator-not-warm", file=sys.stderr, flush=True)


class Process:
    """One of them, used by one thread at a time."""

    def __init__(self, start: Callable[[socket.socket], Popen]) -> None:
        self.process: Popen | None = None
        self._line: socket.socket | None = None
        self._start, self._warm = start, False

    def start(self) -> None:
        """Starts it anew; where that fails there is none, which `ask` finds."""
        self.end()
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self.process = self._start(theirs)
            except OSError:
                ours.close()
                return
        self._line = ours

    def ask(self, report: bytes, seconds: float) -> bytes:
        """What is said of the report.

        Raises `NotWarm`; `PeerError` validator-timeout, validator-failed: it is started anew.
        """
        if self.process is None or (self._warm and self.process.poll() is not None):
            self.start()  # its first report, or it died between two
        with self._deadline(seconds) as late:
            said = self._said(report)
        if said is not None:
            return said
        if not self._warm and not late.is_set():
            self.end()
            raise NotWarm
        self.start()  # it is warm again for the next
        if late.is_set():
            raise PeerError("validator-timeout", f"{TEMPLATE} did not end within {seconds:.0f} s", peer="validator")
        raise PeerError("validator-failed", f"{TEMPLATE} ended without a verdict", peer="validator")

    def end(self) -> None:
        if self._line is not None:
            self._line.close()
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.process = self._line = None
        self._warm = False

    def _said(self, report: bytes) -> bytes | None:
        """None when it did not answer."""
        if self._line is None:
            return None
        with suppress(OSError, PeerError, Refusal), in_memory(report) as (fd, _), in_memory(b"") as (place, _):
            self._warm = self._warm or _yes(self._line)
            if self._warm:
                send(self._line, {"verb": "validate"}, [fd, place])
                if _yes(self._line):
                    return os.pread(place, os.fstat(place).st_size, 0)
        return None

    @contextmanager
    def _deadline(self, seconds: float) -> Iterator[threading.Event]:
        """Ends the waiting for its answer after `seconds`, and sets what it gives."""
        late, line = threading.Event(), self._line

        def over() -> None:
            late.set()
            if line is not None:
                with suppress(OSError):  # it has been closed since
                    line.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(seconds, over)
        timer.daemon = True
        timer.start()
        try:
            yield late
        finally:
            timer.cancel()


def _yes(line: socket.socket) -> bool:
    message, fds = receive(line) or ({}, [])
    for fd in fds:
        os.close(fd)
    return message == {"ok": True} and not fds


def _started(line: socket.socket) -> Popen:
    """The process, in bubblewrap, with `line` as its other end. Raises `OSError` where there is no Java, Saxon or bubblewrap."""
    SAXON.stat()  # Java's own processor keeps more than the heap's bound of a report with a few findings
    # Of the machine that `java` is, which the program DicomSRValidator uses too.
    java = Path(shutil.which("java") or "/nonexistent/bin/java").resolve(strict=True).parents[1]
    library = (java / "lib" / "server" / "libjvm.so").resolve(strict=True)
    shown = {HOME / room: str(HOME / room) for room in ROOMS}
    # Debian keeps Java's settings in /etc; elsewhere the whole machine may lie outside /usr.
    shown |= {place: str(place) for place in (*Path("/etc").glob("java-*"), java) if not place.is_relative_to("/usr")}
    quiet, calls = subprocess.DEVNULL, filter_file()
    try:
        argv = [*bare(calls, shown), "/usr/bin/env", "-C", str(HOME), "PATH=/usr/bin:/bin", "LC_ALL=C.UTF-8"]
        argv += [sys.executable, "-m", "infra.validator", str(line.fileno()), str(library)]
        fds = (line.fileno(), calls)
        return subprocess.Popen(argv, pass_fds=fds, stdin=quiet, stdout=quiet, stderr=quiet)
    finally:
        os.close(calls)
