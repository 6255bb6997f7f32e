"""The DICOM file format (PS3.10 section 7) as far as a stream must be understood to be named and hashed: the preamble and the
file meta group. The data set behind it passes through unread.
"""

import hashlib
import struct
from dataclasses import dataclass

from pydicom.errors import BytesLengthException, InvalidDicomError

from rapha.errors import PeerError

PREAMBLE = 132
MAX_META = 64 * 1024
# What pydicom raises at a file that is none, or is broken; what it says may quote a value and is dropped.
UNREADABLE: tuple[type[Exception], ...] = (
    InvalidDicomError,
    BytesLengthException,  # neither is one of the built-in kinds
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    NotImplementedError,  # an unknown VR
    RecursionError,  # sequences without an end
    EOFError,
    OSError,
    struct.error,
)
_LONG = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"UC", b"UN", b"UR", b"UT", b"SV", b"UV"))


@dataclass(frozen=True, slots=True)
class FileMeta:
    """sop_class, sop_instance, transfer_syntax: UIDs; length: bytes up to the data set."""

    sop_class: str
    sop_instance: str
    transfer_syntax: str
    length: int


def read_meta(head: bytes) -> FileMeta | None:
    """The file meta group at the start of a file, or None when `head` does not hold it all yet.

    Raises `PeerError` pacs-not-dicom for what is no file of PS3.10.
    """
    if len(head) < PREAMBLE + 12:
        return None
    if head[128:132] != b"DICM" or head[132:140] != b"\x02\x00\x00\x00UL\x04\x00":
        raise _odd()
    (group,) = struct.unpack_from("<I", head, 140)
    end = PREAMBLE + 12 + int(group)
    if end > MAX_META:
        raise _odd()
    if len(head) < end:
        return None
    elements = _elements(head[PREAMBLE + 12 : end])
    try:
        return FileMeta(elements[0x0002], elements[0x0003], elements[0x0010], end)
    except KeyError:
        raise _odd() from None


def _elements(group: bytes) -> dict[int, str]:
    """UIDs of the group, by element number: always Explicit VR Little Endian (PS3.10 section 7.1)."""
    found: dict[int, str] = {}
    at = 0
    try:
        while at < len(group):
            tag, element, vr, length = struct.unpack_from("<HH2sH", group, at)
            at += 8
            if vr in _LONG:
                (length,) = struct.unpack_from("<I", group, at)
                at += 4
            if tag != 0x0002 or at + length > len(group):
                raise _odd()
            if vr == b"UI":
                found[element] = group[at : at + length].decode("ascii").rstrip("\x00 ")
            at += length
    except (struct.error, UnicodeDecodeError):
        raise _odd() from None
    return found


class ContentDigest:
    """SHA-256 over transfer syntax UID, line feed, data set: of a file that arrives in blocks of any size.

    `meta` is known once the head has arrived.
    """

    def __init__(self) -> None:
        self._head = bytearray()
        self._hash = hashlib.sha256()
        self.meta: FileMeta | None = None
        self.size = 0

    def feed(self, block: bytes) -> None:
        self.size += len(block)
        if self.meta is not None:
            self._hash.update(block)
            return
        self._head += block
        self.meta = read_meta(bytes(self._head[: MAX_META + 1]))
        if self.meta is not None:
            self._hash.update(self.meta.transfer_syntax.encode() + b"\n")
            self._hash.update(memoryview(self._head)[self.meta.length :])
            self._head = bytearray()

    def digest(self) -> str:
        """`sha256:…`. Raises `PeerError` pacs-not-dicom when the head never came."""
        if self.meta is None:
            raise _odd()
        return "sha256:" + self._hash.hexdigest()


def content_digest(file: bytes) -> str:
    """The content digest of a whole file."""
    content = ContentDigest()
    content.feed(file)
    return content.digest()


def _odd() -> PeerError:
    return PeerError("pacs-not-dicom", "the archive sent an object that is not a DICOM file", peer="pacs")
