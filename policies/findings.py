"""findings.json, which a model writes in its sandbox: read strictly, held to what the model declared and to the images it read.

    {"version": 1, "model": {"name", "version", "digest"},
     "instances": [{"index": i, "status": "analysed"} | {"index": i, "status": "not-applicable", "reason": code}, …],
     "findings": [{"index", "frame", "kind", "confidence", "shape", "points": [[x, y], …],
                   "measurements": [{"name", "value", "unit"}, …]}, …]}

Coordinates are of the image's own pixel matrix, at level 0 of a slide: (0, 0) is the upper left corner of the upper left
pixel, x runs along a row (PS3.3 C.18.6.1.2). A circle is its centre and one point of its edge, as in a spatial coordinates
item; a polygon is reported as that line, a region as the pixels within its outline, in a segmentation. There is no free text
in it: nothing that a model writes travels further than numbers and names of its own declaration.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from policies.model import FindingKind, Model
from rapha.canonical import parse
from rapha.errors import Refusal

MAX_FINDINGS_FILE = 8 << 20
MAX_POLYGON = 1000
MAX_MEASUREMENTS = 16
MAX_POINTS = 50_000  # of all findings together: they travel to the report in one message
_POINTS = {"point": (1, 1), "circle": (2, 2), "polygon": (3, MAX_POLYGON), "region": (3, MAX_POLYGON)}


@dataclass(frozen=True, slots=True)
class ImageShape:
    """The pixel matrix of a record, at level 0. frames: of a slide, 1."""

    frames: int
    rows: int
    columns: int


@dataclass(frozen=True, slots=True)
class Measurement:
    """In the unit that the model declares for `name`."""

    name: str
    value: float


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding. index: of the instance in the study; frame: from 1; points: (x, y) in pixels of level 0."""

    index: int
    frame: int
    kind: str
    confidence: float
    shape: str
    points: tuple[tuple[float, float], ...]
    measurements: tuple[Measurement, ...] = ()


@dataclass(frozen=True, slots=True)
class Findings:
    """analysed: indexes; left_out: index -> reason; each record is in exactly one of them."""

    analysed: frozenset[int]
    left_out: Mapping[int, str]
    findings: tuple[Finding, ...]


def read_findings(raw: bytes, model: Model, digest: str, images: Sequence[ImageShape]) -> Findings:
    """The findings on records 0 … len(images) - 1. Raises `Refusal` findings-…, json-…."""
    value = parse(raw, limit=MAX_FINDINGS_FILE, what="findings")
    _exact(value, {"version", "model", "instances", "findings"})
    said = {"name": model.name, "version": model.version, "digest": digest}
    if type(value["version"]) is not int or value["version"] != 1 or value["model"] != said:
        raise _wrong("model")
    analysed, left_out = _instances(value["instances"], model, len(images))
    findings = read_listed(value["findings"], model, images)
    if any(one.index not in analysed for one in findings):
        raise _wrong("index")
    return Findings(frozenset(analysed), left_out, findings)


def read_listed(listed: object, model: Model, images: Sequence[ImageShape]) -> tuple[Finding, ...]:
    """The findings alone, on any of the images. Raises `Refusal` findings-…."""
    if not isinstance(listed, list) or len(listed) > model.findings.most:
        raise _wrong("count")
    findings = tuple(_finding(one, model, images) for one in listed)
    if sum(len(one.points) for one in findings) > MAX_POINTS:
        raise _wrong("points")
    return findings


def to_json(model: Model, finding: Finding) -> dict[str, Any]:
    """A finding in the form in which it is read."""
    units = {one.name: one.unit.value for one in model.findings.measurements}
    return {
        "index": finding.index,
        "frame": finding.frame,
        "kind": finding.kind,
        "confidence": finding.confidence,
        "shape": finding.shape,
        "points": [list(point) for point in finding.points],
        "measurements": [{"name": one.name, "value": one.value, "unit": units[one.name]} for one in finding.measurements],
    }


def is_critical(model: Model, finding: Finding) -> bool:
    """Whether the model's declaration calls a finding of this confidence critical."""
    kind = model.findings.kind(finding.kind)
    return kind is not None and kind.critical_from is not None and finding.confidence >= kind.critical_from


def _instances(listed: object, model: Model, total: int) -> tuple[set[int], dict[int, str]]:
    """Every record once, none twice, none that was not given."""
    if not isinstance(listed, list) or len(listed) != total:
        raise _wrong("incomplete")
    analysed: set[int] = set()
    left_out: dict[int, str] = {}
    for one in listed:
        read = isinstance(one, dict) and one.get("status") == "analysed"
        _exact(one, {"index", "status"} if read else {"index", "status", "reason"})
        index = _whole(one["index"], 0, total - 1, "index")
        if index in analysed or index in left_out:
            raise _wrong("incomplete")
        if read:
            analysed.add(index)
            continue
        if one["status"] != "not-applicable" or one["reason"] not in (*model.findings.reasons, "undecodable"):
            raise _wrong("reason")
        left_out[index] = one["reason"]
    return analysed, left_out


def _finding(value: object, model: Model, images: Sequence[ImageShape]) -> Finding:
    item = _exact(value, {"index", "frame", "kind", "confidence", "shape", "points", "measurements"})
    index = _whole(item["index"], 0, len(images) - 1, "index")
    image = images[index]
    kind = model.findings.kind(item["kind"]) if isinstance(item["kind"], str) else None
    if kind is None:
        raise _wrong("kind")
    if item["shape"] not in kind.shapes:
        raise _wrong("shape")
    return Finding(
        index=index,
        frame=_whole(item["frame"], 1, image.frames, "frame"),
        kind=kind.kind,
        confidence=_number(item["confidence"], 0, 1, "confidence"),
        shape=item["shape"],
        points=_points(item["points"], item["shape"], image),
        measurements=_measurements(item["measurements"], model, kind),
    )


def _points(value: object, shape: str, image: ImageShape) -> tuple[tuple[float, float], ...]:
    least, most = _POINTS[shape]
    if not isinstance(value, list) or not least <= len(value) <= most:
        raise _wrong("points")
    points = []
    for pair in value:
        if not isinstance(pair, list) or len(pair) != 2:
            raise _wrong("points")
        points.append((_number(pair[0], 0, image.columns, "outside"), _number(pair[1], 0, image.rows, "outside")))
    if shape != "point" and len(set(points)) < least:
        raise _wrong("points")  # a circle without a radius, a polygon or region without an area
    return tuple(points)


def _measurements(value: object, model: Model, kind: FindingKind) -> tuple[Measurement, ...]:
    if not isinstance(value, list) or len(value) > MAX_MEASUREMENTS:
        raise _wrong("measurement")
    found: dict[str, Measurement] = {}
    for one in value:
        item = _exact(one, {"name", "value", "unit"})
        name = item["name"]
        declared = model.findings.measurement(name) if isinstance(name, str) and name in kind.measurements else None
        if declared is None or name in found or item["unit"] != declared.unit.value:
            raise _wrong("measurement")
        found[name] = Measurement(name, _number(item["value"], declared.low, declared.high, "measurement"))
    return tuple(found.values())


def _exact(value: object, names: set[str]) -> dict[str, Any]:
    if not isinstance(value, dict) or set(value) != names:
        raise _wrong("fields")
    return value


def _whole(value: object, low: int, high: int, what: str) -> int:
    if type(value) is not int or not low <= value <= high:
        raise _wrong(what)
    return value


def _number(value: object, low: float, high: float, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not low <= value <= high:
        raise _wrong(what)
    return float(value)


def _wrong(what: str) -> Refusal:
    return Refusal([f"findings-{what}"], f"a model's findings are refused: {what}", gate="analyse")
