"""One sandbox: its bubblewrap command, its start in two steps (prove, then let go), its watchdog, its end."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from infra.launcher import limits as control
from infra.launcher.runtime import Runtime
from infra.launcher.syscalls import filter_file
from infra.processes import living_in
from policies.train import SandboxLimits
from rapha.errors import ConfigurationError, PeerError, Refusal

BWRAP = "/usr/bin/bwrap"
NOBODY = 65534
MIN_BWRAP = (0, 8, 0)
_MASKED = ("kcore", "keys", "key-users", "timer_list", "kallsyms", "kmsg", "kpagecount", "kpageflags", "kpagecgroup",
           "sched_debug", "vmallocinfo", "slabinfo", "interrupts", "iomem", "ioports", "modules", "swaps", "partitions",
           "diskstats", "config.gz", "cmdline", "locks", "latency_stats", "sysrq-trigger", "schedstat")  # fmt: skip


@dataclass(slots=True)
class Box:
    """Where a sandbox's files are (`folder`, in the launcher's memory), what it runs, and with what.

    root: an unpacked image with an interpreter of its own, whose top folders become the sandbox's, or None for the host's
    libraries; workload: what is shown as /workload.
    """

    folder: Path
    runtime: Runtime
    python: str
    limits: SandboxLimits
    environment: dict[str, str]
    fds: list[int]
    workload: Path
    root: Path | None = None
    dropped: bool = False

    def command(self, program: list[str], status: int, leash: int, syscalls: int) -> list[str]:
        """bwrap(1) and all its options. The network is not unshared here: the step before has done it."""
        argv = [BWRAP, "--unshare-user", "--uid", str(NOBODY), "--gid", str(NOBODY), "--unshare-ipc", "--unshare-pid"]
        argv += ["--unshare-uts", "--unshare-cgroup-try", "--hostname", "sandbox", "--die-with-parent", "--new-session"]
        argv += ["--clearenv", "--cap-drop", "ALL", *self._root(), "--proc", "/proc", "--dev", "/dev"]
        argv += [word for name in _MASKED if Path("/proc", name).exists() for word in ("--ro-bind", "/dev/null", f"/proc/{name}")]
        argv += ["--bind", f"{self.folder}/shm", "/dev/shm", "--remount-ro", "/dev"]  # noqa: S108
        argv += ["--bind", f"{self.folder}/tmp", "/tmp", "--bind", f"{self.folder}/out", "/out"]  # noqa: S108
        argv += self._binds(below_tmp=True)
        argv += ["--ro-bind", f"{self.folder}/in/rapha", "/rapha", "--ro-bind", str(self.workload), "/workload"]
        argv += ["--remount-ro", "/", "--chdir", "/workload"]
        argv += [word for name, value in self.environment.items() for word in ("--setenv", name, value)]
        argv += ["--as-pid-1", "--json-status-fd", str(status), "--seccomp", str(syscalls)]
        return [*argv, "--", self.python, "-I", "-S", "/rapha/leash.py", str(leash), *program]

    def _root(self) -> list[str]:
        if self.root is None:
            binds = self._binds(below_tmp=False)
            links = [word for target, place in self.runtime.links for word in ("--symlink", target, place)]
            return [*binds, *links, "--ro-bind", f"{self.folder}/in/etc", "/etc"]
        words: list[str] = []
        for entry in sorted(self.root.iterdir()):
            if entry.name in {"proc", "dev", "sys", "tmp", "out", "run", "rapha", "workload"}:
                continue
            words += (
                ["--symlink", str(entry.readlink()), f"/{entry.name}"]
                if entry.is_symlink()
                else ["--ro-bind", f"{self.folder}/root/{entry.name}", f"/{entry.name}"]
            )
        return words

    def _binds(self, *, below_tmp: bool) -> list[str]:
        """The runtime's trees. One that lies below /tmp on the host must be shown after the sandbox's own /tmp, not under it."""
        binds = self.runtime.binds if self.root is None else ()
        chosen = [(source, place) for source, place in binds if place.startswith("/tmp/") is below_tmp]  # noqa: S108
        return [word for source, place in chosen for word in ("--ro-bind", source, place)]

    def plan(self, argv: list[str], group: control.Group) -> str:
        """The argument of `infra.launcher.stage`."""
        rlimits = {"CORE": 0, "NOFILE": 1024, "FSIZE": self.limits.output_bytes, "MEMLOCK": 1 << 20, "MSGQUEUE": 0}
        if self.dropped:
            rlimits["NPROC"] = self.limits.processes + 64
        groups = [str(folder) for folder in group.folders]
        user = NOBODY if self.dropped else None
        return json.dumps({"groups": groups, "limits": rlimits, "uid": user, "argv": argv, "parent": os.getpid()})


@dataclass(slots=True)
class Running:
    """A started sandbox. reason: why the watchdog ended it, or "". `pidns` names its process namespace."""

    process: "subprocess.Popen[bytes]"
    init: int
    pidns: int
    netns: int
    group: control.Group
    started: float
    release: int
    reason: str = ""
    said: int = 0
    ended: float = 0.0
    empty: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def let_go(self) -> None:
        """The program starts now."""
        os.write(self.release, b"1")

    def kill(self, reason: str) -> None:
        """SIGKILL to the namespace's first process: the kernel ends every other one with it (pid_namespaces(7))."""
        with self.lock:
            if self.process.poll() is None:
                self.reason = self.reason or reason
                self._kill_namespace()
                with contextlib.suppress(ProcessLookupError):
                    self.process.kill()
        self._close_release()
        self.process.wait()
        self.finish()

    def finish(self) -> None:
        """After bwrap's end: whatever the program left behind goes too. Returns when nothing is left, or after 5 s."""
        self._kill_namespace()
        self._close_release()
        end = time.monotonic() + 5
        while self.left() and time.monotonic() < end:
            time.sleep(0.02)

    def _kill_namespace(self) -> None:
        # Only while its number still belongs to this namespace: numbers are used again.
        with contextlib.suppress(OSError):
            if Path(f"/proc/{self.init}/ns/pid").stat().st_ino == self.pidns:
                os.kill(self.init, signal.SIGKILL)

    def left(self) -> list[int]:
        """Processes alive in the namespace. Once there are none it stays so: without its first process it takes in no other
        (pid_namespaces(7)), its number may be another's by then, and a sandbox that starts beside it be taken for one of it."""
        found = [] if self.empty else living_in(self.pidns)
        self.empty = self.empty or (not found and self.process.poll() is not None)
        return found

    def exit(self) -> tuple[str, str]:
        """("completed" | "failed" | "timeout" | "killed", reason): a fixed set, whatever number the program chose (C16)."""
        reason = self.reason or ("memory" if self.group.out_of_memory() else "")
        if reason:
            return ("timeout" if reason == "time" else "killed"), reason
        return ("completed" if self.process.returncode == 0 else "failed"), ""

    def _close_release(self) -> None:
        with self.lock:
            held, self.release = self.release, -1
        if held >= 0:
            os.close(held)


def check_version() -> None:
    """`ConfigurationError` unless bubblewrap is there and new enough (C09)."""
    try:
        said = subprocess.run([BWRAP, "--version"], capture_output=True, text=True, check=True, timeout=10).stdout
        version = tuple(int(part) for part in said.split()[-1].split("."))
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        raise ConfigurationError(["launcher-no-bwrap"], "bubblewrap is missing: sudo apt-get install bubblewrap") from None
    if version < MIN_BWRAP:
        raise ConfigurationError(["launcher-old-bwrap"], f"bubblewrap is older than {'.'.join(map(str, MIN_BWRAP))}")


def start(box: Box, program: list[str], name: str, *, capture: "list[bytes] | None" = None) -> Running:
    """Starts bwrap; its first process waits for `let_go`, so that namespaces can be checked and named before the program runs.

    `capture`: a list that takes the program's stdout, for the probe alone; else both streams are counted and thrown away.
    """
    group = control.make(name, box.limits.memory_bytes, box.limits.processes)
    status, status_w = os.pipe()
    block, release = os.pipe()
    syscalls = filter_file()
    argv = box.command(program, status_w, block, syscalls)
    passed = [status_w, block, syscalls, *box.fds]
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "infra.launcher.stage", box.plan(argv, group)],
            pass_fds=passed,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if capture is None else subprocess.DEVNULL,
            cwd=Path(__file__).resolve().parents[2],
        )
    finally:
        for fd in (status_w, block, syscalls):
            os.close(fd)
    try:
        init = _first(status)
    except PeerError:
        os.close(release)
        process.kill()
        process.wait()
        group.remove()
        raise
    finally:
        os.close(status)
    running = Running(process, init, _inode(init, "pid"), _inode(init, "net"), group, time.monotonic(), release)
    _drain(running, capture)
    return running


def links_of(pid: int) -> tuple[str, ...]:
    """The interfaces of a process's network namespace, each with up or down; lo is down when it has no address at all."""
    lines = Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]
    names = [line.partition(":")[0].strip() for line in lines]
    routed = bool(Path(f"/proc/{pid}/net/fib_trie").read_text().strip())
    if6 = Path(f"/proc/{pid}/net/if_inet6")
    up = routed or (if6.exists() and bool(if6.read_text().strip()))
    return tuple(f"{name}:{'up' if up else 'down'}" for name in names)


def watch(running: Running, limits: SandboxLimits, cut: Callable[[], tuple[str, ...]] | None) -> None:
    """The watchdog: time, memory and processes, and the keeper's word that the line is still cut. Returns at the end."""
    asked = 0.0
    while running.process.poll() is None:
        now = time.monotonic()
        if now - running.started > limits.seconds:
            running.kill("time")
        elif running.group.mechanism == "rlimits" and (why := _overstep(running, limits)):
            running.kill(why)
        elif cut is not None and now - asked > 0.5:
            asked = now
            if cut():
                running.kill("cut")
        time.sleep(0.1)
    running.ended = running.ended or time.monotonic()
    running.finish()


def _overstep(running: Running, limits: SandboxLimits) -> str:
    pids = living_in(running.pidns)
    if control.resident(pids) > limits.memory_bytes:
        return "memory"
    return "processes" if control.threads(pids) > limits.processes else ""


def _first(status: int) -> int:
    """The host's number of the sandbox's first process, from bwrap's status line."""
    raw, end = b"", time.monotonic() + 20
    while b"\n" not in raw:
        ready, _, _ = select.select([status], [], [], max(0.0, end - time.monotonic()))
        block = os.read(status, 4096) if ready else b""
        if not block:
            raise PeerError("sandbox-no-start", "bubblewrap did not start a sandbox", peer="launcher")
        raw += block
    try:
        return int(json.loads(raw.splitlines()[0])["child-pid"])
    except (ValueError, KeyError, TypeError):
        raise PeerError("sandbox-no-start", "bubblewrap's status cannot be read", peer="launcher") from None


def _inode(pid: int, kind: str) -> int:
    try:
        return Path(f"/proc/{pid}/ns/{kind}").stat().st_ino
    except OSError:
        raise Refusal(["sandbox-namespaces"], "the sandbox's namespaces cannot be seen") from None


def _drain(running: Running, capture: "list[bytes] | None") -> None:
    for stream in (running.process.stdout, running.process.stderr):
        if stream is not None:
            threading.Thread(target=_swallow, args=(running, stream.fileno(), stream, capture), daemon=True).start()


def _swallow(running: Running, fd: int, stream: object, capture: "list[bytes] | None") -> None:
    with contextlib.closing(stream):  # type: ignore[type-var]
        while block := os.read(fd, 1 << 16):
            running.said += len(block)
            if capture is not None and running.said <= 1 << 16:
                capture.append(block)
