"""One study read three times: as it came, again at a person's word after its pixels were sent anew under the same UIDs, and once
more when a series came late. Each report names the one before it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from blocks.archive import Archive
from blocks.audit import Wanted, open_audit_trail
from blocks.dimse.services import ToStore
from infra.hospital.reading_cohort import file_bytes
from infra.serve import base_environment
from policies.audit_message import parse
from tasks.reading.validate import sr_facts, validate
from tests.fixtures.clinic import ROOT, Reading, reading
from tests.flows.test_reading import new

BEFORE, AFTER = new("dx", 61, 1), new("dx", 61, 0)  # the same UIDs, other pixels
UID = str(BEFORE[0].StudyInstanceUID)


@pytest.fixture(scope="module")
def clinic() -> Iterator[Reading]:
    with reading([BEFORE], "C-GET") as up:
        yield up


def read(clinic: Reading, *words: str) -> tuple[int, Any]:
    engine = {"PREFECT_API_URL": clinic.api, "PREFECT_LOGGING_LEVEL": "ERROR"}
    environment = {**base_environment(os.environ), **clinic.environment, **engine}
    argv = [sys.executable, "-m", "rapha.console", "read", UID, *words, "--json"]
    done = subprocess.run(argv, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    return done.returncode, json.loads(done.stdout)


def reports(clinic: Reading) -> list[Path]:
    """Our own, in the order in which the archive got them."""
    return [path for path in sorted(clinic.archive.glob("*.dcm"), key=lambda one: one.stat().st_mtime) if is_ours(path)]


def is_ours(path: Path) -> bool:
    return str(dcmread(path, specific_tags=["Modality"]).Modality) == "SR"


def check_follows(later: Path, earlier: Path) -> None:
    """The reference is whole and right, and the report is still clean before all three checks."""
    first, raw = dcmread(earlier), later.read_bytes()
    (study,) = dcmread(later).PredecessorDocumentsSequence
    (series,) = study.ReferencedSeriesSequence
    (one,) = series.ReferencedSOPSequence
    assert (study.StudyInstanceUID, series.SeriesInstanceUID) == (first.StudyInstanceUID, first.SeriesInstanceUID)
    assert (one.ReferencedSOPClassUID, one.ReferencedSOPInstanceUID) == (first.SOPClassUID, first.SOPInstanceUID)
    assert validate(raw).codes == ()


def late_series() -> Dataset:
    """One more image of the study, in a series of its own."""
    (late,) = new("dx", 61, 1)
    late.SeriesInstanceUID, late.SOPInstanceUID = "2.25.6101", "2.25.6102"
    late.file_meta.MediaStorageSOPInstanceUID = "2.25.6102"
    return late


@pytest.mark.soak  # one reading again of an unchanged study goes in every run (test_reading_console)
@pytest.mark.timeout(400)
def test_each_report_names_the_one_before_it(clinic: Reading, tmp_path: Path) -> None:
    status, said = read(clinic)
    assert (status, said["end"]) == (0, "completed"), said
    (first,) = reports(clinic)
    assert len(sr_facts(first.read_bytes()).groups[0].regions) == 1 and "PredecessorDocumentsSequence" not in dcmread(first)
    (image,) = [path for path in clinic.archive.glob("*.dcm") if not is_ours(path)]
    image.write_bytes(file_bytes(AFTER[0]))
    status, said = read(clinic)
    assert (status, said["end"], said["codes"]) == (0, "not-owed", ["study-read-already"])
    status, said = read(clinic, "--again", "--priority", "urgent")
    assert (status, said["end"], said["outcome"], said["priority"]) == (0, "completed", "reopened", "urgent"), said
    _, second = reports(clinic)
    assert sr_facts(second.read_bytes()).groups[0].regions == (), "it was read anew, from the archive"
    check_follows(second, first)
    acts = [parse(xml) for one, xml in open_audit_trail(clinic.environment).messages(Wanted(kinds=("operator",)))]
    assert [act.subjects[-1].id for act in acts] == [f"urn:rapha:reading:{said['row']}#read-again"] * 2  # begun, ended
    store_late(clinic, tmp_path)
    assert clinic.run('flows.poll("primary")')["changed"] == 1
    assert clinic.run("asyncio.run(flows.drain(seconds=120.0, idle=0.0))") == {"completed": 1}
    third = reports(clinic)[-1]
    assert len(sr_facts(third.read_bytes()).evidence) == 2
    check_follows(third, second)
    assert len({dcmread(path).SOPInstanceUID for path in (first, second, third)}) == 3


def store_late(clinic: Reading, folder: Path) -> None:
    late = late_series()
    (folder / "late.dcm").write_bytes(file_bytes(late))
    one = ToStore(folder / "late.dcm", late.SOPClassUID, late.SOPInstanceUID, late.file_meta.TransferSyntaxUID)
    Archive(clinic.clinic().profile.endpoints["primary"]).store(UID, [one])
