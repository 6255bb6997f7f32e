"""An association as its user opens it (PS3.8), on pynetdicom.

Three things are mended here that the library leaves open. Its reactor thread may take an answer off the queue that its caller
waits for (`_Checkpoint`). A peer that stalls inside a PDU holds it for ever, and the peer's small answers wait for our delayed
acknowledgement, 40 ms a message, unless the socket says TCP_NODELAY and, after each receive, TCP_QUICKACK (`blocks.dimse.watch`).
"""

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from pydicom import config as pydicom_config
from pynetdicom import AE, _config, evt
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext, build_context

from blocks.dimse.slots import slot
from blocks.dimse.watch import Watch
from blocks.endpoint import Endpoint
from rapha.errors import PeerError

MENDED = "3.0.4"  # the release whose association this was read and tried against
PLAIN = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2")
Handlers = list[tuple[Any, Any]]

# Identifiers and data sets do not go into anybody's log.
_config.LOG_HANDLER_LEVEL = "none"
_config.LOG_REQUEST_IDENTIFIERS = False
_config.LOG_RESPONSE_IDENTIFIERS = False
_config.STORE_SEND_CHUNKED_DATASET = True
# Their errors and warnings quote what is not as it should be.
for _name in ("pynetdicom", "pydicom"):
    logging.getLogger(_name).setLevel(logging.CRITICAL + 1)
pydicom_config.settings.reading_validation_mode = pydicom_config.IGNORE


class _Checkpoint:
    """Stands in for the event between an association's reactor thread and whoever sends on it.

    `clear` returns only once the reactor is parked in `wait`: with a plain event the reactor may be between the two, and take
    the answer that the sender is about to wait for.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._open, self._parked = True, False

    def is_set(self) -> bool:
        return self._open

    def set(self) -> None:
        with self._condition:
            self._open = True
            self._condition.notify_all()

    def wait(self, timeout: float | None = None) -> bool:
        with self._condition:
            self._parked = True
            self._condition.notify_all()
            while not self._open:
                self._condition.wait()
            self._parked = False
        return True

    def clear(self) -> None:
        with self._condition:
            self._open = False
            self._condition.wait_for(lambda: self._parked, timeout=10.0)


def mend() -> None:
    """Gives every association of this process the checkpoint above; once. Another release of the library is left alone."""
    if version("pynetdicom") != MENDED or hasattr(Association, "_rapha_mended"):
        return
    made = Association.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        self._reactor_checkpoint = _Checkpoint()

    Association.__init__ = init  # type: ignore[method-assign]
    Association._rapha_mended = True  # type: ignore[attr-defined]


mend()


def contexts(sop_classes: Sequence[str], syntaxes: Sequence[str] = PLAIN) -> list[PresentationContext]:
    """One presentation context a SOP class, at most 128 (PS3.8 9.3.2)."""
    return [build_context(sop_class, list(syntaxes)) for sop_class in sop_classes[:128]]


@contextmanager
def associated(
    endpoint: Endpoint,
    offered: Sequence[PresentationContext],
    *,
    roles: Sequence[Any] = (),
    handlers: Sequence[Any] = (),
    idle: float | None = None,
) -> Iterator[Association]:
    """An established association with `endpoint`; released at the end, aborted when the work in it fails.

    idle: seconds without a byte in either direction, the endpoint's when None. Raises `PeerError` dimse-unreachable,
    dimse-rejected, dimse-aborted, dimse-no-context, dimse-timeout, dimse-slow, dimse-pool, tls-….
    """
    with slot(endpoint):
        yield from _associated(endpoint, offered, roles, handlers, idle)


def _associated(
    endpoint: Endpoint,
    offered: Sequence[PresentationContext],
    roles: Sequence[Any],
    handlers: Sequence[Any],
    idle: float | None,
) -> Iterator[Association]:
    watch = Watch(idle=idle or endpoint.idle_seconds, negotiation=endpoint.connect_seconds, max_pdu=endpoint.max_pdu)
    try:
        association = _established(endpoint, offered, roles, handlers, watch)
        watch.begin(endpoint.whole_seconds)
        try:
            yield association
        except BaseException:
            watch.farewell()
            association.abort()
            raise
        if association.is_established:
            watch.farewell()
            association.release()
    except PeerError as error:
        raise watch.named(error) from None
    finally:
        watch.stop()


def _established(
    endpoint: Endpoint, offered: Sequence[PresentationContext], roles: Sequence[Any], handlers: Sequence[Any], watch: Watch
) -> Association:
    ae = AE(endpoint.calling_ae_title)
    ae.connection_timeout, ae.acse_timeout = endpoint.connect_seconds, endpoint.connect_seconds
    # A message may be large and take its time; the watch sees whether its bytes still come.
    ae.dimse_timeout, ae.network_timeout = endpoint.whole_seconds, None
    context = endpoint.tls.client(endpoint.connect_seconds) if endpoint.tls else None
    name = (endpoint.tls.server_name or endpoint.host) if endpoint.tls else None
    try:
        association = ae.associate(
            endpoint.host,
            endpoint.port,
            contexts=list(offered),
            ae_title=endpoint.ae_title,
            max_pdu=endpoint.max_pdu,
            ext_neg=list(roles),
            tls_args=(context, name) if context is not None else None,  # type: ignore[arg-type]
            evt_handlers=[(evt.EVT_CONN_OPEN, watch.held), *handlers],
        )
    except OSError:  # a name that does not resolve
        raise _failed("dimse-unreachable", "the archive's host name has no address") from None
    if not association.is_established:
        raise _not_established(association, context)
    return association


def _not_established(association: Association, context: Any) -> PeerError:
    if context is not None and context.failure:
        return _failed(context.failure, "the TLS handshake with the archive failed")
    if association.is_rejected:
        return _failed("dimse-rejected", "the archive rejected the association: look at the AE titles on both sides")
    if association.acceptor.primitive is not None:
        return _failed("dimse-no-context", "the archive accepts none of the services that this needs")
    if association.is_aborted and association.requestor.primitive is not None and _connected(association):
        # Under TLS 1.3 a refused client certificate shows only after the handshake, as an abort (RFC 8446 section 4.4.2.4).
        return _failed("dimse-aborted", "the archive ended the association: look at AE titles and at our certificate")
    return _failed("dimse-unreachable", "nothing answers at the archive's address")


def _connected(association: Association) -> bool:
    return bool(getattr(association.dul.socket, "_is_connected", False)) or association.requestor.port not in (None, 0)


def accepted(association: Association, sop_class: str) -> None:
    """Raises `PeerError(dimse-no-context)` where the peer took other services of an association and not this one: the library
    answers such a request with a `ValueError`."""
    if not any(one.abstract_syntax == sop_class and one.as_scu for one in association.accepted_contexts):
        raise _failed("dimse-no-context", "the archive does not accept the service that this needs")


def _failed(code: str, message: str) -> PeerError:
    return PeerError(code, message, peer="pacs")


def answered(association: Association, status: Any, what: str) -> int:
    """The status of an answer. Raises `PeerError`: dimse-timeout, or dimse-hung-up where the archive aborted."""
    if "Status" in status:
        return int(status.Status)
    if association.acse.is_aborted():
        raise _failed("dimse-hung-up", f"the archive ended the association instead of answering a {what}: may our AE title ask?")
    raise _failed("dimse-timeout", f"the archive did not answer a {what} in time")
