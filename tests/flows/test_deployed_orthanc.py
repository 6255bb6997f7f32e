"""The deployed flow on server and worker, started by nothing but a signed webhook call, on images of a real Orthanc."""

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

from blocks.part10 import content_digest
from infra.demo.papers import Wish
from infra.demo.world import World, world
from policies.required import REQUIRED_GATES
from rapha.receipt import verify_receipt
from rapha.signing import load_public
from tests.fixtures.engine import Engine, Json
from tests.fixtures.orthanc import file_bytes
from tests.fixtures.orthanc_inside import HOME, archive_of
from tests.fixtures.world import attempt_folder, delivered, ended, entries, quick

PATIENTS = 24
GATES = {*REQUIRED_GATES["train"], *REQUIRED_GATES["seal"], "reconnect"}
REAL = (
    "CT_small.dcm",
    "MR_small_RLE.dcm",
    "JPEG2000.dcm",
    "image_dfl.dcm",
    "examples_palette.dcm",
    "rtplan.dcm",
)
SAMPLES = HOME.parent / "shared" / "samples" / "dicom" / "highdicom"
# Run inside the node's namespace: digests of everything that the archive hands out by WADO-RS, per SOP Instance UID.
FETCH = """
import json, sys
from blocks.pacs import DicomWeb, value_of
from blocks.part10 import ContentDigest
archive, found = DicomWeb(sys.argv[1]), {}
for study in archive.list_studies({"StudyDate": "20240101-20241231"}, (), limit=500):
    with archive.retrieve(value_of(study, "0020000D")) as parts:
        for part in parts:
            content = ContentDigest()
            for block in part.body:
                content.feed(block)
            found[content.meta.sop_instance] = content.digest()
print(json.dumps(found))
"""


def moved(raw: bytes) -> Dataset:
    """A real image, as if it had been taken for another project within the cohort's bounds."""
    dataset = dcmread(io.BytesIO(raw))
    dataset.Modality, dataset.BodyPartExamined, dataset.StudyDate = "DX", "CHEST", "20240229"
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        setattr(dataset, keyword, generate_uid())
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real DICOM beside the cohort: as it is, and three images moved into the cohort's bounds."""
    folder = tmp_path_factory.mktemp("strangers")
    files = [Path(str(get_testdata_file(name))) for name in REAL]
    files += [SAMPLES / name for name in ("dx_image.dcm", "ct_image.dcm", "sm_image_dots.dcm", "sr_document.dcm")]
    for number, path in enumerate(files):
        (folder / f"{number}.dcm").write_bytes(path.read_bytes())
    for number, path in enumerate((files[0], files[1], SAMPLES / "dx_image.dcm")):
        (folder / f"moved-{number}.dcm").write_bytes(file_bytes(moved(path.read_bytes())))
    return folder


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, strangers: Path) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("orthanc-world"), PATIENTS, lambda text: None, archive_of(strangers)) as running:
        yield running


@pytest.fixture(scope="module")
def engine(up: World) -> Engine:
    return Engine(f"{up.ui}/api")


@pytest.fixture(scope="module")
def learnt(up: World) -> str:
    """The job with the torch workload, done."""
    job = up.send(up.job(Wish(epochs=10)))
    assert ended(up, job, 180).state == "done"
    return job


def evidence(up: World, job: str, gate: str) -> Json:
    found: Json = json.loads((attempt_folder(up, job) / "evidence" / f"{gate}.json").read_bytes())
    return found


def test_the_archive_hands_out_what_the_custodian_recorded(up: World) -> None:
    url = up.environment["RAPHA_DICOMWEB_BASE_URL"]
    asked = up.network.popen([sys.executable, "-c", FETCH, url], cwd=HOME, stdout=subprocess.PIPE)
    handed = json.loads(asked.communicate(timeout=60)[0])
    stored = {}
    for path in (up.layout.root / "dicom").iterdir():
        stored[str(dcmread(path, stop_before_pixels=True).SOPInstanceUID)] = content_digest(path.read_bytes())
    recorded = {json.loads(line)["content"] for line in (up.layout.private / "records.jsonl").read_text().splitlines()}
    assert len(recorded) == 4 * PATIENTS
    assert recorded <= set(handed.values())
    assert {uid: stored[uid] for uid in handed if uid in stored} == {uid: handed[uid] for uid in handed if uid in stored}
    assert len(set(handed) - set(stored)) == 3


def test_the_run_learns_and_is_delivered(up: World, learnt: str) -> None:
    metrics = json.loads((attempt_folder(up, learnt) / "release" / "metrics.json").read_bytes())
    assert metrics["accuracy"] >= 0.8 > max(value for name, value in metrics.items() if name != "accuracy")
    assert delivered(up, learnt) == {"1/result", "1/receipt", "1/report"}
    raw = (attempt_folder(up, learnt) / "receipt.json").read_bytes()
    verify_receipt(raw, load_public(up.layout.keys / "receipt.pem"), job=learnt)
    assert {entry.body["gate"] for entry in entries(up, learnt) if entry.kind == "verdict"} == GATES


def test_more_than_the_manifest_is_ignored_and_counted(up: World, learnt: str) -> None:
    asked = evidence(up, learnt, "query")
    assert asked["ignored"] == 3
    assert asked["selected"] == asked["manifest_count"] == 4 * PATIENTS
    assert asked["answered"] == asked["selected"] + asked["ignored"] + asked["outside"]
    assert evidence(up, learnt, "retrieve")["received"] == 4 * PATIENTS


def test_the_webhooks_event_and_nothing_else_started_the_run(engine: Engine, learnt: str) -> None:
    run = engine.ended(learnt, "COMPLETED")
    assert run["name"] == "train-" + learnt.removeprefix("sha256:")[:12]
    announced = engine.events(f"rapha.job.{learnt}", "rapha.job.submitted")
    assert [event["payload"] for event in announced] == [{"job": learnt}]
    assert run["created_by"]["type"] == "AUTOMATION"
    automation = f"prefect.automation.{run['created_by']['id']}"
    fired = [
        {item["prefect.resource.role"]: item["prefect.resource.id"] for item in event["related"]}
        for event in engine.events(f"prefect.flow-run.{run['id']}", "prefect.automation.action.executed")
        if event["resource"]["prefect.resource.id"] == automation
    ]
    assert [roles["triggering-event"] for roles in fired] == [f"prefect.event.{announced[0]['id']}"]


def test_verdicts_progress_and_receipt_are_seen_in_the_engine(engine: Engine, learnt: str) -> None:
    seen = engine.artifacts(engine.ended(learnt, "COMPLETED"))
    assert set(seen) == {"verdicts", "training", "receipt"}
    rows = json.loads(seen["verdicts"]["data"])
    assert seen["verdicts"]["type"] == "table"
    assert [row["verdict"] for row in rows] == ["cleared"] * len(GATES)
    assert {row["gate"] for row in rows} == GATES
    assert (seen["training"]["type"], seen["training"]["data"]) == ("progress", 100.0)
    assert learnt in seen["receipt"]["data"]


def test_a_second_job_follows_on_the_same_node(up: World, engine: Engine, learnt: str) -> None:
    job = up.send(up.job(quick()))
    assert ended(up, job).state == "done"
    assert engine.ended(job, "COMPLETED")["created_by"]["type"] == "AUTOMATION"
    assert evidence(up, job, "query")["ignored"] == 3


def test_a_refusal_is_seen_as_the_tables_last_line(up: World, engine: Engine, learnt: str) -> None:
    dataset = json.loads(up.job(quick()))["dataset"]
    job = up.send(up.job(quick(dataset={**dataset, "purpose": "marketing"})))
    status = ended(up, job)
    assert status.state == "refused"
    run = engine.ended(job, "FAILED")
    rows = json.loads(engine.artifacts(run)["verdicts"]["data"])
    assert [row["verdict"] for row in rows] == ["cleared", "cleared", "refused"]
    assert (rows[-1]["gate"], rows[-1]["codes"]) == ("manifest", ", ".join(status.codes))
