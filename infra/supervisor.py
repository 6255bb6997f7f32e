"""A group of processes that live and die together: the demo's world, and a node under `rapha serve`.

Each member is started in order and must say it is ready before the next starts. A member that dies is started again after a
growing pause; one that dies `MAX_DEATHS` times within ten minutes ends the group. All members die with this process
(PR_SET_PDEATHSIG), so that a kill leaves nothing behind but what each keeps on disk.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rapha.errors import PeerError

MAX_DEATHS, WINDOW = 5, 600.0
PR_SET_PDEATHSIG = 1
Opener = Callable[..., subprocess.Popen[bytes]]


@dataclass
class Member:
    """One process. `ready`: a URL that must answer 200, or None when it prints the line `ready`. `popen`: how it is started."""

    name: str
    argv: Sequence[str]
    environment: Mapping[str, str]
    ready: str | None = None
    popen: Opener = subprocess.Popen
    pass_fds: Sequence[int] = ()
    timeout: float = 90.0
    process: subprocess.Popen[bytes] | None = None
    deaths: list[float] = field(default_factory=list)


class Supervisor:
    """Starts members, watches them, stops them in the reverse order. Logs go to one file a member."""

    def __init__(self, logs: Path) -> None:
        self.logs, self.members = logs, list[Member]()
        logs.mkdir(parents=True, exist_ok=True)

    def start(self, member: Member) -> Member:
        """Starts a member and returns once it serves. Raises `PeerError` `<name>-did-not-start` with where its log lies."""
        self.members.append(member)
        self._spawn(member)
        return member

    def stop(self) -> None:
        """Ends every member, newest first: SIGTERM, then SIGKILL after five seconds."""
        for member in reversed(self.members):
            process = member.process
            if process is None:
                continue
            if process.stdout is not None:
                process.stdout.close()
            if process.poll() is not None:
                continue
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.members.clear()

    def watch(self, until: Callable[[], bool], *, pause: float = 0.5) -> None:
        """Restarts what dies until `until()` says stop. Raises `PeerError` when a member keeps dying."""
        while not until():
            for member in self.members:
                if member.process is not None and member.process.poll() is not None:
                    self._revive(member)
            time.sleep(pause)

    def _revive(self, member: Member) -> None:
        now = time.monotonic()
        member.deaths = [at for at in member.deaths if now - at < WINDOW] + [now]
        if len(member.deaths) >= MAX_DEATHS:
            raise PeerError(f"{member.name}-keeps-dying", f"{member.name} died {MAX_DEATHS} times: {self._log(member)}")
        print(f"{member.name} ended; starting it again", file=sys.stderr)
        time.sleep(min(30.0, 2.0 ** (len(member.deaths) - 1)))
        self._spawn(member)

    def _spawn(self, member: Member) -> None:
        log = self._log(member).open("ab")
        reader = subprocess.PIPE if member.ready is None else log
        member.process = member.popen(
            list(member.argv),
            env=dict(member.environment),
            stdin=subprocess.DEVNULL,
            stdout=reader,
            stderr=log,
            pass_fds=tuple(member.pass_fds),
            preexec_fn=_die_with_parent,
        )
        log.close()
        started = _line_ready(member.process, member.timeout) if member.ready is None else _url_ready(member.process, member)
        if not started:
            member.process.kill()
            raise PeerError(f"{member.name}-did-not-start", f"{member.name} did not start; see {self._log(member)}")

    def _log(self, member: Member) -> Path:
        return self.logs / f"{member.name}.log"


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _line_ready(process: subprocess.Popen[bytes], timeout: float) -> bool:
    """The pipe stays open: a process that prints once more must not die of it."""
    pipe = process.stdout
    if pipe is None:
        return False
    until, seen = time.monotonic() + timeout, b""
    while time.monotonic() < until:
        if select.select([pipe], [], [], 0.2)[0]:
            block = os.read(pipe.fileno(), 4096)
            seen += block
            if b"ready" in seen.split(b"\n")[:-1]:
                return True
            if not block:
                return False
        elif process.poll() is not None:
            return False
    return False


def _url_ready(process: subprocess.Popen[bytes], member: Member) -> bool:
    until = time.monotonic() + member.timeout
    while time.monotonic() < until and process.poll() is None:
        with (
            contextlib.suppress(urllib.error.URLError, OSError),
            urllib.request.urlopen(str(member.ready), timeout=2) as answer,
        ):
            if answer.status == 200:
                return True
        time.sleep(0.1)
    return False
