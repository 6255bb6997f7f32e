"""The training flow's reader over WADO-RS, C-GET and C-MOVE: the same set, the same arrays, the same codes when it goes wrong."""

import copy
import hashlib
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless

from blocks.reader import FetchFacts, QueryFacts, Reader
from policies.records import records_root
from policies.retrieve import RetrieveLimits
from policies.scope import Scope
from rapha.errors import PeerError, Refusal
from rapha.ledger import read
from rapha.loader import RaphaDataLoader
from tasks.training.query import ManifestFacts
from tasks.training.retrieve import retrieve
from tests.fixtures.data_path import JOB, Hospital, begin, codes
from tests.fixtures.dcmqrscp import ENVIRONMENT, running_dcmqrscp
from tests.fixtures.misbehaving import Deliver, Misbehaving, Reply, everything, nothing, others
from tests.fixtures.orthanc import Orthanc, file_bytes, running_orthanc
from tests.fixtures.reading import PROJECT, cohort, make_image, running_reader, set_pixels, write_records_file
from tests.fixtures.receiving import Receiving
from tests.fixtures.web_archive import WebArchive

WAYS = ("WADO-RS", "C-GET", "C-MOVE")
DIMSE = ("C-GET", "C-MOVE")
FREE = {"movement": "", "bytes": 0, "largest": 0}  # whoever writes the meta information of a file puts its own version into it


@pytest.fixture(scope="module")
def receiving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiving]:
    with Receiving(tmp_path_factory.mktemp("receiver"), "--peer", "PACS") as process:
        yield process


@pytest.fixture(scope="module")
def orthanc(receiving: Receiving, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    names = {"rapha": {"AET": "RAPHA", "Host": "127.0.0.1", "Port": receiving.port, "AllowGet": True}}
    settings = {"DicomModalities": names, "DicomAlwaysAllowGet": True, "DicomAlwaysAllowFind": True}
    with running_orthanc(tmp_path_factory.mktemp("orthanc"), **settings, DicomAlwaysAllowMove=True) as archive:
        yield archive


@contextmanager
def reading(
    folder: Path, way: str, receiving: Receiving, *, port: int, title: str = "ORTHANC", web: str = "", options: Sequence[str] = ()
) -> Iterator[tuple[Path, Any]]:
    """A reader whose endpoint is retrieved from by `way`; over DIMSE alone where no `web` is given."""
    folder.mkdir(exist_ok=True)
    keys = f"host: 127.0.0.1, port: {port}, ae_title: {title}, calling_ae_title: RAPHA, retrieve: {way}"
    keys += f', dicomweb_url: "{web}"' if web else ""
    (folder / "profile.yaml").write_text(f"pacs_endpoints:\n  primary: {{{keys}}}\n")
    named = ["--profile", str(folder / "profile.yaml"), "--endpoint", "primary", *options]
    named += ["--receiver", str(receiving.folder / "r.sock"), "--received", str(receiving.store)] if way == "C-MOVE" else []
    with running_reader(folder, "", folder.parent / "records.jsonl", *named) as running:
        yield running


@contextmanager
def by(way: str, folder: Path, receiving: Receiving, archive: Orthanc, *, web: bool = False) -> Iterator[tuple[Reader, Any]]:
    url = archive.url if web or way == "WADO-RS" else ""
    with reading(folder / way, way, receiving, port=archive.dicom_port, web=url) as (path, process), Reader(path) as reader:
        yield reader, process


def fetched(reader: Reader) -> tuple[QueryFacts, FetchFacts]:
    begin(reader)
    return reader.query(), reader.fetch()


def digests(reader: Reader) -> dict[str, str]:
    """Pseudonym -> digest of the array and its attributes, through the loader."""
    ours, theirs = socket.socketpair()
    reader.attach([ours.detach()])
    with theirs:
        loader = RaphaDataLoader(1, fds=[theirs.fileno()])
        return {
            one.record: hashlib.sha256(one.array.tobytes() + str(one.attributes).encode()).hexdigest() for one in loaded(loader)
        }


def loaded(loader: RaphaDataLoader) -> list[Any]:
    return [loader[index] for index in range(len(loader.records))]


@pytest.mark.parametrize("web", [False, True])
def test_three_ways_bring_the_same_set_and_the_same_arrays(
    orthanc: Orthanc, receiving: Receiving, tmp_path: Path, web: bool
) -> None:
    orthanc.clear()
    listed = cohort(8, 3)
    listed[0].compress(RLELossless, generate_instance_uid=False)
    set_pixels(listed[5], np.random.default_rng(5).integers(0, 9, (3, 700, 900), dtype=np.uint16))
    strangers = [make_image(1, 77), make_image(50, 1), make_image(51, 1, body_part="CHEST"), make_image(52, 1, day="20190101")]
    orthanc.store_all([*listed, *strangers])
    write_records_file(tmp_path / "records.jsonl", listed)
    seen: dict[str, Any] = {}
    for way in WAYS:
        with by(way, tmp_path, receiving, orthanc, web=web) as (reader, _):
            asked, came = fetched(reader)
            seen[way] = (asdict(asked), asdict(came), digests(reader))
            assert reader.finish().destroyed
    assert seen["WADO-RS"][1]["received"] == 24 == len(seen["WADO-RS"][2])
    assert seen["WADO-RS"][0]["ignored"] == 2
    for way in DIMSE:
        assert {**seen[way][1], **FREE} == {**seen["WADO-RS"][1], **FREE}, way
        assert (seen[way][0], seen[way][2]) == (seen["WADO-RS"][0], seen["WADO-RS"][2]), way
    assert list(receiving.store.glob("*.sealed")) == []
    with receiving.client() as client:
        assert client.unclaimed() == 0


@pytest.mark.parametrize("way", DIMSE)
def test_an_archive_that_knows_no_body_parts_and_computes_nothing(receiving: Receiving, tmp_path: Path, way: str) -> None:
    import subprocess

    datasets = cohort(8, 2)
    write_records_file(tmp_path / "records.jsonl", datasets)
    files = tmp_path / "files"
    files.mkdir()
    for number, dataset in enumerate(datasets):
        (files / f"{number}.dcm").write_bytes(file_bytes(dataset))
    bounds = Scope(modalities=("MR",), date_from="20240101", date_to="20241231")
    with running_dcmqrscp(tmp_path / "dcmqrscp", receiving.port) as port:
        argv = ["storescu", "-aet", "RAPHA", "-aec", "ARCHIVE", "-R", "127.0.0.1", str(port), *map(str, sorted(files.iterdir()))]
        assert subprocess.run(argv, env=ENVIRONMENT, capture_output=True, check=False, timeout=60).returncode == 0
        with reading(tmp_path / way, way, receiving, port=port, title="ARCHIVE") as (path, _), Reader(path) as reader:
            reader.begin(job=JOB, attempt=1, nonce="ab" * 32, project=PROJECT, manifest=bounds, intent=bounds, cap=99)
            assert reader.query().selected == 16
            came = reader.fetch()
            assert (came.received, came.changed, came.undecodable) == (16, 0, 0)
            assert came.expected_root == came.received_root


@contextmanager
def misbehaving(
    way: str, folder: Path, receiving: Receiving, holds: list[Dataset], deliver: Deliver, status: int = 0
) -> Iterator[Hospital]:
    """A reader over an archive that lists what it holds and delivers what `deliver` says, whichever way it is asked."""
    with ExitStack() as stack:
        port, web = 1, ""
        if way == "WADO-RS":
            web = stack.enter_context(WebArchive(holds, deliver)).url
        else:
            replies = [Reply(status=status, deliver=deliver)]
            port = stack.enter_context(Misbehaving(holds, destination=receiving.port, replies=replies)).port
        path, process = stack.enter_context(reading(folder / "reader", way, receiving, port=port, title="PACS", web=web))
        hospital = Hospital(None, folder, stack)  # type: ignore[arg-type]
        hospital.socket, hospital.process = path, process
        yield hospital


def manifest_of(folder: Path, datasets: Sequence[Dataset]) -> ManifestFacts:
    records = write_records_file(folder / "records.jsonl", datasets)
    return ManifestFacts(
        modalities=("MR",), body_parts=("BRAIN",), date_from="20240101", date_to="20241231", root=records_root(records),
        count=len(records), max_records=1000, min_patients=8, burned_in_checked=False,
    )  # fmt: skip


def but_the_last(asked: list[Dataset]) -> list[Dataset]:
    """All but the ninth patient's second image, however it is asked for."""
    return [one for one in asked if str(one.SOPInstanceUID) != "1.2.826.0.1.3680043.10.999.9.1.1.2"]


def with_a_stranger(asked: list[Dataset]) -> list[Dataset]:
    return [*asked, *others(asked[:1])]


def heavier(asked: list[Dataset]) -> list[Dataset]:
    """Another content than was recorded."""
    changed = copy.deepcopy(asked)
    for one in changed:
        one.PatientWeight = 99
    return changed


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("deliver", "wanted"),
    [
        (but_the_last, {"retrieve-missing", "retrieve-root-differs"}),
        (heavier, {"retrieve-changed", "retrieve-root-differs"}),
        (with_a_stranger, set()),
    ],
)
def test_what_goes_wrong_has_the_same_codes_in_all_ways(
    receiving: Receiving, tmp_path: Path, way: str, deliver: Deliver, wanted: set[str]
) -> None:
    datasets = cohort(9, 2)
    manifest = manifest_of(tmp_path, datasets)
    with misbehaving(way, tmp_path, receiving, datasets, deliver) as hospital:
        if not wanted:
            _, staged = hospital.stage(manifest)
            assert staged.evidence.extra == 9
            return
        with pytest.raises(Refusal) as refused:
            hospital.stage(manifest)
        assert codes(refused) == wanted
    assert list(receiving.store.glob("*.sealed")) == []


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stays", [True, False])
def test_a_set_that_changes_is_seen_in_all_ways(receiving: Receiving, tmp_path: Path, way: str, stays: bool) -> None:
    datasets = cohort(9)
    manifest, holds = manifest_of(tmp_path, datasets), list(datasets)

    def moving(asked: list[Dataset]) -> list[Dataset]:
        if len(holds) == 9 and not stays:
            del holds[-1]
        return asked

    with misbehaving(way, tmp_path, receiving, holds, moving) as hospital:
        if stays:
            assert hospital.stage(manifest)[1].evidence.received == 9
            return
        with pytest.raises(PeerError) as failed:
            hospital.stage(manifest)
        assert failed.value.codes == ("pacs-set-changed",)
        assert list((tmp_path / "reader/staging").iterdir()) == []
    assert list(receiving.store.glob("*.sealed")) == []


@pytest.mark.parametrize("way", DIMSE)
def test_nothing_with_a_failed_status_is_a_failed_peer(receiving: Receiving, tmp_path: Path, way: str) -> None:
    datasets = cohort(9)
    manifest = manifest_of(tmp_path, datasets)
    with misbehaving(way, tmp_path, receiving, datasets, nothing, status=0xA702) as hospital:
        with pytest.raises(PeerError) as failed:
            hospital.stage(manifest)
        assert failed.value.codes[0] in ("archive-incomplete", "pacs-stopped")


@pytest.mark.parametrize("way", DIMSE)
def test_what_the_archive_says_that_is_not_so_is_in_the_ledger(receiving: Receiving, tmp_path: Path, way: str) -> None:
    datasets = cohort(9, 2)
    manifest = manifest_of(tmp_path, datasets)
    with misbehaving(way, tmp_path, receiving, datasets, everything, status=0xB000) as hospital:
        reader = hospital.reader()
        attempt, asked = hospital.query(reader, manifest)
        retrieve(asked, attempt, reader, False, RetrieveLimits())
    told = [entry.body for entry in read(attempt.ledger.folder) if entry.kind == "movement"]
    assert [one["codes"] for one in told] == [["move-warning-complete"]]
