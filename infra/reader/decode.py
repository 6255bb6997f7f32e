"""From a sealed DICOM file to an array: the header by allow-list, the pixels frame by frame.

What arrives is untrusted: every failure of the parser is the one refusal record-malformed, and no message of its quotes a value.
Compressed transfer syntaxes other than RLE are not decoded: their decoders would run foreign bytes in C beside the keys.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import numpy as np
from pydicom.dataset import Dataset
from pydicom.filereader import dcmread
from pydicom.pixels.utils import pixel_array
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from blocks.part10 import UNREADABLE
from infra.reader.staging import SealedReader
from policies.attributes import ALLOWED
from policies.burned_in import burned_in_risk
from policies.minimise import minimise
from rapha.errors import Refusal
from rapha.protocol import carries

NATIVE = frozenset((ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian))
MAX_HEADER = 64 << 20
MAX_ARRAY = 512 << 20
UNDEFINED = 0xFFFFFFFF
# Everything that pydicom and numpy raise on malformed input; what they say may quote a value and is dropped.
PARSER_ERRORS: tuple[type[Exception], ...] = (
    *UNREADABLE,
    AssertionError,
    MemoryError,
    RuntimeError,
)  # the last: of pixel decoders
_IDENTIFIERS = {0x00100020: "patient", 0x0020000D: "study", 0x00080050: "accession", 0x00080018: "record"}
TAGS: list[Any] = sorted(
    {int(tag, 16) for tag in ALLOWED}
    | set(_IDENTIFIERS)
    | {0x00080020, 0x00280002, 0x00280008, 0x00280010, 0x00280011, 0x00280100, 0x00280101, 0x00280102, 0x00280103}
)


@dataclass(frozen=True, slots=True)
class Image:
    """What is known of a decodable record. attributes: allow-listed, by keyword; burned_in: likely to show text."""

    attributes: dict[str, Any]
    modality: str
    body_part: str
    study_date: str
    burned_in: bool
    frames: int
    rows: int
    columns: int
    samples: int
    bits_stored: int
    high_bit: int
    signed: bool
    masked: bool
    bytes: int


def malformed() -> Refusal:
    return Refusal(["record-malformed"], "a record is not an image that this node can decode")


def look(stream: SealedReader, key: bytes) -> Image:
    """Reads the header and proves the pixels decodable. Raises `Refusal` record-malformed."""
    stream.budget = MAX_HEADER
    try:
        dataset = dcmread(stream, stop_before_pixels=True, specific_tags=TAGS)
        image = image_of(dataset, key)
        _check_pixels(stream, dataset, image)
        stream.budget = None
        if dataset.file_meta.TransferSyntaxUID == RLELossless:
            for frame in range(image.frames):
                pixels(stream, image, frame)
    except PARSER_ERRORS:
        raise malformed() from None
    return image


def pixels(stream: SealedReader | BinaryIO, image: Image, frame: int | None) -> np.ndarray[Any, Any]:
    """The stored values of one frame or of all. Raises `Refusal` record-malformed, record-too-large.

    Bits above the stored ones are cleared: overlays were once hidden there (PS3.5 section 8.1.1).
    """
    if (image.bytes if frame is None else image.bytes // image.frames) > MAX_ARRAY:
        raise Refusal(["record-too-large"], "an array of this size is handed over by frames")
    try:
        array = unmasked(pixel_array(cast(BinaryIO, stream), index=frame, correct_unused_bits=False), image)
    except MemoryError:
        raise  # this process's, and no fault of a record: its size is bounded above
    except PARSER_ERRORS:
        raise malformed() from None
    plane = (image.rows, image.columns, *((image.samples,) if image.samples > 1 else ()))
    whole = (image.frames, *plane) if frame is None and image.frames > 1 else plane
    if array.shape != whole or not carries(array.dtype):
        raise malformed()
    return array


def crop(array: np.ndarray[Any, Any], image: Image, x: int, y: int, width: int, height: int) -> np.ndarray[Any, Any] | None:
    """The region of each frame, or None when it is not inside."""
    if width == 0 and height == 0 and x == 0 and y == 0:
        return array
    if not (width > 0 and height > 0 and x + width <= image.columns and y + height <= image.rows):
        return None
    return array[..., y : y + height, x : x + width, :] if image.samples > 1 else array[..., y : y + height, x : x + width]


def image_of(dataset: Dataset, key: bytes) -> Image:
    """What a header says of its image. Raises one of PARSER_ERRORS, or `Refusal` record-malformed."""
    kept = minimise(dataset.to_json_dict(suppress_invalid_tags=True), key)
    samples, bits = int(dataset.SamplesPerPixel), int(dataset.BitsAllocated)
    frames, rows, columns = int(dataset.get("NumberOfFrames") or 1), int(dataset.Rows), int(dataset.Columns)
    stored = int(dataset.get("BitsStored") or bits)
    high = int(dataset.get("HighBit", stored - 1))
    if not (samples in (1, 3) and bits in (1, 8, 16, 32, 64) and 0 < stored <= bits and stored - 1 <= high < bits):
        raise malformed()
    if not (0 < rows < 1 << 16 and 0 < columns < 1 << 16 and 0 < frames < 1 << 31):
        raise malformed()
    return Image(
        attributes={_keyword(tag): _values(tag, attribute) for tag, attribute in kept.items()},
        modality=str(dataset.get("Modality", "")).strip(),
        body_part=str(dataset.get("BodyPartExamined", "")).strip(),
        study_date=str(dataset.get("StudyDate", "")).strip(),
        burned_in=_risk(dataset),
        frames=frames,
        rows=rows,
        columns=columns,
        samples=samples,
        bits_stored=stored,
        high_bit=high,
        signed=int(dataset.get("PixelRepresentation") or 0) == 1,
        masked=bits in (8, 16, 32) and (stored < bits),
        bytes=frames * rows * columns * samples * bits // 8 or 1,
    )


def _risk(dataset: Dataset) -> bool:
    kinds = dataset.get("ImageType") or ()
    return burned_in_risk(
        annotation=str(dataset.get("BurnedInAnnotation") or "").strip().upper(),
        modality=str(dataset.get("Modality") or "").strip().upper(),
        sop_class=str(dataset.get("SOPClassUID") or "").strip(),
        image_type=tuple(str(kind) for kind in ([kinds] if isinstance(kinds, str) else kinds)),
        conversion=str(dataset.get("ConversionType") or "").strip(),
    )


def _check_pixels(stream: SealedReader, dataset: Dataset, image: Image) -> None:
    """The stream stands at the pixel data element: of a known kind, and as long as the header says."""
    syntax = dataset.file_meta.TransferSyntaxUID
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    if syntax not in NATIVE and syntax != RLELossless:
        raise malformed()
    group, element, *_ = struct.unpack(order + "HH", stream.read(4))
    if group != 0x7FE0 or element not in (0x0008, 0x0009, 0x0010):
        raise malformed()
    if syntax != ImplicitVRLittleEndian:
        stream.read(4)  # VR and two reserved bytes
    (length,) = struct.unpack(order + "I", stream.read(4))
    whole = length == UNDEFINED if syntax == RLELossless else image.bytes <= length != UNDEFINED and _fits(stream, length)
    if not whole:
        raise malformed()


def _fits(stream: SealedReader, length: int) -> bool:
    here = stream.tell()
    end = stream.seek(0, 2)
    return here + length <= end


def unmasked(array: np.ndarray[Any, Any], image: Image) -> np.ndarray[Any, Any]:
    """The stored bits alone, sign and all."""
    if not image.masked or array.dtype.kind not in "iu":
        return array
    width = array.dtype.itemsize * 8
    unsigned = array.view(f"{array.dtype.byteorder}u{array.dtype.itemsize}")
    left: np.ndarray[Any, Any] = np.left_shift(unsigned, width - 1 - image.high_bit)
    if image.signed:
        left = left.view(left.dtype.str.replace("u", "i"))
    right: np.ndarray[Any, Any] = np.right_shift(left, width - image.bits_stored)
    return right


def _keyword(tag: str) -> str:
    rule = ALLOWED.get(tag)
    return rule.keyword if rule else _IDENTIFIERS[int(tag, 16)]


def _values(tag: str, attribute: Mapping[str, Any]) -> Any:
    values = attribute["Value"]
    return values if tag in ALLOWED and ALLOWED[tag].most > 1 else values[0]
