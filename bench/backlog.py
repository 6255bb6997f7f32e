"""A backlog of small studies, from the archive to a report in it, on a node as `rapha serve` runs it; and where the time goes.

The number of studies is 300, or `RAPHA_BENCH_STUDIES`; the row says how many it was. The peer sends the same instances with DCMTK
and analyses nothing: it is the least that anybody does.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

from bench.row import Row
from blocks.reading import open_reading_register
from infra.demo import clinic
from infra.demo.reads import start_run
from infra.demo.world import World, world
from infra.hospital.reading_cohort import make_study
from infra.peers.orthanc import free_port
from rapha.errors import PeerError

STUDIES = int(os.environ.get("RAPHA_BENCH_STUDIES", "300"))
STAGES = ("retrieve", "analyse", "report", "store", "prove", "complete")
PATIENCE = 3600.0


def rows() -> list[Row]:
    """One row: milliseconds a study; its note is the profile."""
    with (
        tempfile.TemporaryDirectory(prefix="rapha-bench-", dir="/var/tmp") as name,
        world(Path(name), 0, lambda text: None, halves=("read",)) as up,
    ):
        for seed in range(STUDIES):
            clinic.send(up.layout, up.environment, _today(make_study("dx", 1000 + seed, seed % 2)))
        peer, ours = _moved(up), _read(up)
        note = f"{STUDIES} studies of one image; {_profile(up.ui)}"
        said = "storescu to storescp of the same instances, twice: nothing looked for, analysed or proven"
        return [Row("reading: a study of a backlog", 1000 * ours / STUDIES, 1000 * peer / STUDIES, 1, "ms", said, note)]


def _today(study: list[Dataset]) -> list[Dataset]:
    for dataset in study:
        dataset.StudyDate, dataset.StudyTime = time.strftime("%Y%m%d"), "000100"
    return study


def _read(up: World) -> float:
    """Seconds from the poll until every study is completed."""
    register, began = open_reading_register(up.environment), time.perf_counter()
    start_run(up.ui, "poll/poll", {"pacs": "primary"})
    while time.perf_counter() - began < PATIENCE:
        states = register.tally(int(time.time())).to_json()["studies"]
        print(f"  {states}", end="\r", file=sys.stderr, flush=True)
        if states.get("canceled"):
            break
        if states.get("completed", 0) == STUDIES:
            return time.perf_counter() - began
        time.sleep(0.5)
    raise PeerError("bench-not-read", f"the backlog was not read: {states}", peer="bench")


def _moved(up: World) -> float:
    """DCMTK: every instance sent to a storescp, twice, there and back as it were."""
    folder, port = up.layout.root / "peer", str(free_port())
    folder.mkdir()
    environment = {**os.environ, "TCP_NODELAY": "1"}
    files = [str(path) for path in sorted((up.layout.root / "modality").iterdir())]
    receiver = subprocess.Popen(["storescp", "-od", str(folder), port], env=environment)
    try:
        sent = ["storescu", "-R", "localhost", port, *files]
        while subprocess.run(["echoscu", "localhost", port], env=environment, capture_output=True, check=False).returncode:
            time.sleep(0.1)
        began = time.perf_counter()
        for _ in range(2):
            subprocess.run(sent, env=environment, check=True, capture_output=True)
        return time.perf_counter() - began
    finally:
        receiver.kill()
        receiver.wait()


def _profile(ui: str) -> str:
    """Median seconds of each stage, by the engine's task runs."""
    took = defaultdict[str, list[float]](list)
    for start in range(0, 7 * STUDIES + 200, 200):
        wanted = {"task_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}, "limit": 200, "offset": start}
        for run in _asked(f"{ui}/api/task_runs/filter", wanted):
            name = str(run["name"]).partition(" ")[0]
            if name in STAGES:
                took[name].append(float(run["total_run_time"]))
    return ", ".join(f"{name} {sorted(took[name])[len(took[name]) // 2]:.2f} s" for name in STAGES if took[name])


def _asked(url: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: list[dict[str, Any]] = json.loads(answer.read())
        return found
