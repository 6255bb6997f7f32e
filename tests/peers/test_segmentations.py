"""Regions as segmentations: the pixels of their outlines, the same bytes again, clean before a validator, in a real archive."""

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.pixels.utils import pixel_array

from blocks.archive import Archive, Listed, attributes_digest
from blocks.dimse.services import ToStore
from blocks.endpoint import Endpoint
from infra.hospital.reading_cohort import make_study
from infra.peers.orthanc import running_orthanc
from policies.findings import Finding
from policies.report import REASONS, SEGMENTATION
from rapha.errors import Refusal
from tasks.reading.report import Analysed, Objects, ReportFacts, build_objects
from tasks.reading.segmentation import mask
from tasks.reading.validate import segmentation_facts, sr_facts, validate, validate_segmentation
from tests.fixtures.regions import APART, OVERLAPPING, SQUARE, package, region

PACKAGE = package()
THREE = (region(SQUARE), region(OVERLAPPING), region(APART))


def made(sources: list[Dataset], *findings: Finding, segments: bool = True) -> Objects:
    read = tuple(range(len(sources)))
    facts = ReportFacts(at=1_790_000_000, contents=tuple(f"sha256:{n:064x}" for n in read), device="node-1", segments=segments)
    part = Analysed(model=PACKAGE.model, digest=PACKAGE.digest, read=read, findings=findings)
    return build_objects(sources, [part], facts)


# -- which pixels


def inside(x: float, y: float, points: list[tuple[float, float]]) -> bool:
    """The even-odd rule, by hand."""
    found = False
    for (ax, ay), (bx, by) in zip(points, points[1:] + points[:1], strict=True):
        if (ay > y) != (by > y) and x < ax + (y - ay) / (by - ay) * (bx - ax):
            found = not found
    return found


def away(x: float, y: float, points: list[tuple[float, float]]) -> float:
    """Pixels from a point to the outline."""
    found = []
    for (ax, ay), (bx, by) in zip(points, points[1:] + points[:1], strict=True):
        length = (bx - ax) ** 2 + (by - ay) ** 2
        t = min(1.0, max(0.0, ((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / length)) if length else 0.0
        found.append(((ax + t * (bx - ax) - x) ** 2 + (ay + t * (by - ay) - y) ** 2) ** 0.5)
    return min(found)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 40), st.floats(0, 30)), min_size=3, max_size=9, unique=True))
def test_a_mask_is_what_lies_within_the_outline(points: list[tuple[float, float]]) -> None:
    drawn = mask(points, 30, 40)
    assert drawn.shape == (30, 40) and drawn.any()
    if not any(inside(column + 0.5, row + 0.5, points) for row in range(30) for column in range(40)):
        return  # thinner than a pixel
    for row in range(30):
        for column in range(40):
            x, y = column + 0.5, row + 0.5  # the middle of the pixel
            if away(x, y, points) > 0.01:
                assert bool(drawn[row, column]) == inside(x, y, points), (row, column)


def test_a_region_on_the_last_row_or_column_is_no_empty_one() -> None:
    for edge in (((40.0, 0.0), (40.0, 9.0), (40.0, 30.0)), ((3.0, 30.0), (9.0, 30.0), (12.0, 30.0))):
        assert mask(edge, 30, 40).any()


# -- the objects


@pytest.mark.parametrize("kind", ["ct", "dx"])
def test_they_are_clean_and_the_same_again(kind: str) -> None:
    sources = make_study(kind, 3, 1)  # type: ignore[arg-type]
    objects = made(sources, *THREE)
    assert objects == made(sources, *THREE)
    checked = validate(objects.report)
    assert (checked.codes, checked.checks) == ((), ("own", "dciodvfy", "DicomSRValidator"))
    for one in objects.segmentations:
        checked = validate_segmentation(one)
        assert (checked.codes, checked.checks) == ((), ("own", "dciodvfy"))


def test_every_region_is_one_segment_of_its_own_pixels_and_the_report_refers_to_it() -> None:
    sources = make_study("ct", 3, 1)
    second = region(SQUARE, index=1)
    objects = made(sources, *THREE, second)
    objects_of = {str(one.SOPInstanceUID): one for one in map(dcmread, map(io.BytesIO, objects.segmentations))}
    assert len(objects_of) == 3  # the first image's, one more for what overlaps there, the second image's
    groups = _groups(objects.report)
    for finding, (tracking, uid, frame, source) in zip((*THREE, second), groups, strict=True):
        held = objects_of[uid]
        assert source == sources[finding.index].SOPInstanceUID == _sources(held)
        assert held.SegmentSequence[frame - 1].TrackingUID == tracking
        drawn = pixel_array(held, index=frame - 1) if held.NumberOfFrames > 1 else pixel_array(held)
        rows, columns = int(sources[0].Rows), int(sources[0].Columns)
        assert np.array_equal(drawn.astype(bool), mask(finding.points, rows, columns))
    said = sr_facts(objects.report)
    assert said.evidence == {*objects_of, *(str(source.SOPInstanceUID) for source in sources)}
    assert len({str(one.SeriesInstanceUID) for one in objects_of.values()}) == 1
    assert {(one.PatientID, one.StudyInstanceUID) for one in objects_of.values()} == {
        (sources[0].PatientID, sources[0].StudyInstanceUID)
    }
    assert {one.FrameOfReferenceUID for one in objects_of.values()} == {sources[0].FrameOfReferenceUID}


def _groups(report: bytes) -> list[tuple[str, str, int, str]]:
    """(tracking UID, segmentation, its frame, source image) of each measurement group."""
    dataset = dcmread(io.BytesIO(report))
    (listed,) = [item for item in dataset.ContentSequence if item.ConceptNameCodeSequence[0].CodeValue == "126010"]
    found = []
    for group in listed.ContentSequence:
        named = {item.ConceptNameCodeSequence[0].CodeValue: item for item in group.ContentSequence}
        segment = named["121214"].ReferencedSOPSequence[0]
        assert "ReferencedSegmentNumber" not in segment
        image = named["121233"].ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        frame = int(segment.ReferencedFrameNumber)
        found.append((str(named["112040"].UID), str(segment.ReferencedSOPInstanceUID), frame, str(image)))
    return found


def _sources(dataset: Dataset) -> str:
    (series,) = dataset.ReferencedSeriesSequence
    (one,) = series.ReferencedInstanceSequence
    return str(one.ReferencedSOPInstanceUID)


def test_where_there_can_be_none_a_region_is_an_outline_in_the_report() -> None:
    """An archive that takes none; an image of several frames; a slide."""
    radiograph = make_study("dx", 3, 1)
    several = make_study("dx", 3, 1)
    several[0].NumberOfFrames, several[0].SOPClassUID = 2, "1.2.840.10008.5.1.4.1.1.3.1"  # Ultrasound Multi-frame
    slide = make_study("sm", 3, 1)[:1]
    for sources, segments in ((radiograph, False), (several, True), (slide, True)):
        objects = made(sources, region(SQUARE), segments=segments)
        assert objects.segmentations == ()
        assert sr_facts(objects.report).groups[0].regions == ((40.0, 50.0, 60.0, 50.0, 60.0, 70.0, 40.0, 70.0, 40.0, 50.0),)


def test_regions_beside_circles_and_beside_a_model_that_found_nothing() -> None:
    sources = make_study("ct", 3, 1)
    read = tuple(range(len(sources)))
    circle = region(((20.0, 20.0), (24.0, 20.0)), shape="circle", index=1)
    facts = ReportFacts(at=1, contents=tuple(f"sha256:{n:064x}" for n in read), device="node-1", segments=True)
    parts = [
        Analysed(model=PACKAGE.model, digest=PACKAGE.digest, read=read, findings=(region(SQUARE), circle)),
        Analysed(model=PACKAGE.model, digest="sha256:" + "9" * 64, read=read, findings=()),
    ]
    objects = build_objects(sources, parts, facts)
    assert len(objects.segmentations) == 1
    assert validate(objects.report).codes == ()


# -- our own check


def _algorithm(dataset: Dataset) -> None:
    del dataset.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence


def _shared(dataset: Dataset) -> None:
    dataset.SegmentSequence[1].TrackingUID = dataset.SegmentSequence[0].TrackingUID


def _blank(dataset: Dataset) -> None:
    dataset.PixelData = bytes(len(dataset.PixelData))


def _unsourced(dataset: Dataset) -> None:
    dataset.ReferencedSeriesSequence = []


def _nobody(dataset: Dataset) -> None:
    del dataset.PatientID


def _other(dataset: Dataset) -> None:
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.66.7"


TAMPERED = {
    "segmentation-no-algorithm": _algorithm,
    "segmentation-no-tracking": _shared,
    "segmentation-no-segment": _blank,
    "segmentation-no-source": _unsourced,
    "segmentation-no-patient": _nobody,
    "segmentation-sop-class": _other,
}


@pytest.mark.parametrize("code", sorted(TAMPERED))
def test_one_changed_fact_is_its_own_code(code: str) -> None:
    dataset = dcmread(io.BytesIO(made(make_study("dx", 3, 1), *THREE).segmentations[0]))
    TAMPERED[code](dataset)
    out = io.BytesIO()
    dataset.save_as(out)
    from policies.report import segmentation_codes

    assert code in segmentation_codes(segmentation_facts(out.getvalue())) and code in REASONS


def test_an_attribute_that_the_iod_demands_is_missed() -> None:
    dataset = dcmread(io.BytesIO(made(make_study("dx", 3, 1), *THREE).segmentations[0]))
    del dataset.SegmentSequence[0].SegmentAlgorithmType
    out = io.BytesIO()
    dataset.save_as(out)
    assert validate_segmentation(out.getvalue()).codes == ("segmentation-iod",)


@pytest.mark.parametrize(
    "spoil", [lambda raw: b"", lambda raw: raw[:900], lambda raw: b"not DICOM"], ids=["empty", "short", "text"]
)
def test_what_is_no_segmentation_is_refused(spoil: Callable[[bytes], bytes]) -> None:
    raw = made(make_study("dx", 3, 1), *THREE).segmentations[0]
    with pytest.raises(Refusal) as refused:
        validate_segmentation(spoil(raw))
    assert refused.value.codes == ("report-unreadable",)


def test_a_real_archive_keeps_both_and_gives_them_back(tmp_path: Path) -> None:
    objects = made(make_study("ct", 3, 1), *THREE)
    allowed = {"DicomAlwaysAllowGet": True, "DicomModalities": {"RAPHA": ["RAPHA", "127.0.0.1", 1]}}
    with running_orthanc(tmp_path / "orthanc", **allowed) as orthanc:
        there = {"name": "p", "host": "127.0.0.1", "port": orthanc.dicom_port, "ae_title": "ORTHANC", "calling_ae_title": "RAPHA"}
        archive = Archive(Endpoint(**there, retrieve="C-GET"))  # type: ignore[arg-type]
        for number, raw in enumerate((*objects.segmentations, objects.report)):
            path, dataset = tmp_path / f"{number}.dcm", dcmread(io.BytesIO(raw))
            path.write_bytes(raw)
            one = ToStore(path, dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.file_meta.TransferSyntaxUID)
            assert archive.store(str(dataset.StudyInstanceUID), [one]) == {dataset.SOPInstanceUID: "stored"}
            listed = Listed(one.sop_instance, one.sop_class, str(dataset.SeriesInstanceUID), str(dataset.Modality))
            assert archive.read_back(str(dataset.StudyInstanceUID), listed) == attributes_digest(raw)
        found = archive.list_study(str(dataset.StudyInstanceUID))
        assert sorted(one.modality for one in found) == ["SEG", "SEG", "SR"]
        assert {one.sop_class for one in found if one.modality == "SEG"} == {SEGMENTATION}


def test_another_region_is_another_object() -> None:
    sources = make_study("dx", 3, 1)
    moved = dataclasses.replace(THREE[0], points=((41.0, 50.0), *SQUARE[1:]))
    first, second = (dcmread(io.BytesIO(made(sources, one).segmentations[0])) for one in (THREE[0], moved))
    assert first.SOPInstanceUID != second.SOPInstanceUID
