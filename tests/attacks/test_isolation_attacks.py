"""Attacks by the trainer on its sandbox, each a real program in a real sandbox on a node whose line is really cut."""

# ruff: noqa: E501 - the attackers' programs

import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from blocks.launcher import Launcher
from rapha.errors import PeerError, Refusal
from tests.fixtures.isolation import LIMITS, SAY, World, job_of, make_world
from tests.fixtures.line import ours_in

JOB = job_of("isolation")

TRIES = (
    SAY
    + """
import ctypes, errno, glob, pathlib, resource, signal, subprocess, sys
out = {}
def attempt(name, action):
    try:
        out[name] = repr(action())
    except BaseException as error:
        out[name] = "no: " + type(error).__name__
targets = {"internet": "1.1.1.1", "hospital": "192.0.2.2", "gateway": "198.51.100.2", "metadata": "169.254.169.254", "self": "127.0.0.1"}
for name, host in targets.items():
    attempt("tcp-" + name, lambda: socket.create_connection((host, 80), 2))
    attempt("udp-" + name, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", (host, 53)))
attempt("icmp", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))
attempt("dns", lambda: socket.getaddrinfo("example.org", 443))
attempt("ipv6", lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).sendto(b"x", ("ff02::fb", 5353)))
for number in range(1, 46):
    attempt("family-%d" % number, lambda: socket.socket(number, socket.SOCK_DGRAM))
    attempt("family-stream-%d" % number, lambda: socket.socket(number, socket.SOCK_STREAM))
attempt("abstract", lambda: socket.socket(socket.AF_UNIX).connect("\\0docker"))
attempt("connect-by-line", lambda: line.connect("/run/docker.sock"))
for path in ("/run/docker.sock", "/var/run/docker.sock", "/run/containerd/containerd.sock", "/run/dbus/system_bus_socket", "/sys", "/etc/shadow",
             "/proc/kcore", "/dev/kmsg", "/dev/mem", "/dev/vda", "/dev/net/tun", "/dev/vsock", "/dev/fuse"):
    attempt("open-" + path, lambda: open(path, "rb").read(1) or (_ for _ in ()).throw(EOFError()))
    attempt("write-" + path, lambda: open(path, "wb").write(b"x") and (_ for _ in ()).throw(EOFError()))
for path in ("/x", "/usr/lib/x", "/etc/x", "/rapha/launch.py", "/rapha/x", "/workload/x", "/workload/train.py", "/dev/x", "/proc/sys/kernel/core_pattern"):
    attempt("write-" + path, lambda: open(path, "wb"))
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    if libc.syscall(number, *arguments) == -1:
        raise OSError(ctypes.get_errno(), "")
    return "yes"
for name, number in {"unshare": 272, "setns": 308, "mount": 165, "ptrace": 101, "bpf": 321, "keyctl": 250, "io_uring": 425, "userfaultfd": 323,
                     "perf": 298, "memfd": 319, "execveat": 322, "pidfd_getfd": 438, "process_vm_readv": 310, "kexec": 246, "shmget": 29,
                     "mq_open": 240, "chroot": 161, "setuid": 105, "settimeofday": 164, "clock_settime": 227, "adjtimex": 159}.items():
    attempt("call-" + name, lambda: call(number, 0, 0, 0, 0, 0, 0))
attempt("tiocsti", lambda: __import__("fcntl").ioctl(0, 0x5412, b"x"))
attempt("core", lambda: resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, 1 << 20)))
attempt("shell", lambda: subprocess.run(["/bin/sh", "-c", "true"], check=True))
attempt("exec-tmp", lambda: (open("/tmp/p", "w").write("#!/rapha/none"), os.chmod("/tmp/p", 0o755), os.execv("/tmp/p", ["/tmp/p"])))
attempt("kill-host", lambda: os.kill(os.getppid() + 1000, 9))
out["environment"] = sorted(os.environ)
out["pids"] = sorted(int(p) for p in os.listdir("/proc") if p.isdigit())
out["ids"] = [os.getuid(), os.getgid(), os.getgroups()]
out["links"] = open("/proc/net/dev").read()
out["shm"] = os.listdir("/dev/shm")
out["shm-size"] = os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize
out["unix"] = len(open("/proc/net/unix").read().splitlines()) - 1
out["host"] = os.uname().nodename
say(out)
open("/out/metrics.json", "w").write("{}")
"""
)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    made = make_world()
    with made.keeper() as keeper:
        keeper.cut(JOB, 1)
    yield made
    made.close()


@pytest.fixture(scope="module")
def tried(world: World) -> dict[str, Any]:
    """What the attacker said over the one line that it has."""
    os.environ["RAPHA_PHI_HMAC_KEY_BASE64"] = "secret-of-the-hospital"
    with world.sandbox(JOB, TRIES) as box:
        said = box.said()
        assert box.ended().exit == "completed"
        assert box.facts.open == () and box.facts.probed > 40 and box.facts.registered
    assert isinstance(said, dict)
    return said


def refused(tried: dict[str, Any], *prefixes: str) -> None:
    asked = {name: said for name, said in tried.items() if name.startswith(prefixes) and isinstance(said, str)}
    assert asked
    assert {name: said for name, said in asked.items() if not said.startswith("no: ")} == {}


def test_C01_nothing_answers_anywhere(tried: dict[str, Any]) -> None:
    refused(tried, "tcp-", "udp-", "icmp", "dns")


def test_C01_the_probe_refuses_a_sandbox_with_a_way_out(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from infra.launcher import service

    assert service._answer(b"") == (["no-answer"], 0)
    assert service._answer(b'{"open": ["socket-inet"], "seen": {"families": 1, "calls": 1}}')[0] == ["socket-inet"]


def test_C04_no_multicast_and_the_counters_stay_zero(tried: dict[str, Any]) -> None:
    refused(tried, "ipv6")
    rows = [line.split() for line in tried["links"].splitlines()[2:]]
    assert [row[0] for row in rows] == ["lo:"] and not any(int(number) for number in rows[0][1:])


def test_C05_no_socket_of_any_family(tried: dict[str, Any]) -> None:
    refused(tried, "family-")


def test_C06_no_unix_socket_of_the_host(tried: dict[str, Any]) -> None:
    refused(tried, "abstract", "connect-by-line", "open-/run", "open-/var")
    assert tried["unix"] <= 1  # its own end of the loader's line at most


def test_C07_no_host_path_and_no_device(tried: dict[str, Any]) -> None:
    refused(tried, "open-", "write-")


@pytest.mark.parametrize(
    "change", [{"binds": ["/etc"]}, {"environment": {"LD_PRELOAD": "/tmp/x.so"}}, {"entry_point": "../../bin/sh"}]
)
def test_C07_a_request_cannot_ask_for_more(world: World, change: dict[str, Any]) -> None:
    from dataclasses import asdict

    spec = world.spec("pass").to_json()
    with world.launcher() as launcher:
        request = {"job": JOB, "attempt": 1, "limits": asdict(LIMITS), "loader_fds": 1, **spec, **change}
        line, theirs = os.pipe()
        os.close(theirs)
        try:
            if "binds" in change:  # an unknown word has no effect: there is no code that reads it
                request["limits"] = {**request["limits"], "binds": 1}
            with pytest.raises(Refusal) as refusal:
                launcher.call("launch", fds=[line], **request)
        finally:
            os.close(line)
    assert refusal.value.codes[0] == "launcher-bad-request"


def test_C08_nothing_to_relay_by(tried: dict[str, Any]) -> None:
    refused(tried, "tcp-self", "abstract")
    assert not {name for name in tried["environment"] if "PROXY" in name.upper() or "URL" in name.upper()}


def test_C11_own_processes_own_memory_own_name(tried: dict[str, Any]) -> None:
    assert len(tried["pids"]) <= 3 and tried["shm"] == [] and tried["host"] == "sandbox"
    assert tried["shm-size"] <= LIMITS.shared_bytes
    refused(tried, "call-shmget", "call-mq_open", "call-process_vm_readv", "kill-host")


def test_C05_no_call_that_opens_a_way(tried: dict[str, Any]) -> None:
    refused(tried, "call-", "tiocsti", "shell", "exec-tmp")
    assert tried["ids"] == [65534, 65534, []] or tried["ids"][:2] == [65534, 65534]


def test_C18_no_core_file(tried: dict[str, Any]) -> None:
    refused(tried, "core", "write-/proc/sys/kernel/core_pattern")


def test_C19_no_secret_in_the_environment(tried: dict[str, Any]) -> None:
    known = "HOME LANG LC_CTYPE OMP_NUM_THREADS PATH PWD PYTHONDONTWRITEBYTECODE PYTHONNOUSERSITE PYTHONPATH RAPHA_EPOCHS RAPHA_LOADER_FDS TMPDIR"
    assert set(tried["environment"]) <= set(known.split())


def test_C20_the_clock_cannot_be_set(tried: dict[str, Any]) -> None:
    refused(tried, "call-settimeofday", "call-clock_settime", "call-adjtimex")


def run(world: World, source: str, **changes: int) -> tuple[Any, Any, Any]:
    """(exit, proof, limits) of a program."""
    limits = replace(LIMITS, **changes)
    with world.sandbox(JOB, source, limits) as box:
        ended = box.ended()
        proof = box.launcher.proof()
        assert (proof.left, proof.ended) == (0, True)
        return ended, proof, box.facts


BOMBS = {
    "forks": "import os\nwhile True:\n    os.fork()",
    "threads": "import threading, time\nwhile True:\n    threading.Thread(target=time.sleep, args=(60,)).start()",
    "memory": "held = []\nwhile True:\n    held.append(b'x' * (1 << 24))",
    "disk": "stream = open('/out/x', 'wb')\nwhile True:\n    stream.write(b'x' * (1 << 20))",
    "scratch": "n = 0\nwhile True:\n    n += 1\n    open(f'/tmp/{n}', 'wb').write(b'x' * (1 << 20))",
    "shared": "n = 0\nwhile True:\n    n += 1\n    open(f'/dev/shm/{n}', 'wb').write(b'x' * (1 << 20))",
    "inodes": "n = 0\nwhile True:\n    n += 1\n    open(f'/out/{n}', 'wb').close()",
    "sparse": "open('/out/x', 'wb').truncate(1 << 40)",
}


@pytest.mark.parametrize("bomb", sorted(BOMBS))
def test_C12_a_bomb_ends_its_own_sandbox_and_the_node_lives(world: World, bomb: str) -> None:
    ended, _, facts = run(world, BOMBS[bomb], seconds=6, memory_bytes=200 << 20, processes=60, shared_bytes=16 << 20)
    assert ended.exit in {"failed", "killed", "timeout"} and facts.mechanism in {"cgroup-v1", "cgroup-v2", "rlimits"}
    with world.keeper() as keeper:
        assert keeper.watch(JOB, 1) == ()


def test_C12_C17_a_flood_on_stdout_is_counted_and_goes_nowhere(world: World) -> None:
    flood = "import sys\nfor _ in range(64):\n    sys.stdout.write('patient-record ' * 70000)\n    sys.stderr.write('PatientName')\nraise ValueError('Doe^John')"
    ended, proof, _ = run(world, flood)
    assert ended.exit == "failed" and proof.said > 60 << 20
    assert "Doe" not in str(ended) + str(proof)


def test_C13_a_program_that_ignores_every_signal_is_dead_before_the_line_comes_back(world: World) -> None:
    stubborn = """
import os, signal, time
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while True:
            time.sleep(1)
time.sleep(60)
"""
    ended, _, facts = run(world, stubborn, seconds=1)
    assert (ended.exit, ended.reason) == ("timeout", "time")
    assert ours_in(facts.pidns) == []


def test_C15_a_late_writer_is_dead_before_anything_is_copied(world: World, tmp_path: Path) -> None:
    late = """
import os, time
open('/out/metrics.json', 'w').write('{"loss": 1}')
if os.fork() == 0:
    os.setsid()
    time.sleep(0.5)
    while True:
        open('/out/metrics.json', 'w').write('{"patient": 1}')
"""
    with world.sandbox(JOB, late) as box:
        with pytest.raises(Refusal) as alive:
            box.launcher.collect(tmp_path / "early")
        assert alive.value.codes == ("sandbox-alive",)
        assert box.ended().exit == "completed"
        copied = box.launcher.collect(tmp_path / "out")
    assert copied.codes == () and json.loads((tmp_path / "out/metrics.json").read_text()) == {"loss": 1}
    assert (tmp_path / "out/metrics.json").stat().st_mode & 0o222 == 0


ODD = {
    "out-not-a-file": "import os\nos.symlink('/etc/passwd', '/out/weights.safetensors')",
    "out-linked": "import os\nopen('/out/a', 'w').write('x')\nos.link('/out/a', '/out/b')",
    "out-odd-name": "open('/out/.hidden', 'w').write('x')",
    "out-too-many": "for n in range(20):\n    open(f'/out/{n}', 'w').write('x')",
}


@pytest.mark.parametrize("code", sorted(ODD))
def test_C15_only_plain_files_are_copied(world: World, tmp_path: Path, code: str) -> None:
    with world.sandbox(JOB, ODD[code]) as box:
        assert box.ended().exit == "completed"
        assert box.launcher.collect(tmp_path / "out").codes == (code,)


@pytest.mark.parametrize(
    ("number", "outcome"), [(0, "completed"), (1, "failed"), (42, "failed"), (137, "failed"), (255, "failed")]
)
def test_C16_an_exit_code_carries_one_bit(world: World, number: int, outcome: str) -> None:
    ended, _, _ = run(world, f"import os\nos._exit({number})")
    assert (ended.exit, ended.reason) == (outcome, "")


def test_C16_a_duration_is_rounded_up() -> None:
    from policies.train import BUCKETS, bucket

    assert {bucket(seconds) for seconds in range(0, 100_000, 7)} == set(BUCKETS)


def test_C18_nothing_that_a_sandbox_wrote_is_on_the_host(world: World) -> None:
    mark = "rapha-planted-" + os.urandom(8).hex()
    planted = (
        f"for place in ('/tmp/a', '/out/a', '/dev/shm/a'):\n    open(place, 'w').write({mark!r})\nimport time\ntime.sleep(1)"
    )
    with world.sandbox(JOB, planted) as box:
        assert box.ended().exit == "completed"
        found = [
            path
            for top in (world.folder, Path("/dev/shm"), Path("/media"))
            for path in _files(top)
            if _holds(path, mark.encode())
        ]
    assert [path for path in found if path.suffix != ".tar"] == []  # the bundle that names the mark is ours


def _files(top: Path) -> Iterator[Path]:
    for base, _, names in os.walk(top, onerror=lambda _: None):
        yield from (Path(base) / name for name in names)


def _holds(path: Path, mark: bytes) -> bool:
    try:
        return path.is_file() and path.stat().st_size < 1 << 20 and mark in path.read_bytes()
    except OSError:
        return False


SLEEP = "import time\ntime.sleep(60)"


def _gone(inode: int) -> bool:
    end = time.monotonic() + 5
    while ours_in(inode) and time.monotonic() < end:
        time.sleep(0.05)
    return ours_in(inode) == []


def test_a_client_that_dies_takes_its_sandbox_along(world: World) -> None:
    with world.sandbox(JOB, SLEEP) as box:
        assert ours_in(box.facts.pidns) != []
        with world.launcher() as other:
            assert other.call("holds", job=JOB, attempt=1)["holds"] is True
        box.launcher.close()
        assert _gone(box.facts.pidns)
        time.sleep(0.3)
        with world.launcher() as other:
            assert other.call("holds", job=JOB, attempt=1)["holds"] is False


def test_C02_a_line_that_comes_up_kills_the_sandbox(world: World) -> None:
    job = job_of("other-node")
    made = make_world()
    try:
        with made.keeper() as keeper:
            keeper.cut(job, 1)
        with made.sandbox(job, SLEEP) as box:
            made.inside("ip", "link", "set", "portB", "up")
            ended = box.ended()
            assert (ended.exit, ended.reason) == ("killed", "cut")
            with pytest.raises(Refusal):
                box.launcher.collect(made.folder / "out")
        # after a break no new sandbox starts under this token
        with pytest.raises(Refusal) as broken, made.sandbox(job, SLEEP):
            pass
        assert "cut-broken" in broken.value.codes
    finally:
        made.close()


def test_C14_sigkill_of_keeper_and_launcher_ends_every_sandbox() -> None:
    job = job_of("killed")
    made = make_world()
    try:
        with made.keeper() as keeper:
            keeper.cut(job, 1)
        with made.sandbox(job, SLEEP) as box:
            made.kill("keeper")
            ended = box.ended()
            assert (ended.exit, ended.reason) == ("killed", "cut") and _gone(box.facts.pidns)
        made.start_keeper()
        made.ready("keeper")
        with made.sandbox(job, SLEEP) as box:
            made.kill("launcher")
            assert _gone(box.facts.pidns)
            with pytest.raises(PeerError):
                box.launcher.wait(1)
    finally:
        made.close()


def test_no_sandbox_without_a_token(world: World) -> None:
    with pytest.raises(Refusal) as refusal, world.sandbox(job_of("nobody"), SLEEP):
        pass
    assert refusal.value.codes == ("cut-not-held",)


@pytest.mark.parametrize("what", ["workload", "launcher"])
def test_other_bytes_than_the_gates_judged_do_not_start(world: World, what: str) -> None:
    spec = replace(world.spec("pass"), **{f"{what}_digest": job_of("other")})
    with world.launcher() as launcher:
        assert isinstance(launcher, Launcher)
        with Path("/dev/null").open("rb") as stream, pytest.raises(Refusal) as refusal:
            launcher.launch(JOB, 1, spec, LIMITS, [stream.fileno()])
    assert refusal.value.codes == (f"{what}-digest",)
