"""What may leave: exactly the declared tensors and numbers, written anew. Anything else refuses the whole job.

The facts are counts and codes from fixed sets: no file name, no value and no exception text of what the trainer wrote is in them,
since all of that is the trainer's to choose.
"""

import re
from dataclasses import dataclass, fields

from policies.gate import Check, Evidence, Gate, check, check_each, limits_json
from policies.output_reasons import FOLDER_REASONS, KINDS_REASONS, METRICS_REASONS, SIZE_REASONS, WEIGHTS_REASONS
from rapha.canonical import is_digest

SCOPES = ("release", "structure")
DTYPES = {"F32": (8, 23), "F16": (5, 10), "BF16": (8, 7)}  # exponent and mantissa bits (IEEE 754, bfloat16)
METRIC_FLOOR = 12  # a metric's magnitude under 10^-12 leaves as zero: that bounds what its exponent can carry

# A metric's name is made of these words alone, one of them a measure: no count, minimum, quantile or subgroup is among them.
MEASURES = (
    *("accuracy", "auc", "auroc", "bce", "dice", "entropy", "error", "f1", "iou", "kappa", "loss", "mae", "mcc", "mse"),
    *("precision", "r2", "recall", "rmse", "sensitivity", "specificity"),
)
QUALIFIERS = (
    *(
        "balanced",
        "baseline",
        "cross",
        "held",
        "heldout",
        "intensity",
        "macro",
        "majority",
        "mean",
        "micro",
        "out",
        "rate",
        "roc",
    ),
    *("score", "test", "top1", "top5", "train", "training", "untrained", "val", "validation", "weighted"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputLimits:
    """The site's numbers.

    max_bytes: of the two files together; mantissa_bits: kept of each weight, the rest is rounded away; max_leak_bits: what the
    release could carry at most; metric_…: the words that a metric's name may be made of, a measure among them.
    """

    max_bytes: int = 512 << 20
    max_header_bytes: int = 1 << 20
    max_parameters: int = 1 << 27
    mantissa_bits: int = 10
    max_leak_bits: int = 1 << 31
    max_metrics: int = 64
    max_metric_digits: int = 4
    metric_measures: tuple[str, ...] = MEASURES
    metric_qualifiers: tuple[str, ...] = QUALIFIERS

    def __post_init__(self) -> None:
        """A number of another kind would compare wrongly, or not at all: `ValueError` before anything is judged by it."""
        for name in ("metric_measures", "metric_qualifiers"):
            words = getattr(self, name)
            if not isinstance(words, list | tuple) or not all(isinstance(word, str) and word for word in words):
                raise ValueError(f"{name} is a list of words")
            object.__setattr__(self, name, tuple(words))
        numbers = [getattr(self, f.name) for f in fields(self) if not f.name.startswith("metric_")]
        if not all(type(number) is int and number >= 0 for number in numbers) or self.mantissa_bits > 23:
            raise ValueError("the output limits are whole numbers from 0, mantissa_bits at most 23")


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderFacts:
    """What lay in the output folder, counted. `opened`: the folder itself is a real folder and could be read."""

    opened: bool
    missing: int = 0
    extra: int = 0
    dot: int = 0
    symlinks: int = 0
    hard_links: int = 0
    folders: int = 0
    special: int = 0
    sparse: int = 0
    xattrs: int = 0
    changed: int = 0
    unreadable: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsFacts:
    """The weights file against the declaration. `broken` is "" or the code of the structure's first fault."""

    broken: str
    missing: int = 0
    extra: int = 0
    misshapen: int = 0
    mistyped: int = 0
    not_finite: int = 0
    canonicalised: int = 0  # negative zeros and subnormals, which leave as zero
    tensors: int = 0
    parameters: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsFacts:
    """The metrics file against the declaration; `names` and `digits` are the declaration's own."""

    broken: str
    missing: int = 0
    extra: int = 0
    not_numbers: int = 0
    out_of_range: int = 0
    names: tuple[str, ...] = ()
    digits: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LeakBudget:
    """The most that the release can carry, in bits: an upper bound by counting values, not a measurement.

    weights_mantissa: kept mantissa bits times parameters; weights_range: sign and exponent bits times parameters;
    metrics: the values that each declared metric can take; names, order, sizes and times carry none: they are not the trainer's.
    """

    weights_mantissa: int
    weights_range: int
    metrics: int

    @property
    def total(self) -> int:
        return self.weights_mantissa + self.weights_range + self.metrics

    def to_json(self) -> dict[str, int]:
        return {
            "weights_mantissa": self.weights_mantissa,
            "weights_range": self.weights_range,
            "metrics": self.metrics,
            "total": self.total,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseFacts:
    """What the writer made, not yet on disk. `stable`: read again, it parses to itself, byte for byte."""

    weights: str
    metrics: str
    bytes: int
    stable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputEvidence(Evidence):
    """`after`: the gate that cleared just before; `granted_…`: the dataset manifest's bounds; `release`: or None."""

    scope: str
    after: str
    folder: FolderFacts
    kinds: tuple[str, ...]
    weights: WeightsFacts
    metrics: MetricsFacts
    leak: LeakBudget
    release: ReleaseFacts | None
    identifiers_searched: int
    identifiers_found: int
    granted_bytes: int
    granted_metrics: int
    limits: OutputLimits


def weight_bits(dtype: str, limits: OutputLimits) -> tuple[int, int]:
    """(mantissa bits kept, sign and exponent bits) of one weight."""
    exponent, mantissa = DTYPES[dtype]
    return min(mantissa, limits.mantissa_bits), 1 + exponent


def metric_bits(minimum: float, maximum: float, digits: int) -> int:
    """Upper bound on the bits in one number of `digits` significant digits with magnitude 0 or 10^-12 to the range's end."""
    largest = max(abs(minimum), abs(maximum))
    decades = len(str(int(largest))) + METRIC_FLOOR
    signs = 2 if minimum < 0 < maximum else 1
    return int(signs * decades * 9 * 10 ** (digits - 1) + 3).bit_length()  # and zero, and the two ends of the range


def _metric_name_allowed(name: str, limits: OutputLimits) -> bool:
    parts = re.split(r"[._-]", name)
    measures = [part for part in parts if part in limits.metric_measures]
    return len(measures) > 0 and all(part in (*measures, *limits.metric_qualifiers) for part in parts)


@check(
    "output-before-training",
    "node",
    "The outputs were read before training was seen to end.",
    "Run the stages in their order; only a completed run has outputs.",
)
def _after_training(e: OutputEvidence) -> bool:
    return (e.scope == "release" and e.after == "train" and e.attempt > 0) or (e.scope == "structure" and e.attempt == 0)


@check_each("output-folder", FOLDER_REASONS)
def _folder(e: OutputEvidence) -> list[str]:
    f = e.folder
    found = {
        "output-folder": not f.opened,
        "output-missing": f.missing,
        "output-extra-file": f.extra,
        "output-dot-file": f.dot,
        "output-symlink": f.symlinks,
        "output-hard-link": f.hard_links,
        "output-directory": f.folders,
        "output-special-file": f.special,
        "output-sparse": f.sparse,
        "output-xattr": f.xattrs,
        "output-changed": f.changed,
        "output-unreadable": f.unreadable,
    }
    return [code for code, count in found.items() if count != 0]


@check_each("output-kinds", KINDS_REASONS)
def _kinds(e: OutputEvidence) -> list[str]:
    return [f"output-is-{kind}" for kind in e.kinds]


@check_each("output-size", SIZE_REASONS)
def _size(e: OutputEvidence) -> list[str]:
    released = e.release.bytes if e.release else 0
    over = {
        "output-too-large": max(e.folder.bytes, released) > e.limits.max_bytes,
        "output-over-manifest": max(e.folder.bytes, released) > e.granted_bytes,
        "output-too-many-parameters": e.weights.parameters > e.limits.max_parameters,
    }
    return [code for code, is_over in over.items() if is_over is not False]


@check_each("output-weights", WEIGHTS_REASONS)
def _weights(e: OutputEvidence) -> list[str]:
    w = e.weights
    if w.broken != "":
        return [w.broken]
    wrong = {
        "weights-names": w.missing + w.extra,
        "weights-shapes": w.misshapen,
        "weights-dtypes": w.mistyped,
        "weights-not-finite": w.not_finite,
        "weights-absent": w.tensors < 1,
    }
    return [code for code, count in wrong.items() if count != 0]


@check_each("output-metrics", METRICS_REASONS)
def _metrics(e: OutputEvidence) -> list[str]:
    m = e.metrics
    wrong = {
        "metrics-names": m.broken == "" and m.missing + m.extra != 0,
        "metrics-not-a-number": m.not_numbers != 0,
        "metrics-out-of-range": m.out_of_range != 0,
        "metrics-name-not-allowed": not all(_metric_name_allowed(name, e.limits) for name in m.names),
        "metrics-too-many": len(m.names) > min(e.limits.max_metrics, e.granted_metrics),
        "metrics-digits": any(digits > e.limits.max_metric_digits for digits in m.digits),
    }
    return [*([m.broken] if m.broken != "" else []), *(code for code, is_wrong in wrong.items() if is_wrong is not False)]


@check(
    "output-identifier",
    "job",
    "An identifier of the cohort was found in the outputs.",
    "Look at what the training code writes; the hospital is told.",
)
def _identifiers(e: OutputEvidence) -> bool:
    return e.identifiers_found == 0 and e.identifiers_searched >= 0


@check(
    "output-leak-budget",
    "job",
    "The release could carry more bits than this site allows.",
    "Declare a smaller model, a shorter number format or fewer digits.",
)
def _leak(e: OutputEvidence) -> bool:
    return 0 <= e.leak.total <= e.limits.max_leak_bits and 0 <= e.limits.mantissa_bits <= 23


@check(
    "output-not-written",
    "job",
    "There is nothing that could leave.",
    "See the other codes: the files could not be read as what was declared.",
)
def _written(e: OutputEvidence) -> bool:
    r = e.release
    return r is not None and is_digest(r.weights) and is_digest(r.metrics) and r.stable is True and r.bytes > 0


OUTPUT_CHECKS: tuple[Check[OutputEvidence], ...] = (
    _after_training,
    _folder,
    _kinds,
    _size,
    _weights,
    _metrics,
    _identifiers,
    _leak,
    _written,
)


def output_gate(limits: OutputLimits) -> Gate[OutputEvidence]:
    """The gate between the sandbox's files and the release, under this site's numbers."""
    return Gate("output", OUTPUT_CHECKS, site=limits_json(limits))
