"""The data elements of a DICOM file, gone through to the file's end without keeping a value (PS3.5 section 7, PS3.10 section 7).

A file that was cut short, or has something behind it, is seen here; what a value says is not looked at.
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from blocks.part10 import MAX_META, FileMeta, read_meta
from rapha.errors import PeerError
from rapha.files import open_regular

IMPLICIT, DEFLATED, BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"
UNDEFINED = 0xFFFFFFFF
MAX_DEPTH = 64  # sequences within sequences
BLOCK = 1 << 18
TRAILER = 8  # bytes behind a deflated data set: a null byte (PS3.5 annex A.5), or the checksum and length that some writers leave
# Value representations by the form of their length (PS3.5 tables 7.1-1 and 7.1-2).
_SHORT = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
_LONG = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_ITEM, _ITEM_END, _SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE00D), (0xFFFE, 0xE0DD)
_NOT_IN_A_DATA_SET = (0x0000, 0x0002, 0x0006)  # groups of commands, of the meta information and of nothing (PS3.5 section 7.1)


class _Source(Protocol):
    def take(self, size: int) -> bytes: ...

    def skip(self, size: int) -> None: ...

    def ends(self) -> bool: ...


def read_whole(path: Path, code: str) -> FileMeta | None:
    """The file's meta information, or None where it is no DICOM file, or not a whole one: in a block's memory.

    Raises `ConfigurationError(code)` where it cannot be opened.
    """
    with open_regular(path, code) as stream:
        return whole(stream)


def whole(stream: BinaryIO) -> FileMeta | None:
    """The same of a stream that can be sought, from its start on."""
    try:
        meta = read_meta(stream.read(MAX_META))
        if meta is None:
            return None
        stream.seek(meta.length)
        source: _Source = _Inflated(stream) if meta.transfer_syntax == DEFLATED else _Plain(stream)
        _Walk(source, meta.transfer_syntax).data_set()
        return meta
    except (_Broken, PeerError, zlib.error, OSError, struct.error):
        return None


class _Broken(Exception):
    """An element that does not end, or is none."""


class _Plain:
    def __init__(self, stream: BinaryIO) -> None:
        at = stream.tell()
        self._left, self._stream = stream.seek(0, 2) - at, stream
        stream.seek(at)

    def take(self, size: int) -> bytes:
        self._spend(size)
        found = self._stream.read(size)
        if len(found) != size:
            raise _Broken
        return found

    def skip(self, size: int) -> None:
        self._spend(size)
        self._stream.seek(size, 1)

    def ends(self) -> bool:
        return self._left == 0

    def _spend(self, size: int) -> None:
        if size > self._left:
            raise _Broken
        self._left -= size


class _Inflated:
    """A deflated data set (PS3.5 annex A.5), block by block."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._inflate, self._held = stream, zlib.decompressobj(-zlib.MAX_WBITS), b""

    def take(self, size: int) -> bytes:
        found = bytearray()
        while len(found) < size:
            if not self._held and not self._more():
                raise _Broken
            part = self._held[: size - len(found)]
            found += part
            self._held = self._held[len(part) :]
        return bytes(found)

    def skip(self, size: int) -> None:
        while size:
            if not self._held and not self._more():
                raise _Broken
            step = min(size, len(self._held))
            self._held, size = self._held[step:], size - step

    def ends(self) -> bool:
        return not self._held and not self._more()

    def _more(self) -> bool:
        while not self._inflate.eof:
            given = self._inflate.unconsumed_tail or self._stream.read(BLOCK)
            self._held = self._inflate.decompress(given, BLOCK)
            if self._held:
                return True
            if not given:
                raise _Broken
        if len(self._inflate.unused_data) > TRAILER or self._stream.read(1):
            raise _Broken
        return False


class _Walk:
    def __init__(self, source: _Source, syntax: str) -> None:
        self._source, self._explicit = source, syntax != IMPLICIT
        self._order = ">" if syntax == BIG_ENDIAN else "<"

    def data_set(self) -> None:
        while not self._source.ends():
            tag = self._tag()
            if tag[0] in _NOT_IN_A_DATA_SET or tag[0] == 0xFFFE:
                raise _Broken
            self._element(self._explicit, 0)

    def _tag(self) -> tuple[int, int]:
        group, element = struct.unpack(f"{self._order}HH", self._source.take(4))
        return group, element

    def _element(self, explicit: bool, depth: int) -> None:
        """What follows a tag."""
        vr = self._source.take(2) if explicit else b""
        if explicit and vr in _SHORT:
            (length,) = struct.unpack(f"{self._order}H", self._source.take(2))
        elif not explicit or vr in _LONG:
            if explicit:
                self._source.skip(2)
            (length,) = struct.unpack(f"{self._order}I", self._source.take(4))
        else:
            raise _Broken
        if length != UNDEFINED:
            self._source.skip(length)
        elif vr in (b"OB", b"OW"):
            self._fragments()
        elif not explicit or vr in (b"SQ", b"UN"):
            # Of unknown VR and undefined length is a sequence in Implicit VR Little Endian (PS3.5 section 6.2.2, note 4).
            self._items(explicit and vr == b"SQ", depth + 1)
        else:
            raise _Broken

    def _fragments(self) -> None:
        """Encapsulated pixel data (PS3.5 annex A.4)."""
        for length in self._delimited():
            if length == UNDEFINED:
                raise _Broken
            self._source.skip(length)

    def _items(self, explicit: bool, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise _Broken
        for length in self._delimited():
            if length != UNDEFINED:
                self._source.skip(length)
                continue
            while (tag := self._tag()) != _ITEM_END:
                if tag[0] == 0xFFFE:
                    raise _Broken
                self._element(explicit, depth)
            self._source.skip(4)

    def _delimited(self) -> Iterator[int]:
        """The length of each item, up to the sequence's delimiter."""
        while True:
            tag = self._tag()
            (length,) = struct.unpack(f"{self._order}I", self._source.take(4))
            if tag == _SEQUENCE_END:
                return
            if tag != _ITEM:
                raise _Broken
            yield length
