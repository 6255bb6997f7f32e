"""The report of the open study: what the models found, held once more to their declarations, on the study's own headers."""

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydicom.filereader import dcmread

from blocks.models import ModelPackage
from blocks.part10 import read_meta
from infra.study.opened import Opened, Opener
from infra.study.reports import headers, keep, referenced
from policies.findings import Finding, ImageShape, read_listed
from rapha.errors import Refusal

NAMES = {"at", "device", "three_d", "segments", "results", "earlier"}
MOST_EARLIER = 64


def report(
    opened: Opened, opener: Opener, folder: Path, models: Mapping[str, ModelPackage], message: Mapping[str, Any]
) -> dict[str, Any]:
    """Builds, seals and describes the report. Raises `Refusal` study-request-odd, study-model-unknown, findings-…, report-…;
    `PeerError` study-disk."""
    from tasks.reading.report import (
        Analysed,
        ReportFacts,
        build_objects,
    )  # highdicom takes half a second, and not every study has one

    results = [_result(one, opened, models) for one in _listed(message["results"])]
    chosen = sorted({index for _, read, _ in results for index in read})
    places = {index: place for place, index in enumerate(chosen)}
    analysed = [
        Analysed(
            model=package.model,
            digest=package.digest,
            read=tuple(places[index] for index in sorted(read)),
            findings=tuple(_placed(one, places) for one in findings),
        )
        for package, read, findings in results
    ]
    contents = tuple(opened.facts(index).sha256 for index in chosen)
    at, device = _whole(message["at"]), _text(message["device"])
    told = {name: message[name] is True for name in ("three_d", "segments")}
    earlier = _earlier(message["earlier"])
    made = ReportFacts(at=at, contents=contents, device=device, earlier=earlier, **told)
    built = build_objects(headers(opened, chosen), analysed, made)
    segmentations = [_kept(raw, folder, opener) for raw in built.segmentations]
    images = set(referenced(built.report)) - {one["sop_uid"] for one in segmentations}
    return {**_kept(built.report, folder, opener), "referenced": sorted(images), "segmentations": segmentations}


def _earlier(value: object) -> tuple[tuple[str, str, str], ...]:
    """(SOP class, SOP instance, series) of each earlier report."""
    if not isinstance(value, list) or len(value) > MOST_EARLIER:
        raise _odd()
    if not all(isinstance(one, dict) and set(one) == {"sop_uid", "sop_class", "series_uid"} for one in value):
        raise _odd()
    return tuple((_text(one["sop_class"]), _text(one["sop_uid"]), _text(one["series_uid"])) for one in value)


def _kept(raw: bytes, folder: Path, opener: Opener) -> dict[str, Any]:
    """Seals an object of ours, and says what the caller may know of it: its names, its digest, where it is."""
    meta = read_meta(raw)
    if meta is None:
        raise Refusal(["report-malformed"], "the report is no DICOM file")
    series = str(dcmread(io.BytesIO(raw), specific_tags=["SeriesInstanceUID"]).SeriesInstanceUID)
    sha256 = "sha256:" + hashlib.sha256(memoryview(raw)[meta.length :]).hexdigest()
    named = {"sop_uid": meta.sop_instance, "sop_class": meta.sop_class, "series_uid": series}
    return {**named, "sha256": sha256, "size": len(raw), "path": str(keep(raw, folder, opener.public).path)}


def _result(
    value: object, opened: Opened, models: Mapping[str, ModelPackage]
) -> tuple[ModelPackage, frozenset[int], tuple[Finding, ...]]:
    if not isinstance(value, dict) or set(value) != {"digest", "read", "findings"}:
        raise _odd()
    package = models.get(value["digest"]) if isinstance(value["digest"], str) else None
    if package is None:
        raise Refusal(["study-model-unknown"], "a result is of a model that this site does not list")
    read = value["read"]
    if not isinstance(read, list) or not all(type(index) is int and 0 <= index < len(opened) for index in read):
        raise _odd()
    shapes = [_shape(opened, index) for index in range(len(opened))]
    findings = read_listed(value["findings"], package.model, shapes)
    if any(one.index not in read for one in findings):
        raise Refusal(["findings-index"], "a finding is on an instance that its model did not read")
    return package, frozenset(read), findings


def _shape(opened: Opened, index: int) -> ImageShape:
    facts = opened.facts(index)
    return ImageShape(facts.frames, facts.rows, facts.columns)


def _placed(finding: Finding, places: Mapping[int, int]) -> Finding:
    return replace(finding, index=places[finding.index])


def _listed(value: object) -> Sequence[object]:
    if not isinstance(value, list) or not 0 < len(value) <= 64:
        raise _odd()
    return value


def _whole(value: object) -> int:
    if type(value) is not int or value < 0:
        raise _odd()
    return value


def _text(value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 64:
        raise _odd()
    return value


def _odd() -> Refusal:
    return Refusal(["study-request-odd"], "a request to the study reader has other fields than its verb's")
