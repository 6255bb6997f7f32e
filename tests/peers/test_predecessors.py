"""A later opening's report names the earlier one: from the register, the same bytes each time, clean before two validators."""

import dataclasses
import io
import json
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from blocks.instances import SealedReader
from blocks.models import load_package, site_list
from blocks.reading import FoundStudy, OwnReport, ReadingRegister
from blocks.reading_rows import StudyLease
from infra.hospital.reading_cohort import make_study
from policies.report import COMPREHENSIVE, COMPREHENSIVE_3D, report_codes
from rapha.errors import Refusal
from tasks.reading.report import Analysed, ReportFacts, build
from tasks.reading.validate import sr_facts, validate
from tests.fixtures.postgres import running_postgres
from tests.fixtures.studies import RADIOLOGY
from tests.fixtures.study_running import files_of, make_hospital

PACKAGE, SOURCE = load_package(RADIOLOGY), make_study("dx", 3, 0)
READ = Analysed(model=PACKAGE.model, digest=PACKAGE.digest, read=(0,), findings=())
FACTS = ReportFacts(at=1_790_000_000, contents=("sha256:" + "0" * 64,), device="node-1")
FIRST, SECOND = (COMPREHENSIVE_3D, "2.25.11", "2.25.12"), (COMPREHENSIVE, "2.25.21", "2.25.12")


def report(*earlier: tuple[str, str, str], three_d: bool = True) -> bytes:
    return build(SOURCE, [READ], dataclasses.replace(FACTS, earlier=earlier, three_d=three_d))


def named(raw: bytes) -> list[tuple[str, str, str, str]]:
    """(study, series, SOP class, SOP instance) of each predecessor."""
    found = dcmread(io.BytesIO(raw)).get("PredecessorDocumentsSequence") or []
    return [
        (study.StudyInstanceUID, series.SeriesInstanceUID, one.ReferencedSOPClassUID, one.ReferencedSOPInstanceUID)
        for study in found
        for series in study.ReferencedSeriesSequence
        for one in series.ReferencedSOPSequence
    ]


@pytest.mark.parametrize(("earlier", "three_d"), [((FIRST,), True), ((FIRST, SECOND), False)], ids=["one", "two"])
def test_a_report_names_its_predecessors_and_is_clean_and_the_same_again(
    earlier: tuple[tuple[str, str, str], ...], three_d: bool
) -> None:
    raw, study = report(*earlier, three_d=three_d), str(SOURCE[0].StudyInstanceUID)
    assert raw == report(*earlier, three_d=three_d)
    assert named(raw) == [(study, series, sop_class, instance) for sop_class, instance, series in earlier]
    assert validate(raw).codes == ()
    assert sr_facts(raw).evidence == {str(SOURCE[0].SOPInstanceUID)}, "what it follows is no image that it covers"


def test_one_that_follows_another_is_another_report() -> None:
    alone, after = (str(dcmread(io.BytesIO(raw)).SOPInstanceUID) for raw in (report(), report(FIRST)))
    assert alone != after and named(report()) == []


def _itself(dataset: Dataset, one: Dataset) -> None:
    one.ReferencedSOPInstanceUID = dataset.SOPInstanceUID


def _an_image(dataset: Dataset, one: Dataset) -> None:
    one.ReferencedSOPClassUID = SOURCE[0].SOPClassUID


def _nothing(dataset: Dataset, one: Dataset) -> None:
    one.ReferencedSOPInstanceUID = ""


def _another_study(dataset: Dataset, one: Dataset) -> None:
    dataset.PredecessorDocumentsSequence[0].StudyInstanceUID = "2.25.4711"


@pytest.mark.parametrize("change", [_itself, _an_image, _nothing, _another_study])
def test_a_wrong_predecessor_is_its_own_code(change: Callable[[Dataset, Dataset], None]) -> None:
    dataset, out = dcmread(io.BytesIO(report(FIRST))), io.BytesIO()
    change(dataset, dataset.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0])
    dataset.save_as(out)
    assert report_codes(sr_facts(out.getvalue())) == ("report-predecessor",)


@dataclasses.dataclass(frozen=True)
class Part:
    model: object = PACKAGE.model
    digest: str = PACKAGE.digest
    read: frozenset[int] = frozenset({0})
    findings: tuple[object, ...] = ()


def test_the_study_reader_writes_them_in_and_takes_nothing_else_for_them(tmp_path: Path) -> None:
    (tmp_path / "models.json").write_text(json.dumps(site_list([RADIOLOGY])))
    hospital = make_hospital("--store", str(tmp_path / "store"), "--models", str(tmp_path / "models.json"), sandboxes=False)
    try:
        with hospital.opened(files_of(SOURCE)) as (reader, _):
            earlier = [OwnReport(sop_class=COMPREHENSIVE_3D, sop_uid="2.25.11", series_uid="2.25.12")]
            built = reader.report([Part()], at=1, device="n", earlier=earlier)  # type: ignore[list-item]
            with SealedReader(built.path, hospital.private) as stream:
                assert named(stream.read()) == [(str(SOURCE[0].StudyInstanceUID), "2.25.12", COMPREHENSIVE_3D, "2.25.11")]
            assert built.referenced == {str(SOURCE[0].SOPInstanceUID)}
            said = {"results": [{"digest": PACKAGE.digest, "read": [0], "findings": []}], "at": 1, "device": "n"}
            more = {**said, "three_d": True, "segments": False}
            one = dataclasses.asdict(earlier[0])
            for odd in ({}, "2.25.11", [["2.25.11"]], [{"sop_uid": "2.25.11"}], [{**one, "sop_uid": 7}], [one] * 65):
                with pytest.raises(Refusal) as refused:
                    reader.call("report", **more, earlier=odd)
                assert refused.value.codes == ("study-request-odd",)
    finally:
        hospital.close()


@pytest.fixture(scope="module")
def postgres() -> Iterator[object]:
    with running_postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def register(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ReadingRegister]:
    url = f"sqlite:///{tmp_path}/r.sqlite" if request.param == "sqlite" else request.getfixturevalue("postgres").fresh()
    opened = ReadingRegister(url, secrets.token_bytes(32))
    yield opened
    opened.close()


def own(number: int) -> OwnReport:
    return OwnReport(sop_class=COMPREHENSIVE_3D, sop_uid=f"2.25.{number}", series_uid=f"2.25.{number}.1")


def opening(register: ReadingRegister, number: int, now: int) -> StudyLease:
    register.found("p", FoundStudy(study_uid="1.1", instances=number), now)
    lease = register.claim("w", now, 60)
    assert lease is not None and lease.order == number
    return lease


def test_an_opening_follows_the_newest_one_that_stored_a_report(register: ReadingRegister) -> None:
    for number, stored in enumerate([[8], [4, 3], [5], []]):
        lease = opening(register, number, now := 100 * number)
        expected = [(), (own(8),), (own(3), own(4)), (own(3), own(4))][number]
        assert register.earlier_reports(lease) == expected
        for one in [*stored, 9]:  # the last is built, and never stored
            register.own_report(lease, own(one))
            register.own_report(lease, own(one))
        for one in stored if number != 2 else []:
            register.report_stored(lease, own(one).sop_uid)
            register.own_report(lease, own(one))  # built again after that
        assert register.earlier_reports(lease) == expected, "its own are none of them"
        with pytest.raises(Refusal) as refused:
            register.report_stored(lease, "2.25.77")
        assert refused.value.codes == ("report-unknown",)
        assert register.finish(lease, now + 1) == "completed"


def test_who_lost_the_study_registers_no_report(register: ReadingRegister) -> None:
    lease = opening(register, 0, 100)
    register.own_report(lease, own(1))
    register.fail(lease, ["x"], 101)
    for write in (lambda: register.own_report(lease, own(2)), lambda: register.report_stored(lease, own(1).sop_uid)):
        with pytest.raises(Refusal) as refused:
            write()
        assert refused.value.codes == ("lease-lost",)


def test_no_uid_of_a_report_lies_in_the_register_in_clear(tmp_path: Path) -> None:
    register = ReadingRegister.at(tmp_path / "r.sqlite", secrets.token_bytes(32))
    register.own_report(opening(register, 0, 100), own(4711471147114711))
    register.close()
    held = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"reading_own_reports" in held and b"4711471147114711" not in held


def test_a_person_has_a_study_read_again(register: ReadingRegister) -> None:
    lease = opening(register, 0, 100)
    with pytest.raises(Refusal) as refused:
        register.read_again(lease.row, 101)
    assert refused.value.codes == ("study-not-over",)
    register.enter(lease, "store", 102)
    register.finish(lease, 103)
    assert register.read_again(lease.row, 500) == 1
    again = register.claim("w", 501, 60)
    assert again is not None
    assert (again.order, again.stage, again.content_at, again.registered_at) == (1, "retrieve", 500, 100)
    register.fail(again, ["x"], 502)
    assert register.read_again(lease.row, 600) == 2 and register.dead_letters() == [], "a letter is answered by it"
    assert register.found("p", FoundStudy(study_uid="1.1", instances=0), 700).outcome == "known"
