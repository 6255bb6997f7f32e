"""The loader's protocol, both sides of it: fixed binary requests by record index, length-framed replies with an array.

    request   magic "RPH1" · op u8 · 3 zero bytes · index u64 · frame u32 · level u32 · x u32 · y u32 · width u32 · height u32
    reply     magic "RPR1" · status u8 · dtype u8 · dimensions u8 · transport u8 · attributes u32 · shape 6 × u32 · bytes u64
              · attributes (canonical JSON) · the array's bytes (transport 0), or none and a sealed memfd beside the head (1)

All numbers are big-endian; arrays are C-ordered and little-endian. A request names a record by its number and nothing else: there
is no text in it to carry an identifier, and no way to ask for a file.
"""

import array
import fcntl
import json
import mmap
import os
import socket
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rapha.canonical import canonical
from rapha.errors import PeerError, RaphaError

DESCRIBE, NAMES, READ, FACTS = 1, 2, 3, 4
OK, OUT_OF_RANGE, CAP_REACHED, MALFORMED, BAD_REQUEST, UNSUPPORTED, TOO_LARGE = range(7)
STATUS = {
    OUT_OF_RANGE: "loader-out-of-range",
    CAP_REACHED: "loader-cap-reached",
    MALFORMED: "loader-record-malformed",
    BAD_REQUEST: "loader-bad-request",
    UNSUPPORTED: "loader-unsupported",
    TOO_LARGE: "loader-too-large",
}
INLINE, MEMFD = 0, 1
ALL_FRAMES = 0xFFFFFFFF
INLINE_LIMIT = 1 << 20
MAX_NAMES = 4096
MAX_ATTRIBUTES = 4 << 20
_REQUEST = struct.Struct(">4sB3xQIIIIII")
_REPLY = struct.Struct(">4sBBBBI6IQ")
_DTYPES = ("|b1", "|u1", "|i1", "<u2", "<i2", "<u4", "<i4", "<f4", "<f8")


@dataclass(frozen=True, slots=True)
class Request:
    """op: DESCRIBE, NAMES, READ or FACTS (what a study's reader knows of record `index` without its pixels).

    READ: frame or ALL_FRAMES of record `index`, the region at (x, y) of width × height pixels (0 × 0: all of it) at `level` (0:
    full resolution). NAMES: at most `frame` records from `index` on.
    """

    op: int
    index: int = 0
    frame: int = ALL_FRAMES
    level: int = 0
    x: int = 0
    y: int = 0
    width: int = 0
    height: int = 0

    def pack(self) -> bytes:
        return _REQUEST.pack(b"RPH1", self.op, self.index, self.frame, self.level, self.x, self.y, self.width, self.height)


@dataclass(frozen=True, slots=True)
class Reply:
    """status: OK or a reason; attributes: plain JSON; array: of READ alone, None for every reason."""

    status: int
    attributes: dict[str, Any] = field(default_factory=dict)
    array: np.ndarray[Any, Any] | None = None


def receive_request(sock: socket.socket) -> Request | None:
    """The next request, None at the end of the connection. Raises `PeerError` loader-protocol."""
    raw = _exactly(sock, _REQUEST.size, at_start=True)
    if raw is None:
        return None
    magic, *fields = _REQUEST.unpack(raw)
    if magic != b"RPH1" or raw[5:8] != b"\x00\x00\x00":
        raise _odd()
    return Request(*fields)


def send_reply(sock: socket.socket, reply: Reply) -> None:
    """Sends a reply; an array beyond INLINE_LIMIT travels in a memfd that nobody can write to or resize any more."""
    attributes = canonical(reply.attributes)
    if reply.array is None:
        sock.sendall(_head(reply.status, attributes, None, INLINE) + attributes)
        return
    data = np.ascontiguousarray(reply.array, dtype=reply.array.dtype.newbyteorder("<"))
    if data.nbytes <= INLINE_LIMIT:
        sock.sendall(_head(reply.status, attributes, data, INLINE) + attributes)
        sock.sendall(data.reshape(-1).view(np.uint8).data)
        return
    memory = _sealed(data)
    try:
        head = _head(reply.status, attributes, data, MEMFD)
        sent = socket.send_fds(sock, [head], [memory])
        sock.sendall(head[sent:] + attributes)
    finally:
        os.close(memory)


def ask(sock: socket.socket, request: Request) -> Reply:
    """One request and its reply. Raises `PeerError` loader-gone or loader-protocol."""
    sock.sendall(request.pack())
    head, memory = _head_and_memory(sock)
    try:
        return _reply(sock, head, memory)
    finally:
        if memory is not None:
            os.close(memory)


def raise_for(reply: Reply) -> None:
    """Raises the code of a reply that is not OK."""
    if reply.status != OK:
        code = STATUS.get(reply.status, "loader-protocol")
        raise RaphaError([code], f"the hospital's reader answered {code}")


def _reply(sock: socket.socket, head: bytes, memory: int | None) -> Reply:
    magic, status, dtype, dimensions, transport, length, *rest = _REPLY.unpack(head)
    shape, size = tuple(rest[:6][:dimensions]), rest[6]
    if magic != b"RPR1" or length > MAX_ATTRIBUTES or dimensions > 6 or (transport == MEMFD) is not (memory is not None):
        raise _odd()
    attributes = json.loads(_whole(sock, length))
    if dtype == 0:
        return Reply(status, attributes)
    kind = np.dtype(_DTYPES[dtype - 1]) if dtype <= len(_DTYPES) else None
    if kind is None or int(np.prod(shape, dtype=np.uint64)) * kind.itemsize != size:
        raise _odd()
    if memory is None:
        return Reply(status, attributes, np.frombuffer(_whole(sock, size), dtype=kind).reshape(shape))
    mapped = mmap.mmap(memory, size, prot=mmap.PROT_READ)
    return Reply(status, attributes, np.frombuffer(mapped, dtype=kind).reshape(shape))


def _head(status: int, attributes: bytes, data: np.ndarray[Any, Any] | None, transport: int) -> bytes:
    shape = data.shape if data is not None else ()
    code = _DTYPES.index(data.dtype.str) + 1 if data is not None else 0
    size = data.nbytes if data is not None else 0
    return _REPLY.pack(b"RPR1", status, code, len(shape), transport, len(attributes), *shape, *([0] * (6 - len(shape))), size)


def carries(dtype: np.dtype[Any]) -> bool:
    """Whether arrays of this type can travel."""
    return dtype.newbyteorder("<").str in _DTYPES


def _sealed(data: np.ndarray[Any, Any]) -> int:
    memory = os.memfd_create("record", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = data.reshape(-1).view(np.uint8).data
        while view:
            view = view[os.write(memory, view) :]
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, seals)
    except OSError:
        os.close(memory)
        raise
    return memory


def _head_and_memory(sock: socket.socket) -> tuple[bytes, int | None]:
    fds = array.array("i")
    raw, ancillary, _, _ = sock.recvmsg(_REPLY.size, socket.CMSG_SPACE(fds.itemsize))
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    if not raw:
        raise _gone()
    return raw + _whole(sock, _REPLY.size - len(raw)), fds[0] if fds else None


def _whole(sock: socket.socket, count: int) -> bytearray:
    found = _exactly(sock, count, at_start=False)
    if found is None:
        raise _gone()
    return found


def _exactly(sock: socket.socket, count: int, *, at_start: bool) -> bytearray | None:
    out = bytearray(count)
    view, at = memoryview(out), 0
    while at < count:
        got = sock.recv_into(view[at:])
        if got == 0:
            if at_start and at == 0:
                return None
            raise _gone()
        at += got
    return out


def _gone() -> PeerError:
    return PeerError("loader-gone", "the hospital's reader closed the connection", peer="reader")


def _odd() -> PeerError:
    return PeerError("loader-protocol", "a message of the loader's protocol is malformed", peer="reader")
