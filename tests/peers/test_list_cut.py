"""A list of instances that an archive cuts off without a word is known by the archive's own count, where it gives one."""

from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from blocks.archive import Archive
from blocks.dimse import services
from blocks.endpoint import Endpoint
from infra.hospital.reading_cohort import file_bytes, make_study
from infra.peers.orthanc import free_port, running_orthanc
from rapha.errors import PeerError
from tests.fixtures.dcmqrscp import running_dcmqrscp
from tests.fixtures.misbehaving import Misbehaving
from tests.peers.test_dimse_faults import to_store
from tests.peers.test_misbehaving import study


def counting(level: str, keyword: str, count: int) -> Callable[[Dataset], None]:
    """An archive that answers with this count at this level."""

    def spoil(answer: Dataset) -> None:
        if answer.QueryRetrieveLevel == level and keyword in answer:
            setattr(answer, keyword, count)

    return spoil


BY_STUDY, BY_SERIES = ("STUDY", "NumberOfStudyRelatedInstances"), ("SERIES", "NumberOfSeriesRelatedInstances")


@pytest.mark.parametrize("level", [BY_STUDY, BY_SERIES], ids=["study", "series"])
@pytest.mark.parametrize("cap", [None, 6, 4, 3, 1])
def test_a_list_that_is_shorter_than_its_count_is_a_failed_peer(level: tuple[str, str], cap: int | None) -> None:
    datasets = study(4, series=1)  # so that the cap is of instances alone
    with Misbehaving(datasets, cap=cap, spoils=counting(*level, 4)) as pacs:
        archive, uid = Archive(pacs.endpoint()), str(datasets[0].StudyInstanceUID)
        if cap is None or cap >= 4:
            assert len(archive.list_study(uid)) == 4
            return
        with pytest.raises(PeerError) as failed:
            archive.list_study(uid)
    assert failed.value.codes == ("pacs-list-cut",) and f"{cap} of the 4" in failed.value.message


def test_series_that_are_cut_off_are_missed_by_the_studys_count() -> None:
    datasets = study(4)
    assert len({one.SeriesInstanceUID for one in datasets}) > 1
    with Misbehaving(datasets, cap=1, spoils=counting(*BY_STUDY, 4)) as pacs, pytest.raises(PeerError) as failed:
        Archive(pacs.endpoint()).list_study(str(datasets[0].StudyInstanceUID))
    assert failed.value.codes == ("pacs-list-cut",)


@pytest.mark.parametrize("count", [None, 0, 2])
def test_no_count_or_one_that_is_too_small_changes_nothing(count: int | None) -> None:
    datasets = study(4)
    with Misbehaving(datasets, spoils=None if count is None else counting(*BY_STUDY, count)) as pacs:
        assert len(Archive(pacs.endpoint()).list_study(str(datasets[0].StudyInstanceUID))) == 4


def archive_at(port: int, title: str) -> Archive:
    return Archive(Endpoint(name=title, host="127.0.0.1", port=port, ae_title=title, calling_ae_title="RAPHA"))


def files(folder: Path) -> tuple[str, list[Path]]:
    made = make_study("ct", 33, 1)
    paths = []
    for number, dataset in enumerate(made):
        paths.append(folder / f"{number}.dcm")
        paths[-1].write_bytes(file_bytes(dataset))
    return str(made[0].StudyInstanceUID), paths


def test_what_a_real_orthanc_counts_is_what_it_lists(tmp_path: Path) -> None:
    uid, paths = files(tmp_path)
    ours = {"us": {"AET": "RAPHA", "Host": "127.0.0.1", "Port": 1}}
    with running_orthanc(tmp_path / "orthanc", DicomModalities=ours) as orthanc:
        orthanc.store_all(paths)
        archive = archive_at(orthanc.dicom_port, "ORTHANC")
        assert archive._counted(uid) == len(archive.list_study(uid)) == len(paths)
        assert archive._counted("1.2.3.4") == 0 and archive.list_study("1.2.3.4") == ()


def test_a_real_dcmqrscp_counts_nothing_and_is_read_as_before(tmp_path: Path) -> None:
    uid, paths = files(tmp_path)
    with running_dcmqrscp(tmp_path / "archive", free_port()) as port:
        archive = archive_at(port, "ARCHIVE")
        stored = [services.store(archive.endpoint, [to_store(path)]) for path in paths]
        assert all(set(one.values()) == {0} for one in stored)
        assert archive._counted(uid) == 0 and len(archive.list_study(uid)) == len(paths)
