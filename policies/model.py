"""What a model package says of itself, in model.json: which images it reads, which findings it may give, with which codes.

A model has no say beyond this: an instance that it does not declare is not shown to it, and a finding that it does not declare is
refused. Codes are those of the report (PS3.16 section 8: coding scheme designator, value, meaning).
"""

import re
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import Field, TypeAdapter, ValidationError

from rapha.canonical import canonical, parse
from rapha.errors import Refusal

MAX_MODEL = 256 * 1024
_FORBID = {"extra": "forbid"}
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,62}$")]
Text = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\\^=]+$")]
Uid = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)*$", max_length=64)]
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Form = Literal["point", "circle", "polygon", "region"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """A coded concept. value: at most 16 characters, as Code Value (0008,0100) has it."""

    __pydantic_config__: ClassVar[dict[str, str]] = _FORBID
    value: Annotated[str, Field(pattern=r"^[A-Za-z0-9.\-]{1,16}$")]
    scheme: Annotated[str, Field(pattern=r"^[A-Z0-9_]{1,16}$")]
    meaning: Text


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasurementKind:
    """A number that a finding may carry. unit: UCUM; low, high: what is believed, both included."""

    __pydantic_config__: ClassVar[dict[str, str]] = _FORBID
    name: Name
    code: Code
    unit: Code
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingKind:
    """critical_from: confidence from which such a finding is critical, None: never."""

    __pydantic_config__: ClassVar[dict[str, str]] = _FORBID
    kind: Name
    code: Code
    category: Code
    shapes: tuple[Form, ...]
    measurements: tuple[str, ...] = ()
    critical_from: Annotated[float, Field(ge=0, le=1)] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingsSchema:
    """reasons: with which the model may leave an instance out, beside those of the reader; most: findings that are believed."""

    __pydantic_config__: ClassVar[dict[str, str]] = _FORBID
    kinds: tuple[FindingKind, ...]
    measurements: tuple[MeasurementKind, ...] = ()
    reasons: tuple[Name, ...] = ()
    most: Annotated[int, Field(gt=0, le=10_000)] = 1000

    def kind(self, name: str) -> FindingKind | None:
        return next((one for one in self.kinds if one.kind == name), None)

    def measurement(self, name: str) -> MeasurementKind | None:
        return next((one for one in self.measurements if one.name == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """An instance is read when its modality and its SOP class are both listed."""

    __pydantic_config__: ClassVar[dict[str, str]] = _FORBID
    modalities: tuple[Annotated[str, Field(pattern=r"^[A-Z0-9_ ]{1,16}$")], ...]
    sop_classes: tuple[Uid, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """What its makers measured on made-up data that it was not trained on.

    distance: pixels within which a planted lesion counts as found; found: share of planted lesions; false_per_image: findings
    that are none; on: what was measured.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _FORBID
    distance: Annotated[float, Field(gt=0)]
    found: Annotated[float, Field(ge=0, le=1)]
    false_per_image: Annotated[float, Field(ge=0)]
    on: Annotated[str, Field(max_length=300)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """model.json, version 1. code, weights: digests of analyse.py and weights.safetensors."""

    __pydantic_config__: ClassVar[dict[str, str]] = _FORBID
    format: Literal[1]
    name: Name
    version: Annotated[str, Field(pattern=r"^[0-9A-Za-z.\-]{1,16}$")]
    manufacturer: Text
    inputs: Inputs
    findings: FindingsSchema
    accuracy: Accuracy
    code: Digest
    weights: Digest
    seconds: Annotated[int, Field(gt=0, le=3600)] = 600
    frames_at_once: Annotated[int, Field(gt=0, le=64)] = field(default=1)


_ADAPTER = TypeAdapter(Model)


def read_model(raw: bytes) -> Model:
    """model.json, strictly. Raises `Refusal` model-malformed, model-schema, json-…."""
    value = parse(raw, limit=MAX_MODEL, what="model.json")
    try:
        model = _ADAPTER.validate_json(canonical(value), strict=True)
    except (ValidationError, ValueError):
        raise Refusal(["model-malformed"], "model.json is not of the one form", gate="model") from None
    _check(model.findings)
    return model


def _check(schema: FindingsSchema) -> None:
    """Names are unique, and a finding's measurements are declared."""
    kinds, numbers = [one.kind for one in schema.kinds], [one.name for one in schema.measurements]
    unique = len(set(kinds)) == len(kinds) > 0 and len(set(numbers)) == len(numbers)
    declared = all(set(one.measurements) <= set(numbers) and one.shapes for one in schema.kinds)
    if not unique or not declared or any(one.low > one.high for one in schema.measurements):
        raise Refusal(["model-schema"], "the findings that model.json declares contradict each other", gate="model")


def is_reason(text: object) -> bool:
    """Whether `text` has the form of a reason code."""
    return isinstance(text, str) and re.fullmatch(r"[a-z][a-z0-9-]{0,62}", text) is not None
