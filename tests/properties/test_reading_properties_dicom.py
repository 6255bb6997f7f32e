"""Objects as they are parsed: what is written is read back, whatever encodes it; what is broken is a code; pixels are the pixels.

The real codecs run here, without the sandbox around their process: tests/peers/test_study_reader.py has that.
"""

import copy
import io
import socket
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from blocks.archive import attributes_digest
from blocks.dimse.services import part10
from blocks.part10 import content_digest, read_meta
from infra.reader.decode import malformed
from infra.receiver.head import named
from infra.study import codec, decoder
from infra.study.decoder import Decoder, Form
from infra.study.images import Header, read_frame, read_header, session_key
from infra.study.opened import content_of
from infra.study.reports import referenced
from rapha.canonical import digest
from rapha.errors import PeerError, RaphaError, Refusal
from tasks.reading.validate import sr_facts

pytestmark = pytest.mark.filterwarnings("ignore")  # of a broken file
QUIET = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
KEY = session_key()
LITTLE = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian)
NATIVE = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian)
UIDS = st.from_regex(r"\A2\.25\.[1-9][0-9]{0,35}\Z")
# Of any script; blanks at the ends and backslashes mean something else (PS3.5 section 6.2).
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"], exclude_characters="\\^=~"), min_size=1, max_size=16)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "PatientID": TEXTS,
    "StudyDescription": TEXTS,
    "OtherPatientIDs": st.lists(TEXTS, min_size=2, max_size=4),
    "PatientName": TEXTS,
    "Rows": st.integers(1, 65535),
    "SliceThickness": st.decimals(-1000, 1000, places=3, allow_nan=False).map(str),
    "SeriesNumber": st.integers(-(2**31), 2**31 - 1),
    "RealWorldValueSlope": st.floats(allow_nan=False, allow_infinity=False),
    "StudyDate": st.dates().map(lambda day: f"{day:%Y%m%d}".zfill(8)),
    "EncapsulatedDocument": st.binary(min_size=2, max_size=40).map(lambda raw: raw + raw),
    "FrameOfReferenceUID": UIDS,
}


class File(io.BytesIO):
    """A clear file as the study reader's streams are."""

    budget: int | None = None


class Here(Decoder):
    """The codec's own answer, over a real socket, in this process."""

    def decode(self, form: Form, frame: bytes) -> np.ndarray[Any, Any]:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            for block in codec._answer(form.file(frame)):
                theirs.sendall(block)
            return decoder._array(ours)


@st.composite
def datasets(draw: st.DrawFn) -> Dataset:
    """Some attributes of every kind, nested too."""
    made = filled(draw)
    made.OtherPatientIDsSequence = [filled(draw) for _ in range(draw(st.integers(0, 2)))]
    made.SOPClassUID, made.SOPInstanceUID, made.StudyInstanceUID = CTImageStorage, draw(UIDS), draw(UIDS)
    return made


def filled(draw: st.DrawFn) -> Dataset:
    made = Dataset()
    made.SpecificCharacterSet = "ISO_IR 192"
    for name in draw(st.sets(st.sampled_from(sorted(VALUES)))):
        setattr(made, name, draw(VALUES[name]))
    return made


def written(dataset: Dataset, syntax: UID) -> bytes:
    """The data set as a file of PS3.10."""
    stream, made = io.BytesIO(), Dataset(dict(dataset.items()))
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = syntax
    made.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


@QUIET
@given(datasets(), st.sampled_from(LITTLE), st.sampled_from(LITTLE), st.sampled_from(sorted(VALUES)))
def test_what_is_written_reads_back_in_every_encoding_and_a_changed_value_does_not(
    dataset: Dataset, one: UID, other: UID, name: str
) -> None:
    assert attributes_digest(written(dataset, one)) == attributes_digest(written(dataset, other))
    changed = copy.deepcopy(dataset)
    changed.StudyInstanceUID = f"{dataset.StudyInstanceUID}.1"
    assert attributes_digest(written(changed, other)) != attributes_digest(written(dataset, one))
    if name in dataset:
        fewer = Dataset({tag: element for tag, element in dataset.items() if element.keyword != name})
        assert attributes_digest(written(fewer, other)) != attributes_digest(written(dataset, one))


@QUIET
@given(datasets(), st.sampled_from(LITTLE))
def test_an_object_as_it_was_sent_becomes_a_file_that_says_the_same(dataset: Dataset, syntax: UID) -> None:
    raw = written(dataset, syntax)
    meta = read_meta(raw)
    assert meta is not None
    again = part10(meta.sop_class, meta.sop_instance, meta.transfer_syntax, raw[meta.length :])
    found = read_meta(again)
    assert found is not None and again[found.length :] == raw[meta.length :]
    assert (found.sop_class, found.sop_instance, found.transfer_syntax) == (CTImageStorage, dataset.SOPInstanceUID, syntax)
    assert named(raw[meta.length :], syntax) == {"sop_class": CTImageStorage, "sop_instance": dataset.SOPInstanceUID}
    assert content_digest(again) == content_digest(raw) == digest(syntax.encode() + b"\n" + raw[meta.length :])
    assert attributes_digest(again) == attributes_digest(raw)


@cache
def packaged(name: str) -> bytes:
    path = get_testdata_file(name, download=False)
    assert path is not None
    return Path(str(path)).read_bytes()


FILES = ("CT_small.dcm", "MR_small_implicit.dcm", "MR_small_bigendian.dcm", "MR_small_RLE.dcm", "reportsi.dcm", "emri_small.dcm")


@st.composite
def broken(draw: st.DrawFn) -> bytes:
    """A real file, cut short, with bytes changed or more bytes in it, mostly in its header; or anything at all."""
    raw = bytearray(packaged(draw(st.sampled_from(FILES))))
    places = st.integers(0, len(raw) - 1) | st.integers(0, 1500)
    for _ in range(draw(st.integers(0, 4))):
        raw[draw(places)] = draw(st.integers(0, 255))
    at = draw(places)
    raw[at:at] = draw(st.binary(max_size=12))
    return bytes(raw[: draw(st.just(len(raw)) | places)]) if draw(st.booleans()) else bytes(raw)


def every_reader(raw: bytes) -> list[Any]:
    """What each of the readers makes of it: a result, or an error of ours."""

    def pixels(raw: bytes) -> object:
        header = header_of(raw)
        native = header.image is not None and header.transfer_syntax in NATIVE and header.image.bytes < 1 << 24
        return read_frame(File(raw), header, Here(), 0) if native else None

    found: list[Any] = []
    for reader in (read_meta, content_digest, attributes_digest, pixels, sr_facts, referenced):
        try:
            found.append(reader(raw))
        except RaphaError as error:
            found.append(error)
    return found


def unknown_vr() -> bytes:
    return packaged("CT_small.dcm").replace(b"\x08\x00\x16\x00UI", b"\x08\x00\x16\x00C\0", 1)


def odd_length() -> bytes:
    """Rows (US) of three bytes: an error of the parser's own kind, which is none of Python's."""
    return packaged("CT_small.dcm").replace(b"\x28\x00\x10\x00US\x02\x00", b"\x28\x00\x10\x00US\x03\x00", 1)


CODES = {"pacs-not-dicom", "pacs-file-odd", "record-malformed", "record-too-large", "report-unreadable", "report-malformed"}


@settings(QUIET, max_examples=400)
@example(unknown_vr())
@example(odd_length())
@given(broken() | st.binary(max_size=300).map(lambda raw: bytes(128) + b"DICM" + raw))
def test_any_file_is_read_or_is_a_code_that_quotes_nothing(raw: bytes) -> None:
    for one in every_reader(raw):
        if isinstance(one, RaphaError):
            assert isinstance(one, Refusal | PeerError) and set(one.codes) <= CODES, one.codes
            assert not any(text in str(one) + repr(one) for text in ("CompressedSamples", "1CT1", "4MR1", "1.3.6.1.4.1.5962"))


TABLES = ("extended", "basic", "none", "fragments")
KINDS = st.sampled_from([("u1", 8), ("u2", 16), ("u2", 12), ("i2", 16), ("i2", 12)])


@st.composite
def pictures(draw: st.DrawFn, *, least: int = 1, colour: bool = True) -> tuple[np.ndarray[Any, Any], int]:
    """(frames, rows, columns[, 3]) of stored values, and the bits that are stored."""
    kind, stored = draw(KINDS)
    shape = (draw(st.integers(1, 3)), draw(st.integers(least, least + 20)), draw(st.integers(least, least + 20)))
    if colour and kind == "u1" and draw(st.booleans()):
        shape = (*shape, 3)  # type: ignore[assignment]
    low, high = (-(1 << stored - 1), 1 << stored - 1) if kind[0] == "i" else (0, 1 << stored)
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    return random.integers(low, high, shape, dtype=kind), stored


def image(array: np.ndarray[Any, Any], stored: int) -> Dataset:
    made = Dataset()
    made.SOPClassUID, made.SOPInstanceUID, made.Modality = CTImageStorage, "2.25.7", "CT"
    made.NumberOfFrames, made.Rows, made.Columns = array.shape[:3]
    made.SamplesPerPixel = 3 if array.ndim == 4 else 1
    made.PhotometricInterpretation = "RGB" if array.ndim == 4 else "MONOCHROME2"
    if array.ndim == 4:
        made.PlanarConfiguration = 0
    made.BitsAllocated, made.BitsStored, made.HighBit = array.dtype.itemsize * 8, stored, stored - 1
    made.PixelRepresentation = int(array.dtype.kind == "i")
    return made


def filed(made: Dataset, array: np.ndarray[Any, Any], syntax: UID) -> bytes:
    big = array.dtype.newbyteorder(">" if syntax == ExplicitVRBigEndian else "<")
    raw = array.astype(big).tobytes()
    made.add_new(0x7FE00010, "OW" if array.dtype.itemsize == 2 else "OB", raw + b"\0" * (len(raw) % 2))
    stream = io.BytesIO()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = syntax
    made.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def header_of(raw: bytes) -> Header:
    """As the study reader opens a file."""
    _, meta = content_of(File(raw))  # type: ignore[arg-type]
    return read_header(File(raw), KEY, meta)


@QUIET
@given(pictures(), st.sampled_from(NATIVE))
def test_native_pixels_are_the_same_in_every_byte_order(picture: tuple[np.ndarray[Any, Any], int], syntax: UID) -> None:
    array, stored = picture
    raw = filed(image(array, stored), array, syntax)
    header = header_of(raw)
    assert (header.fault, header.transfer_syntax, header.frames) == ("", str(syntax), len(array))
    for number, frame in enumerate(array):
        assert np.array_equal(read_frame(File(raw), header, Here(), number), frame)
    whole = read_frame(File(raw), header, Here(), None)
    assert np.array_equal(whole, array if len(array) > 1 else array[0])


@QUIET
@given(pictures(least=32), st.sampled_from([RLELossless, JPEG2000Lossless, JPEGLSLossless]), st.sampled_from(TABLES))
def test_lossless_compression_gives_back_the_pixels(picture: tuple[np.ndarray[Any, Any], int], syntax: UID, table: str) -> None:
    array, stored = picture
    assume(syntax != JPEGLSLossless or array.dtype.kind == "u")  # its samples have no sign (ISO/IEC 14495-1)
    raw = compressed(array, stored, syntax, table=table)
    header = header_of(raw)
    assert (header.fault, header.transfer_syntax) == ("", str(syntax))
    for number, frame in enumerate(array):
        assert np.array_equal(read_frame(File(raw), header, Here(), number), frame)
    if len(array) > 1:
        assert np.array_equal(read_frame(File(raw), header, Here(), None), array)


def compressed(array: np.ndarray[Any, Any], stored: int, syntax: UID, *, table: str = "basic", **how: Any) -> bytes:
    """table: how a frame is found (PS3.5 A.4): an extended table, a basic one, none, a basic one over several fragments."""
    dataset = dcmread(io.BytesIO(filed(image(array, stored), array, ExplicitVRLittleEndian)))
    with_colours = {"j2k_mct": False} if syntax == JPEG2000Lossless else {}
    dataset.compress(syntax, generate_instance_uid=False, encapsulate_ext=table == "extended", **with_colours, **how)
    if syntax == JPEG2000Lossless and array.ndim == 4:
        dataset.PhotometricInterpretation = "RGB"
    if table in ("none", "fragments"):
        frames = list(generate_frames(dataset.PixelData, number_of_frames=len(array)))
        pieces = 2 if table == "fragments" and syntax != RLELossless else 1  # of RLE a frame is one fragment (PS3.5 A.4.2)
        dataset.PixelData = encapsulate(frames, fragments_per_frame=pieces, has_bot=table == "fragments")
        dataset["PixelData"].is_undefined_length = True
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


@QUIET
@given(pictures(least=32, colour=False), st.integers(1, 10))
def test_near_lossless_compression_stays_within_its_own_bound(picture: tuple[np.ndarray[Any, Any], int], error: int) -> None:
    array, stored = picture[0] >> 3, picture[1]  # the encoder's buffer does not hold pure noise
    assume(array.dtype.kind == "u")
    raw = compressed(array, stored, JPEGLSNearLossless, jls_error=error)
    header = header_of(raw)
    for number, frame in enumerate(array):
        found = read_frame(File(raw), header, Here(), number)
        assert np.abs(found.astype(int) - frame.astype(int)).max() <= error


@QUIET
@given(st.integers(1, 200).map(lambda n: UID(f"1.2.840.10008.1.2.4.{n}")))
def test_a_transfer_syntax_is_decoded_or_named_as_a_fault(syntax: UID) -> None:
    """A video, or what no decoder here knows, is never handed to a model as an empty picture."""
    array = np.zeros((1, 32, 32), dtype="u1")
    raw = bytearray(compressed(array, 8, JPEG2000Lossless))
    known, said = str(JPEG2000Lossless).encode(), str(syntax).encode()
    raw = raw.replace(known + b"\0" * (len(known) % 2), (said + b"\0" * 4)[: len(known) + len(known) % 2], 1)
    assume(len(said) <= len(known) + len(known) % 2)
    header = header_of(bytes(raw))
    assert (header.image is None) == (header.fault == "transfer-syntax")
    if header.image is None:
        try:
            read_frame(File(bytes(raw)), header, Here(), 0)
        except Refusal as refused:
            assert refused.codes == malformed().codes
        else:
            raise AssertionError("a picture that nothing decoded")
