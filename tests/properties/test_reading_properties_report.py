"""Reports of any analysis: right before our checks and a validator that is not ours; everything found is in them, once."""

import dataclasses
import io
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset

from blocks import validators
from blocks.models import ModelPackage, load_package
from infra.hospital.reading_cohort import make_study
from infra.study.reports import referenced
from policies.findings import Finding, Measurement
from policies.report import report_codes
from tasks.reading.report import Analysed, ReportFacts, build
from tasks.reading.validate import sr_facts
from tests.fixtures.studies import RADIOLOGY, SLIDE_PACKAGE

QUIET = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
PACKAGES = {"ct": load_package(RADIOLOGY), "dx": load_package(RADIOLOGY), "sm": load_package(SLIDE_PACKAGE)}
DIGESTS = tuple(f"sha256:{n:064x}" for n in range(100, 103))
COPIED = ("PatientID", "PatientName", "PatientBirthDate", "StudyInstanceUID", "StudyDate", "AccessionNumber")
# Codes of TID 1500 and the templates below it (PS3.16).
LANGUAGE, OBSERVER, PROCEDURE, LIBRARY, MEASUREMENTS, GROUP = "121049", "121005", "121058", "111028", "126010", "125007"
TRACKING, TRACKING_UID, FINDING, ALGORITHM, VERSION, CERTAINTY = "112039", "112040", "121071", "111001", "111003", "111012"
DIAMETER = "81827009"
BESIDE = ("HAS CONCEPT MOD", "HAS ACQ CONTEXT", "SELECTED FROM", "HAS PROPERTIES")  # relations of items that are no containers


@cache
def sources_of(kind: str) -> tuple[Dataset, ...]:
    """Headers alone; of a slide, its levels without the label."""
    study = make_study(kind, 7, 0)[:3]  # type: ignore[arg-type]
    for one in study:
        del one.PixelData
    return tuple(study)


@dataclasses.dataclass(frozen=True)
class Case:
    """An analysis and what is reported of it."""

    sources: tuple[Dataset, ...] = dataclasses.field(repr=False)
    package: ModelPackage = dataclasses.field(repr=False)
    analysed: tuple[Analysed, ...]
    facts: ReportFacts

    def report(self) -> bytes:
        return build(self.sources, self.analysed, self.facts)


@st.composite
def findings(draw: st.DrawFn, index: int, size: tuple[int, int], kind: str) -> Finding:
    high, wide = size
    x, y = draw(st.floats(1, wide - 2, width=32)), draw(st.floats(1, high - 2, width=32))
    measured = draw(st.lists(st.floats(0, 100, width=32), max_size=1))
    return Finding(
        index=index,
        frame=1,
        kind=kind,
        confidence=draw(st.floats(0, 1)),
        shape="circle",
        points=((x, y), (draw(st.floats(0, wide, width=32).filter(lambda other: abs(other - x) > 0.01)), y)),
        measurements=tuple(Measurement("diameter", value) for value in measured),
    )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """One to three models on a study of some kind; together they read all of it, some find something."""
    kind = draw(st.sampled_from(["ct", "dx", "sm"]))
    package, whole = PACKAGES[kind], sources_of(kind)
    sources = whole[: draw(st.integers(1, len(whole)))]
    named, parts = package.model.findings.kinds[0].kind, []
    for number in range(draw(st.integers(1, 3))):
        read = sorted(draw(st.sets(st.integers(0, len(sources) - 1), min_size=1))) if number else range(len(sources))
        found = [
            draw(findings(index, size_of(sources[index]), named)) for index in draw(st.lists(st.sampled_from(read), max_size=3))
        ]
        model = dataclasses.replace(package.model, version=f"{number}.0")
        parts.append(Analysed(model=model, digest=DIGESTS[number], read=tuple(read), findings=tuple(found)))
    contents = tuple(f"sha256:{n:064x}" for n in range(len(sources)))
    at = draw(st.integers(0, 4_000_000_000))
    facts = ReportFacts(at=at, contents=contents, device="node-1", three_d=draw(st.booleans()))
    return Case(sources, package, tuple(parts), facts)


def size_of(source: Dataset) -> tuple[int, int]:
    return int(source.get("TotalPixelMatrixRows", source.Rows)), int(source.get("TotalPixelMatrixColumns", source.Columns))


def items(item: Dataset) -> Iterator[tuple[Dataset, Dataset]]:
    """(content item, the one that it is in), all below `item`."""
    for below in item.get("ContentSequence", ()):
        yield below, item
        yield from items(below)


def code(item: Dataset) -> str:
    names = item.get("ConceptNameCodeSequence")
    return str(names[0].CodeValue) if names else ""


def named(item: Dataset, wanted: str) -> list[Dataset]:
    return [below for below, _ in items(item) if code(below) == wanted]


def groups_of(raw: bytes) -> list[Dataset]:
    return named(dcmread(io.BytesIO(raw)), GROUP)


def images_of(item: Dataset) -> list[str]:
    """The images that it refers to, in their order."""
    return [str(one.ReferencedSOPSequence[0].ReferencedSOPInstanceUID) for one, _ in items(item) if one.ValueType == "IMAGE"]


def told(group: Dataset) -> tuple[Any, ...]:
    """What a group says: algorithm, version, image, points, certainty in percent, diameters."""
    values = [float(item.MeasuredValueSequence[0].NumericValue) for one in (CERTAINTY, DIAMETER) for item in named(group, one)]
    regions = [below for below, _ in items(group) if below.ValueType in ("SCOORD", "SCOORD3D")]
    (algorithm,), (version,) = named(group, ALGORITHM), named(group, VERSION)
    points = tuple(float(number) for one in regions for number in one.GraphicData)
    return str(algorithm.TextValue), str(version.TextValue), images_of(group)[0], points, *values


def expected(case: Case) -> list[tuple[Any, ...]]:
    """The same from the findings themselves."""
    return [
        (
            one.model.name,
            one.model.version,
            str(case.sources[found.index].SOPInstanceUID),
            tuple(float(np.float32(number)) for point in found.points for number in point),
            round(100 * found.confidence, 2),
            *(float(f"{measured.value:.6g}") for measured in found.measurements),
        )
        for one in case.analysed
        for found in one.findings
    ]


@settings(QUIET, max_examples=6)
@given(cases())
def test_any_analysis_makes_a_report_that_is_right_and_the_same_again(case: Case) -> None:
    raw = case.report()
    assert report_codes(sr_facts(raw)) == ()
    assert validators.check(validators.IOD, raw).errors == 0
    assert case.report() == raw


@QUIET
@given(cases(), st.sampled_from(["at", "device", "contents", "digest", "finding"]))
def test_another_fact_is_another_report(case: Case, what: str) -> None:
    """The report's UID follows from all that it says: nothing is stored over another, nothing twice."""
    first, facts = case.analysed[0], case.facts
    part = {
        "digest": dataclasses.replace(first, digest="sha256:" + "f" * 64),
        "finding": dataclasses.replace(first, findings=first.findings[1:] or (_found(case),)),
    }.get(what, first)
    facts = {
        "at": dataclasses.replace(facts, at=facts.at + 1),
        "device": dataclasses.replace(facts, device="node-2"),
        "contents": dataclasses.replace(facts, contents=("sha256:" + "e" * 64, *facts.contents[1:])),
    }.get(what, facts)
    other = dataclasses.replace(case, analysed=(part, *case.analysed[1:]), facts=facts)
    one, two = (dcmread(io.BytesIO(made.report())) for made in (case, other))
    assert one.SOPInstanceUID != two.SOPInstanceUID and one.SeriesInstanceUID != two.SeriesInstanceUID


def _found(case: Case) -> Finding:
    kind = case.package.model.findings.kinds[0].kind
    return Finding(0, 1, kind, 0.5, "circle", ((5.0, 5.0), (9.0, 5.0)))


@QUIET
@given(cases())
def test_a_report_belongs_to_its_study_and_refers_to_exactly_what_was_read(case: Case) -> None:
    raw = case.report()
    read, sources = dcmread(io.BytesIO(raw)), case.sources
    wanted = sorted(str(one.SOPInstanceUID) for one in sources)
    (library,) = named(read, LIBRARY)
    assert referenced(raw) == wanted == sorted(images_of(library))
    assert sr_facts(raw).references == set(wanted) == sr_facts(raw).evidence
    assert all(read.get(name) == sources[0].get(name) for name in COPIED)
    classes = {str(one.SOPInstanceUID): str(one.SOPClassUID) for one in sources}
    for item, _ in items(read):
        for one in item.get("ReferencedSOPSequence", ()):
            assert classes[str(one.ReferencedSOPInstanceUID)] == one.ReferencedSOPClassUID


@QUIET
@given(cases())
def test_every_finding_is_in_the_report_once_with_its_place_and_numbers(case: Case) -> None:
    groups = [group for group in groups_of(case.report()) if named(group, CERTAINTY)]
    assert sorted(told(group) for group in groups) == sorted(expected(case))


@QUIET
@given(cases())
def test_each_model_speaks_for_itself_and_no_two_groups_share_a_name(case: Case) -> None:
    groups = groups_of(case.report())
    tracked = [str(named(group, TRACKING_UID)[0].UID) for group in groups]
    assert len(set(tracked)) == len(tracked) == len(groups)
    for one in case.analysed:
        mine = [group for group in groups if str(named(group, VERSION)[0].TextValue) == one.model.version]
        found = [group for group in mine if named(group, CERTAINTY)]
        assert len(found) == len(one.findings) and len(mine) > 0, "a model that found nothing says so"
        seen = {
            str(i.ReferencedSOPSequence[0].ReferencedSOPInstanceUID) for g in mine for i, _ in items(g) if i.ValueType == "IMAGE"
        }
        read = {str(case.sources[place].SOPInstanceUID) for place in one.read}
        assert seen <= read and (found or seen == read)


@QUIET
@given(cases())
def test_the_content_tree_is_complete(case: Case) -> None:
    """TID 1500, rows 1 to 12: what each container must hold, and that no item hangs in the air (PS3.3 C.17.3)."""
    read = dcmread(io.BytesIO(case.report()))
    top = [code(item) for item in read.ContentSequence]
    assert {LANGUAGE, OBSERVER, PROCEDURE, LIBRARY, MEASUREMENTS} <= set(top) and top.count(LIBRARY) == top.count(
        MEASUREMENTS
    ) == 1
    for item, above in items(read):
        assert item.RelationshipType and item.ValueType and (code(item) or item.ValueType == "IMAGE")
        assert above.ValueType == "CONTAINER" or item.RelationshipType in BESIDE
    (library,) = named(read, LIBRARY)
    assert sorted(images_of(library)) == sorted(str(one.SOPInstanceUID) for one in case.sources)
    for group in named(read, GROUP):
        for wanted in (TRACKING, TRACKING_UID, FINDING, ALGORITHM, VERSION):
            assert len(named(group, wanted)) == 1
