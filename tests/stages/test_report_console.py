"""`rapha report validate`: what is refused is named by its digest, with gate and mode; one file is one report of one patient."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file

from infra.hospital.reading_cohort import make_study
from infra.peers.orthanc import file_bytes
from rapha.console.app import build, run
from rapha.errors import Refusal
from tasks.reading.report import build as build_report
from tasks.reading.validate import MAX_REPORT, sr_facts
from tests.peers.test_reports import RADIOLOGY, analysed, facts

REPORT = build_report(make_study("dx", 3, 0), [analysed(RADIOLOGY, 1)], facts(1))
CT = Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()
REFUSED = {
    "empty": b"",
    "random": bytes(range(256)) * 99,
    "text": b"hello\n",
    "an image": CT,
    "too large": REPORT + bytes(MAX_REPORT),
    "two reports": REPORT + REPORT,
    "cut short": REPORT[:-1],
}


def without(name: str, value: str | None) -> bytes:
    dataset = dcmread(io.BytesIO(REPORT))
    setattr(dataset, name, value)
    return file_bytes(dataset)


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_report_is_refused_by_name(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sr.dcm").write_bytes(REFUSED[what])
    assert run(build("report"), ["report", "validate", str(tmp_path / "sr.dcm"), "--json"]) == 3
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (said["verdict"], said["gate"], said["codes"]) == ("refused", "report", ["report-unreadable"])
    assert said["subject"] == "sha256:" + hashlib.sha256(REFUSED[what]).hexdigest()
    assert said["mode"] == "development"


def test_a_report_that_is_cleared_has_the_same_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sr.dcm").write_bytes(REPORT)
    assert run(build("report"), ["report", "validate", str(tmp_path / "sr.dcm"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["verdict"], said["mode"], said["subject"]) == (
        "cleared",
        "development",
        "sha256:" + hashlib.sha256(REPORT).hexdigest(),
    )


@pytest.mark.parametrize("name", ["PatientID", "StudyInstanceUID"])
@pytest.mark.parametrize("value", ["", " ", None])
def test_a_report_of_nobody_names_no_patient(name: str, value: str | None) -> None:
    assert sr_facts(REPORT).has_patient
    assert not sr_facts(without(name, value)).has_patient


def test_a_second_report_in_the_file_is_seen_by_our_own_check() -> None:
    with pytest.raises(Refusal) as twice:
        sr_facts(REPORT + REPORT)
    assert twice.value.codes == ("report-unreadable",)
