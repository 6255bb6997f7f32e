"""JSON as the project reads and writes it: RFC 8785's numbers, and what the strict reader must not let in."""

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapha.canonical import MAX_INTEGER, canonical, check_text, digest_of, is_digest, parse
from rapha.errors import Refusal

# RFC 8785 appendix B, and the edges between its three notations.
NUMBERS = {
    "0000000000000000": "0",
    "8000000000000000": "0",
    "0000000000000001": "5e-324",
    "8000000000000001": "-5e-324",
    "7fefffffffffffff": "1.7976931348623157e+308",
    "ffefffffffffffff": "-1.7976931348623157e+308",
    "4340000000000000": "9007199254740992",
    "c340000000000000": "-9007199254740992",
    "4430000000000000": "295147905179352830000",
    "44b52d02c7e14af5": "9.999999999999997e+22",
    "44b52d02c7e14af6": "1e+23",
    "44b52d02c7e14af7": "1.0000000000000001e+23",
    "444b1ae4d6e2ef4e": "999999999999999700000",
    "444b1ae4d6e2ef4f": "999999999999999900000",
    "444b1ae4d6e2ef50": "1e+21",
    "3eb0c6f7a0b5ed8c": "9.999999999999997e-7",
    "3eb0c6f7a0b5ed8d": "0.000001",
    "41b3de4355555553": "333333333.3333332",
    "41b3de4355555554": "333333333.33333325",
    "41b3de4355555555": "333333333.3333333",
    "41b3de4355555556": "333333333.3333334",
    "41b3de4355555557": "333333333.33333343",
    "becbf647612f3696": "-0.0000033333333333333333",
    "43143ff3c1cb0959": "1424953923781206.2",
}
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=12)
NUMBER = st.integers(-MAX_INTEGER, MAX_INTEGER) | st.floats(allow_nan=False, allow_infinity=False).filter(
    lambda x: abs(x) <= MAX_INTEGER or x != int(x)
)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBER | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
)


@pytest.mark.parametrize(("bits", "wanted"), NUMBERS.items())
def test_numbers_are_written_as_rfc_8785_says(bits: str, wanted: str) -> None:
    (value,) = struct.unpack(">d", bytes.fromhex(bits))
    assert canonical(value) == wanted.encode()


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_double_comes_back(value: float) -> None:
    assert float(canonical(value)) == value


@given(VALUES)
def test_what_is_written_is_read_back_and_written_the_same(value: object) -> None:
    raw = canonical(value)
    assert parse(raw, limit=1 << 22) == value
    assert canonical(parse(raw, limit=1 << 22)) == raw
    assert json.loads(raw) == value


@given(st.dictionaries(TEXT, st.integers(0, 9), min_size=2, max_size=6))
def test_the_order_of_keys_does_not_change_a_digest(value: dict[str, int]) -> None:
    assert digest_of(value) == digest_of(dict(reversed(value.items())))


def test_keys_are_sorted_by_utf_16_code_units() -> None:
    keys = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\u0080", "\u00f6"]  # RFC 8785 section 3.2.3
    assert list(json.loads(canonical(dict.fromkeys(keys, 0)))) == [
        "\r",
        "1",
        "\u0080",
        "\u00f6",
        "\u20ac",
        "\U0001f600",
        "\ufb33",
    ]


def test_strings_are_escaped_as_rfc_8785_says() -> None:
    assert canonical('\u20ac$\u000f\nA\'B"\\\\"/') == '"\u20ac$\\u000f\\nA\'B\\"\\\\\\\\\\"/"'.encode()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**53, {1: 2}, {"a": {3}}, b"bytes", "\ud800"])
def test_what_has_no_canonical_form_is_an_error(value: object) -> None:
    with pytest.raises(ValueError):
        canonical(value)


A11 = {
    "duplicate key": (b'{"a":1,"a":2}', "json-duplicate-key"),
    "duplicate key, escaped": (b'{"a":1,"\\u0061":2}', "json-duplicate-key"),
    "duplicate key, nested": (b'{"x":[{"a":1,"a":1}]}', "json-duplicate-key"),
    "NaN": (b'{"a":NaN}', "json-not-finite"),
    "Infinity": (b'{"a":-Infinity}', "json-not-finite"),
    "float overflow": (b'{"a":1e999}', "json-not-finite"),
    "huge integer": (b'{"a":' + b"9" * 5000 + b"}", "json-integer-range"),
    "two to the 53": (b"9007199254740992", "json-integer-range"),
    "two to the 53, below zero": (b"-9007199254740992", "json-integer-range"),
    "depth bomb, arrays": (b"[" * 100_000, "json-too-deep"),
    "depth bomb, objects": (b'{"a":' * 33 + b"1" + b"}" * 33, "json-too-deep"),
    "depth bomb behind a string": (b'["\\"[[[",' + b"[" * 40 + b"]" * 40 + b"]", "json-too-deep"),
    "NUL": (b'{"a":"x\\u0000y"}', "json-bad-text"),
    "NUL in a key": (b'{"a\\u0000":1}', "json-bad-text"),
    "lone surrogate": (b'{"a":"\\ud800"}', "json-bad-text"),
    "lone surrogate, swapped": (b'{"a":"\\udc00\\ud800"}', "json-bad-text"),
    "invalid UTF-8": (b'{"a":"\xff"}', "json-malformed"),
    "overlong UTF-8": (b'{"a":"\xc0\x80"}', "json-malformed"),
    "UTF-16": ('{"a":1}'.encode("utf-16"), "json-malformed"),
    "byte order mark": (b'\xef\xbb\xbf{"a":1}', "json-malformed"),
    "trailing comma": (b'{"a":1,}', "json-malformed"),
    "comment": (b'{"a":1}//x', "json-malformed"),
    "two values": (b"{} {}", "json-malformed"),
    "empty": (b"", "json-malformed"),
    "single quotes": (b"{'a':1}", "json-malformed"),
    "plus sign": (b"+1", "json-malformed"),
    "leading zero": (b"01", "json-malformed"),
    "hexadecimal": (b"0x10", "json-malformed"),
    "raw control character": (b'"a\nb"', "json-malformed"),
    "too large": (b'"' + b"a" * (1 << 20) + b'"', "json-too-large"),
}


@pytest.mark.parametrize("name", A11)
def test_A11_the_strict_reader_refuses(name: str) -> None:
    raw, code = A11[name]
    with pytest.raises(Refusal) as refusal:
        parse(raw)
    assert refusal.value.codes == (code,)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_a_refusal(raw: bytes) -> None:
    try:
        value = parse(raw)
    except Refusal as refusal:
        assert refusal.codes[0].startswith("json-")
    else:
        check_text(value)


def test_the_deepest_that_is_allowed_is_read() -> None:
    assert parse(b"[" * 32 + b"]" * 32) is not None


@pytest.mark.parametrize(
    "text", ["sha256:" + "0" * 63, "sha256:" + "A" * 64, "sha256:" + "0" * 64 + "\n", "sha512:" + "0" * 64, "", 7]
)
def test_only_a_whole_digest_is_a_digest(text: object) -> None:
    assert is_digest(text) is False
