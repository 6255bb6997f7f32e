"""A DICOM file is whole or is not: cut anywhere within an element, or with anything behind it, it is not taken for one."""

import io
import struct
import zlib
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID
from pynetdicom.dsutils import encode

from blocks.elements import MAX_DEPTH, whole
from blocks.part10 import read_meta
from infra.peers.orthanc import file_bytes

MANY = settings(max_examples=300, deadline=None)
SYNTAXES = {
    "implicit": "1.2.840.10008.1.2",
    "explicit": "1.2.840.10008.1.2.1",
    "deflated": "1.2.840.10008.1.2.1.99",
    "big endian": "1.2.840.10008.1.2.2",
    "encapsulated": "1.2.840.10008.1.2.4.50",
}


@cache
def file(kind: str) -> tuple[bytes, frozenset[int]]:
    """(a file with sequences of both kinds of length and pixels, where its data set's elements begin and end)."""
    item, deep = Dataset(), Dataset()
    deep.PatientID, item.is_undefined_length_sequence_item = "NEEDLE", True
    item.ReferencedSOPInstanceUID, item.OtherPatientIDsSequence = "1.2.3", [deep]
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.4"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.PatientName = "1.2.5", "1.2.6", "NEEDLE"
    dataset.ReferencedImageSequence, dataset.ReferencedStudySequence = [item], [deep]
    dataset["ReferencedImageSequence"].is_undefined_length = True
    dataset["OtherPatientIDsSequence"] = item["OtherPatientIDsSequence"]
    dataset.Rows = dataset.Columns = 4
    dataset.BitsAllocated, dataset.BitsStored, dataset.PixelRepresentation = 8, 8, 0
    dataset.PixelData = encapsulate([b"\xff\xd8" * 9, b"\0" * 30]) if kind == "encapsulated" else bytes(range(16))
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", kind == "encapsulated"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(SYNTAXES[kind])
    raw = file_bytes(dataset)
    meta, ends = read_meta(raw), set[int]()
    assert meta is not None
    for last in [0, *dataset.keys()]:
        kept = Dataset()
        kept.update({tag: one for tag, one in dataset.items() if tag <= last})
        ends.add(meta.length + len(encode(kept, kind == "implicit", kind != "big endian") or b""))
    return raw, frozenset(ends)


@pytest.mark.parametrize("kind", SYNTAXES)
def test_a_whole_file_is_taken(kind: str) -> None:
    raw, _ = file(kind)
    meta = whole(io.BytesIO(raw))
    assert meta is not None and (meta.sop_instance, meta.transfer_syntax) == ("1.2.4", SYNTAXES[kind])


@MANY
@given(st.sampled_from(sorted(SYNTAXES)), st.data())
def test_a_file_that_ends_within_an_element_is_not(kind: str, data: st.DataObject) -> None:
    raw, ends = file(kind)
    at = data.draw(st.integers(0, len(raw) - 1))
    assert (whole(io.BytesIO(raw[:at])) is None) or (at in ends and kind != "deflated")


@MANY
@given(st.sampled_from(sorted(SYNTAXES)), st.binary(min_size=1, max_size=7) | st.sampled_from([file(k)[0] for k in SYNTAXES]))
def test_a_file_with_something_behind_it_is_not(kind: str, more: bytes) -> None:
    assert whole(io.BytesIO(file(kind)[0] + more)) is None or (kind == "deflated" and len(more) <= 8)


@MANY
@given(st.sampled_from(sorted(SYNTAXES)), st.data())
def test_any_bytes_are_read_or_are_no_file(kind: str, data: st.DataObject) -> None:
    raw = bytearray(file(kind)[0])
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(128, len(raw) - 1))] = data.draw(st.integers(0, 255))
    whole(io.BytesIO(bytes(raw)))


def test_sequences_without_an_end_are_left() -> None:
    head = file("implicit")[0]
    meta = read_meta(head)
    assert meta is not None
    opened = struct.pack("<HHI", 0x0008, 0x1140, 0xFFFFFFFF) + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    closed = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    for depth, there in ((MAX_DEPTH, True), (MAX_DEPTH + 1, False), (100_000, False)):
        assert (whole(io.BytesIO(head[: meta.length] + opened * depth + closed * depth)) is not None) is there


def test_a_deflated_file_that_unfolds_without_measure_takes_no_memory() -> None:
    import tracemalloc

    raw = file("deflated")[0]
    meta = read_meta(raw)
    assert meta is not None
    value = struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 1 << 26)
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = packer.compress(value) + packer.compress(bytes(1 << 26)) + packer.flush()
    tracemalloc.start()
    assert whole(io.BytesIO(raw[: meta.length] + body)) is not None
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm", "JPEG2000.dcm", "image_dfl.dcm", "rtplan.dcm", "reportsi.dcm"])
def test_files_of_others_are_whole(name: str) -> None:
    with Path(str(get_testdata_file(name))).open("rb") as stream:
        assert whole(stream) is not None
