"""`rapha demo --serve --workdir DIR` as a person runs it: one JSON object, a stop by signal, a second start from the folder."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from infra.demo.show import PARTS
from rapha.receipt import verify_receipt
from rapha.signing import load_public
from tasks.reading.validate import sr_facts

pytestmark = pytest.mark.timeout(400)  # a job that trains, and two studies that are read, in one start
HOME = Path(__file__).resolve().parents[2]
STUDIES = 48  # 24 patients: the smallest demo
Json = dict[str, Any]


@contextmanager
def serving(folder: Path) -> Iterator[tuple[Json, "subprocess.Popen[str]"]]:
    """The demo up in `folder`: (its JSON object, the process). Ended by SIGTERM when the block is left."""
    argv = [
        sys.executable,
        "-m",
        "rapha.console",
        "demo",
        "--serve",
        "--studies",
        str(STUDIES),
        "--workdir",
        str(folder),
        "--json",
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAPHA_", "PREFECT_"))}
    with (folder.parent / "told.txt").open("a") as told:
        process = subprocess.Popen(argv, cwd=HOME, env=environment, stdout=subprocess.PIPE, stderr=told, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, (folder.parent / "told.txt").read_text()[-3000:]
        yield json.loads(line), process
    finally:
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=30)
    assert (rest, process.returncode) == ("", 0)


def console(up: Path, *arguments: str) -> tuple[int, Json]:
    """A command in a shell that has read node.env, as the demo says."""
    script = 'set -a; . "$1"; set +a; shift; exec "$@"'
    argv = ["bash", "-c", script, "bash", str(up / "node.env"), sys.executable, "-m", "rapha.console", *arguments, "--json"]
    done = subprocess.run(argv, cwd=HOME, capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, json.loads(done.stdout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "workdir"


@pytest.fixture(scope="module")
def first(folder: Path) -> Json:
    """The first start: runs the job, says what happened, stays up, and is stopped."""
    with serving(folder) as (report, _):
        pass
    return report


def test_the_first_start_tells_everything_in_one_object(folder: Path, first: Json) -> None:
    assert first["verified"] == "cleared"
    assert [verdict["verdict"] for verdict in first["verdicts"]] == ["cleared"] * 13
    assert set(first["seconds"]) == set(PARTS)
    assert all(seconds >= 0 for seconds in first["seconds"].values())
    assert sum(first["credits"].values()) == 25_000 * first["records"]
    told = (folder.parent / "told.txt").read_text()
    assert "training: " in told
    assert "/runs/flow-run/" in told
    assert first["reading"]["studies"] == [{"row": row, "state": "completed"} for row in (1, 2)]
    assert sorted(one.partition(" ")[0] for one in first["reading"]["mails"]) == ["CRITICAL", "Result"]
    assert {"query", "transfer", "access", "store", "operator"} <= set(first["reading"]["audit"]["by_kind"])
    assert sr_facts((folder / "report.dcm").read_bytes()).evidence
    verify_receipt((folder / "receipt.json").read_bytes(), load_public(folder / "keys" / "receipt.pem"), job=first["job"])


def test_it_starts_again_from_its_folder(folder: Path, first: Json) -> None:
    before = (folder / "receipt.json").read_bytes()
    with serving(folder) as (again, _):
        assert again["restarted"] is True
        assert again["ui"] == first["ui"]
        assert console(folder, "receipt", "verify", str(folder / "receipt.json"))[0] == 0
        status, whole = console(folder, "ledger", "verify", str(folder / "ledger"))
        assert status == 0
        assert whole["entries"] >= 20
        status, found = console(folder, "pacs", "find", "StudyDate=20240101-20241231", "ModalitiesInStudy=DX")
        assert status == 0
        assert found["count"] > 0
        assert console(folder, "report", "validate", str(folder / "report.dcm"))[0] == 0
        assert console(folder, "pacs", "echo")[0] == 0
        status, health = console(folder, "health")
        assert (status, health["components"]["receiver"], health["components"]["keeper"]) == (0, "healthy", "healthy"), health
        status, jobs = console(folder, "job", "list")
        assert status == 0
        assert [(one["job"], one["state"]) for one in jobs["jobs"]] == [(first["job"], "done")]
    assert (folder / "receipt.json").read_bytes() == before
