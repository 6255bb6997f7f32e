"""A watch over one association: bytes must come or go, and the whole must end.

The library waits for the rest of a PDU without a limit, and its abort waits for that wait. So the watch holds the socket itself:
when nothing has moved for `idle` seconds, or the operation is not over by its deadline however it drips, it shuts the connection
down below TLS, and every wait in the library ends.
"""

import contextlib
import socket
import threading
import time
from typing import Any

from pynetdicom import evt

from rapha.errors import PeerError

MAX_PDU_EXTRA = 1 << 20  # an A-ASSOCIATE-AC may be longer than the P-DATA-TF that we announced; nothing is longer than this more
TICK = 0.1
FAREWELL = 2.0  # seconds for an abort or a release to be sent and answered


class Watch:
    """`held` is its place in EVT_CONN_OPEN; `begin` and `farewell` set how long each part may take; `stop` ends it."""

    def __init__(self, *, idle: float, negotiation: float, max_pdu: int) -> None:
        self.code: str | None = None
        self._idle, self._limit = idle, max_pdu + MAX_PDU_EXTRA
        self._last = time.monotonic()
        self._until, self._late = self._last + negotiation, "dimse-timeout"
        self._wire: socket.socket | None = None
        self._done = threading.Event()

    def held(self, event: Any) -> None:
        """Handler of EVT_CONN_OPEN: no delay in sending, none in acknowledging, and every byte seen."""
        transport, wire = event.assoc.dul.socket, event.assoc.dul.socket.socket
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport.recv = lambda count: self._receive(wire, count)
        transport.send = lambda content: self._send(event.assoc, wire, content)
        self._wire, self._last = wire, time.monotonic()
        threading.Thread(target=self._run, daemon=True, name="dimse-watch").start()

    def begin(self, whole: float) -> None:
        """The association stands: its work has `whole` seconds."""
        self._last = time.monotonic()
        self._until, self._late = self._last + whole, "dimse-slow"

    def farewell(self) -> None:
        self._until, self._late = time.monotonic() + FAREWELL, "dimse-timeout"

    def stop(self) -> None:
        self._done.set()

    def named(self, error: PeerError) -> PeerError:
        """`error`, or why the watch ended the association that it comes from."""
        if self.code is None:
            return error
        said = "the archive says nothing any more" if self.code == "dimse-timeout" else "the archive's answer does not end"
        return PeerError(self.code, said, peer="pacs")

    def _run(self) -> None:
        while not self._done.wait(TICK):
            now = time.monotonic()
            if now > self._until or now > self._last + self._idle:
                self.code = self.code or (self._late if now > self._until else "dimse-timeout")
                self._shut()
                return

    def _shut(self) -> None:
        if self._wire is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self._wire, socket.SHUT_RDWR)  # not SSLSocket's, which another thread may be in

    def _receive(self, wire: socket.socket, count: int) -> bytearray:
        """Exactly `count` bytes, or fewer where the peer ended. Raises `OSError` for a PDU longer than any we announced."""
        if count > self._limit:
            raise OSError("a PDU is longer than what was announced")
        out, at = bytearray(count), 0
        while at < count:
            came = wire.recv_into(memoryview(out)[at:])
            if not came:
                return out[:at]
            at, self._last = at + came, time.monotonic()
            with contextlib.suppress(OSError):
                wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)  # Linux forgets it
        return out

    def _send(self, association: Any, wire: socket.socket, content: bytes) -> None:
        rest = memoryview(content)
        try:
            while rest:
                rest = rest[wire.send(rest) :]
                self._last = time.monotonic()
        except OSError:
            association.dul.event_queue.put("Evt17")  # transport connection closed (PS3.8 9.2.2)
            return
        evt.trigger(association, evt.EVT_DATA_SENT, {"data": content})
