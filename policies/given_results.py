"""Analysis results that a person hands over, held to what the site's models declare: nothing else becomes a report.

    {"algorithm_name": "lesion-radiology-v1.0.0",
     "findings": [{"finding_type": "lesion", "confidence": 0.95, "coordinates": [[100, 200], [150, 250]],
                   "sop_instance_uid": "1.2.…", "frame": 1, "shape": "polygon", "measurements": [{"name", "value"}, …]}, …],
     "instances": ["1.2.…", …]}

`algorithm_name` is a listed model's name, alone or with `-` or `-v` and its version. `coordinates` are (x, y) of the image's own
matrix; one is a point, two are opposite corners of a rectangle, three and more a polygon, unless `shape` says otherwise.
`sop_instance_uid` and `frame` may be left out where the model reads one image of the study, and of one frame. `instances` names
every image that was read; without it, those with findings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from policies.applicability import InstanceFacts, declares, unfit
from policies.findings import Finding, ImageShape, is_critical, read_listed
from policies.model import Model
from rapha.errors import Refusal

_WHOLE = {"algorithm_name", "algorithm_version", "findings", "instances"}
_ONE = {"finding_type", "confidence", "coordinates", "sop_instance_uid", "frame", "shape", "measurements"}


@dataclass(frozen=True, slots=True)
class Given:
    """model: its place in the site's list; read: indexes of the images that it read; critical: findings that are."""

    model: int
    read: frozenset[int]
    findings: tuple[Finding, ...]
    critical: int


def read_given(results: object, models: Sequence[Model], instances: Sequence[InstanceFacts], uids: Sequence[str]) -> Given:
    """instances, uids: of every opened instance of the study, in one order.

    Raises `Refusal` analysis-malformed, analysis-algorithm-unknown, analysis-image-missing, analysis-image-unknown,
    analysis-nothing-read, findings-….
    """
    if not isinstance(results, Mapping) or not set(results) <= _WHOLE or "findings" not in results:
        raise _wrong("malformed", "analysis results have other fields than they may")
    place = _model(results, models)
    model = models[place]
    readable = {
        uid: one for uid, one in zip(uids, instances, strict=True) if not unfit(one) and one.same and declares(model, one)
    }
    whole = {uid: one for uid, one in readable.items() if one.base == one.index}
    listed = [_finding(one, model, readable, whole) for one in _list(results["findings"])]
    shapes = [ImageShape(one.frames, one.rows, one.columns) for one in instances]
    findings = read_listed(listed, model, shapes)
    read = {_image(uid, readable) for uid in _list(results.get("instances", []))} | {one.index for one in findings}
    if not read and len(whole) == 1:
        read = {one.index for one in whole.values()}
    if not read:
        raise _wrong("nothing-read", "say in `instances` which images were read")
    return Given(place, frozenset(read), findings, sum(is_critical(model, one) for one in findings))


def _model(results: Mapping[str, Any], models: Sequence[Model]) -> int:
    name, version = results.get("algorithm_name"), results.get("algorithm_version", "")
    for place, model in enumerate(models):
        told = {model.name: "", f"{model.name}-{model.version}": model.version, f"{model.name}-v{model.version}": model.version}
        if isinstance(name, str) and name in told and version in ("", model.version):
            return place
    raise _wrong("algorithm-unknown", "the site's list of models has no such algorithm of this version")


def _finding(
    given: object, model: Model, readable: Mapping[str, InstanceFacts], whole: Mapping[str, InstanceFacts]
) -> dict[str, Any]:
    """In the form that a model itself writes."""
    if (
        not isinstance(given, Mapping)
        or not set(given) <= _ONE
        or not {"finding_type", "confidence", "coordinates"} <= set(given)
    ):
        raise _wrong("malformed", "a finding has other fields than it may")
    one = _on(given, readable, whole)
    if "frame" not in given and one.frames != 1:
        raise _wrong("image-missing", "a finding on an image of several frames names its frame, from 1")
    shape, points = _drawn(given)
    measured = [_measurement(each, model) for each in _list(given.get("measurements", []))]
    return {
        "index": one.index,
        "frame": given.get("frame", 1),
        "kind": str(given["finding_type"]).replace("_", "-").lower(),
        "confidence": given["confidence"],
        "shape": shape,
        "points": points,
        "measurements": measured,
    }


def _on(given: Mapping[str, Any], readable: Mapping[str, InstanceFacts], whole: Mapping[str, InstanceFacts]) -> InstanceFacts:
    if "sop_instance_uid" in given:
        uid = given["sop_instance_uid"]
        _image(uid, readable)
        return readable[uid]
    if len(whole) != 1:
        raise _wrong(
            "image-missing", "the model reads several images of this study, or none: a finding names its sop_instance_uid"
        )
    return next(iter(whole.values()))


def _image(uid: object, readable: Mapping[str, InstanceFacts]) -> int:
    if not isinstance(uid, str) or uid not in readable:
        raise _wrong("image-unknown", "an image was named that this study does not have, or that the model does not read")
    return readable[uid].index


def _drawn(given: Mapping[str, Any]) -> tuple[object, list[list[float]]]:
    points = [list(_list(point)) for point in _list(given["coordinates"])]
    if any(len(point) != 2 or any(type(value) not in (int, float) for value in point) for point in points):
        raise _wrong("malformed", "coordinates are pairs of numbers")
    points = [[float(value) for value in point] for point in points]
    if "shape" in given:
        return given["shape"], points
    if len(points) == 2:
        (left, top), (right, bottom) = points
        return "polygon", [[left, top], [right, top], [right, bottom], [left, bottom]]
    return ("point" if len(points) == 1 else "polygon"), points


def _measurement(given: object, model: Model) -> dict[str, Any]:
    if not isinstance(given, Mapping) or set(given) != {"name", "value"}:
        raise _wrong("malformed", "a measurement has a name and a value, in the unit that the model declares")
    kind = model.findings.measurement(str(given["name"]))
    return {"name": given["name"], "value": given["value"], "unit": kind.unit.value if kind else ""}


def _list(value: object) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise _wrong("malformed", "a list was expected")
    return value


def _wrong(what: str, message: str) -> Refusal:
    return Refusal([f"analysis-{what}"], message, gate="analysis", side="job")
