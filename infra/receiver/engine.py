"""The receiver's DIMSE engine: the one file that knows the library. A faster one must pass the same tests.

The library spools a data set that it receives in chunks into a temporary file in clear. Here that file is `_Spool`, which seals
each fragment as it comes: no clear byte reaches a disk, and memory holds one chunk.
"""

import hashlib
import secrets
import socket
import ssl
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pynetdicom import AE, _config, dimse_messages, evt
from pynetdicom.dsutils import decode
from pynetdicom.transport import ThreadedAssociationServer

from blocks.endpoint import tls_code
from blocks.instances import SealedInstance, SealedWriter
from blocks.part10 import FileMeta, read_meta
from infra.receiver.alarms import Alarms
from infra.receiver.certificates import Certificates
from infra.receiver.head import named
from rapha.errors import PeerError

VERIFICATION, COMMITMENT = "1.2.840.10008.1.1", "1.2.840.10008.1.20.1"
SUCCESS, OUT_OF_RESOURCES, OTHER_CLASS, CANNOT_UNDERSTAND = 0x0000, 0xA700, 0xA900, 0xC000
NOT_AUTHORIZED = 0x0124  # PS3.7 C.5.9: nobody here waits for it
HEAD = 16 << 10
MOST_ASSOCIATIONS = 64
MOST_THREADS = 200  # an association has two; beyond them a connection is closed at once
# Status -> what is told to the audit trail (PS3.15 A.5.3.11).
TURNED_AWAY = {
    NOT_AUTHORIZED: "receiver-object-unexpected",
    OTHER_CLASS: "receiver-object-named-otherwise",
    OUT_OF_RESOURCES: "receiver-out-of-resources",
}


@dataclass(frozen=True, slots=True)
class Command:
    """What a C-STORE says before its data set. originator, message_id: of the C-MOVE that it names, "" and 0 for none."""

    sop_instance: str
    sop_class: str
    originator: str
    message_id: int


@dataclass(frozen=True, slots=True)
class Addressed:
    """A new sealed file, and the ticket whose key it is sealed to: "" for the study reader's."""

    writer: SealedWriter
    ticket: str


@dataclass(frozen=True, slots=True)
class Came:
    """One C-STORE whose data set is sealed, for `ticket`."""

    command: Command
    transfer_syntax: str
    sha256: str
    sealed: SealedInstance
    ticket: str


class Keeping(Protocol):
    """What the engine asks of the receiver."""

    def room(self) -> bool:
        """Whether the disk is above its floor."""

    def addressed(self, command: Command) -> Addressed | None:
        """A new sealed file for whoever waits for it, None where nobody does. Raises `OSError`."""

    def keep(self, came: Came) -> int:
        """Puts it into the journal; the status to answer with. Raises `OSError`."""

    def committed(self, transaction: str, kept: Mapping[str, str], failed: dict[str, int]) -> None:
        """An archive's report of storage commitment: SOP instance -> SOP class, and -> why not. Raises `OSError`."""


class _Spool:
    """Stands in for the library's temporary file: takes preamble, meta information and fragments, and seals them."""

    def __init__(self, keeping: Keeping, command: Command) -> None:
        self.command, self.status = command, OUT_OF_RESOURCES  # what is answered where it failed
        self.name = f"/nonexistent/{secrets.token_hex(8)}"  # the library removes the file of this name, and there is none
        self.file = self  # what the library flushes after each fragment
        self.failed = not keeping.room()
        self.head, self._hash = bytearray(), hashlib.sha256()
        self.meta: FileMeta | None = None
        self._writer: SealedWriter | None = None
        self._ticket = ""
        if not self.failed:
            self._guarded(lambda: self._address(keeping.addressed(command)))

    def _address(self, addressed: Addressed | None) -> None:
        if addressed is None:
            self.failed, self.status = True, NOT_AUTHORIZED
        else:
            self._writer, self._ticket = addressed.writer, addressed.ticket

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

    def finish(self, transfer_syntax: str) -> Came:
        """What came, sealed and durable, with the SHA-256 of its data set. Raises `OSError`."""
        if self._writer is None or self.failed or self.meta is None:
            raise OSError("the data set was not kept")
        sealed = self._writer.finish()
        return Came(self.command, transfer_syntax, "sha256:" + self._hash.hexdigest(), sealed, self._ticket)

    def _guarded(self, step: Callable[[], object]) -> None:
        try:
            step()
        except OSError:
            self.failed = True
            self.close()


class _Door(ThreadedAssociationServer):
    """Takes connections. A handshake is made in the connection's own thread: who connects and is silent keeps nobody out."""

    daemon_threads = True
    alarms: Alarms
    certificates: Certificates | None = None  # as they are when the connection comes; None: no TLS

    def verify_request(self, request: Any, client_address: Any) -> bool:
        if threading.active_count() < MOST_THREADS:
            return True
        self.alarms.note(TURNED_AWAY[OUT_OF_RESOURCES], client_address[0])
        return False

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        if self.certificates is not None:
            try:
                request = self.certificates.context().wrap_socket(request, server_side=True, do_handshake_on_connect=False)
                request.do_handshake()
            except OSError as error:
                if _said_something(error):
                    self.alarms.note(tls_code(error), client_address[0])
                self.shutdown_request(request)
                return
        super().process_request_thread(request, client_address)


def _said_something(error: OSError) -> bool:
    """Who only looks whether the port is open, or goes before the handshake is over, has shown no wrong certificate."""
    return isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError)


class Engine:
    """The SCP. start() serves in threads of its own."""

    def __init__(self, ae_title: str, keeping: Keeping, peers: Sequence[str], alarms: Alarms, *, idle: float = 120.0) -> None:
        self._keeping, self._alarms = keeping, alarms
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
        # The library decodes a command and, on the same thread, opens the file for its data set without a word on whose it is.
        last = threading.local()

        def decoded(*args: Any) -> Any:
            last.command = decode(*args)
            return last.command

        dimse_messages.decode = decoded  # type: ignore[attr-defined,assignment]
        dimse_messages.NamedTemporaryFile = lambda **_: _Spool(keeping, _command(last.command))  # type: ignore[assignment,attr-defined]

    def start(self, host: str, port: int, tls: Certificates | None) -> int:
        """The port that it serves on. Raises `OSError`."""
        handlers: list[Any] = [
            (evt.EVT_C_ECHO, lambda event: SUCCESS),
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_N_EVENT_REPORT, self._report),
            (evt.EVT_CONN_OPEN, _hurry),
            (evt.EVT_DATA_RECV, _hurry),
            (evt.EVT_REJECTED, self._rejected),
            (evt.EVT_ABORTED, _drop),
            (evt.EVT_CONN_CLOSE, _drop),
        ]
        door: Any = self._ae.make_server((host, port), evt_handlers=handlers, server_class=_Door)
        door.certificates, door.alarms = tls, self._alarms
        threading.Thread(target=door.serve_forever, daemon=True).start()
        return int(door.socket.getsockname()[1])

    def _rejected(self, event: Any) -> None:
        asked = event.assoc.requestor.primitive
        if asked.calling_ae_title not in self._ae.require_calling_aet:
            self._alarms.note("receiver-calling-title", *_sender(event))
        elif asked.called_ae_title != self._ae.ae_title:
            self._alarms.note("receiver-called-title", *_sender(event))

    def _store(self, event: Any) -> int:
        status = self._stored(event)
        if code := TURNED_AWAY.get(status):
            self._alarms.note(code, *_sender(event))
        return status

    def _stored(self, event: Any) -> int:
        spool = event.request._dataset_file
        if not isinstance(spool, _Spool) or spool.failed:
            return spool.status if isinstance(spool, _Spool) else OUT_OF_RESOURCES
        syntax, told = str(event.context.transfer_syntax), spool.command
        if any(getattr(told, name) != uid for name, uid in named(bytes(spool.head), syntax).items()):
            return OTHER_CLASS  # the data set is another than the command says; nothing of it is kept
        try:
            return self._keeping.keep(spool.finish(syntax))
        except OSError:
            return OUT_OF_RESOURCES

    def _report(self, event: Any) -> tuple[int, None]:
        information = event.event_information
        done = information.get("ReferencedSOPSequence", [])
        kept = {str(item.ReferencedSOPInstanceUID): str(item.get("ReferencedSOPClassUID", "")) for item in done}
        lost = information.get("FailedSOPSequence", [])
        failed = {str(item.ReferencedSOPInstanceUID): int(item.get("FailureReason", 0x0110)) for item in lost}
        try:
            self._keeping.committed(str(information.get("TransactionUID", "")), kept, failed)
        except OSError:
            return 0x0110, None  # processing failure: the archive may report again
        return SUCCESS, None


def _command(given: Any) -> Command:
    """The command set of a C-STORE (PS3.7 table 9.3-1)."""
    originator, number = given.get("MoveOriginatorApplicationEntityTitle"), given.get("MoveOriginatorMessageID")
    return Command(
        str(given.get("AffectedSOPInstanceUID", "")),
        str(given.get("AffectedSOPClassUID", "")),
        str(originator or "").strip(),
        number if isinstance(number, int) else 0,
    )


def _sender(event: Any) -> tuple[str, str]:
    """The peer's address, and the AE title that it calls itself by."""
    return str(event.assoc.requestor.address), str(event.assoc.requestor.ae_title)


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
