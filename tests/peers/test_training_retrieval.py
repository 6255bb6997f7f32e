# ruff: noqa: F811 - fixtures are imported by name
"""The training flow's reader over WADO-RS, C-GET and C-MOVE: the same set, the same arrays, the same codes when it goes wrong."""

import copy
import hashlib
import socket
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless

from blocks.dimse.hierarchical import find_instances
from blocks.pacs import value_of
from blocks.reader import FetchFacts, QueryFacts, Reader
from policies.retrieve import RetrieveLimits
from policies.scope import Scope
from rapha.errors import PeerError, Refusal
from rapha.ledger import read
from rapha.loader import RaphaDataLoader
from tasks.training.retrieve import retrieve
from tests.fixtures.data_path import JOB, begin, codes
from tests.fixtures.dcmqrscp import ENVIRONMENT, running_dcmqrscp
from tests.fixtures.misbehaving import UNIQUE, Deliver, Misbehaving, Reply, everything, nothing, others, some
from tests.fixtures.orthanc import Orthanc, file_bytes
from tests.fixtures.reading import PROJECT, cohort, make_image, set_pixels, write_records_file
from tests.fixtures.receiving import Receiving
from tests.fixtures.three_ways import DIMSE, WAYS, by, manifest_of, misbehaving, orthanc, reading, receiving, scripted  # noqa: F401

FREE = {"movement": "", "bytes": 0, "largest": 0}  # whoever writes the meta information of a file puts its own version into it


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
def test_a_set_that_changes_is_seen_in_all_ways(receiving: Receiving, tmp_path: Path, way: str) -> None:
    datasets = cohort(9)
    manifest, holds = manifest_of(tmp_path, datasets), list(datasets)

    def moving(asked: list[Dataset]) -> list[Dataset]:
        if len(holds) == 9:
            del holds[-1]
        return asked

    with misbehaving(way, tmp_path, receiving, holds, moving) as hospital:
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


@pytest.mark.parametrize("way", DIMSE)
@pytest.mark.parametrize(
    ("first", "again"),
    [
        (Reply(status=0xA702, deliver=nothing), ("SERIES", 0)),  # the same once more
        (Reply(status=0xC000, deliver=nothing), ("IMAGE", 3)),  # closer
        (Reply(status=0xB000, deliver=some(1)), ("IMAGE", 2)),  # what is missing
        (Reply(status=0x0000, deliver=nothing), ("IMAGE", 3)),
        (Reply(deliver=some(2), ends="abort"), ("IMAGE", 1)),
    ],
)
def test_a_round_that_fell_short_is_followed_by_the_right_one(
    receiving: Receiving, tmp_path: Path, way: str, first: Reply, again: tuple[str, int]
) -> None:
    datasets = cohort(1, 3)
    manifest_of(tmp_path, datasets)
    with scripted(way, tmp_path, receiving, datasets, first, Reply()) as (hospital, pacs), hospital.reader() as reader:
        asked, came = fetched(reader)
        assert (asked.selected, came.received, came.expected_root) == (3, 3, came.received_root)
        assert [(level, len(uids)) for level, uids in pacs.asked] == [("SERIES", 0), again]


def test_an_archive_that_filters_nothing_is_asked_for_what_matches_alone() -> None:
    scope = {"Modality": "MR", "BodyPartExamined": "BRAIN", "StudyDate": "20240101-20241231"}
    inside = [*cohort(2, 2), make_image(3, 1)]
    outside = [make_image(4, 1, body_part="CHEST"), make_image(5, 1, modality="CT"), make_image(6, 1, day="20190101")]
    with Misbehaving([*inside, *outside]) as pacs:
        found = find_instances(pacs.endpoint(), scope)
        assert {value_of(one, "00080018") for one in found} == {str(one.SOPInstanceUID) for one in inside}
        assert {value_of(one, "00100020") for one in found} == {str(one.PatientID) for one in inside}
        for filters, most, code in (({"PatientName": "X*"}, 9, "dimse-key-unknown"), (scope, 4, "pacs-too-many")):
            with pytest.raises(PeerError) as failed:
                find_instances(pacs.endpoint(), filters, most=most)
            assert failed.value.codes == (code,)


@pytest.mark.parametrize("level", ["STUDY", "SERIES", "IMAGE"])
def test_an_answer_without_its_unique_key_is_a_failed_peer(level: str) -> None:
    def spoil(answer: Dataset) -> None:
        if answer.QueryRetrieveLevel == level:
            setattr(answer, UNIQUE[level], None)

    with Misbehaving(cohort(1), spoils=spoil) as pacs, pytest.raises(PeerError) as failed:
        find_instances(pacs.endpoint(), {"StudyDate": "20240101-20241231"})
    assert failed.value.codes == ("pacs-list-odd",)
