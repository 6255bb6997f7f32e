"""One look at an output folder: the facts for the gate, and the bytes that could leave. Decides nothing and writes nothing."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from policies.output import LeakBudget, OutputLimits, ReleaseFacts, WeightsFacts, metric_bits, weight_bits
from rapha.canonical import digest
from rapha.declaration import Declaration
from tasks.guarding.folder import METRICS, WEIGHTS, read_folder
from tasks.guarding.identifiers import search
from tasks.guarding.metrics import Numbers, read_metrics, write_metrics
from tasks.guarding.tensors import Broken, Tensor, compare, parse_weights, rounded, write_weights


@dataclass(frozen=True, slots=True)
class Inspection:
    """`facts`: the keyword arguments of `OutputEvidence` beyond the attempt's; `files`: name -> bytes, or empty."""

    facts: dict[str, Any]
    files: dict[str, bytes]


def inspect(folder: Path, declaration: Declaration, limits: OutputLimits, forbidden: Iterable[bytes] = ()) -> Inspection:
    """Reads, parses and rewrites in memory. Every fault is a fact; none is raised."""
    copy = read_folder(folder, limits.max_bytes)
    weights, tensors = _weights(copy.weights, declaration, limits)
    metrics, numbers = read_metrics(copy.metrics, declaration)
    files = _files(weights, tensors, numbers, limits)
    searched, found = search(forbidden, [*(c for c in (copy.weights, copy.metrics) if c), *files.values()])
    return Inspection(
        facts={
            "folder": copy.facts,
            "kinds": copy.kinds,
            "weights": weights,
            "metrics": metrics,
            "leak": leak_budget(declaration, limits),
            "release": _release(files, declaration, limits),
            "identifiers_searched": searched,
            "identifiers_found": found,
            "limits": limits,
        },
        files=files,
    )


def leak_budget(declaration: Declaration, limits: OutputLimits) -> LeakBudget:
    """Counted from the declaration and the site's numbers alone: nothing that the trainer does changes it."""
    mantissa = span = 0
    for tensor in declaration.outputs.tensors:
        count = 1
        for side in tensor.shape:
            count *= side
        kept, ranged = weight_bits(tensor.dtype, limits)
        mantissa, span = mantissa + count * kept, span + count * ranged
    metrics = sum(metric_bits(m.minimum, m.maximum, m.digits) for m in declaration.outputs.metrics)
    return LeakBudget(weights_mantissa=mantissa, weights_range=span, metrics=metrics)


def _weights(raw: bytes | None, declaration: Declaration, limits: OutputLimits) -> tuple[WeightsFacts, list[Tensor]]:
    if raw is None:
        return WeightsFacts(broken="weights-absent"), []
    try:
        tensors = parse_weights(raw, limits)
    except Broken as broken:
        return WeightsFacts(broken=broken.code), []
    return compare(tensors, declaration), tensors


def _files(weights: WeightsFacts, tensors: list[Tensor], numbers: Numbers | None, limits: OutputLimits) -> dict[str, bytes]:
    wrong = weights.missing + weights.extra + weights.misshapen + weights.mistyped + weights.not_finite
    if weights.broken or wrong or not tensors or numbers is None:
        return {}
    return {WEIGHTS: write_weights([rounded(t, limits) for t in tensors]), METRICS: write_metrics(numbers)}


def _release(files: dict[str, bytes], declaration: Declaration, limits: OutputLimits) -> ReleaseFacts | None:
    if not files:
        return None
    return ReleaseFacts(
        weights=digest(files[WEIGHTS]),
        metrics=digest(files[METRICS]),
        bytes=sum(len(content) for content in files.values()),
        stable=_is_stable(files, declaration, limits),
    )


def _is_stable(files: dict[str, bytes], declaration: Declaration, limits: OutputLimits) -> bool:
    """What was written reads back as the declared outputs, and writing that again gives the same bytes."""
    weights, tensors = _weights(files[WEIGHTS], declaration, limits)
    _, numbers = read_metrics(files[METRICS], declaration)
    return _files(weights, tensors, numbers, limits) == files
