"""A group of processes that live and die together: the demo's world, and a node under `rapha serve`.

A member has started when it says that it is ready; members that do not need each other start side by side. A member that
dies is started again after a growing pause; one that dies `MAX_DEATHS` times within ten minutes ends the group, but for one that
is not vital: it is tried again for ever, and nobody waits for it. All members die with this process (PR_SET_PDEATHSIG), so that a
kill leaves nothing behind but what each keeps on disk.
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
STOP_SECONDS = 5.0
PR_SET_PDEATHSIG = 1
Opener = Callable[..., subprocess.Popen[bytes]]


@dataclass
class Member:
    """One process. `ready`: a URL that must answer 200, or None when it prints the line `ready`. `popen`: how it is started.
    `vital`: whether the group has no use without it."""

    name: str
    argv: Sequence[str]
    environment: Mapping[str, str]
    ready: str | None = None
    popen: Opener = subprocess.Popen
    pass_fds: Sequence[int] = ()
    timeout: float = 90.0
    vital: bool = True
    process: subprocess.Popen[bytes] | None = None
    deaths: list[float] = field(default_factory=list)
    again_at: float | None = None  # when one that is not vital is started again


class Supervisor:
    """Starts members, watches them, stops them in the reverse order. Logs go to one file a member."""

    def __init__(self, logs: Path) -> None:
        self.logs, self.members = logs, list[Member]()
        logs.mkdir(parents=True, exist_ok=True)

    def start(self, *members: Member) -> None:
        """Starts members side by side and returns once all serve. Raises as `await_ready` does."""
        self.begin(*members)
        self.await_ready(*members)

    def begin(self, *members: Member) -> None:
        """Starts members and does not wait."""
        for member in members:
            self.members.append(member)
            self._spawn(member)

    def await_ready(self, *members: Member) -> None:
        """Returns once all serve. Raises `PeerError` `<name>-did-not-start` with where its log lies."""
        for member in members:
            process = member.process
            if process is None or not (_line_ready if member.ready is None else _url_ready)(process, member):
                if process is not None:
                    process.kill()
                raise PeerError(f"{member.name}-did-not-start", f"{member.name} did not start; see {self._log(member)}")

    def stop(self) -> None:
        """Ends every member, newest first: SIGTERM to all, SIGKILL to what is left after five seconds."""
        running = [member.process for member in reversed(self.members) if member.process is not None]
        for process in running:
            process.terminate()
        until = time.monotonic() + STOP_SECONDS
        for process in running:
            try:
                process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
        self.members.clear()

    def watch(self, until: Callable[[], bool], *, pause: float = 0.5) -> None:
        """Restarts what dies until `until()` says stop. Raises `PeerError` when a vital member keeps dying."""
        while not until():
            for member in self.members:
                if member.process is not None and member.process.poll() is not None:
                    self._revive(member)
            time.sleep(pause)

    def _revive(self, member: Member) -> None:
        now = time.monotonic()
        if member.again_at is not None:
            if now >= member.again_at:
                member.again_at = None
                self._spawn(member)
            return
        member.deaths = [at for at in member.deaths if now - at < WINDOW] + [now]
        if not member.vital:
            member.again_at = now + _pause(member)
            print(f"{member.name} ended; started again in {_pause(member):.0f} s: {self._log(member)}", file=sys.stderr)
            return
        if len(member.deaths) >= MAX_DEATHS:
            raise PeerError(f"{member.name}-keeps-dying", f"{member.name} died {MAX_DEATHS} times: {self._log(member)}")
        print(f"{member.name} ended; starting it again", file=sys.stderr)
        time.sleep(_pause(member))
        self._spawn(member)
        self.await_ready(member)

    def _spawn(self, member: Member) -> None:
        if member.process is not None and member.process.stdout is not None:
            member.process.stdout.close()
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

    def _log(self, member: Member) -> Path:
        return self.logs / f"{member.name}.log"


def _pause(member: Member) -> float:
    """Seconds after its newest death."""
    return min(30.0, 2.0 ** (len(member.deaths) - 1))


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _line_ready(process: subprocess.Popen[bytes], member: Member) -> bool:
    """The pipe stays open: a process that prints once more must not die of it."""
    pipe = process.stdout
    if pipe is None:
        return False
    until, seen = time.monotonic() + member.timeout, b""
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
