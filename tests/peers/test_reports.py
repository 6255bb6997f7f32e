"""Reports: the same bytes for the same work, clean before two validators that are not ours, one object in a real archive."""

import dataclasses
import io
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from highdicom.sr import Comprehensive3DSR
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

from blocks import validators
from blocks.archive import Archive, Listed, attributes_digest
from blocks.dimse.services import ToStore
from blocks.endpoint import Endpoint
from blocks.models import load_package
from infra.hospital.reading_cohort import make_study
from infra.peers.orthanc import running_orthanc
from policies.findings import Finding, Measurement
from policies.report import report_codes
from rapha.errors import PeerError, Refusal
from tasks.reading.report import Analysed, ReportFacts, build
from tasks.reading.validate import sr_facts, validate

MODELS = Path(__file__).parents[2] / "infra" / "models"
RADIOLOGY, SLIDES = load_package(MODELS / "radiology"), load_package(MODELS / "slides")
CIRCLE = Finding(
    index=0,
    frame=1,
    kind="lesion",
    confidence=0.93,
    shape="circle",
    points=((40.0, 50.0), (46.0, 50.0)),
    measurements=(Measurement("diameter", 12.5),),
)


def analysed(package: object, count: int, *findings: Finding, digest: str = "") -> Analysed:
    model = package.model  # type: ignore[attr-defined]
    return Analysed(model=model, digest=digest or package.digest, read=tuple(range(count)), findings=findings)  # type: ignore[attr-defined]


def facts(count: int, **changes: object) -> ReportFacts:
    made = ReportFacts(at=1_790_000_000, contents=tuple(f"sha256:{n:064x}" for n in range(count)), device="node-1")
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def slide_report() -> bytes:
    source = make_study("sm", 3, 1)[:1]
    kind = SLIDES.model.findings.kinds[0]
    points = ((100.0, 100.0), (180.0, 100.0)) if kind.shapes[0] == "circle" else ((90.0, 90.0), (190.0, 90.0), (190.0, 190.0))
    found = Finding(index=0, frame=1, kind=kind.kind, confidence=0.8, shape=kind.shapes[0], points=points)
    return build(source, [analysed(SLIDES, 1, found)], facts(1))


REPORTS: dict[str, Callable[[], bytes]] = {
    "found": lambda: build(make_study("ct", 3, 1), [analysed(RADIOLOGY, len(make_study("ct", 3, 1)), CIRCLE)], facts(5)),
    "nothing": lambda: build(make_study("dx", 3, 0), [analysed(RADIOLOGY, 1)], facts(1)),
    "several": lambda: build(
        make_study("dx", 3, 1), [analysed(RADIOLOGY, 1, CIRCLE), analysed(RADIOLOGY, 1, digest="sha256:" + "9" * 64)], facts(1)
    ),
    "slide": slide_report,
    "no 3D": lambda: build(make_study("dx", 3, 1), [analysed(RADIOLOGY, 1, CIRCLE)], facts(1, three_d=False)),
}


@pytest.mark.parametrize("name", sorted(REPORTS))
def test_a_report_is_clean_and_the_same_again(name: str) -> None:
    report = REPORTS[name]()
    assert report == REPORTS[name]()
    checked = validate(report)
    assert (checked.codes, checked.checks) == ((), ("own", "dciodvfy", "DicomSRValidator"))


def test_another_finding_model_or_time_is_another_report() -> None:
    source = make_study("dx", 3, 1)
    moved = dataclasses.replace(CIRCLE, points=((41.0, 50.0), (46.0, 50.0)))
    several = [
        build(source, [analysed(RADIOLOGY, 1, CIRCLE)], facts(1)),
        build(source, [analysed(RADIOLOGY, 1, moved)], facts(1)),
        build(source, [analysed(RADIOLOGY, 1, CIRCLE, digest="sha256:" + "8" * 64)], facts(1)),
        build(source, [analysed(RADIOLOGY, 1, CIRCLE)], facts(1, at=1_790_000_001)),
    ]
    assert len({str(dcmread(io.BytesIO(one)).SOPInstanceUID) for one in several}) == len(several)


def test_it_says_who_what_where_and_of_which_images() -> None:
    sources = make_study("ct", 3, 1)
    report = build(sources, [analysed(RADIOLOGY, len(sources), CIRCLE)], facts(len(sources)))
    said, read = sr_facts(report), dcmread(io.BytesIO(report))
    assert said.evidence == {str(source.SOPInstanceUID) for source in sources}
    assert said.references == said.evidence
    assert [(group.algorithm, group.version) for group in said.groups] == [(RADIOLOGY.model.name, RADIOLOGY.model.version)]
    assert said.groups[0].regions == ((40.0, 50.0, 46.0, 50.0),)
    assert (read.PatientID, read.PatientName, read.StudyInstanceUID) == (
        sources[0].PatientID,
        sources[0].PatientName,
        sources[0].StudyInstanceUID,
    )
    assert read.ContentDate == "20260921"
    assert len(Comprehensive3DSR.from_dataset(read).content.find(read.ContentSequence[0].ConceptNameCodeSequence[0])) >= 0
    dumped = subprocess.run(["dsrdump", "-"], input=report, capture_output=True, check=False)
    assert b"Imaging Measurement Report" in dumped.stdout


def _flag(dataset: Dataset) -> None:
    dataset.CompletionFlag = "PARTIAL"


def _verified(dataset: Dataset) -> None:
    dataset.VerificationFlag = "VERIFIED"


def _evidence(dataset: Dataset) -> None:
    del dataset.CurrentRequestedProcedureEvidenceSequence


def _template(dataset: Dataset) -> None:
    dataset.ContentTemplateSequence[0].TemplateIdentifier = "2000"


def _patient(dataset: Dataset) -> None:
    del dataset.PatientID


def _groups(dataset: Dataset) -> None:
    dataset.ContentSequence = [item for item in dataset.ContentSequence if item.ConceptNameCodeSequence[0].CodeValue != "126010"]


TAMPERED = {
    "report-flags": [_flag, _verified],
    "report-dangling-reference": [_evidence],
    "report-template": [_template],
    "report-no-patient": [_patient],
    "report-no-group": [_groups],
}


@pytest.mark.parametrize(("code", "change"), [(code, change) for code, changes in TAMPERED.items() for change in changes])
def test_one_changed_fact_is_its_own_code(code: str, change: Callable[[Dataset], None]) -> None:
    dataset = dcmread(io.BytesIO(REPORTS["no 3D"]()))
    change(dataset)
    out = io.BytesIO()
    dataset.save_as(out)
    assert code in report_codes(sr_facts(out.getvalue()))


def test_what_is_no_report_is_refused() -> None:
    for raw in (b"", b"not DICOM", REPORTS["nothing"]()[:700]):
        with pytest.raises(Refusal) as refused:
            validate(raw)
        assert refused.value.codes == ("report-unreadable",)
    with pytest.raises(Refusal) as refused:
        build(make_study("dx", 3, 1) + make_study("dx", 4, 1), [analysed(RADIOLOGY, 2)], facts(2))
    assert refused.value.codes == ("report-mixed-patients",)
    with pytest.raises(Refusal) as refused:
        build(make_study("ct", 3, 1), [analysed(RADIOLOGY, 1)], facts(5))
    assert refused.value.codes == ("report-nothing-analysed",)


def test_a_validator_that_is_missing_or_slow_is_no_yes(monkeypatch: pytest.MonkeyPatch) -> None:
    report, started, popen = REPORTS["nothing"](), list[int](), validators.subprocess.Popen

    def seen(*args: Any, **kwargs: Any) -> Any:
        process = popen(*args, **kwargs)
        started.append(process.pid)
        return process

    monkeypatch.setattr(validators.subprocess, "Popen", seen)
    with pytest.raises(PeerError) as failed:
        validators.check(validators.TEMPLATE, report, seconds=0.5)
    assert failed.value.codes == ("validator-timeout",)
    (session,) = started
    end = time.monotonic() + 2.0  # a report takes longer
    while _left(session) and time.monotonic() < end:
        time.sleep(0.05)
    assert _left(session) == set()  # the program is a script: the Java machine that it started is gone too
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(PeerError) as failed:
        validators.check(validators.IOD, report)
    assert failed.value.codes == ("validator-missing",)


@pytest.mark.parametrize("name", ["empty", "text", "an image"])
def test_the_template_validator_does_not_pass_what_it_has_not_read(name: str) -> None:
    """It ends with "complete" and no error all the same."""
    image = Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()
    assert validators.check(validators.TEMPLATE, {"empty": b"", "text": b"hello" * 100, "an image": image}[name]).errors


def _left(session: int) -> set[int]:
    """The living processes of this session (proc_pid_stat(5): the fourth field behind the name)."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, _, its = path.read_text().rpartition(")")[2].split()[:4]
            if int(its) == session and state != "Z":
                found.add(int(path.parent.name))
    return found


def test_an_archive_keeps_one_of_it_however_often_it_is_stored(tmp_path: Path) -> None:
    report = REPORTS["found"]()
    dataset = dcmread(io.BytesIO(report))
    (tmp_path / "report.dcm").write_bytes(report)
    allowed = {"DicomAlwaysAllowGet": True, "DicomModalities": {"RAPHA": ["RAPHA", "127.0.0.1", 1]}}
    with running_orthanc(tmp_path / "orthanc", **allowed) as orthanc:
        there = {"name": "p", "host": "127.0.0.1", "port": orthanc.dicom_port, "ae_title": "ORTHANC", "calling_ae_title": "RAPHA"}
        archive = Archive(Endpoint(**there, retrieve="C-GET"))  # type: ignore[arg-type]
        one = ToStore(tmp_path / "report.dcm", dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.file_meta.TransferSyntaxUID)
        for _ in range(2):
            archive.store(str(dataset.StudyInstanceUID), [one])
        (listed,) = archive.list_study(str(dataset.StudyInstanceUID))
        assert listed == Listed(one.sop_instance, one.sop_class, str(dataset.SeriesInstanceUID), "SR")
        assert archive.read_back(str(dataset.StudyInstanceUID), listed) == attributes_digest(report)
