"""The launcher with real workloads: torch, images, base weights; and the way without root and without a control group."""

# ruff: noqa: E501 - the programs that run inside

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from blocks.launcher import SandboxSpec, tree_digest
from infra.launcher import limits as control
from infra.netns import NodeNetwork, not_allowed
from rapha.canonical import digest
from tests.fixtures.isolation import LIMITS, ROOT, SAY, World, job_of, make_world

JOB = job_of("launcher")
TORCH = (
    SAY
    + """
import threading, numpy, torch
from safetensors.torch import load_file, save_file
base = load_file(os.environ["RAPHA_BASE_WEIGHTS"])
got = []
def worker(fd):
    with socket.socket(fileno=fd) as line:
        got.append(line.recv(5))
model = torch.nn.Conv2d(1, 2, 3)
loader = torch.utils.data.DataLoader(torch.randn(64, 1, 16, 16), batch_size=8, num_workers=0)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for batch in loader:
    optimizer.zero_grad()
    model(batch).square().mean().backward()
    optimizer.step()
threads = [threading.Thread(target=worker, args=(int(fd),)) for fd in os.environ["RAPHA_LOADER_FDS"].split(",")[1:]]
[thread.start() for thread in threads], [thread.join() for thread in threads]
save_file({**model.state_dict(), "base": base["w"]}, "/out/weights.safetensors")
json.dump({"accuracy": float(numpy.float32(0.5))}, open("/out/metrics.json", "w"))
import rapha.errors
say({"got": [word.decode() for word in got], "rapha": rapha.errors.__file__})
"""
)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    made = make_world()
    with made.keeper() as keeper:
        keeper.cut(JOB, 1)
    yield made
    made.close()


def test_torch_numpy_safetensors_and_threads_run(world: World, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    base = tmp_path / "base.safetensors"
    save_file({"w": torch.arange(3.0)}, base)
    base.chmod(0o600)
    spec = replace(world.spec(TORCH), weights=base, weights_digest=digest(base.read_bytes()))
    pairs = [socket.socketpair() for _ in range(3)]
    with world.launcher() as launcher:
        facts = launcher.launch(JOB, 1, spec, LIMITS, [theirs.fileno() for _, theirs in pairs])
        for ours, theirs in pairs:
            theirs.close()
            ours.sendall(b"hello")
        while (now := launcher.wait(5)).state == "running":
            pass
        assert (now.exit, now.reason) == ("completed", "")
        copied = launcher.collect(tmp_path / "out")
    said = json.loads(pairs[0][0].recv(4096))
    assert said == {"got": ["hello", "hello"], "rapha": "/rapha/lib/rapha/errors.py"}
    assert facts.weights == spec.weights_digest and copied.files == 2 and copied.codes == ()
    assert load_file(tmp_path / "out/weights.safetensors")["base"].tolist() == [0.0, 1.0, 2.0]
    for ours, _ in pairs:
        ours.close()


def image(folder: Path, *, python: bool) -> Path:
    """An unpacked image: /workload alone, or a root file system with Debian's Python."""
    root = folder / "rootfs"
    (root / "workload/site-packages/inside").mkdir(parents=True)
    (root / "workload/site-packages/inside/__init__.py").write_text("NAME = 'image'\n")
    (root / "workload/train.py").write_text(
        "import inside, sys, json\njson.dump({'p': sys.executable}, open('/out/metrics.json', 'w'))\n"
    )
    if python:
        for name in ("usr/bin", "usr/lib/x86_64-linux-gnu", "usr/lib64", "etc"):
            (root / name).mkdir(parents=True)
        shutil.copy("/usr/bin/python3.11", root / "usr/bin/python3")
        shutil.copytree(
            "/usr/lib/python3.11", root / "usr/lib/python3.11", ignore=shutil.ignore_patterns("__pycache__", "test", "config-*")
        )
        for library in ("libc.so.6", "libm.so.6", "libz.so.1", "libexpat.so.1", "libffi.so.8"):
            shutil.copy(
                next(Path("/usr/lib/x86_64-linux-gnu").glob(library), Path("/lib/x86_64-linux-gnu") / library),
                root / "usr/lib/x86_64-linux-gnu",
            )
        shutil.copy("/lib64/ld-linux-x86-64.so.2", root / "usr/lib64")
        (root / "lib").symlink_to("usr/lib")
        (root / "lib64").symlink_to("usr/lib64")
    return root


@pytest.mark.parametrize("python", [False, True])
def test_an_unpacked_image_runs(world: World, tmp_path: Path, python: bool) -> None:
    root = image(tmp_path, python=python)
    spec = replace(world.spec("pass"), kind="oci", workload=root, workload_digest=tree_digest(root))
    theirs, ours = socket.socketpair()
    with world.launcher() as launcher, ours, theirs:
        launcher.launch(JOB, 1, spec, LIMITS, [theirs.fileno()])
        while (now := launcher.wait(5)).state == "running":
            pass
        assert now.exit == "completed"
        launcher.collect(tmp_path / "out")
    ran = json.loads((tmp_path / "out/metrics.json").read_text())["p"]
    assert ran == ("/usr/bin/python3" if python else sys.executable)


def test_an_image_that_changed_does_not_start(world: World, tmp_path: Path) -> None:
    from rapha.errors import Refusal

    root = image(tmp_path, python=False)
    spec = replace(world.spec("pass"), kind="oci", workload=root, workload_digest=tree_digest(root))
    (root / "workload/train.py").chmod(0o755)
    with world.launcher() as launcher, Path("/dev/null").open("rb") as stream, pytest.raises(Refusal) as refusal:
        launcher.launch(JOB, 1, spec, LIMITS, [stream.fileno()])
    assert refusal.value.codes == ("workload-digest",)


def test_memory_is_held_by_a_control_group_where_one_can_be_made() -> None:
    group = control.make("rapha-test-group", 64 << 20, 20)
    try:
        assert group.mechanism in {"cgroup-v1", "cgroup-v2", "rlimits"}
        assert all(folder.is_dir() for folder in group.folders)
    finally:
        group.remove()
    assert not any(folder.exists() for folder in group.folders)


def test_where_namespaces_are_forbidden_the_command_is_named() -> None:
    error = not_allowed("Operation not permitted")
    assert error.codes == ("netns-not-allowed",) and "sudo " in error.message and error.exit_status == 2


def test_a_process_outside_serves_on_the_nodes_loopback() -> None:
    with NodeNetwork.create() as network, network.listen("127.0.0.1", 0) as listener:
        code = f"import socket; socket.create_connection(('127.0.0.1', {listener.getsockname()[1]}), 2).sendall(b'in')"
        client = network.popen([sys.executable, "-c", code])
        connection, _ = listener.accept()
        with connection:
            assert connection.recv(2) == b"in"
        assert client.wait() == 0
        assert network.inode != Path("/proc/self/ns/net").stat().st_ino


ROOTLESS = """
import sys
sys.path[:0] = {path!r}
import socket
from dataclasses import replace
from infra.processes import living_in
from tests.fixtures.isolation import *
job = job_of("rootless")
world = make_world(python="/usr/bin/python3", packages=({packages!r},))
try:
    with world.keeper() as keeper:
        facts = keeper.cut(job, 1)
        assert facts.control == "reached" and facts.after in ("unreachable", "timeout"), facts
        token = facts.token
        with world.sandbox(job, SAY + "import torch; say(os.getuid()); open('/out/metrics.json', 'w').write('{{}}')") as box:
            assert box.said() == 65534
            assert box.ended().exit == "completed"
            assert box.facts.open == () and box.facts.links == ("lo:down",) and box.facts.mechanism == "rlimits", box.facts
            assert box.launcher.proof().left == 0
            box.launcher.collect(world.folder / "out")
        bombs = {{
            "memory": ("held = []\\nwhile True:\\n    held.append(b'x' * (1 << 24))", "killed"),
            "threads": ("import threading, time\\nfor _ in range(300):\\n    threading.Thread(target=time.sleep, args=(60,)).start()", "killed"),
            "time": ("import time\\ntime.sleep(60)", "timeout"),
        }}
        for name, (bomb, outcome) in bombs.items():
            with world.sandbox(job, bomb, replace(LIMITS, seconds=4, memory_bytes=150 << 20, processes=50)) as box:
                ended = box.ended()
                assert ended.exit in (outcome, "failed"), (name, ended)
                assert box.launcher.proof().left == 0
        world.end(job)
        import time
        time.sleep(0.5)
        assert keeper.restore(job, 1, token).restored
finally:
    world.close()
print("rootless-ok")
"""


def test_all_of_it_without_root() -> None:
    packages = str(next(Path(path) for path in sys.path if path.endswith("site-packages")))
    program = ROOTLESS.format(path=[str(ROOT), packages], packages=packages)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}:{packages}", "PYTHONDONTWRITEBYTECODE": "1"}
    other = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"] if os.getuid() == 0 else []
    done = subprocess.run(
        [*other, "/usr/bin/python3", "-c", program],
        capture_output=True,
        env=environment,
        cwd="/",
        timeout=60,
        check=False,
    )
    assert done.stdout.endswith(b"rootless-ok\n"), done.stderr.decode()[-2000:]


def test_a_spec_says_what_it_is() -> None:
    spec = SandboxSpec(
        kind="source", workload=Path("w"), workload_digest="", entry_point="t.py", launcher=Path("l"), launcher_digest=""
    )
    assert spec.to_json()["weights"] == "" and spec.to_json()["environment"] == {}


def test_a_doctor_may_ask_for_the_probe_alone(world: World) -> None:
    with world.launcher() as launcher:
        found, mechanism = launcher.probe()
    assert found == () and mechanism in {"cgroup-v1", "cgroup-v2", "rlimits"}
