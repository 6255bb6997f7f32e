"""Properties of the streams between the archive and the trainer: whatever the sizes of blocks, chunks and regions."""

import hashlib
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blocks.multipart import parts
from blocks.part10 import ContentDigest, content_digest
from infra.reader import staging
from infra.reader.staging import Staging, sealed_size
from rapha.errors import PeerError, Refusal
from rapha.merkle import merkle_root
from tests.fixtures.orthanc import file_bytes
from tests.fixtures.reading import make_image

FILE = file_bytes(make_image(1, 1))
BODIES = st.lists(
    st.one_of(st.binary(max_size=200), st.sampled_from([b"\r\n--B", b"--B--", b"\r\n", b"\r\n--BB\r\n", b""])), max_size=4
)


def blocks_of(data: bytes, cuts: list[int]) -> list[bytes]:
    out, at = [], 0
    for cut in cuts:
        out.append(data[at : at + cut])
        at += cut
    return [block for block in [*out, data[at:]] if block]


def multipart(bodies: list[bytes], counted: bool) -> bytes:
    head = b"\r\n--B\r\nContent-Type: application/dicom\r\n"
    heads = [head + (b"Content-Length: %d\r\n" % len(body) if counted else b"") + b"\r\n" for body in bodies]
    return b"".join(one + body for one, body in zip(heads, bodies, strict=True)) + b"\r\n--B--\r\n"


@given(BODIES, st.lists(st.integers(1, 40), max_size=60))
def test_counted_parts_are_split_whatever_they_hold(bodies: list[bytes], cuts: list[int]) -> None:
    stream = blocks_of(multipart(bodies, counted=True), cuts)
    assert [b"".join(part.body) for part in parts(stream, b"B")] == bodies


@given(st.lists(st.binary(max_size=200).filter(lambda body: b"\r\n--B" not in body), max_size=4), st.lists(st.integers(1, 40)))
def test_uncounted_parts_are_split_by_their_boundary(bodies: list[bytes], cuts: list[int]) -> None:
    stream = blocks_of(multipart(bodies, counted=False), cuts)
    assert [b"".join(part.body) for part in parts(stream, b"B")] == bodies


@given(BODIES.filter(bool), st.data())
def test_a_body_that_is_cut_anywhere_fails(bodies: list[bytes], data: st.DataObject) -> None:
    whole = multipart(bodies, counted=True)
    cut = data.draw(st.integers(0, len(whole) - len(b"--\r\n") - 1))
    with pytest.raises(PeerError):
        for part in parts([whole[:cut]], b"B"):
            b"".join(part.body)


@given(st.lists(st.integers(1, 300), max_size=40))
def test_the_content_digest_does_not_depend_on_blocks(cuts: list[int]) -> None:
    content = ContentDigest()
    for block in blocks_of(FILE, cuts):
        content.feed(block)
    assert content.digest() == content_digest(FILE) and content.size == len(FILE)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 5000), st.lists(st.integers(1, 999), max_size=12), st.integers(0, 5100), st.integers(0, 5100))
def test_what_is_sealed_is_read_back_from_anywhere(size: int, cuts: list[int], at: int, count: int) -> None:
    clear = np.random.default_rng(size).bytes(size)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(staging, "CHUNK", 700)
        room = Staging(Path(folder), "attempt")
        writer = room.create()
        for block in blocks_of(clear, cuts):
            writer.write(block)
        writer.close()
        assert room.path(writer.number).stat().st_size == sealed_size(size)
        with room.open(writer.number, size) as stream:
            stream.seek(at)
            assert stream.read(count) == clear[at : at + count]
        assert room.destroy() is True
        with pytest.raises(Refusal, match="destroyed"):
            room.cipher()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2999), st.integers(1, 255), st.booleans())
def test_staging_that_was_touched_refuses(place: int, flip: int, swap: bool) -> None:
    clear = bytes(3000)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(staging, "CHUNK", 700)
        room = Staging(Path(folder), "attempt")
        numbers = []
        for _ in range(2):
            writer = room.create()
            writer.write(clear)
            writer.close()
            numbers.append(writer.number)
        path = room.path(numbers[0])
        raw = bytearray(path.read_bytes())
        raw[place] ^= flip
        path.write_bytes(room.path(numbers[1]).read_bytes() if swap else raw)
        with room.open(numbers[0], 3000) as stream, pytest.raises(Refusal) as refused:
            stream.readall()
        assert refused.value.codes == ("staging-tampered",)


@given(st.lists(st.binary(max_size=8), max_size=40))
def test_the_merkle_root_is_that_of_the_standard(leaves: list[bytes]) -> None:
    def tree(part: list[bytes]) -> bytes:  # RFC 6962 section 2.1, as it is written
        if len(part) <= 1:
            return hashlib.sha256(b"\x00" + part[0] if part else b"").digest()
        split = 1
        while split * 2 < len(part):
            split *= 2
        return hashlib.sha256(b"\x01" + tree(part[:split]) + tree(part[split:])).digest()

    assert merkle_root(leaves) == "sha256:" + tree(leaves).hex()
