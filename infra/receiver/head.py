"""The first kilobytes of a data set: its SOP Class and Instance UID, without decoding it (PS3.5 section 7.1)."""

import struct
import zlib

IMPLICIT, EXPLICIT, DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
WANTED = {0x0016: "sop_class", 0x0018: "sop_instance"}
UNDEFINED = 0xFFFFFFFF
_LONG = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"UC", b"UN", b"UR", b"UT", b"SV", b"UV"))


def named(head: bytes, transfer_syntax: str) -> dict[str, str]:
    """`sop_class` and `sop_instance` as far as `head` tells; what it does not tell is left out, for the study reader to check."""
    if transfer_syntax == DEFLATED:
        try:
            head = zlib.decompressobj(-zlib.MAX_WBITS).decompress(head, 1 << 16)
        except zlib.error:
            return {}
    order = ">" if transfer_syntax == BIG_ENDIAN else "<"
    found: dict[str, str] = {}
    at = 0
    while at + 8 <= len(head):
        group, element = struct.unpack_from(f"{order}HH", head, at)
        if group > 0x0008 or (group == 0x0008 and element > 0x0018):
            break
        length, start = _length(head, at, order, implicit=transfer_syntax == IMPLICIT)
        if length == UNDEFINED or start + length > len(head):
            break
        if group == 0x0008 and element in WANTED:
            found[WANTED[element]] = head[start : start + length].decode("ascii", "replace").rstrip("\0 ")
        at = start + length
    return found


def _length(head: bytes, at: int, order: str, *, implicit: bool) -> tuple[int, int]:
    """(length of the value, where it starts)."""
    if implicit:
        return struct.unpack_from(f"{order}I", head, at + 4)[0], at + 8
    if head[at + 4 : at + 6] in _LONG:
        if at + 12 > len(head):
            return UNDEFINED, at
        return struct.unpack_from(f"{order}I", head, at + 8)[0], at + 12
    return struct.unpack_from(f"{order}H", head, at + 6)[0], at + 8
