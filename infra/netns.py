"""The node's network namespace N for the demo and the tests: port A to the hospital's side, port B to the outside's.

    N (keeper, reader, launcher)          O (the far ends)
      lo                                    lo
      portA 192.0.2.1/30     ── veth ──     farA 192.0.2.2/30
      portB 198.51.100.1/30  ── veth ──     farB 198.51.100.2/30, a TCP responder on port 7, default route of N

Both namespaces are made here, both ends of a pair are born inside N, so that no interface of the machine is ever touched. As
root N is a plain network namespace; else it lives in a user namespace of its own, held by the anchor process. The addresses are
documentation blocks (RFC 5737): nothing real answers there.
"""

import contextlib
import ctypes
import ipaddress
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pyroute2 import IPRoute

from rapha.errors import ConfigurationError

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
PR_SET_PDEATHSIG = 1
PORT_A, PORT_B = "portA", "portB"
FAR_HOST, FAR_PORT = "198.51.100.2", 7
_LINES = {PORT_A: ("192.0.2.1", "farA", "192.0.2.2"), PORT_B: ("198.51.100.1", "farB", FAR_HOST)}
_libc = ctypes.CDLL(None, use_errno=True)


class NodeNetwork:
    """N, held open by an anchor process that dies with this one. Use as a context manager."""

    def __init__(self, anchor: "subprocess.Popen[bytes]", facts: dict[str, Any]) -> None:
        self._anchor, self._far, self._user = anchor, int(facts["far"]), bool(facts["user"])
        self.inode = int(facts["inode"])
        self.probe = (FAR_HOST, FAR_PORT)

    @classmethod
    def create(cls) -> "NodeNetwork":
        """Makes N. Raises `ConfigurationError(netns-not-allowed)`, naming the administrator's command."""
        anchor = subprocess.Popen(
            [sys.executable, "-m", "infra.netns", "anchor"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_environment(),
            cwd=_home(),
        )
        line = anchor.stdout.readline() if anchor.stdout is not None else b""
        facts = json.loads(line) if line.strip() else {"error": "anchor-died"}
        if "error" in facts:
            anchor.wait()
            raise not_allowed(facts["error"])
        return cls(anchor, facts)

    def prefix(self, pid: int | None = None) -> list[str]:
        """The command words that run what follows inside N."""
        user = ["--user", "--preserve-credentials"] if self._user else []
        return ["nsenter", "--target", str(pid or self._anchor.pid), *user, "--net", "--"]

    def popen(self, argv: list[str], **options: Any) -> "subprocess.Popen[Any]":
        """`subprocess.Popen` inside N; the process id is the program's own."""
        return subprocess.Popen([*self.prefix(), *argv], **options)

    def far(self, argv: list[str], **options: Any) -> "subprocess.Popen[Any]":
        """`subprocess.Popen` in O, at the far ends of both lines."""
        return subprocess.Popen([*self.prefix(self._far), *argv], **options)

    def listen(self, host: str, port: int) -> socket.socket:
        """A listening TCP socket inside N for a process outside it: to serve on N's loopback. Port 0 takes a free one."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            argv = [sys.executable, "-m", "infra.netns", "listen", host, str(port), str(theirs.fileno())]
            done = self.popen(argv, pass_fds=[theirs.fileno()], env=_environment(), cwd=_home())
            theirs.close()
            _, fds, _, _ = socket.recv_fds(ours, 1, 1)
            done.wait()
        if not fds:
            raise ConfigurationError(["netns-listen"], f"no socket at {host}:{port} in the node's namespace")
        return socket.socket(fileno=fds[0])

    def close(self) -> None:
        """Ends the anchor; the namespaces and both pairs go with the last process in them."""
        if self._anchor.stdin is not None:
            with contextlib.suppress(OSError):
                self._anchor.stdin.close()
        try:
            self._anchor.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._anchor.kill()
            self._anchor.wait()
        if self._anchor.stdout is not None:
            self._anchor.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def not_allowed(why: str) -> ConfigurationError:
    """Which one command an administrator must run, by what this kernel has switched off."""
    switches = {
        "kernel/apparmor_restrict_unprivileged_userns": ("1", "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"),
        "kernel/unprivileged_userns_clone": ("0", "sudo sysctl -w kernel.unprivileged_userns_clone=1"),
        "user/max_user_namespaces": ("0", "sudo sysctl -w user.max_user_namespaces=15000"),
    }
    command = next(
        (command for name, (bad, command) in switches.items() if _reads(Path("/proc/sys") / name, bad)), "sudo make demo"
    )
    said = f"this user may not make a network namespace ({why}); an administrator must run: {command}"
    return ConfigurationError(["netns-not-allowed"], said)


def _reads(path: Path, value: str) -> bool:
    with contextlib.suppress(OSError):
        return path.read_text().strip() == value
    return False


def unshare(flags: int) -> None:
    """unshare(2); raises `OSError`."""
    if _libc.unshare(flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _home() -> str:
    return str(Path(__file__).resolve().parent.parent)


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "PYTHONPATH") if name in os.environ}
    return {**kept, "PYTHONDONTWRITEBYTECODE": "1"}


def _enter_user_namespace() -> None:
    uid, gid = os.getuid(), os.getgid()
    unshare(CLONE_NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")


def _anchor() -> int:
    """Makes both namespaces and the lines between them, says so, and lives until its standard input closes."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    user = False
    try:
        try:
            unshare(CLONE_NEWNET)
        except PermissionError:
            _enter_user_namespace()
            unshare(CLONE_NEWNET)
            user = True
    except OSError as error:
        print(json.dumps({"error": error.strerror}), flush=True)
        return 3
    far = _fork_far()
    inode = Path("/proc/self/ns/net").stat().st_ino
    print(json.dumps({"inode": inode, "far": far, "user": user}), flush=True)
    sys.stdin.read()
    os.kill(far, signal.SIGKILL)
    os.waitpid(far, 0)
    return 0


def _fork_far() -> int:
    """Forks the process that holds O and answers on port B's far end."""
    born, moved, serving = os.pipe(), os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        unshare(CLONE_NEWNET)
        os.write(born[1], b"1")
        os.read(moved[0], 1)
        _far_end()
        listener = socket.create_server((FAR_HOST, FAR_PORT), backlog=64)
        os.write(serving[1], b"1")
        while True:
            connection, _ = listener.accept()
            connection.close()
    os.read(born[0], 1)
    _near_end(pid)
    os.write(moved[1], b"1")
    os.read(serving[0], 1)
    return pid


def _near_end(far: int) -> None:
    with IPRoute() as netlink:
        _up(netlink, "lo", "127.0.0.1", 8)
        for name, (address, far_name, _) in _LINES.items():
            netlink.link("add", ifname=name, kind="veth", peer=far_name)
            _no_ipv6(name)
            netlink.link("set", index=netlink.link_lookup(ifname=far_name)[0], net_ns_pid=far)
            _up(netlink, name, address, 30)
        netlink.route("add", dst="default", gateway=FAR_HOST)


def _far_end() -> None:
    with IPRoute() as netlink:
        _up(netlink, "lo", "127.0.0.1", 8)
        for _, name, address in _LINES.values():
            _no_ipv6(name)
            _up(netlink, name, address, 30)


def _up(netlink: IPRoute, name: str, address: str, length: int) -> None:
    index = netlink.link_lookup(ifname=name)[0]
    held = ipaddress.ip_address(address)
    if not held.is_loopback:
        netlink.addr("add", index=index, address=address, prefixlen=length)
    netlink.link("set", index=index, state="up")


def _no_ipv6(name: str) -> None:
    """No link-local address, no router advertisement: IPv6 would be a second way out (C03, C04)."""
    switch = Path("/proc/sys/net/ipv6/conf") / name / "disable_ipv6"
    if switch.exists():
        switch.write_text("1")


def _listen(host: str, port: int, channel: int) -> int:
    listener = socket.create_server((host, port), backlog=64)
    with socket.socket(fileno=channel) as sock:
        socket.send_fds(sock, [b"1"], [listener.fileno()])
    return 0


if __name__ == "__main__":
    sys.exit(_anchor() if sys.argv[1] == "anchor" else _listen(sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
