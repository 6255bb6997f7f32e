"""What a C-GET brings (PS3.4 C.4.3), handed on as its fragments come: memory does not grow with an instance, and none is spooled.

The library gathers a data set in a buffer of its own. Here that buffer is `_Passing`, which gives each fragment to a thread that
runs the caller's sink; a sink that is slow slows the reading from the wire.
"""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from typing import Any

from pynetdicom.association import Association
from pynetdicom.dimse_messages import C_STORE_RQ, DIMSEMessage

from rapha.errors import PeerError, Refusal

DEPTH = 8  # fragments, each as long as a PDU at most
SUCCESS, OUT_OF_RESOURCES = 0x0000, 0xA700
Sink = Callable[[str, str, Iterable[bytes]], None]
Head = Callable[[str, str, str], bytes]


class Incoming:
    """The instances of one C-GET on their way to `sink(sop_class, sop_instance, blocks of a DICOM file)`, one at a time.

    head: `(sop_class, sop_instance, transfer_syntax)` -> what makes a data set a file. `keep` is the handler of EVT_C_STORE.
    """

    def __init__(self, sink: Sink, head: Head) -> None:
        self._sink, self._head = sink, head
        self._failures: list[BaseException] = []
        self._line: _Line | None = None

    def attach(self, association: Association) -> None:
        """From now on, each message of this association passes through."""
        provider: Any = association.dimse
        received = provider.receive_primitive

        def receive(primitive: Any) -> None:
            if provider.message is None:
                provider.message = DIMSEMessage()
                provider.message.data_set = _Passing(provider.message, lambda message: self._begun(association, message))
            received(primitive)

        provider.receive_primitive = receive

    def keep(self, event: Any) -> int:
        """The status: 0x0000 once the sink has taken all of it and returned."""
        passed = event.request.DataSet
        line = passed.line if isinstance(passed, _Passing) else None
        error = line.finish() if line else ValueError("an object without a data set")
        if error is None:
            return SUCCESS
        self._failures.append(error)
        return OUT_OF_RESOURCES

    def end(self) -> None:
        """The association is over: a sink that still waits hears that its instance was broken off."""
        if self._line is not None:
            self._line.abandon()

    def check(self) -> None:
        """Raises what the first sink that failed raised: its `PeerError` or `Refusal`, else `PeerError(retrieve-not-kept)`."""
        for error in self._failures:
            if isinstance(error, PeerError | Refusal):
                raise error
            raise PeerError("retrieve-not-kept", "an object could not be kept while it was received", peer="disk")

    def _begun(self, association: Association, message: Any) -> "_Line":
        command = message.command_set
        sop_class, sop_uid = str(command.AffectedSOPClassUID), str(command.AffectedSOPInstanceUID)
        syntax = next(c.transfer_syntax[0] for c in association.accepted_contexts if c.context_id == message.context_id)
        self._line = _Line(lambda blocks: self._sink(sop_class, sop_uid, blocks), self._head(sop_class, sop_uid, str(syntax)))
        return self._line


class _Passing(BytesIO):
    """The library's buffer of a message's data set; what is no C-STORE's stays in it."""

    def __init__(self, message: Any, begun: Callable[[Any], "_Line"]) -> None:
        super().__init__()
        self._message, self._begun = message, begun
        self.line: _Line | None = None

    def write(self, fragment: Any) -> int:
        if not isinstance(self._message, C_STORE_RQ):
            return super().write(fragment)
        if self.line is None:
            self.line = self._begun(self._message)
        self.line.put(bytes(fragment))
        return len(fragment)


class _Line:
    """One instance: fragments in at one end, a sink in a thread of its own at the other."""

    def __init__(self, sink: Callable[[Iterator[bytes]], None], head: bytes) -> None:
        self._fragments: queue.Queue[bytes | None] = queue.Queue(DEPTH)
        self._over = threading.Event()
        self._whole, self._kept = True, False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(sink, head), daemon=True, name="dimse-sink")
        self._thread.start()

    def put(self, fragment: bytes | None) -> None:
        """Waits for room; a sink that is through already wants no more."""
        while not self._over.is_set():
            try:
                self._fragments.put(fragment, timeout=0.2)
            except queue.Full:
                continue
            return

    def finish(self) -> BaseException | None:
        """The data set has ended: why it was not kept, None where it was."""
        self.put(None)
        self._thread.join()
        return None if self._kept else self._error or ValueError("an object that was not kept")

    def abandon(self) -> None:
        """Nothing more will come."""
        self._whole = False
        self.put(None)
        self._thread.join()

    def _blocks(self, head: bytes) -> Iterator[bytes]:
        yield head
        while (fragment := self._fragments.get()) is not None:
            yield fragment
        if not self._whole:
            raise PeerError("dimse-hung-up", "the archive ended the association inside an object", peer="pacs")

    def _run(self, sink: Callable[[Iterator[bytes]], None], head: bytes) -> None:
        try:
            sink(self._blocks(head))
            self._kept = True
        except (PeerError, Refusal, OSError, ValueError) as error:
            self._error = error
        finally:
            self._over.set()
