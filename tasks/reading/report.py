"""The report of a study: a TID 1500 structured report (PS3.16) through highdicom, the same bytes for the same facts; with it
the segmentations to which it refers.

It runs where the clear headers are, in the study reader: patient and study attributes are copied from the sources. UIDs follow
from what was read and found (`policies.uid`), dates come from the register: a repeat is the same object, not a second report.
"""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    Comprehensive3DSR,
    ComprehensiveSR,
    DeviceObserverIdentifyingAttributes,
    GraphicTypeValues,
    ImageRegion,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    PixelOriginInterpretationValues,
    PlanarROIMeasurementsAndQualitativeEvaluations,
    QualitativeEvaluation,
    ReferencedSegmentationFrame,
    SourceImageForMeasurementGroup,
    SourceImageForRegion,
    TrackingIdentifier,
)
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from policies.findings import Finding
from policies.model import FindingKind, Model
from policies.uid import derived_uid
from rapha.errors import Refusal
from tasks.reading.objects import MANUFACTURER, SLIDE, coded, dated, to_bytes
from tasks.reading.segmentation import REGION, Region, is_drawn, segmentations

SERIES_DESCRIPTION = "AI findings"
PROCEDURE = CodedConcept("363679005", "SCT", "Imaging procedure")
CERTAINTY, PERCENT = CodedConcept("111012", "DCM", "Certainty of Finding"), CodedConcept("%", "UCUM", "Percent")
FINDING = CodedConcept("121071", "DCM", "Finding")
NEGATIVE = CodedConcept("260385009", "SCT", "Negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysed:
    """One model's part. by_index: finding.index -> place in the sources; read: places of the sources that it analysed."""

    model: Model
    digest: str
    read: tuple[int, ...]
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportFacts:
    """What the report does not take from the images. at: seconds since the epoch (UTC), from the register; contents: SHA-256 of
    each source, in their order; three_d: Comprehensive 3D SR, or Comprehensive SR for an archive that takes no better; segments:
    a region becomes a segment, or an outline in the report for an archive that takes no segmentations; earlier: (SOP class, SOP
    instance, series) of our reports of this study that this one follows."""

    at: int
    contents: tuple[str, ...]
    device: str
    three_d: bool = True
    segments: bool = False
    earlier: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Objects:
    """Files of PS3.10. segmentations: those that the report refers to, in the order of their instance numbers."""

    report: bytes
    segmentations: tuple[bytes, ...]


def build(sources: Sequence[Dataset], analysed: Sequence[Analysed], facts: ReportFacts) -> bytes:
    """The report alone, in which a region is an outline. As `build_objects`."""
    return build_objects(sources, analysed, replace(facts, segments=False)).report


def build_objects(sources: Sequence[Dataset], analysed: Sequence[Analysed], facts: ReportFacts) -> Objects:
    """`sources`: the headers of every analysed instance, without pixels; a finding's `index` is a place in it.

    Raises `Refusal` report-nothing-analysed, report-mixed-patients, report-source-incomplete.
    """
    read = sorted({place for one in analysed for place in one.read})
    if not read or read != list(range(len(sources))) or len(facts.contents) != len(sources):
        raise Refusal(["report-nothing-analysed"], "a report covers exactly the instances that were analysed", gate="report")
    if len({(str(s.get("PatientID", "")), str(s.get("StudyInstanceUID", ""))) for s in sources}) != 1:
        raise Refusal(["report-mixed-patients"], "the instances are of more than one patient or study", gate="report")
    name = _name(sources, analysed, facts)
    at = dt.datetime.fromtimestamp(facts.at, dt.UTC)
    segmented = segmentations(sources, _regions(sources, analysed, name) if facts.segments else [], facts.device, name)
    drawn = [dated(one.dataset, at) for one in segmented]
    frames = {region: frame for one in segmented for region, frame in one.frames()}
    report = _report(sources, drawn, analysed, frames, facts, name)
    return Objects(to_bytes(dated(report, at)), tuple(to_bytes(one) for one in drawn))


def _report(
    sources: Sequence[Dataset],
    drawn: Sequence[Dataset],
    analysed: Sequence[Analysed],
    frames: Mapping[str, ReferencedSegmentationFrame],
    facts: ReportFacts,
    name: str,
) -> Dataset:
    try:
        kind = Comprehensive3DSR if facts.three_d else ComprehensiveSR
        return kind(
            evidence=[*sources, *drawn],
            content=_content(sources, analysed, facts, name, frames)[0],
            series_instance_uid=derived_uid("series", [name]),
            series_number=9000,
            sop_instance_uid=derived_uid("report", [name]),
            instance_number=1,
            manufacturer=MANUFACTURER,
            manufacturer_model_name=facts.device,
            series_description=SERIES_DESCRIPTION,
            is_complete=True,
            is_final=False,
            is_verified=False,
            institution_name=None,
            previous_versions=_earlier(sources[0], facts) or None,
        )
    except (AttributeError, ValueError, TypeError, KeyError):
        raise Refusal(["report-source-incomplete"], "an instance lacks what a report must say of it", gate="report") from None


def _earlier(source: Dataset, facts: ReportFacts) -> list[Dataset]:
    """What the library takes for earlier versions: the Predecessor Documents Sequence (PS3.3 C.17.2) is made of them."""
    found = []
    for sop_class, instance, series in facts.earlier:
        one = Dataset()
        one.SOPClassUID, one.SOPInstanceUID, one.SeriesInstanceUID = sop_class, instance, series
        one.StudyInstanceUID = source.StudyInstanceUID
        found.append(one)
    return found


def _regions(sources: Sequence[Dataset], analysed: Sequence[Analysed], name: str) -> list[Region]:
    """The findings that become segments, under the names and tracking that they have in the report."""
    found = []
    for number, one in enumerate(analysed):
        for place, finding in enumerate(one.findings):
            if is_drawn(sources[finding.index], finding):
                called = f"{name}.{number}.{place}"
                tracking = derived_uid("finding", [called]), _tracking(called)
                found.append(
                    Region(name=called, tracking=tracking, finding=finding, kind=_kind(finding, one.model), model=one.model)
                )
    return found


def _name(sources: Sequence[Dataset], analysed: Sequence[Analysed], facts: ReportFacts) -> str:
    """All that the report follows from, as one line: the same for the same work."""
    parts = [str(sources[0].StudyInstanceUID), str(facts.at), facts.device, str(facts.three_d), *facts.contents]
    parts += ["segments"] if facts.segments else []
    parts += [part for one in facts.earlier for part in ("after", *one)]
    for one in analysed:
        parts += [one.digest, *map(str, one.read), *map(repr, one.findings)]
    return derived_uid("work", parts)


def _content(
    sources: Sequence[Dataset],
    analysed: Sequence[Analysed],
    facts: ReportFacts,
    name: str,
    frames: Mapping[str, ReferencedSegmentationFrame],
) -> MeasurementReport:
    device = DeviceObserverIdentifyingAttributes(
        uid=derived_uid("device", [facts.device]), name=MANUFACTURER, manufacturer_name=MANUFACTURER, model_name=facts.device
    )
    observer = ObserverContext(observer_type=codes.DCM.Device, observer_identifying_attributes=device)
    groups: list[Any] = []
    flat: list[Any] = []
    for number, one in enumerate(analysed):
        algorithm = AlgorithmIdentification(name=one.model.name, version=one.model.version)
        for place, finding in enumerate(one.findings):
            called = f"{name}.{number}.{place}"
            groups.append(_planar(sources[finding.index], finding, one.model, algorithm, called, frames.get(called)))
        read = [sources[place] for place in one.read]
        if not one.findings and any(other.findings for other in analysed):
            # Beside groups with a region a validator takes every group for TID 1410: the region is then the whole image.
            groups += [_negative_image(image, algorithm, f"{name}.{number}.{n}") for n, image in enumerate(read)]
        elif not one.findings:
            flat.append(_negative(read, algorithm, f"{name}.{number}"))
    return MeasurementReport(
        observation_context=ObservationContext(observer_device_context=observer),
        procedure_reported=PROCEDURE,
        imaging_measurements=[*groups, *flat],
        title=codes.DCM.ImagingMeasurementReport,
        referenced_images=[source for source in sources if "SOPInstanceUID" in source],
    )


def _planar(
    source: Dataset,
    finding: Finding,
    model: Model,
    algorithm: AlgorithmIdentification,
    name: str,
    segment: ReferencedSegmentationFrame | None,
) -> Any:
    """One finding: its segment, or its region on the image, what it is, and what was measured of it (TID 1410)."""
    kind = _kind(finding, model)
    measured = [_measured(one.name, one.value, model) for one in finding.measurements]
    certainty = Measurement(name=CERTAINTY, value=round(100 * finding.confidence, 2), unit=PERCENT)
    return PlanarROIMeasurementsAndQualitativeEvaluations(
        referenced_region=None if segment else _region(source, finding),
        referenced_segment=segment,
        tracking_identifier=TrackingIdentifier(uid=derived_uid("finding", [name]), identifier=_tracking(name)),
        finding_type=coded(kind.code),
        finding_category=coded(kind.category),
        algorithm_id=algorithm,
        measurements=[certainty, *measured],
    )


def _region(source: Dataset, finding: Finding) -> ImageRegion:
    slide = str(source.SOPClassUID) == SLIDE
    frames = [finding.frame] if not slide and int(source.get("NumberOfFrames", 1) or 1) > 1 else None
    return ImageRegion(
        graphic_type={
            "point": GraphicTypeValues.POINT,
            "circle": GraphicTypeValues.CIRCLE,
            "polygon": GraphicTypeValues.POLYLINE,
            REGION: GraphicTypeValues.POLYLINE,
        }[finding.shape],
        graphic_data=_points(finding),
        source_image=SourceImageForRegion.from_source_image(source, referenced_frame_numbers=frames),
        # On a slide the points are of the total pixel matrix, not of a tile (PS3.3 C.18.6.1.1).
        pixel_origin_interpretation=PixelOriginInterpretationValues.VOLUME if slide else None,
    )


def _kind(finding: Finding, model: Model) -> FindingKind:
    kind = model.findings.kind(finding.kind)
    if kind is None:
        raise Refusal(["report-unknown-kind"], "a finding is of a kind that its model does not declare", gate="report")
    return kind


def _negative(read: Sequence[Dataset], algorithm: AlgorithmIdentification, name: str) -> Any:
    """That an algorithm read these images and found nothing: silence would not say so (TID 1501)."""
    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(uid=derived_uid("image", [name]), identifier=_tracking(name)),
        algorithm_id=algorithm,
        source_images=[SourceImageForMeasurementGroup.from_source_image(source) for source in read],
        qualitative_evaluations=[QualitativeEvaluation(name=FINDING, value=NEGATIVE)],
    )


def _negative_image(source: Dataset, algorithm: AlgorithmIdentification, name: str) -> Any:
    """The same for one image, as a region that is all of it (TID 1410)."""
    slide = str(source.SOPClassUID) == SLIDE
    wide = int(source.TotalPixelMatrixColumns if slide else source.Columns)
    high = int(source.TotalPixelMatrixRows if slide else source.Rows)
    corners = np.asarray([[0, 0], [wide, 0], [wide, high], [0, high], [0, 0]], dtype=np.float32)
    region = ImageRegion(
        graphic_type=GraphicTypeValues.POLYLINE,
        graphic_data=corners,
        source_image=SourceImageForRegion.from_source_image(source),
        pixel_origin_interpretation=PixelOriginInterpretationValues.VOLUME if slide else None,
    )
    return PlanarROIMeasurementsAndQualitativeEvaluations(
        referenced_region=region,
        tracking_identifier=TrackingIdentifier(uid=derived_uid("image", [name]), identifier=_tracking(name)),
        algorithm_id=algorithm,
        qualitative_evaluations=[QualitativeEvaluation(name=FINDING, value=NEGATIVE)],
    )


def _points(finding: Finding) -> np.ndarray[Any, Any]:
    points = np.asarray(finding.points, dtype=np.float32)
    if finding.shape in ("polygon", REGION):
        points = np.concatenate([points, points[:1]])  # a closed polyline ends where it began (PS3.3 C.18.6.1.2)
    return points


def _measured(name: str, value: float, model: Model) -> Measurement:
    kind = model.findings.measurement(name)
    if kind is None:
        raise Refusal(["report-unknown-measurement"], "a measurement is none that its model declares", gate="report")
    return Measurement(name=coded(kind.code), value=float(f"{value:.6g}"), unit=coded(kind.unit))


def _tracking(name: str) -> str:
    return name.rpartition("2.25.")[2][-24:]
