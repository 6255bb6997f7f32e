"""A multipart/related body as a stream of parts (RFC 2046 section 5.1, PS3.18 section 8.6), in memory that does not grow.

A part that states its Content-Length is copied by count; the search for the boundary is for those that do not. A body that ends
before its closing boundary is a failed peer, never a short answer.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from email.message import Message

from rapha.errors import PeerError

MAX_HEADERS = 8192
_GONE = "the archive's answer ended before its last boundary"


@dataclass
class Part:
    """One part. `body` must be read to its end before the next part is asked for."""

    headers: dict[str, str]
    body: Iterator[bytes] = field(repr=False)


def boundary_of(content_type: str) -> bytes:
    """The boundary that a Content-Type names. Raises `PeerError` pacs-not-multipart."""
    message = Message()
    message["Content-Type"] = content_type
    boundary = message.get_param("boundary")
    if message.get_content_type() != "multipart/related" or not isinstance(boundary, str) or not 0 < len(boundary) <= 200:
        raise PeerError("pacs-not-multipart", "the archive's answer is not multipart/related", peer="pacs")
    try:
        return boundary.encode("ascii")
    except UnicodeEncodeError:
        raise PeerError("pacs-not-multipart", "the archive's boundary is not ASCII", peer="pacs") from None


def parts(blocks: Iterable[bytes], boundary: bytes) -> Iterator[Part]:
    """The parts of a body that arrives in `blocks`. Raises `PeerError` pacs-truncated or pacs-multipart-odd."""
    source = _Source(blocks)
    delimiter = b"\r\n--" + boundary
    source.push_back(b"\r\n")  # the first boundary may open the body
    source.until(delimiter)
    while not source.closing():
        headers = _headers(source)
        if "content-length" in headers:
            body = _counted(source, _length(headers["content-length"]), delimiter)
        else:
            body = source.search(delimiter)
        yield Part(headers, body)
        for _ in body:
            pass


def _counted(source: "_Source", length: int, delimiter: bytes) -> Iterator[bytes]:
    while length:
        block = source.take(length)
        if not block:
            raise PeerError("pacs-truncated", _GONE, peer="pacs")
        length -= len(block)
        yield block
    source.expect(delimiter)


def _headers(source: "_Source") -> dict[str, str]:
    headers: dict[str, str] = {}
    source.push_back(b"\r\n")
    source.until(b"\r\n")
    while line := source.until(b"\r\n"):
        name, colon, value = line.decode("latin-1").partition(":")
        if not colon or len(headers) > 32:
            raise _odd()
        headers[name.strip().lower()] = value.strip()
    return headers


def _length(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 16):
        raise _odd()
    return int(text)


def _odd() -> PeerError:
    return PeerError("pacs-multipart-odd", "the archive's answer is not well-formed multipart", peer="pacs")


class _Source:
    """Blocks with a place to read from."""

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks = iter(blocks)
        self._rest = b""

    def push_back(self, data: bytes) -> None:
        self._rest = data + self._rest

    def take(self, limit: int) -> bytes:
        """At most `limit` bytes; none at the end."""
        block = self._rest or next(self._blocks, b"")
        self._rest = block[limit:]
        return block[:limit]

    def until(self, mark: bytes) -> bytes:
        """What comes before `mark`, which is passed over."""
        seen = b""
        while (at := seen.find(mark)) < 0:
            if len(seen) > MAX_HEADERS:
                raise _odd()
            block = self.take(MAX_HEADERS)
            if not block:
                raise PeerError("pacs-truncated", _GONE, peer="pacs")
            seen += block
        self.push_back(seen[at + len(mark) :])
        return seen[:at]

    def expect(self, mark: bytes) -> None:
        if self.exactly(len(mark)) != mark:
            raise _odd()

    def exactly(self, count: int) -> bytes:
        out = b""
        while len(out) < count:
            block = self.take(count - len(out))
            if not block:
                raise PeerError("pacs-truncated", _GONE, peer="pacs")
            out += block
        return out

    def closing(self) -> bool:
        """After a delimiter: "--" closes the body, blanks and a line end open a part."""
        mark = self.exactly(2)
        if mark == b"--":
            return True
        while mark[-2:] != b"\r\n":
            if mark.strip(b" \t\r") or len(mark) > 64:
                raise _odd()
            mark += self.exactly(1)
        return False

    def search(self, delimiter: bytes) -> Iterator[bytes]:
        """The bytes up to `delimiter`, which is passed over."""
        seen = b""
        while (at := seen.find(delimiter)) < 0:
            keep = len(seen) - len(delimiter) + 1
            if keep > 0:
                yield seen[:keep]
                seen = seen[keep:]
            block = self._rest or next(self._blocks, b"")
            self._rest = b""
            if not block:
                raise PeerError("pacs-truncated", _GONE, peer="pacs")
            seen += block
        self.push_back(seen[at + len(delimiter) :])
        if at:
            yield seen[:at]
