"""The poll against a real Orthanc, over DIMSE and over DICOMweb: new studies, a late series, a limit that is reached."""

import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from blocks.archive import Archive
from blocks.endpoint import Endpoint
from blocks.reading import ReadingRegister
from infra.peers.orthanc import Orthanc, file_bytes, running_orthanc
from policies.polling import PollSettings
from tasks.reading.poll import poll
from tests.fixtures.reading import make_image

NOW = int(datetime(2024, 1, 15, 12, tzinfo=UTC).timestamp())


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    allowed = {"DicomModalities": {"RAPHA": ["RAPHA", "127.0.0.1", 1]}}
    with running_orthanc(tmp_path_factory.mktemp("orthanc"), **allowed) as archive:
        yield archive


def store(orthanc: Orthanc, folder: Path, dataset: object, name: str) -> None:
    path = folder / f"{name}.dcm"
    path.write_bytes(file_bytes(dataset))  # type: ignore[arg-type]
    orthanc.store_all([path])


def archive_of(orthanc: Orthanc, web: bool) -> Archive:
    return Archive(
        Endpoint(
            name="primary",
            host="127.0.0.1",
            port=0 if web else orthanc.dicom_port,
            ae_title="ORTHANC",
            calling_ae_title="RAPHA",
            dicomweb_url=orthanc.url if web else None,
            idle_seconds=30.0,
        )
    )


@pytest.mark.parametrize("web", [False, True])
def test_studies_are_found_once_and_a_late_series_reopens(orthanc: Orthanc, tmp_path: Path, web: bool) -> None:
    orthanc.clear()
    for patient in range(6):
        image = make_image(patient, 1)
        image.StudyTime = f"{8 + patient:02d}1500.5"
        store(orthanc, tmp_path, image, f"first{patient}")
    register = ReadingRegister.at(tmp_path / "r.sqlite", secrets.token_bytes(32))
    archive, settings = archive_of(orthanc, web), PollSettings(pacs="primary", most=4)
    outcome = poll(register, archive, settings, NOW)
    assert outcome.new == 6 and outcome.questions > 1, "the limit of four made it split"
    assert poll(register, archive, settings, NOW + 300).known == 6
    lease = register.claim("w", NOW, 60)
    assert lease is not None and register.details(lease.row)["patient"].startswith("HOSP-")
    register.finish(lease, NOW)
    late = make_image(int(lease.study_uid.split(".")[-2]), 9)
    late.SeriesInstanceUID += ".77"
    late.SOPInstanceUID += ".77"
    store(orthanc, tmp_path, late, "late")
    assert poll(register, archive, settings, NOW + 600).rows == (lease.row,)
    register.close()


def test_the_sign_of_an_orthanc_that_stops_at_its_own_limit_makes_a_poll_split(tmp_path: Path) -> None:
    """It answers as many as its LimitFindResults, then 0xFE00, "canceled": nobody asked for that."""
    known = {"RAPHA": ["RAPHA", "127.0.0.1", 1]}
    with running_orthanc(tmp_path / "limited", DicomModalities=known, LimitFindResults=4) as limited:
        for patient in range(6):
            image = make_image(patient, 1)
            image.StudyTime = f"{8 + patient:02d}1500"
            store(limited, tmp_path, image, f"limited{patient}")
        register = ReadingRegister.at(tmp_path / "r.sqlite", secrets.token_bytes(32))
        outcome = poll(register, archive_of(limited, web=False), PollSettings(pacs="primary"), NOW)
        assert outcome.new == 6 and outcome.questions > 1
        register.close()
