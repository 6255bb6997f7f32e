"""`PACSService.query_studies` and the finder on a real dcmqrscp, which knows no optional key: what is asked is answered."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file

from blocks.archive import Archive
from blocks.dimse.services import ToStore
from blocks.profile import load_profile
from flows.pacs_service import PACSService
from infra.peers.orthanc import free_port
from rapha.errors import ConfigurationError, Refusal
from tests.fixtures.audit import place
from tests.fixtures.dcmqrscp import running_dcmqrscp

CT, MR = (dcmread(str(get_testdata_file(name))) for name in ("CT_small.dcm", "MR_small.dcm"))
FILES = [Path(str(one.filename)) for one in (CT, MR)]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PACSService]:
    folder = tmp_path_factory.mktemp("archive")
    with running_dcmqrscp(folder / "dcmqrscp", free_port()) as port:
        keys = f"host: localhost, port: {port}, ae_title: ARCHIVE, calling_ae_title: RAPHA"
        (folder / "profile.yaml").write_text(f"pacs_endpoints:\n  primary: {{{keys}}}\n")
        archive = Archive(load_profile(folder / "profile.yaml", {}).endpoints["primary"])
        for dataset, file in zip((CT, MR), FILES, strict=True):
            meta = dataset.file_meta
            one = ToStore(file, meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID)
            archive.store(str(dataset.StudyInstanceUID), [one])
        environment = place(folder / "node").environment
        with PACSService(folder / "profile.yaml", environment=environment) as service:
            yield service


def found(service: PACSService, **asked: Any) -> list[str]:
    return sorted(one["patient_id"] for one in service.query_studies(**asked))


def test_a_modality_that_the_archive_does_not_say_is_asked_of_the_series(service: PACSService) -> None:
    ct, mr = str(CT.PatientID), str(MR.PatientID)
    assert found(service, modality="SM") == []
    assert found(service, modality="CT") == [ct] and found(service, modality="MR") == [mr]
    assert found(service, patient_id=mr, modality="CT") == []
    assert found(service, patient_id=ct) == [ct] and found(service, patient_id="nobody") == []


@pytest.mark.parametrize("patient", ["a" * 66_000, "a\\b", 4711, "a\nb"])
def test_what_is_no_patient_id_lists_nobody(service: PACSService, patient: Any) -> None:
    with pytest.raises(ConfigurationError) as wrong:
        service.query_studies(patient_id=patient)
    assert wrong.value.codes == ("key-malformed",)


@pytest.mark.parametrize(
    "days",
    [
        (20260101, 20260131),
        ("20260131", "20260101"),
        ("20260230", ""),
        ("", "20261301"),
        ("20260101",),
        ("20260101", None),
        "20260101-20260131",
        20260101,
        (["20260101"], ""),
    ],
)
def test_what_is_no_range_of_days_is_wrong_usage(service: PACSService, days: Any) -> None:
    with pytest.raises(ConfigurationError) as wrong:
        service.query_studies(patient_id=str(CT.PatientID), study_date_range=days)
    assert wrong.value.codes == ("date-malformed",)


@pytest.mark.parametrize(
    "keys", [{"Rows": "a"}, {"PatientID": 1}, {"PixelData": "1"}, {1: "1"}, {"StudyDate": "20260131-20260101"}, {"Nonsense": "1"}]
)
def test_the_finder_refuses_what_no_archive_can_match(service: PACSService, keys: Any) -> None:
    with pytest.raises(ConfigurationError) as wrong:
        service.finder.find_studies(keys)
    assert wrong.value.codes == ("key-malformed",)


def test_the_finder_asks_nothing_broad(service: PACSService) -> None:
    for keys in ({"PatientName": "="}, {"NumberOfStudyRelatedInstances": "5"}, {}):
        with pytest.raises(Refusal) as broad:
            service.finder.find_studies(keys)
        assert broad.value.codes == ("query-broad",)


def test_a_series_of_another_study_is_not_retrieved(service: PACSService, tmp_path: Path) -> None:
    with pytest.raises(Refusal) as none:
        service.retriever.retrieve_series(
            str(MR.SeriesInstanceUID), tmp_path / "out", study_instance_uid=str(CT.StudyInstanceUID)
        )
    assert none.value.codes == ("series-not-found",)
