"""The receiver's DIMSE engine: the one file that knows the library. A faster one must pass the same tests.

The library spools a data set that it receives in chunks into a temporary file in clear. Here that file is `_Spool`, which seals
each fragment as it comes: no clear byte reaches a disk, and memory holds one chunk.
"""

import hashlib
import secrets
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pynetdicom import AE, _config, dimse_messages, evt

from blocks.instances import SealedInstance, SealedWriter
from blocks.part10 import FileMeta, read_meta
from infra.receiver.head import named
from rapha.errors import PeerError

VERIFICATION, COMMITMENT = "1.2.840.10008.1.1", "1.2.840.10008.1.20.1"
SUCCESS, OUT_OF_RESOURCES, OTHER_CLASS, CANNOT_UNDERSTAND = 0x0000, 0xA700, 0xA900, 0xC000
HEAD = 16 << 10
MOST_ASSOCIATIONS = 64


@dataclass(frozen=True, slots=True)
class Came:
    """One C-STORE whose data set is sealed. originator, message_id: of the C-MOVE that it names, "" and 0 where it names none."""

    sop_instance: str
    sop_class: str
    transfer_syntax: str
    sha256: str
    sealed: SealedInstance
    originator: str
    message_id: int


class Keeping(Protocol):
    """What the engine asks of the receiver."""

    def room(self) -> bool:
        """Whether the disk is above its floor."""

    def writer(self) -> SealedWriter:
        """A new sealed file. Raises `OSError`."""

    def keep(self, came: Came) -> int:
        """Puts it into the journal; the status to answer with. Raises `OSError`."""

    def committed(self, transaction: str, kept: Sequence[str], failed: dict[str, int]) -> None:
        """An archive's report of storage commitment. Raises `OSError`."""


class _Spool:
    """Stands in for the library's temporary file: takes preamble, meta information and fragments, and seals them."""

    def __init__(self, keeping: Keeping) -> None:
        self.name = f"/nonexistent/{secrets.token_hex(8)}"  # the library removes the file of this name, and there is none
        self.file = self  # what the library flushes after each fragment
        self.failed = not keeping.room()
        self.head, self._hash = bytearray(), hashlib.sha256()
        self.meta: FileMeta | None = None
        self._writer: SealedWriter | None = None
        if not self.failed:
            self._guarded(lambda: setattr(self, "_writer", keeping.writer()))

    def write(self, block: bytes) -> int:
        """Never raises: a failed disk is answered for when the data set has ended (PS3.4 B.2.3)."""
        writer = self._writer
        if writer is not None and not self.failed:
            self._guarded(lambda: writer.write(block))
            self._seen(block)
        return len(block)

    def _seen(self, block: bytes) -> None:
        if self.meta is None:
            self.head += block
            try:
                self.meta = read_meta(bytes(self.head))
            except PeerError:
                self.failed = True
            if self.meta is None:
                return
            block = bytes(self.head[self.meta.length :])
            self.head = bytearray()
        self._hash.update(block)
        if len(self.head) < HEAD:
            self.head += block[: HEAD - len(self.head)]

    def flush(self) -> None:
        """Sealed chunks go to disk as they fill."""

    def close(self) -> None:
        """Called by the library after the handler: what was not finished is removed."""
        if self._writer is not None:
            self._writer.discard()

    def finish(self) -> tuple[SealedInstance, str]:
        """(sealed and durable, SHA-256 of the data set). Raises `OSError`."""
        if self._writer is None or self.failed or self.meta is None:
            raise OSError("the data set was not kept")
        return self._writer.finish(), "sha256:" + self._hash.hexdigest()

    def _guarded(self, step: Callable[[], object]) -> None:
        try:
            step()
        except OSError:
            self.failed = True
            self.close()


class Engine:
    """The SCP. start() serves in threads of its own."""

    def __init__(self, ae_title: str, keeping: Keeping, peers: Sequence[str], *, idle: float = 120.0) -> None:
        self._keeping = keeping
        self._ae = AE(ae_title)
        self._ae.require_called_aet = True
        self._ae.require_calling_aet = list(peers)
        self._ae.maximum_associations, self._ae.maximum_pdu_size = MOST_ASSOCIATIONS, 131072
        self._ae.network_timeout = self._ae.dimse_timeout = idle
        self._ae.acse_timeout = 30
        self._ae.add_supported_context(VERIFICATION)
        self._ae.add_supported_context(COMMITMENT, scu_role=True, scp_role=True)
        # Of this process alone, and not at import: the library's settings are global, and elsewhere they are others.
        _config.LOG_HANDLER_LEVEL = "none"
        _config.LOG_REQUEST_IDENTIFIERS = False
        _config.LOG_RESPONSE_IDENTIFIERS = False
        _config.STORE_RECV_CHUNKED_DATASET = True
        _config.UNRESTRICTED_STORAGE_SERVICE = True  # private SOP classes too: what the archive holds is what we take
        dimse_messages.NamedTemporaryFile = lambda **_: _Spool(keeping)  # type: ignore[assignment,attr-defined]

    def start(self, host: str, port: int, tls: ssl.SSLContext | None) -> int:
        """The port that it serves on."""
        handlers: list[Any] = [
            (evt.EVT_C_ECHO, lambda event: SUCCESS),
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_N_EVENT_REPORT, self._report),
            (evt.EVT_CONN_OPEN, _hurry),
            (evt.EVT_DATA_RECV, _hurry),
            (evt.EVT_ABORTED, _drop),
            (evt.EVT_CONN_CLOSE, _drop),
        ]
        server: Any = self._ae.start_server((host, port), block=False, ssl_context=tls, evt_handlers=handlers)
        return int(server.socket.getsockname()[1])

    def _store(self, event: Any) -> int:
        request, spool = event.request, event.request._dataset_file
        if not isinstance(spool, _Spool) or spool.failed:
            return OUT_OF_RESOURCES
        sop_class, sop_instance = str(request.AffectedSOPClassUID), str(request.AffectedSOPInstanceUID)
        syntax = str(event.context.transfer_syntax)
        told = {"sop_class": sop_class, "sop_instance": sop_instance}
        if any(told[name] != uid for name, uid in named(bytes(spool.head), syntax).items()):
            return OTHER_CLASS  # the data set is another than the command says; nothing of it is kept
        originator = str(request.MoveOriginatorApplicationEntityTitle or "").strip()
        try:
            sealed, sha256 = spool.finish()
            came = Came(sop_instance, sop_class, syntax, sha256, sealed, originator, int(request.MoveOriginatorMessageID or 0))
            return self._keeping.keep(came)
        except OSError:
            return OUT_OF_RESOURCES

    def _report(self, event: Any) -> tuple[int, None]:
        information = event.event_information
        kept = [str(item.ReferencedSOPInstanceUID) for item in information.get("ReferencedSOPSequence", [])]
        lost = information.get("FailedSOPSequence", [])
        failed = {str(item.ReferencedSOPInstanceUID): int(item.get("FailureReason", 0x0110)) for item in lost}
        try:
            self._keeping.committed(str(information.get("TransactionUID", "")), kept, failed)
        except OSError:
            return 0x0110, None  # processing failure: the archive may report again
        return SUCCESS, None


def _hurry(event: Any) -> None:
    held = event.assoc.dul.socket
    if held is not None and held.socket is not None:
        held.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        held.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def _drop(event: Any) -> None:
    """An association that ends inside a data set leaves nothing of it."""
    message = event.assoc.dimse.message
    spool = getattr(message, "_data_set_file", None)
    if isinstance(spool, _Spool):
        spool.close()
