"""The checks that a report must pass before it is stored: ours, the IOD validator's, the template validator's."""

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.pixels.utils import pixel_array

from blocks import validators
from blocks.elements import whole
from blocks.part10 import UNREADABLE
from policies.report import (
    GroupFacts,
    SegmentationFacts,
    SegmentFacts,
    SrFacts,
    report_codes,
    segmentation_codes,
)
from rapha.errors import Refusal

MAX_REPORT = 64 << 20
GROUP, ALGORITHM, VERSION = "125007", "111001", "111003"
TRACKING, TRACKING_UID = "112039", "112040"


@dataclass(frozen=True, slots=True)
class Validated:
    """codes: what is wrong, `()` when nothing is; checks: which ran; warnings: of the two validators."""

    codes: tuple[str, ...]
    checks: tuple[str, ...]
    warnings: int


def validate(report: bytes, *, seconds: float = validators.SECONDS, check: validators.Check = validators.check) -> Validated:
    """All three. check: how the two validators are asked.

    Raises `Refusal(report-unreadable)` for what is no structured report, `PeerError` validator-….
    """
    codes = report_codes(sr_facts(report))
    iod, template = (check(tool, report, seconds=seconds) for tool in (validators.IOD, validators.TEMPLATE))
    found = [*codes, *(["report-iod"] if iod.errors else []), *(["report-content"] if template.errors else [])]
    return Validated(tuple(found), ("own", iod.tool, template.tool), iod.warnings + template.warnings)


def validate_segmentation(
    segmentation: bytes, *, seconds: float = validators.SECONDS, check: validators.Check = validators.check
) -> Validated:
    """Ours and the IOD validator's. Raises `Refusal(report-unreadable)` for what is none, `PeerError` validator-…."""
    codes = segmentation_codes(segmentation_facts(segmentation))
    iod = check(validators.IOD, segmentation, seconds=seconds)
    return Validated((*codes, *(["segmentation-iod"] if iod.errors else [])), ("own", iod.tool), iod.warnings)


def segmentation_facts(segmentation: bytes) -> SegmentationFacts:
    """The facts of `policies.report`, a segment's pixels counted frame by frame. Raises `Refusal(report-unreadable)`."""
    if len(segmentation) > MAX_REPORT:
        raise Refusal(["report-unreadable"], "the segmentation is larger than any", gate="report")
    try:
        return _segmentation(_read(segmentation))
    except UNREADABLE:
        raise Refusal(["report-unreadable"], "the file is no segmentation in DICOM", gate="report") from None


def sr_facts(report: bytes) -> SrFacts:
    """The facts of `policies.report`. Raises `Refusal(report-unreadable)`."""
    if len(report) > MAX_REPORT:
        raise Refusal(["report-unreadable"], "the report is larger than any report", gate="report")
    try:
        return _facts(_read(report))
    except UNREADABLE:
        raise Refusal(["report-unreadable"], "the file is no structured report in DICOM", gate="report") from None


def _read(file: bytes) -> Dataset:
    """The file's data set, where that is all there is in it: a second object behind it would pass its checks unread."""
    if whole(io.BytesIO(file)) is None:
        raise ValueError("not one whole DICOM file")
    return dcmread(io.BytesIO(file))


def _facts(dataset: Dataset) -> SrFacts:
    items = list(_items(dataset))
    root = dataset.ConceptNameCodeSequence[0]
    template = dataset.get("ContentTemplateSequence") or [Dataset()]
    return SrFacts(
        sop_class=str(dataset.SOPClassUID),
        root=(str(root.CodeValue), str(root.CodingSchemeDesignator)),
        template=str(template[0].get("TemplateIdentifier", "")),
        completion=str(dataset.get("CompletionFlag", "")),
        verification=str(dataset.get("VerificationFlag", "")),
        has_patient=_is_named(dataset),
        evidence=frozenset(_evidence(dataset)),
        references=frozenset(uid for item in items for uid in _references(item)),
        groups=tuple(_group(item) for item in items if _concept(item) == GROUP),
        named=(str(dataset.get("StudyInstanceUID", "")), str(dataset.get("SOPInstanceUID", ""))),
        predecessors=tuple(_predecessors(dataset)),
    )


def _is_named(dataset: Dataset) -> bool:
    """Whose it is and of which study: present and empty is not named."""
    return all(str(dataset.get(name) or "").strip() for name in ("PatientID", "StudyInstanceUID"))


def _segmentation(dataset: Dataset) -> SegmentationFacts:
    pixels: dict[int, int] = {}
    for place in range(int(dataset.NumberOfFrames)):
        groups = dataset.PerFrameFunctionalGroupsSequence[place]
        named = groups if "SegmentIdentificationSequence" in groups else dataset.SharedFunctionalGroupsSequence[0]
        number = int(named.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        pixels[number] = pixels.get(number, 0) + int(pixel_array(dataset, index=place).sum())
    return SegmentationFacts(
        sop_class=str(dataset.SOPClassUID),
        has_patient=_is_named(dataset),
        sources=frozenset(
            str(one.ReferencedSOPInstanceUID)
            for series in dataset.ReferencedSeriesSequence
            for one in series.ReferencedInstanceSequence
        ),
        segments=tuple(_segment(one, pixels) for one in dataset.SegmentSequence),
    )


def _segment(item: Dataset, pixels: Mapping[int, int]) -> SegmentFacts:
    algorithm = (item.get("SegmentationAlgorithmIdentificationSequence") or [Dataset()])[0]
    return SegmentFacts(
        algorithm=str(algorithm.get("AlgorithmName", "")),
        version=str(algorithm.get("AlgorithmVersion", "")),
        tracking=str(item.get("TrackingUID", "")),
        identifier=str(item.get("TrackingID", "")),
        pixels=pixels.get(int(item.SegmentNumber), 0),
    )


def _group(item: Dataset) -> GroupFacts:
    below = list(_items(item))
    texts = {_concept(one): str(one.get("TextValue", one.get("UID", ""))) for one in below}
    regions = [tuple(map(float, one.GraphicData)) for one in below if one.get("ValueType") in ("SCOORD", "SCOORD3D")]
    return GroupFacts(
        algorithm=texts.get(ALGORITHM, ""),
        version=texts.get(VERSION, ""),
        tracking=texts.get(TRACKING_UID, ""),
        identifier=texts.get(TRACKING, ""),
        regions=tuple(regions),
        references=tuple(uid for one in below for uid in _references(one)),
    )


def _items(item: Dataset) -> Iterator[Dataset]:
    """Every content item below this one."""
    for below in item.get("ContentSequence") or ():
        yield below
        yield from _items(below)


def _concept(item: Dataset) -> str:
    names = item.get("ConceptNameCodeSequence") or [Dataset()]
    return str(names[0].get("CodeValue", ""))


def _references(item: Dataset) -> list[str]:
    return [str(one.ReferencedSOPInstanceUID) for one in item.get("ReferencedSOPSequence") or ()]


def _predecessors(dataset: Dataset) -> Iterator[tuple[str, str, str]]:
    """(study, SOP class, SOP instance) of each earlier document that it names."""
    for study in dataset.get("PredecessorDocumentsSequence") or ():
        for series in study.ReferencedSeriesSequence:
            for one in series.ReferencedSOPSequence:
                yield str(study.StudyInstanceUID), str(one.ReferencedSOPClassUID), str(one.ReferencedSOPInstanceUID)


def _evidence(dataset: Dataset) -> Iterator[str]:
    for name in ("CurrentRequestedProcedureEvidenceSequence", "PertinentOtherEvidenceSequence"):
        for study in dataset.get(name) or ():
            for series in study.ReferencedSeriesSequence:
                yield from (str(one.ReferencedSOPInstanceUID) for one in series.ReferencedSOPSequence)
