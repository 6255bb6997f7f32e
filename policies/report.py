"""Our own check of a report before it is stored: facts that were read from its bytes, held to what was analysed. Pure."""

from dataclasses import dataclass

COMPREHENSIVE, COMPREHENSIVE_3D = "1.2.840.10008.5.1.4.1.1.88.33", "1.2.840.10008.5.1.4.1.1.88.34"
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
SOP_CLASSES = (COMPREHENSIVE, COMPREHENSIVE_3D)

REASONS = {
    "report-sop-class": "It is neither Comprehensive SR nor Comprehensive 3D SR.",
    "report-template": "Its root is not the container Imaging Measurement Report of TID 1500.",
    "report-flags": "It is not complete, or claims to be verified by a person.",
    "report-no-patient": "It names no patient or study.",
    "report-evidence-empty": "It refers to no image.",
    "report-dangling-reference": "A content item refers to an image that its evidence does not list.",
    "report-no-algorithm": "A measurement group names no algorithm with a version.",
    "report-no-tracking": "A measurement group has no tracking identifier and UID, or shares one.",
    "report-no-group": "It has no measurement group: neither a finding nor that nothing was found.",
    "report-coordinates": "A region has no points, or points that are no numbers.",
    "report-predecessor": "It names itself, something of another study, or what is no report, as its predecessor.",
    "report-iod": "The IOD validator found errors.",
    "report-content": "The template validator found errors.",
    "segmentation-sop-class": "It is no Segmentation.",
    "segmentation-no-patient": "It names no patient or study.",
    "segmentation-no-source": "It is of no image.",
    "segmentation-no-segment": "It has no segment, or one that covers no pixel.",
    "segmentation-no-algorithm": "A segment names no algorithm with a version.",
    "segmentation-no-tracking": "A segment has no tracking identifier and UID, or shares one.",
    "segmentation-iod": "The IOD validator found errors.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupFacts:
    """One measurement group. algorithm: name and version, "" where missing; tracking: its UID; regions: points of each region."""

    algorithm: str
    version: str
    tracking: str
    identifier: str
    regions: tuple[tuple[float, ...], ...]
    references: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SrFacts:
    """What a report says of itself; UIDs are in memory only. named: its study and SOP instance; predecessors: (study, SOP class,
    SOP instance) of each document that it follows."""

    sop_class: str
    root: tuple[str, str]
    template: str
    completion: str
    verification: str
    has_patient: bool
    evidence: frozenset[str]
    references: frozenset[str]
    groups: tuple[GroupFacts, ...]
    named: tuple[str, str]
    predecessors: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentFacts:
    """One segment. pixels: that it covers."""

    algorithm: str
    version: str
    tracking: str
    identifier: str
    pixels: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentationFacts:
    """What a segmentation says of itself; UIDs are in memory only. sources: images that it is of."""

    sop_class: str
    has_patient: bool
    sources: frozenset[str]
    segments: tuple[SegmentFacts, ...]


def segmentation_codes(e: SegmentationFacts) -> tuple[str, ...]:
    """Codes of what is wrong with the segmentation, `()` when nothing is; each is in `REASONS`."""
    tracking = [one.tracking for one in e.segments]
    right = {
        "segmentation-sop-class": e.sop_class == SEGMENTATION,
        "segmentation-no-patient": e.has_patient,
        "segmentation-no-source": bool(e.sources),
        "segmentation-no-segment": bool(e.segments) and all(one.pixels > 0 for one in e.segments),
        "segmentation-no-algorithm": all(one.algorithm and one.version for one in e.segments),
        "segmentation-no-tracking": all(one.tracking and one.identifier for one in e.segments)
        and len(set(tracking)) == len(tracking),
    }
    return tuple(code for code, ok in right.items() if ok is not True)


def report_codes(e: SrFacts) -> tuple[str, ...]:
    """Codes of what is wrong with the report, `()` when nothing is; each is in `REASONS`."""
    tracking = [group.tracking for group in e.groups]
    right = {
        "report-sop-class": e.sop_class in SOP_CLASSES,
        "report-template": e.root == ("126000", "DCM") and e.template == "1500",
        "report-flags": e.completion == "COMPLETE" and e.verification == "UNVERIFIED",
        "report-no-patient": e.has_patient,
        "report-evidence-empty": bool(e.evidence),
        "report-dangling-reference": e.references <= e.evidence,
        "report-no-group": bool(e.groups),
        "report-no-algorithm": all(group.algorithm and group.version for group in e.groups),
        "report-no-tracking": all(group.tracking and group.identifier for group in e.groups)
        and len(set(tracking)) == len(tracking),
        "report-predecessor": all(_follows(e, *one) for one in e.predecessors),
        "report-coordinates": all(_is_region(points) for group in e.groups for points in group.regions),
    }
    return tuple(code for code, ok in right.items() if ok is not True)


def _follows(e: SrFacts, study: str, sop_class: str, instance: str) -> bool:
    return study == e.named[0] and sop_class in SOP_CLASSES and instance not in ("", e.named[1])


def _is_region(points: tuple[float, ...]) -> bool:
    return len(points) >= 2 and len(points) % 2 == 0 and all(-1e9 < number < 1e9 for number in points)
