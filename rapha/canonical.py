"""JSON as this project reads and writes it: one strict reader, one canonical writer, one digest.

The reader refuses what two parsers could read in two ways: duplicate keys, NaN and infinities, integers beyond 2^53,
deep nesting, lone surrogates, NUL (RFC 8259 section 4 and 6, RFC 7493 I-JSON). The writer is RFC 8785 for the values that
the project signs: it admits integers within 2^53 and finite floats, sorts keys by UTF-16 code units and writes no blank.
A whole float beyond 2^53 is written as RFC 8785 says, and then refused by the reader, as I-JSON says.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any, BinaryIO

from rapha.errors import Refusal

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_INTEGER = 2**53 - 1  # RFC 7493 section 2.2: beyond it two integers can be one double

_STRINGS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")

Json = None | bool | int | float | str | list[Any] | dict[str, Any]


def parse(raw: bytes, *, limit: int = MAX_BYTES, what: str = "document") -> Any:
    """The JSON value in `raw` (UTF-8, no byte order mark), or `Refusal` with one `json-…` code."""
    if len(raw) > limit:
        raise Refusal(["json-too-large"], f"the {what} is larger than {limit} bytes", side="job")
    _bound_depth(raw, what)
    try:
        value = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_no_duplicates,
            parse_constant=_no_constant,
            parse_int=_integer,
            parse_float=_float,
        )
        check_text(value)
    except Refusal:
        raise
    except (ValueError, RecursionError):
        raise Refusal(["json-malformed"], f"the {what} is not well-formed JSON in UTF-8", side="job") from None
    return value


def canonical(value: object) -> bytes:
    """RFC 8785 form of `value`. Raises `ValueError` for what has no such form (non-finite, non-string key)."""
    return _write(value).encode("utf-8")


def digest(data: bytes) -> str:
    """`sha256:` and 64 hex digits."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def digest_of(value: object) -> str:
    """Digest of the canonical form."""
    return digest(canonical(value))


def digest_file(stream: BinaryIO, *, chunk: int = 1 << 20) -> str:
    """Digest of a stream, in constant memory."""
    h = hashlib.sha256()
    while block := stream.read(chunk):
        h.update(block)
    return "sha256:" + h.hexdigest()


def is_digest(text: object) -> bool:
    """Whether `text` is a full, lower-case SHA-256 digest: matched whole, never by prefix."""
    return (
        isinstance(text, str)
        and len(text) == 71
        and text.startswith("sha256:")
        and all(c in "0123456789abcdef" for c in text[7:])
    )


def check_text(value: object) -> None:
    """Refuses NUL and lone surrogates anywhere in `value`: other languages read them in other ways."""
    if isinstance(value, str):
        if "\x00" in value or any(0xD800 <= ord(c) <= 0xDFFF for c in value):
            raise Refusal(["json-bad-text"], "a string holds NUL or a lone surrogate", side="job")
    elif isinstance(value, list):
        for item in value:
            check_text(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            check_text(key)
            check_text(item)


def nesting(raw: bytes) -> int:
    """How deep the arrays and objects in JSON text nest, without parsing it: a parser in C may not survive to say so."""
    depth = deepest = 0
    for byte in _STRINGS.sub(b"", raw).translate(None, _NO_BRACKETS):
        depth += 1 if byte in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _bound_depth(raw: bytes, what: str) -> None:
    if nesting(raw) > MAX_DEPTH:
        raise Refusal(["json-too-deep"], f"the {what} nests deeper than {MAX_DEPTH}", side="job")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise Refusal(["json-duplicate-key"], "an object has a key twice", side="job")
    return out


def _no_constant(_: str) -> Any:
    raise Refusal(["json-not-finite"], "NaN and infinities are not JSON", side="job")


def _integer(text: str) -> int:
    if len(text) > 17 or abs(int(text)) > MAX_INTEGER:
        raise Refusal(["json-integer-range"], "an integer is beyond 2^53", side="job")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise Refusal(["json-not-finite"], "a number is beyond the range of a double", side="job")
    return value


def _write(value: object) -> str:
    if value is None or isinstance(value, bool | str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, int):
        if abs(value) > MAX_INTEGER:
            raise ValueError("integer beyond 2^53")
        return str(int(value))
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, list | tuple):
        return "[" + ",".join(_write(item) for item in value) + "]"
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise ValueError("keys must be strings")
        keys = sorted(value, key=lambda key: key.encode("utf-16-be"))
        return "{" + ",".join(f"{_write(key)}:{_write(value[key])}" for key in keys) + "}"
    raise ValueError(f"no canonical form for {type(value).__name__}")


def _number(value: float) -> str:
    """ECMAScript's Number::toString (ECMA-262 6.1.6.1.20), which RFC 8785 section 3.2.2.3 asks for."""
    if not math.isfinite(value):
        raise ValueError("not finite")
    if value == 0:
        return "0"
    mantissa, _, exponent = repr(abs(value)).partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction.rstrip("0")).lstrip("0")
    point = len(whole) + int(exponent or 0) - (len(whole + fraction.rstrip("0")) - len(digits))
    digits = digits.rstrip("0")
    return ("-" if value < 0 else "") + _placed(digits, point)


def _placed(digits: str, point: int) -> str:
    """`digits` with the decimal point after the first `point` of them: plain from 1e-7 up to 1e21, else with an exponent."""
    if len(digits) <= point <= 21:
        return digits + "0" * (point - len(digits))
    if 0 < point <= 21:
        return f"{digits[:point]}.{digits[point:]}"
    if -6 < point <= 0:
        return "0." + "0" * -point + digits
    power = point - 1
    return digits[0] + (f".{digits[1:]}" if len(digits) > 1 else "") + f"e{'+' if power > 0 else '-'}{abs(power)}"
