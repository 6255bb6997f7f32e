"""The node's own processes, as a demo starts them: the reader and the launcher, in the node's namespace where one is given."""

import base64
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from blocks.launcher import Launcher
from blocks.reader import Reader
from infra.netns import NodeNetwork
from policies.scope import Scope

HOSPITAL_KEY = bytes(range(7, 39))
JOB = "sha256:" + "5" * 64
ROOT = Path(__file__).resolve().parent.parent


@contextmanager
def running_reader(
    folder: Path, archive: str, records: Path, network: NodeNetwork | None = None
) -> Iterator[tuple[Path, "subprocess.Popen[str]"]]:
    """(socket, process) of the real reader over an archive."""
    path = folder / "reader.sock"
    options = ["--socket", str(path), "--archive", archive, "--records", str(records), "--hmac-key-env", "BENCH_KEY"]
    environment = {**os.environ, "BENCH_KEY": base64.b64encode(HOSPITAL_KEY).decode()}
    argv = [sys.executable, "-m", "infra.reader", *options, "--staging", str(folder / "staging")]
    with _running(argv, environment, network) as process:
        yield path, process


@contextmanager
def running_launcher(folder: Path, network: NodeNetwork) -> Iterator[Path]:
    """Socket of the real launcher. It has no keeper: nothing is cut here, and no gate is asked."""
    path = folder / "launcher.sock"
    options = ["--socket", str(path), "--python", sys.executable, "--packages", sysconfig.get_path("purelib")]
    with _running([sys.executable, "-m", "infra.launcher", *options], dict(os.environ), network):
        yield path


@contextmanager
def running_study(folder: Path, key: Path, sealed: Path) -> Iterator[Path]:
    """Socket of the real study reader, with the private key in `key`, over the sealed files in `sealed`."""
    path = folder / "study.sock"
    options = ["--socket", str(path), "--key-file", str(key), "--sealed", str(sealed)]
    with _running([sys.executable, "-m", "infra.study", *options], dict(os.environ), None):
        yield path


def begin(reader: Reader, project: str, scope: Scope) -> None:
    """An attempt in the reader, with everything that the query selects allowed."""
    nonce = "ab" * 32
    reader.begin(job=JOB, attempt=1, nonce=nonce, project=project, manifest=scope, intent=scope, cap=1_000_000)


def ended(launcher: Launcher) -> str:
    """Waits for the sandbox; how it ended."""
    while (now := launcher.wait(5)).state == "running":
        pass
    return now.exit


@contextmanager
def _running(argv: Sequence[str], environment: dict[str, str], network: NodeNetwork | None) -> Iterator["subprocess.Popen[str]"]:
    prefix = network.prefix() if network else []
    process = subprocess.Popen([*prefix, *argv], env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        if process.stdout is None or process.stdout.readline() != "ready\n":
            raise RuntimeError(f"{argv[2]} did not start")
        yield process
    finally:
        process.terminate()
        process.wait()
