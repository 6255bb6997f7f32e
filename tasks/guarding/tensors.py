"""safetensors, read structurally, and weights as bit patterns: https://github.com/huggingface/safetensors#format.

    8 bytes  N, little-endian · N bytes  JSON {"name": {"dtype", "shape", "data_offsets": [begin, end]}} · the tensors

Stricter than the format: no `__metadata__`, no duplicate key, entries in the order of their offsets, not a byte between.
"""

import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors

from policies.output import DTYPES, OutputLimits, WeightsFacts, weight_bits
from rapha.canonical import parse
from rapha.declaration import Declaration
from rapha.errors import Refusal

Bits = npt.NDArray[Any]
_WIDTH = {"F32": 4, "F16": 2, "BF16": 2}
_LIBRARY_NAME = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_MAX_PADDING = 8


@dataclass(frozen=True, slots=True)
class Tensor:
    """`bits`: the elements' bit patterns, flat, as uint32 (F32) or uint16 (F16, BF16)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bits: Bits


class Broken(Exception):
    """The file is not what it must be; `code` is one of the gate's weights codes."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


def parse_weights(raw: bytes, limits: OutputLimits) -> list[Tensor]:
    """The tensors in `raw`, in order, or `Broken`. What must hold:

    1 the header's length is there, is at most the site's and lies inside the file; 2 the header is strict JSON, an object,
    padded with at most 8 blanks; 3 no `__metadata__`; 4 each entry has exactly dtype, shape, data_offsets of the right types; 5
    offsets start at 0, follow on without gap or overlap, in the header's own order, and fit shape and dtype; 6 the last ends
    where the file ends.
    """
    header, start = _header(raw, limits)
    if "__metadata__" in header:
        raise Broken("weights-metadata")
    tensors, position = [], 0
    for name, entry in header.items():
        tensor, position = _tensor(name, entry, raw, start, position)
        tensors.append(tensor)
    if start + position != len(raw):
        raise Broken("weights-length")
    return tensors


def _header(raw: bytes, limits: OutputLimits) -> tuple[dict[str, Any], int]:
    if len(raw) < 8:
        raise Broken("weights-header-size")
    (length,) = struct.unpack("<Q", raw[:8])
    if not 2 <= length <= min(limits.max_header_bytes, len(raw) - 8):
        raise Broken("weights-header-size")
    text = raw[8 : 8 + length]
    if text[:1] != b"{" or len(text) - len(text.rstrip(b" ")) > _MAX_PADDING:
        raise Broken("weights-header-json")
    try:
        header = parse(text, limit=limits.max_header_bytes, what="weights header")
    except Refusal:
        raise Broken("weights-header-json") from None
    if not isinstance(header, dict):
        raise Broken("weights-header-json")
    return header, 8 + length


def _tensor(name: str, entry: Any, raw: bytes, start: int, position: int) -> tuple[Tensor, int]:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise Broken("weights-header-fields")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if (
        not isinstance(dtype, str)
        or not _whole_numbers(shape)
        or not _whole_numbers(offsets)
        or len(offsets) != 2
        or len(shape) > 8
    ):
        raise Broken("weights-header-fields")
    if dtype not in _WIDTH:
        raise Broken("weights-dtypes")
    begin, end = offsets
    if begin != position or end - begin != math.prod(shape) * _WIDTH[dtype] or end == begin:
        raise Broken("weights-offsets")
    if start + end > len(raw):
        raise Broken("weights-length")
    bits = np.frombuffer(raw, dtype=f"<u{_WIDTH[dtype]}", count=math.prod(shape), offset=start + begin)
    return Tensor(name, dtype, tuple(shape), bits), end


def _whole_numbers(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def compare(tensors: list[Tensor], declaration: Declaration) -> WeightsFacts:
    """The parsed tensors against the declared ones, counted."""
    declared = {t.name: t for t in declaration.outputs.tensors}
    found = {t.name: t for t in tensors}
    both = [(found[name], declared[name]) for name in declared if name in found]
    return WeightsFacts(
        broken="",
        missing=len(declared.keys() - found.keys()),
        extra=len(found.keys() - declared.keys()),
        misshapen=sum(1 for have, want in both if have.shape != want.shape),
        mistyped=sum(1 for have, want in both if have.dtype != want.dtype),
        not_finite=sum(_count_not_finite(t) for t in tensors),
        canonicalised=sum(_count_odd_zeros(t) for t in tensors),
        tensors=len(tensors),
        parameters=sum(t.bits.size for t in tensors),
    )


def _masks(dtype: str) -> tuple[int, int, int]:
    """(sign, exponent, mantissa) masks of a format."""
    exponent, mantissa = DTYPES[dtype]
    return 1 << (exponent + mantissa), ((1 << exponent) - 1) << mantissa, (1 << mantissa) - 1


def _count_not_finite(tensor: Tensor) -> int:
    _, exponent, _ = _masks(tensor.dtype)
    return int(np.count_nonzero((tensor.bits & exponent) == exponent))


def _count_odd_zeros(tensor: Tensor) -> int:
    _, exponent, _ = _masks(tensor.dtype)
    return int(np.count_nonzero(((tensor.bits & exponent) == 0) & (tensor.bits != 0)))


def rounded(tensor: Tensor, limits: OutputLimits) -> Tensor:
    """The tensor with its mantissas rounded to the site's bits (half to even), subnormals and negative zeros made zero.

    A value that would round to infinity is cut instead. Rounding twice changes nothing.
    """
    sign, exponent, _ = _masks(tensor.dtype)
    drop = DTYPES[tensor.dtype][1] - weight_bits(tensor.dtype, limits)[0]
    bits = tensor.bits.astype(np.uint64)
    sign_bits, magnitude = bits & sign, bits & ~np.uint64(sign)
    if drop:
        keep = ~np.uint64((1 << drop) - 1)
        up = (magnitude + np.uint64((1 << (drop - 1)) - 1) + ((magnitude >> np.uint64(drop)) & np.uint64(1))) & keep
        magnitude = np.where((up & exponent) == exponent, magnitude & keep, up)
    released = np.where((magnitude & exponent) == 0, np.uint64(0), sign_bits | magnitude)
    return Tensor(tensor.name, tensor.dtype, tensor.shape, released.astype(tensor.bits.dtype))


def write_weights(tensors: list[Tensor]) -> bytes:
    """A new safetensors file from bit patterns: sorted and aligned by the library, no metadata."""
    held = {t.name: (t, np.ascontiguousarray(t.bits, dtype=f"<u{_WIDTH[t.dtype]}")) for t in tensors}
    specs = {
        name: safetensors.TensorSpec(
            dtype=_LIBRARY_NAME[t.dtype], shape=list(t.shape), data_ptr=bits.ctypes.data, data_len=bits.nbytes
        )
        for name, (t, bits) in sorted(held.items())
    }
    return bytes(safetensors.serialize(specs, metadata=None))  # `held` keeps the memory alive until here
