"""A whole slide from the archive to a report back in it: poll, retrieve, the slide model in its sandbox, report, store, proof."""

import json
import time
from collections.abc import Iterable, Iterator

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from blocks.archive import Archive
from infra.hospital.reading_cohort import make_study, truth
from infra.models.slides.train import DISTANCE
from rapha.ledger import read, verify
from tasks.reading.validate import sr_facts, validate
from tests.fixtures.clinic import Reading, reading
from tests.fixtures.studies import SLIDES


def slide() -> list[Dataset]:
    """Three levels and a label, of today; two nests on the finest level."""
    study = make_study("sm", 11, 2)
    for dataset in study:
        dataset.StudyDate, dataset.StudyTime = time.strftime("%Y%m%d"), "000100"
    return study


SLIDE = slide()
UID = str(SLIDE[0].StudyInstanceUID)


# By WADO-RS and STOW-RS; over DIMSE the other flows' tests go.
@pytest.fixture(scope="module", params=["web", pytest.param("primary", marks=pytest.mark.soak)])
def clinic(request: pytest.FixtureRequest) -> Iterator[tuple[Reading, str]]:
    with reading([SLIDE], "C-MOVE") as up:
        yield up, request.param


def circles(items: Iterable[Dataset]) -> list[tuple[str, float, float]]:
    """(image, x and y of its middle) of every circle in a report, in pixels of the total pixel matrix (PS3.3 C.18.6.1.1)."""
    found: list[tuple[str, float, float]] = []
    for item in items:
        below = item.get("ContentSequence") or []
        if item.ValueType == "SCOORD" and item.GraphicType == "CIRCLE":
            assert item.PixelOriginInterpretation == "VOLUME"
            (image,) = (one.ReferencedSOPSequence[0] for one in below if one.ValueType == "IMAGE")
            found.append((str(image.ReferencedSOPInstanceUID), float(item.GraphicData[0]), float(item.GraphicData[1])))
        found += circles(below)
    return found


@pytest.mark.timeout(200)
def test_a_slide_comes_back_as_a_report_of_what_was_planted_in_it(clinic: tuple[Reading, str]) -> None:
    up, pacs = clinic
    found, ends = up.run(f'[flows.poll("{pacs}"), asyncio.run(flows.drain(seconds=150.0, idle=0.0))]')
    register = up.clinic().register
    assert (found["new"], ends) == (1, {"completed": 1}), [(one.stage, one.codes) for one in register.dead_letters()]
    (path,) = (one for one in up.archive.glob("*.dcm") if dcmread(one, stop_before_pixels=True).Modality == "SR")
    report = path.read_bytes()
    assert validate(report).codes == () and dcmread(path).PatientID == SLIDE[0].PatientID
    check_found(dcmread(path))
    # The closing equation, from the archive's list and the register's sets.
    states = [one for one in register.instances(register.row_of(pacs, UID) or 0) if one.after]
    listed = {one.sop_uid for one in Archive(up.clinic().profile.endpoints[pacs]).list_study(UID) if one.modality != "SR"}
    assert {one.sop_uid for one in states} == listed == {str(one.SOPInstanceUID) for one in SLIDE}
    assert {one.sop_uid for one in states if one.analysed} == sr_facts(report).evidence
    reasons = {one.sop_uid: one.reason for one in states if not one.analysed}
    assert reasons == {str(SLIDE[1].SOPInstanceUID): "level-not-needed", str(SLIDE[3].SOPInstanceUID): "slide-label"}
    ledger = up.folder / "state" / "ledger"
    assert verify(ledger).ok
    gates = [(e.body["gate"], e.body["verdict"]) for e in read(ledger) if e.kind == "verdict"]
    assert gates == [("arrival", "cleared"), ("completeness", "cleared")]
    (evidence,) = up.folder.glob("state/reading/*/*/evidence/completeness.json")
    assert json.loads(evidence.read_bytes())["proof"] == "read-back"
    assert [path for name in ("received", "fetched") for path in (up.folder / name).rglob("*.sealed")] == []


def check_found(report: Dataset) -> None:
    """Each planted nest has a circle within the distance that the model states, and each circle has a nest."""
    assert SLIDES.accuracy.distance == DISTANCE
    planted = [(uid, spot.x, spot.y) for uid, spots in truth(SLIDE).items() for spot in spots]
    marked = circles(report.ContentSequence)
    assert len(planted) == 2
    near = [[at == uid and np.hypot(x - cx, y - cy) <= DISTANCE for at, cx, cy in marked] for uid, x, y in planted]
    assert all(any(row) for row in near) and len(marked) == len(planted), (planted, marked)
