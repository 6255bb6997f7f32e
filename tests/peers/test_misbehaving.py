"""An archive that misbehaves, against the stage that retrieves from it, with a real receiver (C-MOVE) or a study reader (C-GET):
what decides is what arrived."""

import copy
import io
import secrets
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

from blocks.archive import Archive, Listed
from blocks.kept import kept_place
from blocks.ledger import Ledger
from blocks.receiver import Arrived
from rapha.errors import PeerError
from rapha.ledger import read
from tasks.attempt import Attempt
from tasks.reading.retrieve import brought, moved
from tests.fixtures import misbehaving as m
from tests.fixtures.misbehaving import Misbehaving, Reply
from tests.fixtures.receiving import Receiving
from tests.fixtures.study_running import study_reader

CT = dcmread(str(get_testdata_file("CT_small.dcm")))


def study(instances: int = 4, series: int = 2) -> list[Dataset]:
    """New UIDs each time: what one test sent is nobody else's."""
    root, made = f"2.25.{secrets.randbelow(10**12)}", []
    for number in range(instances):
        dataset = copy.deepcopy(CT)
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = f"{root}.0", f"{root}.1.{number % series}"
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"{root}.2.{number}"
        made.append(dataset)
    return made


def listed(datasets: list[Dataset]) -> list[Listed]:
    return [Listed(str(one.SOPInstanceUID), str(one.SOPClassUID), str(one.SeriesInstanceUID), "CT") for one in datasets]


@pytest.fixture(scope="module")
def receiving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiving]:
    with Receiving(tmp_path_factory.mktemp("receiver"), "--peer", "PACS") as process:
        yield process


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    key = Ed25519PrivateKey.generate()
    Ledger.create(tmp_path / "ledger", key, "test")
    facts = {"job": "sha256:" + "5" * 64, "number": 1, "nonce": "ab" * 32, "mode": "development"}
    return Attempt(**facts, folder=tmp_path, ledger=Ledger(tmp_path / "ledger", key))  # type: ignore[arg-type]


def retrieved(pacs: Misbehaving, receiving: Receiving, attempt: Attempt) -> list[Arrived]:
    datasets = list(pacs.holds)
    with receiving.client() as client:
        came = moved(str(datasets[0].StudyInstanceUID), attempt, Archive(pacs.endpoint()), client, listed(datasets))
        for one in came:  # what is not moved aside ends with the connection
            kept_place(one.path).parent.mkdir(exist_ok=True)
            one.path.rename(kept_place(one.path))
        return [replace(one, path=kept_place(one.path)) for one in came]


def fetched(pacs: Misbehaving, attempt: Attempt) -> list[Arrived]:
    """The same by C-GET, through a study reader."""
    archive, datasets = Archive(pacs.endpoint(retrieve="C-GET")), list(pacs.holds)
    with study_reader(attempt.folder, {"primary": archive}) as reader:
        return brought(str(datasets[0].StudyInstanceUID), attempt, archive, reader, None, listed(datasets))


def movements(attempt: Attempt) -> list[list[str]]:
    return [entry.body["codes"] for entry in read(attempt.folder / "ledger") if entry.kind == "movement"]


# What the second question is, after a first one of the whole (a study by C-MOVE, a series by C-GET) that ended with `status` and
# brought all, two or none of four instances, whatever the counts say: none (done), MISSING (what is missing, by instance), CLOSER
# (everything, one level below), AGAIN (the same), or the refusal that it ends with.
NONE_, MISSING, CLOSER, AGAIN = "done", "missing", "closer", "again"
MATRIX = {
    # status   all       two      none
    0x0000: (NONE_, MISSING, CLOSER),
    0xB000: (NONE_, MISSING, CLOSER),
    0xC000: (NONE_, MISSING, CLOSER),
    0xC514: (NONE_, MISSING, CLOSER),
    0xA701: (NONE_, MISSING, AGAIN),
    0xA702: (NONE_, MISSING, AGAIN),
    0xA900: (NONE_, MISSING, AGAIN),
    0xFE00: (NONE_, MISSING, AGAIN),
    0xA801: (NONE_, "archive-incomplete", "archive-incomplete"),
}
DELIVERED = (m.everything, m.some(2), m.nothing)
CELLS = [(s, c, d) for s in MATRIX for c in ("right", "missing", "wrong") for d in range(3)]
IDS = [f"{s:04X}-{c}-{['all', 'two', 'none'][d]}" for s, c, d in CELLS]
# Of each way: at how many series the study is held, and what it is asked for first and closer.
WAYS = {"C-MOVE": (2, "STUDY", "SERIES"), "C-GET": (1, "SERIES", "IMAGE")}


def asked_next(pacs: Misbehaving, way: str = "C-MOVE") -> str:
    """The second round in the words of the matrix."""
    series, whole, closer = WAYS[way]
    assert pacs.asked[0] == (whole, ())
    second = pacs.asked[1:]
    if not second:
        return NONE_
    if second == [(whole, ())]:
        return AGAIN
    names = {uid for _, uids in second for uid in uids}
    everything = {str(one.SOPInstanceUID) for one in pacs.holds}
    assert len(second) == series, "a question a series"
    if second == [(closer, ())] * series or (closer == "IMAGE" and names == everything):
        return CLOSER
    assert {level for level, _ in second} == {"IMAGE"}
    return MISSING if names == {str(one.SOPInstanceUID) for one in pacs.holds[2:]} else str(names)


@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize(("status", "counts", "delivered"), CELLS, ids=IDS)
def test_each_cell(receiving: Receiving, attempt: Attempt, status: int, counts: m.Counts, delivered: int, way: str) -> None:
    expected = MATRIX[status][delivered]
    first = Reply(status=status, counts=counts, deliver=DELIVERED[delivered])
    with Misbehaving(study(series=WAYS[way][0]), receiving.port, [first, Reply()]) as pacs:
        if expected == "archive-incomplete":
            with pytest.raises(PeerError) as failed:
                retrieved(pacs, receiving, attempt) if way == "C-MOVE" else fetched(pacs, attempt)
            assert failed.value.codes == (expected,) and len(pacs.asked) == 1
            (entry,) = [entry.body for entry in read(attempt.folder / "ledger") if entry.kind == "missing"]
            assert (entry["count"], entry["of"]) == ((2, 4) if delivered == 1 else (4, 4))
            return
        came = retrieved(pacs, receiving, attempt) if way == "C-MOVE" else fetched(pacs, attempt)
        assert asked_next(pacs, way) == expected
    assert sorted(one.sop_uid for one in came) == sorted(str(one.SOPInstanceUID) for one in pacs.holds)
    assert not any(one.conflict for one in came)
    said = {code for codes in movements(attempt) for code in codes}
    assert ("move-counts-missing" in said) is (counts == "missing")
    assert ("move-counts-wrong" in said) is (counts == "wrong")
    assert ("move-success-incomplete" in said) is (status == 0 and delivered > 0)


@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("ends", ["abort", "silence"])
@pytest.mark.parametrize(("delivered", "next_"), [(0, NONE_), (1, MISSING), (2, AGAIN)])
def test_an_association_that_breaks_is_judged_by_what_arrived(
    receiving: Receiving, attempt: Attempt, ends: str, delivered: int, next_: str, way: str
) -> None:
    first = Reply(ends=ends, deliver=DELIVERED[delivered])  # type: ignore[arg-type]
    with Misbehaving(study(series=WAYS[way][0]), receiving.port, [first, Reply()]) as pacs:
        came = retrieved(pacs, receiving, attempt) if way == "C-MOVE" else fetched(pacs, attempt)
        assert asked_next(pacs, way) == next_
    assert len(came) == 4 and ["move-broken-off"] in movements(attempt)


def test_an_archive_that_always_breaks_off_is_a_failed_peer_and_leaves_no_ticket(receiving: Receiving, attempt: Attempt) -> None:
    with (
        Misbehaving(study(), receiving.port, [Reply(ends="abort", deliver=m.nothing)]) as pacs,
        pytest.raises(PeerError) as failed,
    ):
        retrieved(pacs, receiving, attempt)
    assert failed.value.codes == ("dimse-hung-up",) and len(pacs.asked) == 2


def test_one_that_never_comes_ends_after_a_bounded_number_of_rounds(receiving: Receiving, attempt: Attempt) -> None:
    with (
        Misbehaving(study(), receiving.port, [Reply(deliver=lambda asked: asked[1:])]) as pacs,
        pytest.raises(PeerError) as failed,
    ):
        retrieved(pacs, receiving, attempt)
    assert failed.value.codes == ("archive-incomplete",)
    assert "1 of 4" in failed.value.message and len(pacs.asked) <= 8


def test_instances_that_come_after_the_final_answer_are_not_lost(receiving: Receiving, attempt: Attempt) -> None:
    datasets = study()
    with Misbehaving(datasets, receiving.port, [Reply(late=0.6), Reply(late=0.6), Reply()]) as pacs:
        came = retrieved(pacs, receiving, attempt)
    assert sorted(one.sop_uid for one in came) == sorted(str(one.SOPInstanceUID) for one in datasets)
    assert not any(one.conflict for one in came), "the same again is one instance"


def test_a_uid_with_two_contents_is_a_conflict(receiving: Receiving, attempt: Attempt) -> None:
    with Misbehaving(study(), receiving.port, [Reply(deliver=m.twice_with_other_content)]) as pacs:
        came = retrieved(pacs, receiving, attempt)
    assert [one.sop_uid for one in came if one.conflict] == [str(pacs.holds[0].SOPInstanceUID)]
    assert len({one.sop_uid for one in came}) == 4


def test_what_nobody_asked_for_does_not_count(receiving: Receiving, attempt: Attempt) -> None:
    with Misbehaving(study(), receiving.port, [Reply(deliver=m.others), Reply()]) as pacs:
        came = retrieved(pacs, receiving, attempt)
        assert asked_next(pacs) == CLOSER
    assert {one.sop_uid for one in came} == {str(one.SOPInstanceUID) for one in pacs.holds}


def test_a_data_set_with_another_uid_than_its_command_is_not_the_instance(receiving: Receiving, attempt: Attempt) -> None:
    with Misbehaving(study(), receiving.port, [Reply(deliver=m.misnamed), Reply()]) as pacs:
        came = retrieved(pacs, receiving, attempt)
    assert pacs.asked[1:] == [("IMAGE", (str(pacs.holds[0].SOPInstanceUID),))]
    assert {one.sop_uid for one in came} == {str(one.SOPInstanceUID) for one in pacs.holds}
    for one in came:
        assert str(dcmread(io.BytesIO(receiving.content(one))).SOPInstanceUID) == one.sop_uid
