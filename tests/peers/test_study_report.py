"""The report verb of the real process: built from clear headers, sealed, and described by what it says itself."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from blocks.instances import SealedReader
from blocks.models import ModelPackage, load_package, site_list
from blocks.study import BuiltReport, OpenedInstance, StudyReader
from infra.hospital.reading_cohort import identifiers, make_study
from infra.study.reports import referenced
from policies.findings import Finding, Measurement
from policies.model import Model
from rapha.errors import Refusal
from tests.fixtures.studies import RADIOLOGY
from tests.fixtures.study_running import Hospital, copied, files_of, make_hospital

PACKAGE = load_package(RADIOLOGY)
FOUND = Finding(1, 1, "lesion", 0.93, "circle", ((80.0, 90.0), (88.0, 90.0)), (Measurement("diameter", 20.0),))
AT = 1_790_000_000


@dataclass(frozen=True)
class Part:
    """What a model's run comes to."""

    model: Model = PACKAGE.model
    digest: str = PACKAGE.digest
    read: frozenset[int] = frozenset({0, 1, 2})
    findings: tuple[Finding, ...] = (FOUND,)


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    folder = tmp_path_factory.mktemp("site")
    (folder / "models.json").write_text(json.dumps(site_list([RADIOLOGY])))
    made = make_hospital("--store", str(folder / "store"), "--models", str(folder / "models.json"), sandboxes=False)
    yield made
    made.close()


@pytest.fixture
def opened(hospital: Hospital) -> Iterator[tuple[StudyReader, tuple[OpenedInstance, ...]]]:
    with hospital.opened(files_of(make_study("ct", 31, 1))) as pair:
        yield pair


def built(reader: StudyReader, *parts: Part) -> BuiltReport:
    return reader.report(parts, at=AT, device="reading-node")


def test_the_report_refers_to_exactly_what_was_analysed(
    hospital: Hospital, opened: tuple[StudyReader, tuple[OpenedInstance, ...]]
) -> None:
    reader, instances = opened
    report = built(reader, Part())
    assert report.referenced == {one.sop_uid for one in instances[:3]}
    with SealedReader(report.path, hospital.private) as stream:
        raw = stream.read()
    assert set(referenced(raw)) == report.referenced and len(raw) == report.size
    assert report.sop_uid == built(reader, Part()).sop_uid, "a repeat is the same object"
    patient = [needle for needle in identifiers(make_study("ct", 31, 1)) if needle.encode() in raw]
    assert patient, "the report names its patient"
    assert not [needle for needle in patient if needle.encode() in report.path.read_bytes()]


def test_what_was_not_read_is_in_no_report(opened: tuple[StudyReader, tuple[OpenedInstance, ...]]) -> None:
    reader, _ = opened
    with pytest.raises(Refusal) as refused:
        built(reader, Part(read=frozenset({0, 2})))
    assert refused.value.codes == ("findings-index",)


def test_findings_are_held_to_the_declaration_again(opened: tuple[StudyReader, tuple[OpenedInstance, ...]]) -> None:
    reader, _ = opened
    for changed, code in (({"frame": 2}, "findings-frame"), ({"points": ((80.0, 90.0), (300.0, 90.0))}, "findings-outside")):
        with pytest.raises(Refusal) as refused:
            built(reader, Part(findings=(replace(FOUND, **changed),)))
        assert refused.value.codes == (code,)


def test_a_model_that_the_site_does_not_list_is_not_reported(
    opened: tuple[StudyReader, tuple[OpenedInstance, ...]], tmp_path: Path
) -> None:
    reader, _ = opened
    other: ModelPackage = load_package(copied(tmp_path, declared={"manufacturer": "somebody else"}))
    with pytest.raises(Refusal) as refused:
        built(reader, Part(model=other.model, digest=other.digest))
    assert refused.value.codes == ("study-model-unknown",)


def test_without_a_study_there_is_no_report(hospital: Hospital) -> None:
    with hospital.study() as reader, pytest.raises(Exception) as error:
        built(reader, Part())
    assert error.value.codes == ("study-not-open",)  # type: ignore[attr-defined]
