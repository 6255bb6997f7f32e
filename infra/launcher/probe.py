"""Runs inside the sandbox before the trainer does, from the same specification, and tries to get out.

Prints one JSON object: {"open": [codes of what worked and must not], "seen": {...}}. Standard library only: it is copied in.
"""

import contextlib
import ctypes
import json
import os
import platform
import resource
import socket
import sys
from pathlib import Path

FAMILIES = {
    "unix": 1, "inet": 2, "ax25": 3, "appletalk": 5, "inet6": 10, "netlink": 16, "packet": 17, "rds": 21, "can": 29, "tipc": 30,
    "bluetooth": 31, "alg": 38, "vsock": 40, "kcm": 41, "qipcrtr": 42, "xdp": 44,
}  # fmt: skip
CALLS = {
    "x86_64": {"ptrace": 101, "unshare": 272, "setns": 308, "mount": 165, "bpf": 321, "perf_event_open": 298, "keyctl": 250,
               "add_key": 248, "io_uring_setup": 425, "userfaultfd": 323, "kexec_load": 246, "memfd_create": 319, "execveat": 322,
               "process_vm_readv": 310, "open_by_handle_at": 304, "pivot_root": 155, "chroot": 161, "init_module": 175,
               "clone3": 435, "fsopen": 430, "move_mount": 429, "pidfd_getfd": 438, "connect": 42, "bind": 49, "shmget": 29,
               "mq_open": 240, "syslog": 103, "personality": 135},
    "aarch64": {"ptrace": 117, "unshare": 97, "setns": 268, "mount": 40, "bpf": 280, "perf_event_open": 241, "keyctl": 219,
                "add_key": 217, "io_uring_setup": 425, "userfaultfd": 282, "kexec_load": 104, "memfd_create": 279,
                "execveat": 281, "process_vm_readv": 270, "open_by_handle_at": 265, "pivot_root": 41, "chroot": 51,
                "init_module": 105, "clone3": 435, "fsopen": 430, "move_mount": 429, "pidfd_getfd": 438, "connect": 203,
                "bind": 200, "shmget": 194, "mq_open": 180, "syslog": 116, "personality": 92},
}  # fmt: skip
REFUSED = {1, 38}  # EPERM, ENOSYS: the filter's own answers
PLACES = (
    "/",
    "/usr",
    "/usr/lib",
    "/etc",
    "/rapha",
    "/rapha/lib",
    "/workload",
    "/dev",
    "/proc",
    "/proc/sys/kernel",
    "/var",
    "/run",
)
SECRETS = (
    "/sys",
    "/run/docker.sock",
    "/var/run/docker.sock",
    "/run/containerd",
    "/run/dbus",
    "/root/.ssh",
    "/etc/shadow",
    "/boot",
)


def sockets() -> list[str]:
    """Families of which a socket could be made, in any of three types."""
    found = []
    for name, number in FAMILIES.items():
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
            with contextlib.suppress(OSError):
                socket.socket(number, kind).close()
                found.append(f"socket-{name}")
    return sorted(set(found))


def calls() -> list[str]:
    """System calls that the kernel did more with than say no by the filter. An unknown machine fails."""
    numbers = CALLS.get(platform.machine())
    if numbers is None:
        return ["machine-unknown"]
    libc = ctypes.CDLL(None, use_errno=True)
    found = []
    for name, number in numbers.items():
        ctypes.set_errno(0)
        # Every argument is -1: a call that got through would fail with EFAULT, EINVAL or EBADF and change nothing.
        if libc.syscall(number, -1, -1, -1, -1, -1, -1) != -1 or ctypes.get_errno() not in REFUSED:
            found.append(f"call-{name}")
    return found


def writes() -> list[str]:
    """Places outside /out, /tmp and /dev/shm that could be written to."""
    found = []
    for place in PLACES:
        with contextlib.suppress(OSError):
            probe = Path(place) / "rapha-probe"
            probe.write_bytes(b"")
            probe.unlink()
            found.append(f"write-{place}")
    return found


def status() -> dict[str, str]:
    lines = Path("/proc/self/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def rights() -> list[str]:
    """What is missing of: no capability, no new privileges, seccomp on, the user nobody, no core file."""
    seen = status()
    wrong = [f"capability-{name}" for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb") if int(seen[name], 16) != 0]
    wrong += [] if seen.get("NoNewPrivs") == "1" else ["new-privileges"]
    wrong += [] if seen.get("Seccomp") == "2" else ["no-seccomp"]
    wrong += [] if os.getresuid() == (65534,) * 3 and os.getresgid() == (65534,) * 3 else ["user"]
    wrong += [] if resource.getrlimit(resource.RLIMIT_CORE) == (0, 0) else ["core-files"]
    return wrong


def surroundings(environment: list[str], fds: list[int]) -> list[str]:
    """What can be seen that should not: variables, descriptors, processes, links, well-known paths."""
    wrong = [f"environment-{len(set(os.environ) - set(environment))}"] if set(os.environ) - set(environment) else []
    held = {int(path.name) for path in Path("/proc/self/fd").iterdir()}
    extra = {fd for fd in held if fd > 2 and Path(f"/proc/self/fd/{fd}").exists()} - set(fds)
    wrong += ["descriptors"] if extra else []
    wrong += ["processes"] if len([path for path in Path("/proc").iterdir() if path.name.isdigit()]) > 3 else []
    links = [line.partition(":")[0].strip() for line in Path("/proc/net/dev").read_text().splitlines()[2:]]
    wrong += ["links"] if links != ["lo"] else []
    wrong += ["routes"] if Path("/proc/net/route").read_text().splitlines()[1:] else []
    return wrong + [f"path-{place}" for place in SECRETS if Path(place).exists()]


def main() -> None:
    """argv: names of the variables allowed, then the descriptors allowed, both with commas."""
    environment = [name for name in sys.argv[1].split(",") if name]
    fds = [int(number) for number in sys.argv[2].split(",") if number]
    # Sockets that lead nowhere are the one thing that must work: the trainer's threads need them.
    a, b = socket.socketpair()
    a.close()
    b.close()
    found = [*sockets(), *calls(), *writes(), *rights(), *surroundings(environment, fds)]
    seen = {
        "uid": os.getuid(),
        "seccomp": int(status().get("Seccomp", "0")),
        "families": len(FAMILIES),
        "calls": len(CALLS["x86_64"]),
    }
    sys.stdout.write(json.dumps({"open": found, "seen": seen}))


if __name__ == "__main__":
    main()
