"""The header of a sealed instance as facts, and its pixels frame by frame.

Compressed transfer syntaxes are decoded here, unlike in training: a clinical archive holds them, and a
lesion in a JPEG counts too.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Protocol, cast

import numpy as np
from pydicom.dataset import Dataset
from pydicom.filereader import dcmread
from pydicom.pixels import get_decoder
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from infra.reader.decode import MAX_HEADER, PARSER_ERRORS, TAGS, Image, image_of, pixels
from policies.applicability import SLIDE, InstanceFacts, kind_of
from policies.minimise import project_key
from rapha.errors import Refusal

NATIVE = frozenset((ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian))
_WANTED: list[Any] = sorted(
    {
        *TAGS,
        0x00080070,  # Manufacturer, and model: whose report it is
        0x00081090,
        0x0020000E,
        0x00200052,
        0x00280030,
        0x00280301,
        0x00480006,
        0x00480007,
        0x52009229,  # Shared Functional Groups: where a multi-frame image keeps its spacing
    }
)


class Stream(Protocol):
    """A sealed file in clear, seekable. budget: bytes that may still be read before it refuses, None for any."""

    budget: int | None

    def read(self, size: int | None = -1) -> bytes: ...
    def seek(self, offset: int, whence: int = 0) -> int: ...
    def tell(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Header:
    """What the study reader keeps of an instance. image: None when its pixels cannot be given to a model; fault: why."""

    sop_uid: str
    sop_class: str
    series: str
    frame_of_reference: str
    modality: str
    transfer_syntax: str
    flavour: str
    burned_in: bool
    own: bool
    rows: int
    columns: int
    frames: int
    spacing: tuple[float, float] | None
    image: Image | None
    fault: str
    attributes: Mapping[str, Any] = field(default_factory=dict)


def session_key() -> bytes:
    """A key for the pseudonyms of one study, as nobody will ever need to link them."""
    return project_key(secrets.token_bytes(32), "reading")


def read_header(stream: Stream, key: bytes) -> Header:
    """The header, in bounded memory. Raises `Refusal` record-malformed for what has no readable header at all."""
    stream.budget = MAX_HEADER
    try:
        dataset = dcmread(cast(BinaryIO, stream), stop_before_pixels=True, specific_tags=_WANTED)
        return _header(dataset, key)
    except PARSER_ERRORS:
        raise Refusal(["record-malformed"], "an instance has no header that can be read") from None
    finally:
        stream.budget = None


def read_frame(stream: Stream, image: Image, frame: int | None) -> np.ndarray[Any, Any]:
    """Stored values of a frame or of all. Raises `Refusal` record-malformed, record-too-large."""
    return pixels(cast(BinaryIO, stream), image, frame)


def facts_of(header: Header, index: int, sha256: str, *, same: bool) -> InstanceFacts:
    """A header as the facts that may leave this process, but for the instance's name."""
    return InstanceFacts(
        index=index,
        sop_class=header.sop_class,
        modality=header.modality,
        transfer_syntax=header.transfer_syntax,
        sha256=sha256,
        same=same,
        frames=header.frames,
        rows=header.rows,
        columns=header.columns,
        levels=1,
        base=index,
        flavour=header.flavour,
        burned_in=header.burned_in,
        own=header.own,
        fault=header.fault,
    )


def _header(dataset: Dataset, key: bytes) -> Header:
    syntax = str(dataset.file_meta.TransferSyntaxUID)
    sop_class, modality = _text(dataset, "SOPClassUID"), _text(dataset, "Modality")
    image, fault = _image(dataset, key, UID(syntax), kind_of(sop_class, modality))
    slide = sop_class == SLIDE
    kinds = dataset.get("ImageType") or ()
    return Header(
        sop_uid=_text(dataset, "SOPInstanceUID"),
        sop_class=sop_class,
        series=_text(dataset, "SeriesInstanceUID"),
        frame_of_reference=_text(dataset, "FrameOfReferenceUID"),
        modality=modality,
        transfer_syntax=syntax,
        flavour=str(kinds[2]).strip() if not isinstance(kinds, str) and len(kinds) > 2 else "",
        burned_in=image.burned_in if image else False,
        own=_text(dataset, "Manufacturer").lower() == "rapha" and modality in ("SR", "SEG"),
        rows=int(dataset.TotalPixelMatrixRows) if slide else image.rows if image else 0,
        columns=int(dataset.TotalPixelMatrixColumns) if slide else image.columns if image else 0,
        frames=1 if slide else image.frames if image else 0,
        spacing=_spacing(dataset),
        image=image,
        fault=fault,
        attributes=image.attributes if image else {},
    )


def _image(dataset: Dataset, key: bytes, syntax: UID, kind: str) -> tuple[Image | None, str]:
    """(the image, "") or (None, why not)."""
    if kind or "Rows" not in dataset:
        return None, kind or "no-pixels"
    if not _decodes(syntax):
        return None, "transfer-syntax"
    try:
        return image_of(dataset, key), ""
    except (*PARSER_ERRORS, Refusal):
        return None, "undecodable"


def _decodes(syntax: UID) -> bool:
    if syntax in NATIVE:
        return True
    try:
        return bool(get_decoder(syntax).is_available)
    except NotImplementedError:
        return False


def _spacing(dataset: Dataset) -> tuple[float, float] | None:
    """(between rows, between columns) in mm, in the patient; a detector's spacing is none (PS3.3 10.7.1.3)."""
    values = dataset.get("PixelSpacing")
    if values is None:
        for item in dataset.get("SharedFunctionalGroupsSequence") or ():
            for measures in item.get("PixelMeasuresSequence") or ():
                values = measures.get("PixelSpacing")
    try:
        rows, columns = (float(value) for value in values or ())
    except (ValueError, TypeError):
        return None
    return (rows, columns) if 0 < rows < 1000 and 0 < columns < 1000 else None


def _text(dataset: Dataset, name: str) -> str:
    value = dataset.get(name)
    return str(value).strip(" \x00") if value is not None else ""
