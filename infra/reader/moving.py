"""C-MOVE for the reader: the archive sends to the receiver, which seals what comes to a key of this one retrieval.

The private half is in this process and nowhere else, for as long as the retrieval lasts. What lies at the receiver is opened
piece by piece into staging, and removed; when this process or its connection ends, the receiver removes it by itself, and
nobody can open what it had not yet removed.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from blocks.archive import Archive, Listed
from blocks.instances import CHUNK, SealedReader
from blocks.receiver import Arrived, Receiver
from policies.movement import Level
from rapha.errors import PeerError
from tasks.shared.moving import Ask, Ended, Told, by_move, until_delivered


@dataclass(frozen=True, slots=True)
class Receiving:
    """socket: the receiver's; store: the folder in which it keeps sealed files."""

    socket: Path
    store: Path


class Moving:
    """The C-MOVEs of one retrieval. Safe between threads: each has a connection and a ticket of its own."""

    def __init__(self, archive: Archive, receiving: Receiving) -> None:
        self._archive, self._receiving = archive, receiving
        self._private = X25519PrivateKey.generate()

    def series(
        self,
        study: str,
        wanted: Sequence[Listed],
        level: Level,
        keep: Callable[[Iterable[bytes]], None],
        paced: Callable[[Ask], Ask],
        told: Told,
    ) -> Ended | None:
        """What came, each as the blocks of a DICOM file to `keep`; None when that is all, else how the last round ended.

        paced: what stands between two rounds. Raises `PeerError` receiver-…, and of an association that broke off.
        """
        with Receiver(self._receiving.socket, self._receiving.store) as receiver:
            number = receiver.message_id()
            names = [one.sop_uid for one in wanted]
            calling = self._archive.endpoint.calling_ae_title
            ticket = receiver.expect(calling, number, names, seal_to=self._private.public_key())

            def delivered() -> set[str]:
                return {one.sop_uid for one in receiver.arrived(ticket)}

            failed = until_delivered(paced(by_move(self._archive, study, number)), delivered, wanted, level, told)
            if failed is None or failed.error is None:
                for one in receiver.arrived(ticket):
                    keep(self._blocks(one))
            receiver.forgo(ticket)
        return failed

    def _blocks(self, one: Arrived) -> Iterator[bytes]:
        """Raises `Refusal` sealed-…; `PeerError(receiver-lost)` where the receiver has it no more."""
        try:
            with SealedReader(one.path, self._private) as sealed:
                while block := sealed.read(CHUNK):
                    yield block
        except OSError:
            raise PeerError("receiver-lost", "an instance that the receiver told of cannot be read", peer="receiver") from None
