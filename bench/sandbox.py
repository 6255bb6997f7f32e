"""What the sandbox costs: its start beside a plain process's, and training inside it beside the same training outside."""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench.processes import HOSPITAL_KEY, JOB, ROOT, begin, ended, running_launcher, running_reader
from bench.row import Row, beside
from blocks.launcher import Launcher, SandboxSpec
from blocks.reader import Reader
from infra.hospital.cohort import DATES, PROJECT, make_cohort, write_cohort
from infra.hospital.paper import make_records
from infra.netns import NodeNetwork
from infra.workload import bundle
from policies.records import write_records
from policies.scope import Scope
from policies.train import SandboxLimits
from rapha.canonical import digest

PATIENTS, EPOCHS, LINES = 24, 8, 2
SCOPE = Scope(modalities=("DX",), body_parts=("CHEST",), date_from=DATES[0], date_to=DATES[1])
LIMITS = SandboxLimits(seconds=120, memory_bytes=3 << 30)
BARE = "import runpy, sys\nrunpy.run_path(sys.argv[1] if sys.argv[1][0] == '/' else '/workload/' + sys.argv[1])\n"
# The hospital's launcher script looks in /workload; outside a sandbox that is another folder.
OUTSIDE = "import sys\nfrom infra.workload import launcher\nlauncher.WORKLOAD = sys.argv[1]\nlauncher.main(['train.py'])\n"


@dataclass(frozen=True)
class Node:
    """Sockets of the real launcher and reader, in a namespace of their own."""

    folder: Path
    launcher: Path
    reader: Reader

    def inside(self, spec: SandboxSpec, fds: list[int]) -> None:
        """One run in the sandbox, until every process of it is gone."""
        with Launcher(self.launcher, peer="launcher") as launcher:
            launcher.launch(JOB, 1, spec, LIMITS, fds)
            if ended(launcher) != "completed":
                raise RuntimeError("the program did not end well in the sandbox")

    def lines(self) -> list[socket.socket]:
        """The trainer's ends of new loader lines; the reader has the others."""
        pairs = [socket.socketpair() for _ in range(LINES)]
        self.reader.attach([ours.detach() for ours, _ in pairs])
        return [theirs for _, theirs in pairs]


def rows() -> list[Row]:
    """Both rows on one node."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rapha-bench-")))
        network = stack.enter_context(NodeNetwork.create())
        launcher = stack.enter_context(running_launcher(folder, network))
        reader = stack.enter_context(Reader(_staging(stack, folder, network)))
        begin(reader, PROJECT, SCOPE)
        reader.query()
        reader.fetch()
        node = Node(folder, launcher, reader)
        return [_start(node), _training(node)]


def _start(node: Node) -> Row:
    source = node.folder / "empty"
    source.mkdir()
    (source / "train.py").write_text("")
    script = node.folder / "bare.py"
    script.write_text(BARE)
    spec = _spec(node.folder, source, script, {"OMP_NUM_THREADS": "1"})

    def ours() -> None:
        line, theirs = socket.socketpair()
        with line, theirs:
            node.inside(spec, [theirs.fileno()])

    return beside(
        "sandbox: start and end of an empty program",
        ours,
        lambda: subprocess.run([sys.executable, "-s", script, source / "train.py"], check=True),
        peer_name="the same in a plain process",
        note="ours: files copied into memory, the probe run in a sandbox of its own first, then the program",
    )


def _training(node: Node) -> Row:
    given = {"RAPHA_EPOCHS": str(EPOCHS), "RAPHA_BATCH_SIZE": "16", "RAPHA_SEED": "7", "OMP_NUM_THREADS": str(os.cpu_count())}
    spec = _spec(node.folder, bundle.SOURCE, bundle.LAUNCHER, given)
    out = node.folder / "out"
    out.mkdir()

    def ours() -> None:
        lines = node.lines()
        node.inside(spec, [line.fileno() for line in lines])
        _close(lines)

    def peer() -> None:
        lines = node.lines()
        fds = [line.fileno() for line in lines]
        argv = [sys.executable, "-s", "-c", OUTSIDE, str(bundle.SOURCE)]
        environment = {**os.environ, **given, "RAPHA_OUT": str(out), "RAPHA_LOADER_FDS": ",".join(map(str, fds))}
        subprocess.run(argv, check=True, cwd=ROOT, env=environment, pass_fds=fds)
        _close(lines)

    note = f"{4 * PATIENTS} records, {EPOCHS} epochs, importing torch included; both read from the real reader"
    return beside("sandbox: training inside", ours, peer, peer_name="the same train.py in a plain process", runs=3, note=note)


def _spec(folder: Path, source: Path, script: Path, environment: Mapping[str, str]) -> SandboxSpec:
    packed = bundle.source_tar(source)
    workload = folder / f"{digest(packed)[7:19]}.tar"
    workload.write_bytes(packed)
    return SandboxSpec(
        kind="source",
        workload=workload,
        workload_digest=digest(packed),
        entry_point="train.py",
        launcher=script,
        launcher_digest=digest(script.read_bytes()),
        environment=tuple(environment.items()),
    )


def _staging(stack: ExitStack, folder: Path, network: NodeNetwork) -> Path:
    """Socket of a reader in the namespace, over the demo's archive with the demo's cohort."""
    cohort = make_cohort(PATIENTS)
    write_cohort(cohort, folder / "dicom")
    (folder / "records.jsonl").write_bytes(write_records(make_records(cohort, HOSPITAL_KEY)))
    held = stack.enter_context(network.listen("127.0.0.1", 0))
    argv = [sys.executable, "-m", "infra.hospital", "--root", str(folder / "dicom"), "--fd", str(held.fileno())]
    archive = subprocess.Popen(argv, cwd=ROOT, pass_fds=[held.fileno()], stdout=subprocess.PIPE)
    stack.callback(archive.wait)
    stack.callback(archive.terminate)
    url = f"http://127.0.0.1:{held.getsockname()[1]}/dicom-web"
    return stack.enter_context(running_reader(folder, url, folder / "records.jsonl", network))[0]


def _close(lines: list[socket.socket]) -> None:
    for line in lines:
        line.close()
