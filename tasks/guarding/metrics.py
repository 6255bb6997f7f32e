"""The metrics: a flat JSON object of the declared names, each a plain number, rounded to its declared digits."""

import math
from typing import Any

from policies.output import METRIC_FLOOR, MetricsFacts
from rapha.canonical import canonical, parse
from rapha.declaration import Declaration, Metric
from rapha.errors import Refusal

MAX_METRICS_BYTES = 64 * 1024
Numbers = dict[str, float]


def read_metrics(raw: bytes | None, declaration: Declaration) -> tuple[MetricsFacts, Numbers | None]:
    """The facts, and the rounded numbers when every declared metric is there, a number and in range, and nothing else is."""
    declared = {m.name: m for m in declaration.outputs.metrics}
    fixed = {"names": tuple(declared), "digits": tuple(m.digits for m in declared.values())}
    if raw is None:
        return MetricsFacts(broken="metrics-absent", **fixed), None  # type: ignore[arg-type]
    try:
        found = parse(raw, limit=MAX_METRICS_BYTES, what="metrics file")
    except Refusal:
        found = None
    if not isinstance(found, dict):
        return MetricsFacts(broken="metrics-malformed", **fixed), None  # type: ignore[arg-type]
    numbers = {name: found[name] for name in declared if name in found and _is_number(found[name])}
    facts = MetricsFacts(
        broken="",
        missing=len(declared.keys() - found.keys()),
        extra=len(found.keys() - declared.keys()),
        not_numbers=sum(1 for value in found.values() if not _is_number(value)),
        out_of_range=sum(1 for name, value in numbers.items() if not declared[name].minimum <= value <= declared[name].maximum),
        **fixed,  # type: ignore[arg-type]
    )
    if facts.missing or facts.extra or facts.not_numbers or facts.out_of_range:
        return facts, None
    return facts, {name: round_metric(value, declared[name]) for name, value in numbers.items()}


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def round_metric(value: float, metric: Metric) -> float:
    """`value` to the metric's significant digits, inside its range, and zero under 10^-12."""
    near = float(f"{value:.{metric.digits - 1}e}")
    near = 0.0 if abs(near) < 10.0**-METRIC_FLOOR else near
    return min(max(near, metric.minimum), metric.maximum) + 0.0


def write_metrics(numbers: Numbers) -> bytes:
    """Canonical JSON (RFC 8785) of the numbers and one newline."""
    return canonical(numbers) + b"\n"
