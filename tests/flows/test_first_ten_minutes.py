"""A hospital's engineer and a real Orthanc: `rapha node init`, echo, probe, doctor, serve; a new study comes back as a report,
also after the worker was killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.demo.clinic import new_studies
from infra.peers.orthanc import Orthanc, free_port, running_orthanc

HOME = Path(__file__).resolve().parents[2]
Json = dict[str, Any]


def rapha(settings: dict[str, str], *arguments: str) -> tuple[int, Json]:
    done = subprocess.run(
        [sys.executable, "-m", "rapha.console", *arguments, "--json"],
        cwd=HOME, env=settings, capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def bare() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("RAPHA_", "PREFECT_"))}


def sourced(path: Path) -> dict[str, str]:
    """A shell's environment after it has read the file."""
    script = 'set -a; . "$1"; exec env -0'
    told = subprocess.run(["bash", "-c", script, "bash", str(path)], env=bare(), capture_output=True, check=True).stdout
    return dict(line.decode().split("=", 1) for line in told.split(b"\0") if line)


@pytest.fixture(scope="module")
def receiver() -> int:
    return free_port()


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory, receiver: int) -> Iterator[Orthanc]:
    known = {"rapha": {"AET": "RAPHA", "Host": "127.0.0.1", "Port": receiver}}
    with running_orthanc(tmp_path_factory.mktemp("orthanc"), DicomModalities=known, DicomAlwaysAllowGet=False) as up:
        yield up


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, orthanc: Orthanc, receiver: int) -> dict[str, str]:
    """A node's folder as the command makes it, its profile filled in as the person does; its settings."""
    folder = tmp_path_factory.mktemp("ten") / "node"
    status, made = rapha(bare(), "node", "init", str(folder), "--name", "st-elsewhere", "--mode", "development")
    assert status == 0
    assert {path.stat().st_mode & 0o077 for path in (folder, folder / "keys", Path(made["environment"]))} == {0}
    profile = yaml.safe_load(Path(made["profile"]).read_text())
    profile["pacs_endpoints"]["primary"] |= {"port": orthanc.dicom_port, "retrieve": "C-MOVE"}
    profile["workflow"]["automated_polling"] = True
    profile["workflow"]["quiet_seconds"] = 0  # the studies here are whole before they are looked for
    Path(made["profile"]).write_text(yaml.safe_dump(profile))
    return {**sourced(Path(made["environment"])), "RAPHA_RECEIVER_BIND": f"127.0.0.1:{receiver}"}


@contextmanager
def serving(settings: dict[str, str], engine: int) -> Iterator[None]:
    argv = [sys.executable, "-m", "rapha.console", "serve", "--only", "read", "--engine-port", str(engine)]
    process = subprocess.Popen(
        [*argv, "--health-port", str(free_port())],
        cwd=HOME,
        env=settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout and process.stderr
    try:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 0


def until(true: Callable[[], bool], seconds: float, said: Callable[[], object]) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, said()
        time.sleep(0.5)


def reports(orthanc: Orthanc) -> list[str]:
    return [one for one in json.loads(orthanc.call("GET", "/series?expand")) if one["MainDicomTags"].get("Modality") == "SR"]


def test_a_folder_that_is_there_is_left_alone(node: dict[str, str]) -> None:
    folder = Path(node["RAPHA_STATE_DIR"])
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    status, told = rapha(bare(), "node", "init", str(folder), "--name", "other")
    assert (status, told["codes"]) == (2, ["node-exists"])
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_the_doctor_says_what_is_missing_first(node: dict[str, str]) -> None:
    status, told = rapha({**node, "RAPHA_AUDIT_KEY_BASE64": ""}, "doctor", "--only", "read")
    assert (status, told["codes"]) == (3, ["missing-audit-key-base64"])
    status, told = rapha(node, "doctor", "--only", "read")
    assert (status, told["codes"]) == (3, ["pacs-not-probed"])
    assert rapha(node, "pacs", "echo")[0] == 0
    status, record = rapha(node, "pacs", "probe")
    assert (status, "C-MOVE" in record["services"]) == (0, True)
    status, told = rapha(node, "doctor", "--only", "read")
    assert (status, told["codes"]) == (0, [])


@pytest.mark.timeout(400)
def test_new_studies_come_back_as_reports_also_after_a_kill(node: dict[str, str], orthanc: Orthanc) -> None:
    first, second = new_studies()
    orthanc.store_all(first)
    rapha(node, "pacs", "probe")
    engine = free_port()
    served = {**node, "PREFECT_API_URL": f"http://127.0.0.1:{engine}/api"}

    def waits() -> object:
        return rapha(node, "queue", "list"), rapha(node, "dead-letters", "list"), _logs(node)

    with serving(served, engine):
        until(lambda: len(reports(orthanc)) == 1, 120, waits)
        until(lambda: read_studies(node) == {"completed": 1}, 60, waits)
        assert rapha(served, "doctor", "--only", "read")[1]["codes"] == []
        killed = _shift(node)
        os.kill(killed, signal.SIGKILL)
        orthanc.store_all(second)
        until(lambda: _shift(node) not in (0, killed), 60, waits)
        status, read = rapha(served, "read", str(second[0].StudyInstanceUID))
        assert (status, read["end"]) == (0, "completed"), read
        until(lambda: len(reports(orthanc)) == 2, 60, waits)
    assert read_studies(node) == {"completed": 2}


def read_studies(node: dict[str, str]) -> dict[str, int]:
    status, told = rapha(node, "stats")
    assert status == 0
    found: dict[str, int] = told["reading"]["studies"]
    return found


def _shift(node: dict[str, str]) -> int:
    """The process id of this node's worker; 0 while there is none."""
    mine = node["RAPHA_STATE_DIR"].encode()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if b"flows.shift" in (path / "cmdline").read_bytes() and mine in (path / "environ").read_bytes():
                return int(path.name)
        except OSError:
            continue
    return 0


def _logs(node: dict[str, str]) -> str:
    return "\n".join(path.read_text()[-1500:] for path in (Path(node["RAPHA_STATE_DIR"]) / "logs").glob("*.log"))
