"""`PACSService` on a real archive over DIMSE, with the node's real processes: its answers, what it writes down, what it refuses.

The names of methods and of keys in answers are typed here once more from the contract, not taken from the code.
"""

import io
import logging
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from blocks.archive import Archive, attributes_digest
from blocks.audit import AuditTrail, Wanted, open_audit_trail
from flows.pacs.finder import Finder
from flows.pacs.retriever import Retriever
from flows.pacs.storer import Storer
from flows.pacs_service import PACSService
from flows.person import person
from infra.hospital.reading_cohort import file_bytes, identifiers, make_study
from policies.audit_message import parse
from policies.polling import PollSettings
from rapha.errors import ConfigurationError, PeerError, Refusal
from rapha.ledger import read
from tasks.reading.poll import look_up
from tasks.reading.validate import validate
from tests.fixtures.clinic import Reading, reading

CT, DX = make_study("ct", 31, 1), make_study("dx", 32, 0)
DAY = {str(one[0].PatientID): str(one[0].StudyDate) for one in (CT, DX)}


@pytest.fixture(scope="module")
def clinic() -> Iterator[Reading]:
    """`primary` is retrieved from by C-GET, `moving`, the same archive, by C-MOVE."""
    with reading([CT, DX], "C-GET") as up:
        profile = up.folder / "profile.yaml"
        (line,) = [line for line in profile.read_text().splitlines() if "primary:" in line]
        both = profile.read_text().replace(line, f"{line}\n{line.replace('primary', 'moving').replace('C-GET', 'C-MOVE')}")
        profile.write_text(both)
        yield up


@pytest.fixture
def service(clinic: Reading) -> Iterator[PACSService]:
    with PACSService(clinic.environment["RAPHA_PROFILE_PATH"], environment=clinic.environment) as service:
        yield service


@pytest.fixture
def trail(clinic: Reading) -> AuditTrail:
    return open_audit_trail(clinic.environment)


def uid(study: list[Dataset]) -> str:
    return str(study[0].StudyInstanceUID)


def told(trail: AuditTrail, since: int, kind: str) -> list[Any]:
    return [one for one in list(trail.search())[since:] if one.kind == kind]


def entries(trail: AuditTrail) -> int:
    return len(list(trail.search()))


def test_the_calls_of_the_contract_are_there_with_their_keys(clinic: Reading) -> None:
    with PACSService(config_path=clinic.environment["RAPHA_PROFILE_PATH"], debug=True, environment=clinic.environment) as service:
        health = service.health_check()
        assert health["overall_status"] == "healthy", health
        for engine in ("query_engine", "retrieval_engine", "storage_engine"):
            assert health["components"][engine] == "healthy"
        stats = service.get_statistics()
        assert stats["workflow"]["studies_processed"] == 0
        assert stats["workflow"]["studies_failed"] == 0
        assert f"{stats['workflow']['avg_processing_time_seconds']:.2f}" == "0.00"
        assert isinstance(service.get_audit_statistics()["phi_access_count"], int)
        service.query_studies(patient_id=str(CT[0].PatientID))
    engines = {
        Finder: ("find_studies", "find_series", "find_instances"),
        Retriever: ("retrieve_study", "retrieve_series", "retrieve_instance"),
        Storer: ("store_structured_report", "store_image", "verify_storage"),
    }
    assert [
        (engine, name) for engine, names in engines.items() for name in names if not callable(getattr(engine, name, None))
    ] == []


def test_studies_are_found_by_patient_date_and_modality(service: PACSService, trail: AuditTrail) -> None:
    before, patient = entries(trail), str(CT[0].PatientID)
    (found,) = service.query_studies(patient_id=patient, study_date_range=(DAY[patient], DAY[patient]), modality="CT")
    assert found["study_instance_uid"] == uid(CT) and found["patient_id"] == patient
    assert found["modalities"] == ["CT"] and found["number_of_instances"] == len(CT)
    assert service.query_studies(patient, modality="SM") == []
    assert service.query_studies(patient, ("19000101", "19001231")) == []
    assert {one["study_instance_uid"] for one in service.query_studies(study_date_range=("20260101", ""))} == {uid(CT), uid(DX)}
    assert [one.stage for one in told(trail, before, "query")] == ["begin", "end"] * 4
    with pytest.raises(Refusal) as broad:
        service.query_studies()
    assert broad.value.codes == ("query-broad",)
    with pytest.raises(ConfigurationError) as odd:
        service.query_studies(patient, ("yesterday", ""))
    assert odd.value.codes == ("date-malformed",)


def test_the_finder_goes_down_from_studies_to_instances(service: PACSService) -> None:
    finder = service.finder
    (study,) = finder.find_studies({"PatientID": str(CT[0].PatientID)})
    (series,) = finder.find_series(study["study_instance_uid"])
    assert (series["series_instance_uid"], series["modality"]) == (str(CT[0].SeriesInstanceUID), "CT")
    found = finder.find_instances(series["series_instance_uid"])
    assert {one["sop_instance_uid"] for one in found} == {str(one.SOPInstanceUID) for one in CT}
    assert {one["sop_class_uid"] for one in found} == {str(CT[0].SOPClassUID)}
    with pytest.raises(ConfigurationError) as unnamed:
        finder.find_instances("1.2.3.4")
    assert unnamed.value.codes == ("study-unnamed",)


@pytest.mark.parametrize("pacs", ["primary", "moving"])
def test_a_study_is_retrieved_whole_sealed_and_queued(
    service: PACSService, clinic: Reading, trail: AuditTrail, pacs: str
) -> None:
    before = entries(trail)
    result = service.retrieve_study(study_instance_uid=uid(CT), priority="urgent", pacs=pacs)
    assert (result["status"], result["instances"], result["priority"]) == ("retrieved", len(CT), "urgent")
    assert result["bytes"] >= sum(len(file_bytes(one)) for one in CT) * 0.99
    queued = clinic.clinic().register.study(result["row"])
    assert (queued.state, queued.priority) == ("scheduled", "urgent")
    sealed = [path for name in ("received", "fetched") for path in (clinic.folder / name).rglob("*.sealed")]
    assert len(sealed) == len(CT)
    (begin, end) = told(trail, before, "transfer")
    assert begin.studies == end.studies == (trail.pseudonym("study", uid(CT)),)
    assert begin.patient == trail.pseudonym("patient", str(CT[0].PatientID)) != ""
    assert service.retrieve_study(uid(CT), "low", pacs=pacs)["priority"] == "low"
    with pytest.raises(ConfigurationError) as unknown:
        service.retrieve_study(uid(CT), "at once")
    assert unknown.value.codes == ("priority-unknown",)
    with pytest.raises(Refusal) as nowhere:
        service.retrieve_study("2.25.4711")
    assert nowhere.value.codes == ("study-not-found",)
    service.__exit__(None, None, None)
    assert [path for name in ("received", "fetched") for path in (clinic.folder / name).rglob("*.sealed")] == []


RESULTS = {
    "algorithm_name": "lesion-radiology-v1.0.0",
    "findings": [
        {"finding_type": "lesion", "confidence": 0.95, "coordinates": [(100, 200), (110, 200)], "shape": "circle"},
    ],
}


def test_results_become_a_report_that_the_archive_holds(service: PACSService, clinic: Reading, trail: AuditTrail) -> None:
    """On the radiograph: one image, so that a finding need not say which."""
    before = entries(trail)
    done = service.store_analysis_results(study_instance_uid=uid(DX), analysis_results=RESULTS)
    assert (done["status"], done["proof"], done["findings"], done["critical"]) == ("stored", "read-back", 1, 1)
    (report,) = [raw for raw in stored(clinic) if dcmread(io.BytesIO(raw)).SOPInstanceUID == done["sop_instance_uid"]]
    assert validate(report).codes == ()
    dataset = dcmread(io.BytesIO(report))
    assert (str(dataset.PatientID), str(dataset.StudyInstanceUID)) == (str(DX[0].PatientID), uid(DX))
    assert [one.stage for one in told(trail, before, "store")] == ["begin", "end"]
    (by_hand,) = [one.body for one in read(clinic.folder / "state" / "ledger") if one.kind == "report-by-hand"]
    assert (by_hand["report"], by_hand["proof"]) == (done["sha256"], "read-back")
    assert service.store_analysis_results(uid(DX), RESULTS)["sop_instance_uid"] == done["sop_instance_uid"]
    found = look_up(Archive(clinic.clinic().profile.endpoints["primary"]), PollSettings(pacs="primary"), uid(DX))
    assert found is not None  # the archive lists the report, and a poll knows it for ours
    assert clinic.clinic().register.found("primary", found, int(time.time())).outcome == "known"


def stored(clinic: Reading) -> list[bytes]:
    paths = sorted(clinic.archive.glob("*.dcm"))
    return [path.read_bytes() for path in paths if dcmread(path, specific_tags=["Modality"]).Modality == "SR"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"algorithm_name": "the-platform-v1.0"}, "analysis-algorithm-unknown"),
        ({"note": "anything"}, "analysis-malformed"),
        ({"findings": [{**RESULTS["findings"][0], "finding_type": "tumor_detection"}]}, "findings-kind"),
        ({"findings": [{**RESULTS["findings"][0], "confidence": 1.5}]}, "findings-confidence"),
        ({"findings": [{**RESULTS["findings"][0], "sop_instance_uid": "1.2.3"}]}, "analysis-image-unknown"),
        ({"findings": [{**RESULTS["findings"][0], "coordinates": [(9999, 1), (1, 1)]}]}, "findings-outside"),
    ],
)
def test_results_that_no_listed_model_may_give_are_no_report(
    service: PACSService, clinic: Reading, change: Any, code: str
) -> None:
    before = len(stored(clinic))
    with pytest.raises(Refusal) as refused:
        service.store_analysis_results(uid(DX), {**RESULTS, **change})
    assert refused.value.codes == (code,)
    assert len(stored(clinic)) == before


def test_a_finding_on_one_of_many_slices_says_on_which(service: PACSService) -> None:
    with pytest.raises(Refusal) as missing:
        service.store_analysis_results(uid(CT), RESULTS)
    assert missing.value.codes == ("analysis-image-missing",)


def test_clear_files_go_only_where_the_caller_says(
    service: PACSService, clinic: Reading, trail: AuditTrail, tmp_path: Path
) -> None:
    retriever = service.retriever
    before = entries(trail)
    done = retriever.retrieve_study(uid(CT), tmp_path / "out")
    assert (done["instances"], len(done["files"])) == (len(CT), len(CT))
    assert {attributes_digest(Path(one).read_bytes()) for one in done["files"]} == {
        attributes_digest(file_bytes(one)) for one in CT
    }
    assert [(one.stage, one.patient) for one in told(trail, before, "export")] == [
        (stage, trail.pseudonym("patient", str(CT[0].PatientID))) for stage in ("begin", "end")
    ]
    with pytest.raises(ConfigurationError) as full:
        retriever.retrieve_study(uid(CT), tmp_path / "out")
    assert full.value.codes == ("folder-not-empty",)
    service.finder.find_series(uid(CT))
    service.finder.find_instances(str(CT[0].SeriesInstanceUID))
    assert service.retriever.retrieve_series(str(CT[0].SeriesInstanceUID), tmp_path / "series")["instances"] == len(CT)
    one = service.retriever.retrieve_instance(str(CT[2].SOPInstanceUID), tmp_path / "one")
    assert [dcmread(path).SOPInstanceUID for path in one["files"]] == [CT[2].SOPInstanceUID]


def test_an_archive_that_only_sends_goes_through_the_receiver(clinic: Reading, tmp_path: Path) -> None:
    """C-MOVE: sealed on the receiver's disk to a key of this retrieval alone, opened into the folder, and gone from there."""
    with PACSService(clinic.environment["RAPHA_PROFILE_PATH"], environment=clinic.environment, pacs="moving") as service:
        done = service.retriever.retrieve_study(uid(CT), tmp_path / "study")
        one = service.retriever.retrieve_series(str(DX[0].SeriesInstanceUID), tmp_path / "series", study_instance_uid=uid(DX))
    assert (done["method"], done["instances"], one["instances"]) == ("C-MOVE", len(CT), 1)
    assert {attributes_digest(Path(one).read_bytes()) for one in done["files"]} == {
        attributes_digest(file_bytes(one)) for one in CT
    }
    assert {stat.S_IMODE(Path(one).stat().st_mode) for one in done["files"]} == {0o600}
    assert list((clinic.folder / "received").glob("*.sealed")) == []
    alone = {name: value for name, value in clinic.environment.items() if not name.startswith("RAPHA_RECEIVER")}
    moving = PACSService(clinic.environment["RAPHA_PROFILE_PATH"], environment=alone, pacs="moving")
    with moving as service, pytest.raises(ConfigurationError) as nobody:
        service.retriever.retrieve_study(uid(CT), tmp_path / "none")
    assert nobody.value.codes == ("retrieve-needs-receiver",)


def test_what_is_stored_is_checked_and_verified(service: PACSService, clinic: Reading) -> None:
    image = dcmread(io.BytesIO(file_bytes(DX[0])))
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = "2.25.99001"
    storer = service.storer
    assert storer.store_image(image)["status"] == "stored"
    assert storer.verify_storage("2.25.99001")["verified"] is True
    with pytest.raises(Refusal) as unknown:
        storer.verify_storage("2.25.99002")
    assert unknown.value.codes == ("store-unknown",)
    report = dcmread(io.BytesIO(stored(clinic)[0]))
    report.SOPInstanceUID = report.file_meta.MediaStorageSOPInstanceUID = "2.25.99003"
    assert storer.store_structured_report(report)["status"] == "stored"
    assert storer.verify_storage("2.25.99003")["verified"] is True
    report.SOPInstanceUID = report.file_meta.MediaStorageSOPInstanceUID = "2.25.99004"
    report.VerificationFlag = "VERIFIED"
    with pytest.raises(Refusal) as wrong:
        storer.store_structured_report(report)
    assert "report-flags" in wrong.value.codes
    with pytest.raises(Refusal) as disguised:
        storer.store_image(report)
    assert disguised.value.codes == ("object-is-report",)


def test_nothing_is_asked_where_the_trail_takes_no_entry(service: PACSService, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("blocks.archive.Archive.find_studies", lambda *_, **__: asked.append("asked") or [])

    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("blocks.ledger.Ledger._append_line", full)
    with pytest.raises(PeerError) as stopped:
        service.query_studies(patient_id="RD1")
    assert stopped.value.codes == ("audit-unwritable",) and asked == []


def test_what_is_not_there_says_so(service: PACSService, clinic: Reading) -> None:
    with pytest.raises(Refusal) as failover:
        service.query_studies("RD1", pacs="auto")
    assert failover.value.codes == ("not-built",)
    with pytest.raises(ConfigurationError) as unknown:
        service.query_studies("RD1", pacs="elsewhere")
    assert unknown.value.codes == ("pacs-unknown",)
    closed = PACSService(clinic.environment["RAPHA_PROFILE_PATH"], environment=clinic.environment)
    with pytest.raises(Refusal) as not_open:
        closed.query_studies("RD1")
    assert not_open.value.codes == ("service-not-open",)


def test_a_part_that_is_down_is_named_quickly(clinic: Reading, tmp_path: Path) -> None:
    text = (clinic.folder / "profile.yaml").read_text()
    port = clinic.clinic().profile.endpoints["primary"].port
    (tmp_path / "gone.yaml").write_text(text.replace(f"port: {port},", "port: 9,"))
    gone = {**clinic.environment, "RAPHA_STUDY_SOCKET": str(tmp_path / "none.sock")}
    began = time.monotonic()
    with PACSService(tmp_path / "gone.yaml", environment=gone) as service:
        health = service.health_check()
    assert time.monotonic() - began < 20
    parts = health["components"]
    assert health["overall_status"] == "unhealthy"
    assert (parts["pacs_primary"], parts["study_reader"]) == ("dimse-unreachable", "study-unreachable")
    assert parts["query_engine"] == "dimse-unreachable" and parts["model_launcher"] == "healthy"


def test_debug_logs_no_identifier(clinic: Reading, caplog: pytest.LogCaptureFixture) -> None:
    """The user has set every logger to DEBUG, as one does."""
    with (
        caplog.at_level(logging.DEBUG),
        PACSService(clinic.environment["RAPHA_PROFILE_PATH"], debug=True, environment=clinic.environment) as service,
    ):
        service.query_studies(patient_id=str(CT[0].PatientID))
        service.retrieve_study(uid(CT))
    assert "query_studies" in caplog.text
    for study in (CT, DX):
        assert [text for text in identifiers(study) if text in caplog.text] == []


def test_the_trail_names_who_asked_and_what(service: PACSService, trail: AuditTrail) -> None:
    service.query_studies(patient_id=str(DX[0].PatientID))
    one, xml = list(trail.messages(Wanted(kinds=("query",))))[-1]
    message = parse(xml)
    assert (one.stage, message.participants[-1].user) == ("end", person())
    assert str(DX[0].PatientID).encode() in message.subjects[-1].query
