"""Searching bytes for a cohort's identifiers as they are usually carried off: raw, UTF-16, base64, hex, reversed."""

import base64
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from policies.records import Record

SHORTEST = 6  # a shorter pattern occurs by chance in a file of weights
_WINDOW = 6
Windows = npt.NDArray[np.uint64]


def forms(pattern: bytes) -> set[bytes]:
    """The forms of one identifier. Base64 in each of its three alignments, without the characters that neighbours change."""
    text = _text(pattern)
    wide = {text.encode("utf-16-le"), text.encode("utf-16-be")} if text else set()
    plain = {pattern, *wide}
    hexed = {p.hex().encode() for p in plain}
    found = plain | hexed | {h.upper() for h in hexed} | {b for p in plain for b in _base64(p)}
    if text:
        found |= {text.lower().encode(), text.upper().encode()}
    return {f for f in found | {f[::-1] for f in found} if len(f) >= SHORTEST}


def record_patterns(records: Iterable[Record]) -> Iterator[bytes]:
    """What a manifest's records are called: the pseudonyms of records and patients, as text and as bytes."""
    for record in records:
        for name in (record.record, record.patient):
            yield name.encode()
            yield bytes.fromhex(name)


def _text(pattern: bytes) -> str:
    try:
        return pattern.decode("utf-8")
    except UnicodeDecodeError:
        return ""


def _base64(pattern: bytes) -> set[bytes]:
    found = set()
    for shift in range(3):
        whole = base64.b64encode(b"\x00" * shift + pattern + b"\x00" * ((-shift - len(pattern)) % 3))
        first, last = (shift * 8 + 5) // 6, ((shift + len(pattern)) * 8) // 6
        for inside in (whole[first:last], whole[first:last].replace(b"+", b"-").replace(b"/", b"_")):
            found.add(inside)
    return found


def search(patterns: Iterable[bytes], places: Iterable[bytes]) -> tuple[int, int]:
    """(patterns searched, patterns found in any place). Patterns under six bytes are not searched and not counted."""
    wanted = {p: forms(p) for p in set(patterns) if len(p) >= SHORTEST}
    present = _present({f for fs in wanted.values() for f in fs}, list(places))
    return len(wanted), sum(1 for fs in wanted.values() if fs & present)


def _present(needles: set[bytes], places: list[bytes]) -> set[bytes]:
    """Which needles occur: a look at all six-byte windows at once, then an exact search for those whose start was seen."""
    if not needles:
        return set()
    starts = np.unique(np.array([_number(n[:_WINDOW]) for n in needles], dtype=np.uint64))
    found: set[bytes] = set()
    for place in places:
        seen = _windows_among(place, starts)
        found |= {n for n in needles if _number(n[:_WINDOW]) in seen and n in place}
    return found


def _number(window: bytes) -> int:
    return int.from_bytes(window, "little")


def _windows_among(place: bytes, starts: Windows, step: int = 1 << 20) -> set[int]:
    """Which of `starts` occur as windows: by a table of their first three bytes, then exactly where that says perhaps."""
    table = np.zeros(1 << 24, dtype=np.bool_)
    table[(starts & np.uint64(0xFFFFFF)).astype(np.uint32)] = True
    seen: set[int] = set()
    for at in range(0, len(place), step):
        block = np.frombuffer(place[at : at + step + _WINDOW - 1], dtype=np.uint8)
        count = block.size - _WINDOW + 1
        if count < 1:
            continue
        wide = block.astype(np.uint32)
        perhaps = np.flatnonzero(table[wide[:count] | wide[1 : count + 1] << 8 | wide[2 : count + 2] << 16])
        windows = np.zeros(perhaps.size, dtype=np.uint64)
        for n in range(_WINDOW):
            windows |= block[perhaps + n].astype(np.uint64) << np.uint64(8 * n)
        seen |= {int(number) for number in windows[np.isin(windows, starts)]}
    return seen
