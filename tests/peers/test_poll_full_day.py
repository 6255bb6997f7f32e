"""Polls of a real Orthanc with a limit of results: a study without a time on a full day, one a day ahead, one that comes late."""

import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from blocks.archive import Archive
from blocks.endpoint import Endpoint
from blocks.reading import ReadingRegister
from infra.peers.orthanc import Orthanc, file_bytes, running_orthanc
from policies.polling import DAY, PollSettings
from rapha.errors import Refusal
from tasks.reading.poll import poll
from tests.fixtures.reading import make_image

NOW = int(datetime(2024, 1, 15, 12, tzinfo=UTC).timestamp())
LIMIT = 4


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    allowed = {"DicomModalities": {"RAPHA": ["RAPHA", "127.0.0.1", 1]}}
    with running_orthanc(tmp_path_factory.mktemp("orthanc"), LimitFindResults=LIMIT, **allowed) as archive:
        yield archive


@pytest.fixture
def register(tmp_path: Path) -> Iterator[ReadingRegister]:
    opened = ReadingRegister.at(tmp_path / "r.sqlite", secrets.token_bytes(32))
    yield opened
    opened.close()


def put(orthanc: Orthanc, folder: Path, patient: int, day: str, time: str, modality: str = "MR", series: str = "") -> str:
    """One study of one image; its UID."""
    image = make_image(patient, 1, day=day, modality=modality)
    image.StudyTime = time
    image.SeriesInstanceUID += series
    image.SOPInstanceUID += series
    path = folder / f"{patient}{series}.dcm"
    path.write_bytes(file_bytes(image))
    orthanc.store_all([path])
    return str(image.StudyInstanceUID)


def archive_of(orthanc: Orthanc) -> Archive:
    names = {"ae_title": "ORTHANC", "calling_ae_title": "RAPHA"}
    return Archive(Endpoint(name="p", host="127.0.0.1", port=orthanc.dicom_port, idle_seconds=30.0, **names))  # type: ignore[arg-type]


def test_a_study_without_a_time_on_a_full_day_is_found_by_its_modality(
    orthanc: Orthanc, register: ReadingRegister, tmp_path: Path
) -> None:
    orthanc.clear()
    kinds = ["MR", "MR", "MR", "CT", "CT", "CR", "DX", "DX"]
    for patient, kind in enumerate(kinds):
        put(orthanc, tmp_path, patient, "20240115", f"{8 + patient:02d}0000", kind)
    untimed = [put(orthanc, tmp_path, 100 + n, "20240115", "", kind) for n, kind in enumerate(["SM", "CT"])]
    outcome = poll(register, archive_of(orthanc), PollSettings(pacs="p", most=LIMIT), NOW)
    assert (outcome.new, outcome.unproven) == (10, 0) and all(register.row_of("p", uid) for uid in untimed)


def test_a_full_day_of_one_modality_is_refused_where_one_without_a_time_is_seen(
    orthanc: Orthanc, register: ReadingRegister, tmp_path: Path
) -> None:
    orthanc.clear()
    for patient in range(6):
        put(orthanc, tmp_path, patient, "20240115", "")
    with pytest.raises(Refusal) as error:
        poll(register, archive_of(orthanc), PollSettings(pacs="p", most=LIMIT), NOW)
    assert error.value.codes == ("window-too-dense",) and register.watermark("p") is None


@pytest.mark.parametrize("known", [True, False])
def test_a_study_of_this_morning_in_tokyo_is_found_at_once(
    orthanc: Orthanc, register: ReadingRegister, tmp_path: Path, known: bool
) -> None:
    orthanc.clear()
    tokyo = ZoneInfo("Asia/Tokyo")
    now = int(datetime(2024, 1, 16, 8, 30, tzinfo=tokyo).timestamp())  # 23:30 of the day before, in UTC
    put(orthanc, tmp_path, 1, "20240116", "083000")
    settings = PollSettings(pacs="p", zone=tokyo if known else None)
    assert poll(register, archive_of(orthanc), settings, now).new == 1


def test_what_comes_late_is_found_by_the_sweep_and_what_was_there_is_not_read(
    orthanc: Orthanc, register: ReadingRegister, tmp_path: Path
) -> None:
    orthanc.clear()
    archive, settings = archive_of(orthanc), PollSettings(pacs="p", sweep=30 * DAY, zone=UTC)
    there, later = put(orthanc, tmp_path, 1, "20240105", "100000"), 2
    assert poll(register, archive, settings, NOW).new == 0
    slide = put(orthanc, tmp_path, later, "20240104", "100000", "SM")
    assert poll(register, archive, settings, NOW + DAY).new == 1 and register.row_of("p", slide)
    put(orthanc, tmp_path, 1, "20240105", "100000", series=".7")
    assert poll(register, archive, settings, NOW + 2 * DAY).new == 1 and register.row_of("p", there)
