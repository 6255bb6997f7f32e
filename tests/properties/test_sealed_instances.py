"""Sealed instances: any content comes back, from any position; any change of the file is refused."""

import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blocks.instances import CHUNK, SealedInstance, SealedReader, SealedWriter, sweep_unfinished
from rapha.errors import Refusal

KEY = X25519PrivateKey.generate()
RELAXED = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SIZES = st.sampled_from([0, 1, 100, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 5])


def sealed(folder: Path, content: bytes, step: int = 70_000) -> SealedInstance:
    writer = SealedWriter(folder, KEY.public_key())
    writer.write_all(content[at : at + step] for at in range(0, len(content), step))
    return writer.finish()


@RELAXED
@given(size=SIZES, step=st.integers(1000, 300_000), seeks=st.lists(st.tuples(st.integers(0, 900_000), st.integers(0, 300_000))))
def test_what_goes_in_comes_out(tmp_path: Path, size: int, step: int, seeks: list[tuple[int, int]]) -> None:
    content = os.urandom(size)
    one = sealed(tmp_path, content, step)
    with SealedReader(one.path, KEY) as stream:
        assert (one.size, stream.size, stream.read()) == (size, size, content)
        for at, count in seeks:
            assert stream.seek(at) == at
            assert stream.read(count) == content[at : at + count]
    assert content[:64] not in one.path.read_bytes() or size < 16
    one.path.unlink()


@RELAXED
@given(size=SIZES, where=st.floats(0, 1), cut=st.booleans())
def test_a_changed_or_cut_file_is_refused(tmp_path: Path, size: int, where: float, cut: bool) -> None:
    one = sealed(tmp_path, os.urandom(size))
    raw = bytearray(one.path.read_bytes())
    at = int(where * (len(raw) - 1))
    if cut:
        del raw[at:]
    else:
        raw[at] ^= 1
    one.path.write_bytes(raw)
    with pytest.raises(Refusal) as refused, SealedReader(one.path, KEY) as stream:
        stream.read()
    assert refused.value.codes[0] in ("sealed-malformed", "sealed-not-for-this-key", "sealed-tampered")


def test_chunks_that_change_places_are_refused(tmp_path: Path) -> None:
    one = sealed(tmp_path, bytes(3 * CHUNK))
    raw, head, length = one.path.read_bytes(), 18 + 80, CHUNK + 16
    chunks = [raw[head + n * length : head + (n + 1) * length] for n in range(3)]
    one.path.write_bytes(raw[:head] + chunks[1] + chunks[0] + chunks[2])
    with pytest.raises(Refusal) as refused, SealedReader(one.path, KEY) as stream:
        stream.read()
    assert refused.value.codes == ("sealed-tampered",)


def test_another_key_opens_nothing(tmp_path: Path) -> None:
    with pytest.raises(Refusal) as refused:
        SealedReader(sealed(tmp_path, b"image").path, X25519PrivateKey.generate())
    assert refused.value.codes == ("sealed-not-for-this-key",)


def test_what_was_not_finished_is_not_there(tmp_path: Path) -> None:
    dropped, left = SealedWriter(tmp_path, KEY.public_key()), SealedWriter(tmp_path, KEY.public_key())
    dropped.write(b"x" * 10)
    dropped.discard()
    left.write(b"x" * (2 * CHUNK))
    assert list(tmp_path.glob("*.sealed")) == []
    assert sweep_unfinished(tmp_path) == 1
    assert list(tmp_path.iterdir()) == []
