"""A strict reader of tar headers (POSIX.1-2001 pax, and GNU's long names), over a seekable stream.

tarfile stops in silence at a header that it cannot read and holds extended headers of any size in memory; this one says
`archive-malformed`, and reads no header above 64 KiB. It gives offsets: who wants the bytes reads them from the stream.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal

from rapha.errors import Refusal

BLOCK = 512
MAX_EXTENDED = 64 * 1024
Kind = Literal["file", "folder", "link", "device"]
_KINDS: dict[bytes, Kind] = {b"0": "file", b"\0": "file", b"7": "file", b"5": "folder", b"1": "link", b"2": "link"}


@dataclass(frozen=True, slots=True)
class Member:
    """name: as the archive has it; special: set-id or sticky bits, or extended attributes; offset, size: of its bytes;
    target: of a symbolic link, "" for a hard one."""

    name: str
    kind: Kind
    special: bool
    offset: int
    size: int
    executable: bool = False
    target: str = ""


def members(stream: BinaryIO) -> Iterator[Member]:
    """The members in order. Raises `Refusal` archive-malformed or archive-trailing-bytes."""
    end = stream.seek(0, 2)
    offset, extended = 0, dict[str, str]()
    while True:
        header = _block(stream, offset)
        if not header.strip(b"\0"):
            return _only_zeros(stream, offset, end)
        kind, size = _checked(header, extended)
        following = offset + BLOCK + -(-size // BLOCK) * BLOCK
        if following > end:
            raise _malformed()
        if kind in {b"x", b"g", b"L"}:
            if extended:  # of two headers for one member other readers take the first
                raise _malformed()
            extended = _extended(stream, offset + BLOCK, size, kind, extended)
        else:
            yield _member(header, kind, extended, offset + BLOCK, size)
            extended = {}
        offset = following


def _malformed() -> Refusal:
    return Refusal(["archive-malformed"], side="job")


def _block(stream: BinaryIO, offset: int) -> bytes:
    stream.seek(offset)
    header = stream.read(BLOCK)
    if len(header) != BLOCK:
        raise _malformed()
    return header


def _checked(header: bytes, extended: dict[str, str]) -> tuple[bytes, int]:
    """(type, size) of a header whose checksum holds."""
    total = sum(header[:148]) + 8 * 0x20 + sum(header[156:])
    if _number(header[148:156]) != total or header[257:262] != b"ustar":
        raise _malformed()
    kind = header[156:157]
    size = _number(header[124:136])
    if kind not in {b"x", b"g", b"L"} and "size" in extended:
        if not extended["size"].isascii() or not extended["size"].isdigit():
            raise _malformed()
        size = int(extended["size"])
    return kind, size if kind not in {b"1", b"2", b"3", b"4", b"5", b"6"} else 0


def _number(field: bytes) -> int:
    if field[0] & 0x80:
        value = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    else:
        text = field.split(b"\0", 1)[0].strip()
        if any(c not in b"01234567" for c in text):
            raise _malformed()
        value = int(text or b"0", 8)
    if value > 1 << 50:
        raise _malformed()
    return value


def _extended(stream: BinaryIO, offset: int, size: int, kind: bytes, known: dict[str, str]) -> dict[str, str]:
    if size > MAX_EXTENDED:
        raise _malformed()
    stream.seek(offset)
    raw = stream.read(size)
    if kind == b"L":
        return {**known, "path": _text(raw.rstrip(b"\0"))}
    found = _pax(raw)
    if kind == b"g":
        if set(found) - {"comment", "mtime"}:
            raise _malformed()
        return known
    return {**known, **found}


def _pax(raw: bytes) -> dict[str, str]:
    """`"%d %s=%s\\n"` records (pax, "Extended Header"). Attribute values are not needed, and kept short."""
    out: dict[str, str] = {}
    while raw:
        head, blank, _ = raw.partition(b" ")
        if not blank or not head.isdigit() or len(head) > 6:
            raise _malformed()
        length = int(head)
        record, raw = raw[:length], raw[length:]
        key, equals, value = record[len(head) + 1 : -1].partition(b"=")
        if len(record) != length or not equals or record[-1:] != b"\n":
            raise _malformed()
        name = _text(key)
        out[name] = "" if name.startswith("SCHILY.xattr.") else _text(value)
    return out


def _text(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise _malformed() from None


def _member(header: bytes, kind: bytes, extended: dict[str, str], offset: int, size: int) -> Member:
    name = extended.get("path") or _ustar_name(header)
    what = _KINDS.get(kind, "device")
    if any(key.startswith("GNU.sparse") for key in extended):
        what = "device"
    mode = _number(header[100:108])
    special = bool(mode & 0o7000) or any("xattr" in key or "acl" in key.lower() for key in extended)
    target = extended.get("linkpath") or _text(header[157:257].split(b"\0", 1)[0]) if kind == b"2" else ""
    return Member(name, what, special, offset, size, bool(mode & 0o111), target)


def _ustar_name(header: bytes) -> str:
    name = _text(header[:100].split(b"\0", 1)[0])
    prefix = _text(header[345:500].split(b"\0", 1)[0]) if header[257:265] == b"ustar\x0000" else ""
    return f"{prefix}/{name}" if prefix else name


def _only_zeros(stream: BinaryIO, offset: int, end: int) -> None:
    if end - offset < 2 * BLOCK:
        raise _malformed()
    stream.seek(offset)
    while block := stream.read(1 << 20):
        if block.strip(b"\0"):
            raise Refusal(["archive-trailing-bytes"], side="job")
