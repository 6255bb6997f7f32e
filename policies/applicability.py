"""Which instances of a study which model reads, and why the others are left out: each has an answer, and no answer is empty."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from policies.model import Model

STORAGE = "1.2.840.10008.5.1.4.1.1."
# SOP classes (PS3.4 B.5) that hold no image to analyse: an exact UID, or a root that ends in a dot.
_KINDS: tuple[tuple[str, str], ...] = (
    (STORAGE + "88.59", "key-object"),
    (STORAGE + "88.", "structured-report"),
    (STORAGE + "11.", "presentation-state"),
    (STORAGE + "66.4", "segmentation"),
    (STORAGE + "66.7", "segmentation"),
    (STORAGE + "66.", "registration-or-mesh"),
    (STORAGE + "104.", "encapsulated-document"),
    (STORAGE + "481.2", "dose"),
    (STORAGE + "481.", "radiotherapy"),
    (STORAGE + "9.", "waveform"),
    (STORAGE + "30", "parametric-map"),
    (STORAGE + "91.1", "annotation"),
    (STORAGE + "67", "value-mapping"),
)
_MODALITIES: Mapping[str, str] = {
    "SR": "structured-report",
    "KO": "key-object",
    "PR": "presentation-state",
    "SEG": "segmentation",
    "DOC": "encapsulated-document",
    "ANN": "annotation",
    "REG": "registration-or-mesh",
    "RTSTRUCT": "radiotherapy",
    "RTPLAN": "radiotherapy",
    "RTDOSE": "dose",
    "ECG": "waveform",
}
SLIDE = STORAGE + "77.1.6"
# Value 3 of Image Type of a whole-slide image (PS3.3 C.8.12.4.1.1): what is no tissue. A label shows who the patient is.
_FLAVOURS: Mapping[str, str] = {"LABEL": "slide-label", "OVERVIEW": "slide-overview", "LOCALIZER": "slide-overview"}


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceFacts:
    """What is known of a sealed instance without a word of its patient.

    index: its place in the study as it was opened; flavour: value 3 of Image Type; fault: code of why its pixels cannot be given
    to a model, "" for none; own: a report of this node; same: its bytes are those whose digest was named; levels: of the pyramid
    that this slide instance is the finest of, else 1; base: index of the finest instance of its pyramid, its own elsewhere.
    """

    index: int
    sop_class: str
    modality: str
    transfer_syntax: str
    sha256: str
    same: bool
    frames: int
    rows: int
    columns: int
    levels: int
    base: int
    flavour: str
    burned_in: bool
    own: bool
    fault: str


@dataclass(frozen=True, slots=True)
class Applicability:
    """reading: (model's place in the list, indexes that it is to read), where there are any; left_out: index -> reason."""

    reading: tuple[tuple[int, tuple[int, ...]], ...]
    left_out: Mapping[int, str]


def applicability(instances: Sequence[InstanceFacts], models: Sequence[Model]) -> Applicability:
    """Every instance is either read by at least one model or left out with a reason."""
    reasons = {one.index: unfit(one) for one in instances}
    reading = []
    for place, model in enumerate(models):
        indexes = tuple(one.index for one in instances if not reasons[one.index] and declares(model, one))
        if indexes:
            reading.append((place, indexes))
    read = {index for _, indexes in reading for index in indexes}
    left_out = {one.index: reasons[one.index] or "no-model" for one in instances if one.index not in read}
    return Applicability(tuple(reading), left_out)


def declares(model: Model, instance: InstanceFacts) -> bool:
    """Whether a model reads instances of this modality and SOP class."""
    return instance.modality in model.inputs.modalities and instance.sop_class in model.inputs.sop_classes


def kind_of(sop_class: str, modality: str) -> str:
    """Why an object of this kind is no image, or "". Either word is enough: they are written by different hands."""
    by_class = next((why for root, why in _KINDS if sop_class == root or (root.endswith(".") and sop_class.startswith(root))), "")
    return by_class or _MODALITIES.get(modality, "")


def unfit(instance: InstanceFacts) -> str:
    """Why no model at all reads an instance, or ""."""
    if instance.own:
        return "own-report"
    return kind_of(instance.sop_class, instance.modality) or _flavour(instance) or instance.fault


def _flavour(instance: InstanceFacts) -> str:
    if instance.sop_class != SLIDE:
        return ""
    return _FLAVOURS.get(instance.flavour, "slide-thumbnail" if instance.flavour == "THUMBNAIL" else "")
