"""A CT study from a real Orthanc into sealed staging, beside curl that throws it away; and the memory that the reader takes."""

import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path

from bench.processes import begin, running_reader
from bench.row import Row, beside
from bench.studies import PROJECT, SCOPE, STUDY, ct_study, write_records_file
from blocks.reader import Reader
from infra.peers.orthanc import running_orthanc

IMAGES = 100
MULTIPART = 'Accept: multipart/related; type="application/dicom"; transfer-syntax=*'


def rows() -> list[Row]:
    """WADO-RS fetched, hashed and sealed, over fetched alone; peak memory of the reader, over the reader before it fetched."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rapha-bench-")))
        archive = stack.enter_context(running_orthanc(folder / "orthanc"))
        study = ct_study(IMAGES)
        archive.store_all(study)
        write_records_file(folder / "records.jsonl", study)
        path, process = stack.enter_context(running_reader(folder, archive.url, folder / "records.jsonl"))
        reader = stack.enter_context(Reader(path))
        begin(reader, PROJECT, SCOPE)
        reader.query()
        idle = peak(process.pid)

        def ours() -> None:
            facts = reader.fetch()
            if not facts.sealed or facts.received != IMAGES:
                raise RuntimeError("the study did not come whole")

        url = f"{archive.url}/studies/{STUDY}"
        curl = ["curl", "-s", "-f", "-H", MULTIPART, url, "-o", "/dev/null"]
        note = f"{IMAGES} x 0.5 MB, Orthanc with TCP_NODELAY=1; ours lists the archive before and after, and looks at each image"
        row = beside(
            "wado: a study fetched, hashed, sealed",
            ours,
            lambda: subprocess.run(curl, check=True),
            peer_name="curl -s … -o /dev/null",
            note=note,
        )
        said = f"high-water mark after {row.runs + 1} studies of {IMAGES // 2} MB"
        memory = Row("wado: peak memory of the reader", peak(process.pid), idle, 1, "MiB", "the same before it fetched", said)
        return [row, memory]


def peak(pid: int) -> float:
    """Peak resident memory of a process, in MiB."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
