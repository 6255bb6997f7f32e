# ruff: noqa: F811 - fixtures are imported by name
"""A retrieval that looks closer: each series, then the instances, a refused list in halves; nothing that is here again."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from pydicom.dataset import Dataset

from blocks.archive import Archive, Listed
from blocks.receiver import Arrived
from infra.hospital.reading_cohort import file_bytes
from infra.peers.orthanc import Orthanc, running_orthanc
from policies.movement import MOST_IN_VAIN
from rapha.errors import PeerError
from rapha.ledger import read
from tasks.attempt import Attempt
from tasks.reading.retrieve import brought
from tests.fixtures import misbehaving as m
from tests.fixtures.misbehaving import Misbehaving, Reply
from tests.fixtures.receiving import Receiving
from tests.fixtures.study_running import study_reader
from tests.fixtures.web_archive import WebArchive
from tests.fixtures.wire import Cut, Wire
from tests.peers.test_misbehaving import attempt, listed, receiving, study  # noqa: F401

Retrieve = Callable[[], list[Arrived]]
WAYS = ("C-MOVE", "C-GET")


@contextmanager
def retrieving(archive: Archive, datasets: list[Dataset], receiving: Receiving | None, attempt: Attempt) -> Iterator[Retrieve]:
    """The stage's retrieval, as often as it is called: tries of one lease, on the connections of one course."""
    uid = str(datasets[0].StudyInstanceUID)
    with study_reader(attempt.folder, {"primary": archive}) as reader:
        if archive.method != "C-MOVE":
            yield lambda: brought(uid, attempt, archive, reader, None, listed(datasets))
            return
        assert receiving is not None
        with receiving.client() as client:
            yield lambda: brought(uid, attempt, archive, reader, client, listed(datasets))


def entries(attempt: Attempt, kind: str) -> list[dict[str, object]]:
    return [entry.body for entry in read(attempt.folder / "ledger") if entry.kind == kind]


def uids(datasets: list[Dataset]) -> list[str]:
    return sorted(str(one.SOPInstanceUID) for one in datasets)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("status", "place"), [(0xC000, 0), (0xC000, 11), (0xC001, 19), (0xA900, 11), (0x0110, 11)])
def test_one_instance_that_cannot_be_sent_takes_no_other_along(
    receiving: Receiving, attempt: Attempt, way: str, status: int, place: int
) -> None:
    """Every list with it, and whatever holds it, is refused: its halves come, down to itself. Mended, it alone is asked for."""
    datasets, healed = study(20, 1), list[bool]()
    poisoned = str(datasets[place].SOPInstanceUID)

    def refuses(level: str, asked: tuple[str, ...]) -> int | None:
        return None if healed or (level == "IMAGE" and poisoned not in asked) else status if level == "IMAGE" else 0xC000

    with Misbehaving(datasets, receiving.port, [Reply()], refuses=refuses) as pacs:
        archive = Archive(pacs.endpoint(retrieve=way))
        with retrieving(archive, datasets, receiving, attempt) as retrieve:
            with pytest.raises(PeerError) as failed:
                retrieve()
            assert failed.value.codes == ("archive-incomplete",) and "1 of 20" in failed.value.message
            assert [(one["count"], one["of"]) for one in entries(attempt, "missing")] == [(1, 20)]
            levels = [level for level, _ in pacs.asked]
            assert levels == sorted(levels, key=["STUDY", "SERIES", "IMAGE"].index), "study, then series, then instances"
            assert len(pacs.asked) <= 3 + 2 * math.ceil(math.log2(20)) + 2
            healed.append(True)
            before = len(pacs.asked)
            came = retrieve()
            assert {uid for _, asked in pacs.asked[before:] for uid in asked} == {poisoned}
            assert len(pacs.asked) == before + 1
    assert sorted(one.sop_uid for one in came) == uids(datasets)


@pytest.mark.parametrize("status", [0xA900, 0xC001])
def test_an_archive_that_sends_no_single_instances_is_left_with_what_its_series_give(
    receiving: Receiving, attempt: Attempt, status: int
) -> None:
    """The study is refused; of 64 instances in two series one never comes. Nobody asks 64 times for what is refused each time."""
    datasets = study(64, 2)
    without = [one for one in datasets if one is not datasets[5]]

    def refuses(level: str, _: tuple[str, ...]) -> int | None:
        return {"STUDY": 0xC000, "IMAGE": status}.get(level)

    reply = Reply(deliver=lambda asked: [one for one in asked if any(one is held for held in without)])
    with Misbehaving(datasets, receiving.port, [reply], refuses=refuses) as pacs:
        archive = Archive(pacs.endpoint(retrieve="C-MOVE"))
        with retrieving(archive, datasets, receiving, attempt) as retrieve, pytest.raises(PeerError) as failed:
            retrieve()
        levels = [level for level, _ in pacs.asked]
    assert failed.value.codes == ("archive-incomplete",) and "1 of 64" in failed.value.message
    assert levels == ["STUDY", "SERIES", "SERIES", "IMAGE", "IMAGE"]
    with receiving.client() as client:
        assert client.unclaimed() >= 63, "what came stays for the next try"


@pytest.mark.parametrize("way", WAYS)
def test_where_single_instances_are_refused_a_series_that_broke_off_is_asked_for_whole(
    receiving: Receiving, attempt: Attempt, way: str
) -> None:
    datasets = study(40, 2 if way == "C-MOVE" else 1)

    def refuses(level: str, _: tuple[str, ...]) -> int | None:
        return 0xA900 if level == "IMAGE" else None

    with Misbehaving(datasets, receiving.port, [Reply(deliver=m.some(9), ends="abort"), Reply()], refuses=refuses) as pacs:
        archive = Archive(pacs.endpoint(retrieve=way))
        with retrieving(archive, datasets, receiving, attempt) as retrieve:
            came = retrieve()
        asked = [level for level, _ in pacs.asked]
    assert sorted(one.sop_uid for one in came) == uids(datasets)
    assert asked.count("SERIES") == 2 and asked.count("IMAGE") <= 2 * MOST_IN_VAIN


def test_a_status_of_dicomweb_keeps_nothing_else_back(attempt: Attempt) -> None:
    """A series that is answered with 500, and one instance that is."""
    datasets = study(6, 1)
    broken = str(datasets[2].SOPInstanceUID)

    class Odd(WebArchive):
        def status(self, path: str) -> int:
            self.paths = [*getattr(self, "paths", []), path]
            return 500 if "/instances/" not in path or path.endswith(broken) else 200

    with Odd(datasets) as web, Misbehaving(datasets) as pacs:
        archive = Archive(pacs.endpoint(retrieve="WADO-RS", dicomweb_url=web.url))
        with retrieving(archive, datasets, None, attempt) as retrieve, pytest.raises(PeerError) as failed:
            retrieve()
        assert failed.value.codes == ("archive-incomplete",) and "1 of 6" in failed.value.message
        by_instance = [path.rpartition("/")[2] for path in web.paths if "/instances/" in path]
        assert sorted(set(by_instance)) == uids(datasets)
        assert all(by_instance.count(uid) == 1 for uid in uids(datasets) if uid != broken)


def test_an_archive_that_answers_everything_with_a_failure_is_not_asked_for_ever(attempt: Attempt) -> None:
    datasets = study(60, 1)

    class Down(WebArchive):
        asked = 0

        def status(self, path: str) -> int:
            self.asked += 1
            return 500

    with Down(datasets) as web, Misbehaving(datasets) as pacs:
        archive = Archive(pacs.endpoint(retrieve="WADO-RS", dicomweb_url=web.url))
        with retrieving(archive, datasets, None, attempt) as retrieve, pytest.raises(PeerError) as failed:
            retrieve()
        assert failed.value.codes == ("pacs-status",) and web.asked < 2 * MOST_IN_VAIN**2 / 2


@pytest.fixture(scope="module")
def orthanc(receiving: Receiving, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    known = {"DicomModalities": {"RAPHA": ["RAPHA", "127.0.0.1", receiving.port]}, "DicomThreadsCount": 32}
    with running_orthanc(tmp_path_factory.mktemp("orthanc"), DicomAlwaysAllowGet=True, **known) as archive:
        yield archive


@pytest.mark.parametrize("how", ["close", "reset", "stall"])
@pytest.mark.parametrize("way", ["C-GET", "WADO-RS"])
def test_cut_in_the_middle_a_real_archive_is_asked_again_for_what_is_missing_alone(
    orthanc: Orthanc, attempt: Attempt, way: str, how: str
) -> None:
    """Counted at the wire: a cut after half of a series of a real Orthanc, then the rest, and no instance twice."""
    datasets = study(12, 1)
    orthanc.store_all([file_bytes(one) for one in datasets])
    whole = sum(len(file_bytes(one)) for one in datasets)
    target = urlsplit(orthanc.url).port or 0 if way == "WADO-RS" else orthanc.dicom_port
    with Wire(target, Cut(whole // 2, how, once=True)) as wire:  # type: ignore[arg-type]
        archive = at(wire.port, way)
        with retrieving(archive, datasets, None, attempt) as retrieve:
            came = retrieve()
            assert sorted(one.sop_uid for one in came) == uids(datasets)
            assert ["move-broken-off"] in [one["codes"] for one in entries(attempt, "movement")]
            # What passed is the study once, and at most one instance more: the one that was cut in two.
            largest = max(len(file_bytes(one)) for one in datasets)
            assert len(wire.came) < whole + 2 * largest + 65_536
            passed = len(wire.came)
            assert retrieve() and len(wire.came) == passed, "all of it is here: nothing is asked for"


def at(port: int, way: str) -> Archive:
    from blocks.endpoint import Endpoint

    facts: dict[str, object] = {"name": "primary", "host": "127.0.0.1", "port": port, "ae_title": "ORTHANC"}
    facts |= {"calling_ae_title": "RAPHA", "connect_seconds": 2.0, "idle_seconds": 1.5, "retrieve": way}
    if way == "WADO-RS":
        facts |= {"dicomweb_url": f"http://127.0.0.1:{port}/dicom-web", "port": 0}
    return Archive(Endpoint(**facts))  # type: ignore[arg-type]


def test_tens_of_thousands_of_names_pass_in_pages(attempt: Attempt, tmp_path: Path) -> None:
    """A series is asked for by its classes, not by its instances, and told page by page."""
    wanted = [Listed(f"2.25.{10**50 + number}", "1.2.840.10008.5.1.4.1.1.2", "2.25.8") for number in range(30_000)]
    with Misbehaving([], replies=[Reply(deliver=m.nothing)]) as pacs:
        archive = Archive(pacs.endpoint(retrieve="C-GET"))
        with study_reader(tmp_path, {"primary": archive}) as reader, pytest.raises(PeerError) as failed:
            brought("2.25.9", attempt, archive, reader, None, wanted)
    assert "30000 of 30000" in failed.value.message
    assert pacs.asked[0] == ("SERIES", ()) and len(pacs.asked) < 2 + 3 * MOST_IN_VAIN + 60
