"""From a new study in the archive to a report back in it: poll, drain, the equation in the ledger, the report read by another."""

import io
import json
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from typing import Literal

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from blocks.archive import Archive
from blocks.audit import Wanted
from infra.hospital.reading_cohort import identifiers, make_study
from rapha.ledger import read, verify
from rapha.trail import verify_trail
from tasks.reading.validate import sr_facts, validate
from tasks.shared.probe import probe, write_record
from tests.fixtures.clinic import Reading, reading


def new(kind: Literal["ct", "dx"], seed: int, planted: int) -> list[Dataset]:
    """A made-up study of today: a first poll looks a day back."""
    study = make_study(kind, seed, planted)
    for dataset in study:
        dataset.StudyDate, dataset.StudyTime = time.strftime("%Y%m%d"), "000100"
    return study


STUDIES = [new("ct", 11, 1), new("dx", 12, 0)]


# By C-GET with read-back, two Orthancs' test and that of PostgreSQL go in every run.
@pytest.fixture(scope="module", params=["C-MOVE", pytest.param("C-GET", marks=pytest.mark.soak)])
def clinic(request: pytest.FixtureRequest) -> Iterator[Reading]:
    with reading(STUDIES, request.param) as up:
        if request.param == "C-MOVE":  # probed, it is known to offer storage commitment; not probed, the report is read back
            write_record(up.folder / "state" / "capabilities", probe(Archive(up.clinic().profile.endpoints["primary"]), 1))
        up.proof = "commitment" if request.param == "C-MOVE" else "read-back"
        yield up


def reports_in(clinic: Reading) -> dict[str, bytes]:
    """Study Instance UID -> the report that the archive holds of it, found in its folder."""
    found: dict[str, bytes] = {}
    for path in clinic.archive.glob("*.dcm"):
        dataset = dcmread(path, stop_before_pixels=True)
        if dataset.Modality == "SR":
            assert str(dataset.StudyInstanceUID) not in found
            found[str(dataset.StudyInstanceUID)] = path.read_bytes()
    return found


@pytest.mark.timeout(300)
def test_new_studies_come_back_as_reports_and_nothing_is_lost(clinic: Reading) -> None:
    assert clinic.run('flows.poll("primary")')["new"] == 2
    ends = clinic.run("asyncio.run(flows.drain(seconds=200.0, idle=0.0))")
    register = clinic.clinic().register
    assert ends == {"completed": 2}, [(one.row, one.state, one.codes) for one in register.queue()] + [
        (letter.stage, letter.codes) for letter in register.dead_letters()
    ]
    found = reports_in(clinic)
    for study in STUDIES:
        report = found[str(study[0].StudyInstanceUID)]
        assert validate(report).codes == ()
        assert sr_facts(report).evidence == {str(one.SOPInstanceUID) for one in study}
        assert dcmread(io.BytesIO(report)).PatientID == study[0].PatientID
    assert verify(clinic.folder / "state" / "ledger").ok
    verdicts = [entry.body for entry in read(clinic.folder / "state" / "ledger") if entry.kind == "verdict"]
    assert (
        sorted((one["gate"], one["verdict"]) for one in verdicts)
        == [("arrival", "cleared")] * 2 + [("completeness", "cleared")] * 2
    )
    proofs = [
        json.loads(path.read_bytes())["proof"] for path in clinic.folder.glob("state/reading/*/*/evidence/completeness.json")
    ]
    assert proofs == [clinic.proof] * 2
    # The closing equation again, from the archive's own list and the register's sets.
    archive = Archive(clinic.clinic().profile.endpoints["primary"])
    for study in STUDIES:
        uid = str(study[0].StudyInstanceUID)
        states = [one for one in register.instances(register.row_of("primary", uid) or 0) if one.after]
        listed = {one.sop_uid for one in archive.list_study(uid) if one.modality != "SR"}
        assert {one.sop_uid for one in states} == listed
        assert all(one.sha256 and one.analysed and one.referenced for one in states)
    check_audit(clinic)
    # Our own reports are not new studies, and nothing is read twice.
    again = clinic.run('flows.poll("primary")')
    assert (again["new"], again["changed"]) == (0, 0)
    assert clinic.run("asyncio.run(flows.drain(seconds=60.0, idle=0.0))") == {}
    assert len(reports_in(clinic)) == 2
    check_no_identifier(clinic)


def check_audit(clinic: Reading) -> None:
    """Every question, retrieval, analysis and store of each patient is in the trail, begun and ended, and the trail verifies."""
    trail = clinic.clinic().trail
    assert verify_trail(trail.folder).ok
    for study in STUDIES:
        acts = list(trail.search(Wanted(study=trail.pseudonym("study", str(study[0].StudyInstanceUID)))))
        kinds = Counter((one.kind, one.stage, one.outcome) for one in acts if one.kind != "query")
        wanted = Counter({"transfer": 1 + (clinic.proof == "read-back"), "access": 2, "store": 1})
        assert kinds == Counter({(kind, stage, 0): n for kind, n in wanted.items() for stage in ("begin", "end")})
        assert {one.patient for one in acts if one.kind != "query"} == {trail.pseudonym("patient", str(study[0].PatientID))}
        assert [one for one in acts if one.kind == "query"]


def check_no_identifier(clinic: Reading) -> None:
    """No identifier of a patient or study in clear: engine, ledger, register, state, sealed files, logs."""
    needles = [text.encode() for study in STUDIES for text in identifiers(study) if len(text) >= 8]
    assert needles
    for path in (path for path in clinic.folder.rglob("*") if path.is_file() and clinic.archive not in path.parents):
        # By another process: closing a file of SQLite's here would drop the locks of our own connections to it.
        raw = subprocess.run(["cat", str(path)], capture_output=True, check=True).stdout
        assert [needle for needle in needles if needle in raw] == [], path.relative_to(clinic.folder)


def test_sealed_files_do_not_stay(clinic: Reading) -> None:
    assert [path for name in ("received", "fetched") for path in (clinic.folder / name).rglob("*.sealed")] == []
