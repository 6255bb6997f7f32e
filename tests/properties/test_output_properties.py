"""For any tensors, any damage, any content: what leaves is what was declared, written by us, or nothing."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load
from safetensors.torch import load as load_torch
from safetensors.torch import save as save_torch

from policies.output import DTYPES, OutputLimits
from rapha.errors import Refusal
from rapha.sealed import open_result, seal_files
from tasks.guarding.identifiers import search
from tasks.guarding.inspection import inspect
from tasks.guarding.kinds import recognise
from tasks.guarding.tensors import Broken, Tensor, parse_weights, rounded, write_weights
from tests.fixtures.outputs import SHAPES, arrays, declared, judged, raw_safetensors, write_outputs

LIMITS = OutputLimits()
NAMES = st.text("abcXYZ019_.", min_size=1, max_size=12)
SHAPE = st.lists(st.integers(1, 5), max_size=4).map(tuple)


@st.composite
def tensors(draw: st.DrawFn) -> list[Tensor]:
    made = []
    for name in draw(st.lists(NAMES, min_size=1, max_size=6, unique=True)):
        dtype, shape = draw(st.sampled_from(list(DTYPES))), draw(SHAPE)
        width = np.dtype("<u4" if dtype == "F32" else "<u2")
        size = int(np.prod(shape, dtype=int))
        raw = draw(st.binary(min_size=size * width.itemsize, max_size=size * width.itemsize))
        made.append(Tensor(name, dtype, shape, np.frombuffer(raw, dtype=width)))
    return made


def _same(a: list[Tensor], b: list[Tensor]) -> bool:
    left, right = ({t.name: (t.dtype, t.shape, t.bits.tobytes()) for t in ts} for ts in (a, b))
    return left == right


@settings(max_examples=150, deadline=None)
@given(tensors())
def test_any_tensors_are_written_and_read_back_bit_for_bit(made: list[Tensor]) -> None:
    raw = write_weights(made)
    again = parse_weights(raw, LIMITS)
    assert _same(made, again)
    assert write_weights(again) == raw == write_weights(made[::-1])
    assert set(load_torch(raw)) == {t.name for t in made}  # the library reads what we wrote


@settings(max_examples=150, deadline=None)
@given(tensors(), st.integers(0, 23))
def test_rounding_leaves_no_bit_below_the_sites_and_is_stable(made: list[Tensor], bits: int) -> None:
    limits = OutputLimits(mantissa_bits=bits)
    for tensor in made:
        exponent, mantissa = DTYPES[tensor.dtype]
        field = np.uint64(((1 << exponent) - 1) << mantissa)
        finite = (tensor.bits.astype(np.uint64) & field) != field
        out = rounded(tensor, limits)
        low = (1 << max(0, mantissa - bits)) - 1
        assert not np.any(out.bits[finite] & out.bits.dtype.type(low))
        assert np.all((out.bits[finite].astype(np.uint64) & field) != field)  # finite stays finite
        assert np.array_equal(rounded(out, limits).bits[finite], out.bits[finite])


VALID = raw_safetensors(  # a small file, all bytes of which matter
    {
        "layer.bias": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
        "layer.weight": {"dtype": "F32", "shape": [4, 3], "data_offsets": [16, 64]},
    },
    arrays()["layer.bias"].tobytes() + arrays()["layer.weight"].tobytes(),
)


def _refused_or_only_the_declared(raw: bytes) -> None:
    with TemporaryDirectory() as folder:
        codes, seen = judged(write_outputs(Path(folder), weights=raw))
    if codes:
        return
    released = load(seen.files["weights.safetensors"])
    assert {name: array.shape for name, array in released.items()} == SHAPES
    assert all(array.dtype == np.float32 and np.all(np.isfinite(array)) for array in released.values())
    assert seen.files["weights.safetensors"] == write_weights(parse_weights(seen.files["weights.safetensors"], LIMITS))
    assert sum(len(content) for content in seen.files.values()) < 400


def test_the_undamaged_file_clears() -> None:
    with TemporaryDirectory() as folder:
        assert judged(write_outputs(Path(folder), weights=VALID))[0] == ()


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(VALID) - 1), st.integers(1, 255))
def test_any_changed_byte_refuses_or_leaves_only_the_declared(at: int, flip: int) -> None:
    _refused_or_only_the_declared(VALID[:at] + bytes([VALID[at] ^ flip]) + VALID[at + 1 :])


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(VALID)), st.binary(min_size=1, max_size=12))
def test_any_inserted_bytes_refuse_or_leave_only_the_declared(at: int, more: bytes) -> None:
    _refused_or_only_the_declared(VALID[:at] + more + VALID[at:])


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(VALID) - 1), st.integers(1, 12))
def test_any_deleted_bytes_refuse_or_leave_only_the_declared(at: int, count: int) -> None:
    _refused_or_only_the_declared(VALID[:at] + VALID[at + count :])


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_no_content_at_all_makes_the_reader_throw(raw: bytes) -> None:
    recognise(raw)
    for odd in (raw, len(raw).to_bytes(8, "little") + raw):
        try:
            parse_weights(odd, LIMITS)
        except Broken as broken:
            assert broken.code.startswith("weights-")
    with TemporaryDirectory() as folder:
        seen = inspect(write_outputs(Path(folder), weights=raw, numbers=raw), declared(), LIMITS)
    assert seen.files == {}


def test_bfloat16_leaves_as_it_came() -> None:
    values = torch.randn(64, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    (tensor,) = parse_weights(save_torch({"b": values}), LIMITS)
    assert tensor.dtype == "BF16"
    assert torch.equal(load_torch(write_weights([rounded(tensor, LIMITS)]))["b"], values)


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=6, max_size=40), st.binary(max_size=200), st.binary(max_size=200))
def test_a_planted_pattern_is_always_found(pattern: bytes, before: bytes, after: bytes) -> None:
    for form in (pattern, pattern[::-1], pattern.hex().encode()):
        assert search([pattern], [before, before + form + after]) == (1, 1)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=3000), st.binary(max_size=300), st.integers(1, 10**6), st.data())
def test_a_sealed_result_opens_whole_or_not_at_all(weights: bytes, metrics: bytes, attempt: int, data: st.DataObject) -> None:
    key, job = X25519PrivateKey.generate(), "sha256:" + "6" * 64
    files = {"weights.safetensors": weights, "metrics.json": metrics}
    with TemporaryDirectory() as folder:
        sealed = Path(folder) / "sealed.bin"
        with sealed.open("wb") as stream:
            seal_files(files, key.public_key(), stream, job=job, attempt=attempt)
        opened = open_result(sealed, key, Path(folder) / "out", job=job)
        assert opened.attempt == attempt
        assert {name: (Path(folder) / "out" / name).read_bytes() for name in files} == files
        raw = sealed.read_bytes()
        at = data.draw(st.integers(0, len(raw) - 1))
        for damaged in (raw[:at], raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :], raw + b"\x00"):
            sealed.write_bytes(damaged)
            try:
                open_result(sealed, key, Path(folder) / "not", job=job)
            except Refusal:
                assert not (Path(folder) / "not").exists()
            else:
                raise AssertionError("a damaged result was opened")
