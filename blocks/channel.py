"""How the node's processes speak: framed JSON with file descriptors over a UNIX stream socket.

A frame is a 4-byte big-endian length and canonical JSON of at most 4 MiB; descriptors travel with its first byte (SCM_RIGHTS).
A request is `{"verb": …, …}`; an answer `{"ok": true, …}` or `{"ok": false, "codes": […], "kind": "refusal" | "peer" | "bug"}`.
The lifetime of what a process holds for a client is that client's connection: killing the client releases it.
"""

import contextlib
import os
import socket
import struct
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rapha.canonical import canonical, parse
from rapha.errors import PeerError, Refusal

MAX_FRAME = 4 << 20
MAX_FDS = 16


def send(sock: socket.socket, message: dict[str, Any], fds: list[int] | None = None) -> None:
    """One frame. Blocks until it is written."""
    raw = canonical(message)
    frame = struct.pack(">I", len(raw)) + raw
    sent = socket.send_fds(sock, [frame], fds or [])
    if sent < len(frame):
        sock.sendall(frame[sent:])


def receive(sock: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """One frame and its descriptors, or None when the other side has closed. The caller owns the descriptors."""
    head, fds, _, _ = socket.recv_fds(sock, 4, MAX_FDS)
    for fd in fds:
        os.set_inheritable(fd, False)
    if not head:
        return None
    (length,) = struct.unpack(">I", head + _exactly(sock, 4 - len(head)))
    if length > MAX_FRAME:
        raise PeerError("channel-frame-too-large", "a local process sent an over-long frame")
    return parse(_exactly(sock, length), limit=MAX_FRAME, what="message"), list(fds)


def _exactly(sock: socket.socket, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        block = sock.recv(count - len(parts))
        if not block:
            raise PeerError("channel-closed", "a local process closed its connection in mid-message")
        parts += block
    return bytes(parts)


class Channel:
    """A client's connection to one of the node's processes. Not shared between threads.

    A call that failed ends its connection, so that no late answer is taken for the next call's; the next call makes a new one.
    `hang_up` alone may be called by another thread.
    """

    def __init__(self, path: Path, *, peer: str, timeout: float = 60.0) -> None:
        self.peer = peer
        self._path, self._timeout, self._lost, self._over = path, timeout, False, False
        self._sock = self._connected()

    def _connected(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(self._timeout)
        try:
            sock.connect(str(self._path))
        except OSError as error:
            sock.close()
            said = f"the {self.peer} process does not answer: {error.strerror}"
            raise PeerError(f"{self.peer}-unreachable", said, peer=self.peer) from None
        return sock

    def call(self, verb: str, *, fds: list[int] | None = None, timeout: float | None = None, **fields: Any) -> dict[str, Any]:
        """Sends a request and returns its answer. Raises the `Refusal` or `PeerError` that the other side answered with."""
        if self._lost:
            self._sock, self._lost = self._connected(), False
        if self._over:
            self._sock.close()
        if timeout is not None:
            self._sock.settimeout(timeout)
        try:
            answer = self._answered({"verb": verb, **fields}, fds)
        except TimeoutError:
            raise PeerError(f"{self.peer}-timeout", f"the {self.peer} process did not answer in time", peer=self.peer) from None
        except OSError as error:
            raise PeerError(f"{self.peer}-gone", f"the {self.peer} process is gone: {error.strerror}", peer=self.peer) from None
        if answer is None:
            raise PeerError(f"{self.peer}-gone", f"the {self.peer} process closed the connection", peer=self.peer)
        return self._checked(answer[0])

    def _answered(self, message: dict[str, Any], fds: list[int] | None) -> tuple[dict[str, Any], list[int]] | None:
        answer, whole = None, False
        try:
            send(self._sock, message, fds)
            answer = receive(self._sock)
            whole = answer is not None
        finally:
            if not whole:
                self._lost = self._sock.fileno() >= 0 and not self._over  # not one that its owner closed
                self._sock.close()
        return answer

    def _checked(self, answer: dict[str, Any]) -> dict[str, Any]:
        if answer.get("ok") is True:
            return answer
        codes = [str(code) for code in answer.get("codes") or [f"{self.peer}-odd-answer"]]
        if answer.get("kind") == "peer":
            raise PeerError(codes[0], f"the {self.peer} process: {codes[0]}", peer=self.peer)
        raise Refusal(codes, gate=self.peer)

    def close(self) -> None:
        self._sock.close()

    def hang_up(self) -> None:
        """Ends the connection under whoever waits in a call of it: that call fails, and so does every later one.

        Closing alone would not wake it (shutdown(2) does), and would give its descriptor's number to somebody else.
        """
        self._over = True
        with contextlib.suppress(OSError):  # it is closed already
            self._sock.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
