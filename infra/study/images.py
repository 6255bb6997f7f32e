"""The header of a sealed instance as facts, and its pixels frame by frame.

Compressed transfer syntaxes are read too, unlike in training: a clinical archive holds them, and a lesion in a JPEG counts. They
are decoded in a process of their own (`infra.study.decoder`).
"""

import io
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO, Protocol, cast

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import get_frame, parse_basic_offsets, parse_fragments
from pydicom.filereader import dcmread
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from blocks.part10 import FileMeta
from infra.reader.decode import MAX_ARRAY, MAX_HEADER, PARSER_ERRORS, TAGS, Image, image_of, malformed, pixels, unmasked
from infra.study.decoder import Decoder, Form
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
        0x00280004,
        0x00280006,
        0x7FE00001,  # Extended Offset Table, and lengths
        0x7FE00002,
    }
)
# What parsers and decoders raise at foreign bytes. A lack of memory is this node's, and no fault of an image.
FOREIGN: tuple[type[Exception], ...] = tuple(kind for kind in PARSER_ERRORS if kind is not MemoryError)
_UNREADABLE: tuple[type[Exception], ...] = (*FOREIGN, Refusal)


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
    form: Form
    pixels_at: int
    offsets: tuple[bytes, bytes] | None
    attributes: Mapping[str, Any] = field(default_factory=dict)


def session_key() -> bytes:
    """A key for the pseudonyms of one study, as nobody will ever need to link them."""
    return project_key(secrets.token_bytes(32), "reading")


def read_header(stream: Stream, key: bytes, meta: FileMeta) -> Header:
    """The header, in bounded memory. Raises `Refusal` record-malformed for what has no readable header at all.

    A deflated data set (PS3.5 annex A.5) is not inflated: a few bytes of it may be any number.
    """
    if meta.transfer_syntax == DeflatedExplicitVRLittleEndian:
        return _unread(meta)
    stream.budget = MAX_HEADER
    try:
        dataset = dcmread(cast(BinaryIO, stream), stop_before_pixels=True, specific_tags=_WANTED)
        return _header(dataset, key, stream.tell())
    except FOREIGN:
        raise Refusal(["record-malformed"], "an instance has no header that can be read") from None
    finally:
        stream.budget = None


def read_frame(stream: Stream, header: Header, decoder: Decoder, frame: int | None) -> np.ndarray[Any, Any]:
    """Stored values of a frame or of all. Raises `Refusal` record-malformed, record-too-large."""
    image = header.image
    if image is None:
        raise malformed()
    if UID(header.transfer_syntax) in NATIVE:
        return _native(stream, header, image, frame)
    if frame is not None or image.frames == 1:
        return _decoded(stream, header, image, decoder, frame or 0)
    if image.bytes > MAX_ARRAY:
        raise Refusal(["record-too-large"], "an array of this size is handed over by frames")
    return np.stack([_decoded(stream, header, image, decoder, number) for number in range(image.frames)])


def _native(stream: Stream, header: Header, image: Image, frame: int | None) -> np.ndarray[Any, Any]:
    """A frame of a multi-frame image is read where it lies, without going through a header of megabytes for each."""
    explicit = header.transfer_syntax == ExplicitVRLittleEndian
    length = image.bytes // image.frames
    plain = explicit or header.transfer_syntax == ImplicitVRLittleEndian
    halved = ("PhotometricInterpretation", "YBR_FULL_422") in header.form.values  # fewer bytes than its pixels say
    stream.seek(header.pixels_at)
    known = stream.read(4) == b"\xe0\x7f\x10\x00" and length * image.frames == image.bytes and image.bits_stored > 1
    if frame is None or image.frames == 1 or not plain or halved or not known:
        stream.seek(0)
        return pixels(cast(BinaryIO, stream), image, frame)
    stream.seek(header.pixels_at + (12 if explicit else 8) + frame * length)
    raw = _bounded(stream, length)
    one = replace(image, frames=1, bytes=length)
    return pixels(io.BytesIO(header.form.file(raw)), one, None)


def encoded_frame(stream: Stream, header: Header, frames: int, frame: int) -> bytes:
    """The bytes of one compressed frame (PS3.5 annex A.4). Raises one of FOREIGN, MemoryError, or `Refusal` record-too-large."""
    stream.seek(header.pixels_at)
    head = stream.read(12)  # tag, VR, two reserved bytes, length: compressed data are always Explicit VR Little Endian
    if len(head) != 12 or head[:4] != b"\xe0\x7f\x10\x00" or head[8:] != b"\xff\xff\xff\xff":
        raise malformed()
    buffer = cast(Any, stream)
    first = stream.tell()
    if frames > 1 and header.offsets is None and not parse_basic_offsets(buffer):
        count, places = parse_fragments(buffer)
        if count == frames:  # a fragment a frame: no need to walk through all of them for each
            stream.seek(places[frame] + 4)
            return _bounded(stream, int.from_bytes(stream.read(4), "little"))
    stream.seek(first)
    return get_frame(buffer, frame, extended_offsets=header.offsets, number_of_frames=frames)


def _bounded(stream: Stream, length: int) -> bytes:
    if length > MAX_ARRAY:
        raise Refusal(["record-too-large"], "a compressed frame is too large")
    return stream.read(length)


def _decoded(stream: Stream, header: Header, image: Image, decoder: Decoder, frame: int) -> np.ndarray[Any, Any]:
    if image.bytes // image.frames > MAX_ARRAY:
        raise Refusal(["record-too-large"], "an array of this size is handed over in regions")
    try:
        encoded = encoded_frame(stream, header, image.frames, frame)
    except FOREIGN:
        raise malformed() from None
    array = unmasked(decoder.decode(header.form, encoded), image)
    if array.shape != (image.rows, image.columns, *((image.samples,) if image.samples > 1 else ())):
        raise malformed()
    return array


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


def _header(dataset: Dataset, key: bytes, pixels_at: int) -> Header:
    syntax = str(dataset.file_meta.TransferSyntaxUID)
    sop_class, modality = _text(dataset, "SOPClassUID"), _text(dataset, "Modality")
    image, fault = _image(dataset, key, UID(syntax), kind_of(sop_class, modality))
    slide = sop_class == SLIDE and "TotalPixelMatrixRows" in dataset
    kinds = dataset.get("ImageType") or ()
    kinds = [] if isinstance(kinds, str) else [str(kind).strip() for kind in kinds]
    return Header(
        sop_uid=_text(dataset, "SOPInstanceUID"),
        sop_class=sop_class,
        series=_text(dataset, "SeriesInstanceUID"),
        frame_of_reference=_text(dataset, "FrameOfReferenceUID"),
        modality=modality,
        transfer_syntax=syntax,
        flavour=kinds[2] if len(kinds) > 2 else "",
        burned_in=image.burned_in if image else False,
        own=_text(dataset, "Manufacturer").lower() == "rapha" and modality in ("SR", "SEG"),
        rows=int(dataset.TotalPixelMatrixRows) if slide else image.rows if image else 0,
        columns=int(dataset.TotalPixelMatrixColumns) if slide else image.columns if image else 0,
        frames=1 if slide else image.frames if image else 0,
        spacing=_spacing(dataset),
        image=image,
        fault=fault,
        form=Form.of(dataset, syntax),
        pixels_at=pixels_at,
        offsets=_offsets(dataset),
        attributes=image.attributes if image else {},
    )


def _unread(meta: FileMeta) -> Header:
    """What the file meta information alone says."""
    bare = Dataset()
    bare.SOPInstanceUID, bare.SOPClassUID = meta.sop_instance, meta.sop_class
    bare.file_meta = FileMetaDataset()
    bare.file_meta.TransferSyntaxUID = UID(meta.transfer_syntax)
    return replace(_header(bare, b"", 0), fault="transfer-syntax")


def _image(dataset: Dataset, key: bytes, syntax: UID, kind: str) -> tuple[Image | None, str]:
    """(the image, "") or (None, why not)."""
    if kind or "Rows" not in dataset:
        return None, kind or "no-pixels"
    if not _decodes(syntax):
        return None, "transfer-syntax"
    try:
        return image_of(dataset, key), ""
    except _UNREADABLE:
        return None, "undecodable"


def _offsets(dataset: Dataset) -> tuple[bytes, bytes] | None:
    """The Extended Offset Table (PS3.3 C.7.6.3.1.8) and its lengths, or None."""
    table, lengths = dataset.get("ExtendedOffsetTable"), dataset.get("ExtendedOffsetTableLengths")
    return (table, lengths) if isinstance(table, bytes) and isinstance(lengths, bytes) and table and lengths else None


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
