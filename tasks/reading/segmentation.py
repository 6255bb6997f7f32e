"""The regions that models found, as Segmentation objects (PS3.3 A.51) through highdicom, the same bytes for the same facts.

A region is drawn on one image of one frame. An image has one object, and another for regions that overlap one of the first: so
a drawing is one label map in memory, however many regions there are. The report refers to a segment by number, and both call it
by the same tracking UID. Beside the report, it runs where the clear headers are.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from highdicom import AlgorithmIdentificationSequence
from highdicom.seg import (
    SegmentAlgorithmTypeValues,
    Segmentation,
    SegmentationTypeValues,
    SegmentDescription,
)
from highdicom.sr import ReferencedSegmentationFrame, SourceImageForSegmentation
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from policies.findings import Finding
from policies.model import FindingKind, Model
from policies.report import SEGMENTATION
from policies.uid import derived_uid
from rapha.errors import Refusal
from tasks.reading.objects import MANUFACTURER, SLIDE, VERSION_NAME, coded

REGION = "region"
SERIES_DESCRIPTION, SERIES_NUMBER = "AI regions", 9001


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """One finding's region. name: of the finding within the work that the report is of; tracking: its UID and identifier."""

    name: str
    tracking: tuple[str, str]
    finding: Finding
    kind: FindingKind
    model: Model


@dataclass(frozen=True, slots=True)
class Segmented:
    """One object. drawn: the regions' names, in the order of their segments: each is one frame, of its number."""

    dataset: Dataset
    source: Dataset
    drawn: tuple[str, ...]

    def frames(self) -> Iterator[tuple[str, ReferencedSegmentationFrame]]:
        """How a report refers to each region."""
        image = SourceImageForSegmentation.from_source_image(self.source)
        for number, name in enumerate(self.drawn, 1):
            frame = ReferencedSegmentationFrame(SEGMENTATION, self.dataset.SOPInstanceUID, number, number, image)
            del frame[0].ReferencedSOPSequence[0].ReferencedSegmentNumber  # one or the other (PS3.3 table C.17.3-1)
            yield name, frame


def is_drawn(source: Dataset, finding: Finding) -> bool:
    """Whether a finding becomes a segment. A slide's and a multi-frame image's region stays an outline in the report."""
    one_frame = int(source.get("NumberOfFrames", 1) or 1) == 1
    return finding.shape == REGION and one_frame and str(source.SOPClassUID) != SLIDE


def segmentations(sources: Sequence[Dataset], regions: Sequence[Region], device: str, work: str) -> list[Segmented]:
    """Every object that the regions need, in the order of their images. work: what it all follows from, as a name.

    Raises `Refusal` report-source-incomplete.
    """
    found: list[Segmented] = []
    for place in sorted({region.finding.index for region in regions}):
        mine = [region for region in regions if region.finding.index == place]
        for drawing, drawn in _drawings(mine, int(sources[place].Rows), int(sources[place].Columns)):
            found.append(_object(sources[place], drawing, drawn, device, f"{work}.{len(found)}", len(found) + 1))
    return found


def mask(points: Sequence[tuple[float, float]], rows: int, columns: int) -> np.ndarray[Any, Any]:
    """The pixels whose middle is within an outline, by the even-odd rule: (rows, columns) of bool. Of an outline so thin that it
    has none, the pixels of its corners.

    Pillow's own polygons reach two pixels beyond a sharp corner.
    """
    crossed = np.zeros((rows, columns + 1), dtype=bool)  # where an edge passes, on each row's middle, left of a pixel's middle
    for (ax, ay), (bx, by) in zip(points, [*points[1:], points[0]], strict=True):
        first, last = (min(rows, max(0, math.ceil(y - 0.5))) for y in sorted((ay, by)))
        row = np.arange(first, last)
        if len(row):
            at = ax + (row + 0.5 - ay) * ((bx - ax) / (by - ay))
            crossed[row, np.clip(np.ceil(at - 0.5), 0, columns).astype(int)] ^= True
    covered: np.ndarray[Any, Any] = np.logical_xor.accumulate(crossed, axis=1)[:, :columns]
    if not covered.any():
        for x, y in points:
            covered[min(int(y), rows - 1), min(int(x), columns - 1)] = True
    return covered


def _drawings(regions: Sequence[Region], rows: int, columns: int) -> Iterator[tuple[np.ndarray[Any, Any], list[Region]]]:
    """Label maps in which no region covers another's pixel, and the regions of each in the order of their numbers."""
    waiting = list(regions)
    while waiting:
        labels, drawn, over = np.zeros((rows, columns), dtype=np.uint16), list[Region](), list[Region]()
        for region in waiting:
            covered = mask(region.finding.points, rows, columns)
            if labels[covered].any():
                over.append(region)
                continue
            drawn.append(region)
            labels[covered] = len(drawn)
        yield labels, drawn
        waiting = over


def _object(
    source: Dataset, labels: np.ndarray[Any, Any], drawn: Sequence[Region], device: str, name: str, number: int
) -> Segmented:
    try:
        dataset = Segmentation(
            source_images=[source],
            pixel_array=labels,
            segmentation_type=SegmentationTypeValues.BINARY,
            segment_descriptions=[_description(region, place) for place, region in enumerate(drawn, 1)],
            series_instance_uid=derived_uid("regions", [name.rpartition(".")[0]]),
            series_number=SERIES_NUMBER,
            sop_instance_uid=derived_uid("segmentation", [name]),
            instance_number=number,
            manufacturer=MANUFACTURER,
            manufacturer_model_name=device,
            software_versions=VERSION_NAME,
            device_serial_number=device,
            content_label="FINDINGS",
            content_description=SERIES_DESCRIPTION,
            series_description=SERIES_DESCRIPTION,
        )
    except (AttributeError, ValueError, TypeError, KeyError):
        raise Refusal(["report-source-incomplete"], "an image lacks what a segmentation must say of it", gate="report") from None
    if "FrameOfReferenceUID" not in dataset:  # then a general image's orientation is said, or is said to be unknown
        dataset.PatientOrientation = source.get("PatientOrientation", "")
    _unrandom(dataset, derived_uid("dimensions", [name]))
    return Segmented(dataset, source, tuple(region.name for region in drawn))


def _description(region: Region, number: int) -> SegmentDescription:
    uid, identifier = region.tracking
    return SegmentDescription(
        segment_number=number,
        segment_label=region.kind.code.meaning,
        segmented_property_category=coded(region.kind.category),
        segmented_property_type=coded(region.kind.code),
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=AlgorithmIdentificationSequence(
            name=region.model.name, version=region.model.version, family=codes.DCM.ArtificialIntelligence
        ),
        tracking_uid=uid,
        tracking_id=identifier,
    )


def _unrandom(dataset: Dataset, uid: str) -> None:
    """The library names its dimensions anew each time."""
    for element in dataset.iterall():
        if element.keyword == "DimensionOrganizationUID":
            element.value = uid
