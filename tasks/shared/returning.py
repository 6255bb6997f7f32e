"""An object that was stored, as the archive gives it back: on our own association, or by C-MOVE to our receiver.

What comes by C-MOVE is sealed to a key of whoever asks and ends with that ticket: it is the answer to this very question, and
none of it stays.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from blocks.archive import Archive, Listed
from blocks.instances import SealedReader
from blocks.receiver import Arrived, Receiver
from policies.movement import SUCCESS, WARNING
from rapha.errors import PeerError
from tasks.shared.moving import Ended, Told, by_move, until_delivered

T = TypeVar("T")
NOTHING = "pacs-proves-nothing"


def given_back(archive: Archive, receiver: Receiver | None, study: str, one: Listed) -> bytes | None:
    """The object's file, in clear in this process; None where it does not come, or comes twice.

    Raises `PeerError` pacs-proves-nothing, and of archive and receiver.
    """

    def moved() -> bytes | None:
        assert receiver is not None  # noqa: S101  # it is asked only where there is one
        key = X25519PrivateKey.generate()
        with moved_back(archive, receiver, study, one, key.public_key(), _unheard) as came:
            if len(came) != 1:
                return None
            with SealedReader(came[0].path, key) as stream:
                return stream.read()

    return one_of(archive, receiver, lambda: archive.given_back(study, one), moved)


def one_of(archive: Archive, receiver: Receiver | None, got: Callable[[], T], moved: Callable[[], T]) -> T:
    """By the way that was declared or that a probe saw, and by the other where the archive does not accept that one.

    got: by C-GET or WADO-RS; moved: by C-MOVE, where there are a receiver and a DIMSE side. Raises
    `PeerError(pacs-proves-nothing)` where it accepts neither.
    """
    movable = receiver is not None and archive.endpoint.port
    ways = [got, *([moved] if movable else [])]
    declared = archive.method == "C-MOVE" and (archive.endpoint.retrieve == "C-MOVE" or archive.capabilities.probed)
    for way in reversed(ways) if declared else ways:
        try:
            return way()
        except PeerError as error:
            if error.codes != ("dimse-no-context",):
                raise
    raise PeerError(NOTHING, "the archive gives nothing back, by C-GET or by C-MOVE to our receiver", peer="pacs")


@contextmanager
def moved_back(
    archive: Archive, receiver: Receiver, study: str, one: Listed, key: X25519PublicKey, told: Told
) -> Iterator[Sequence[Arrived]]:
    """What came of it by C-MOVE, sealed to `key`, for as long as the block lasts. told: as `until_delivered`.

    Raises `PeerError` move-refused, of an association that failed, and of the receiver.
    """
    number = receiver.message_id()
    ticket = receiver.expect(archive.endpoint.calling_ae_title, number, [one.sop_uid], seal_to=key)

    def came() -> list[Arrived]:
        return [arrived for arrived in receiver.arrived(ticket) if arrived.sop_uid == one.sop_uid]

    try:
        failed = until_delivered(
            by_move(archive, study, number), lambda: {arrived.sop_uid for arrived in came()}, [one], "IMAGE", told
        )
        if failed is not None:
            _raise(failed)
        yield came()
    finally:
        receiver.forgo(ticket)


def _raise(failed: Ended) -> None:
    """Where it did not come, and the archive did not say that it had sent all there is."""
    if failed.error is not None:
        raise failed.error
    if failed.status not in (SUCCESS, WARNING):
        raise PeerError("move-refused", f"the archive answered a C-MOVE with status 0x{failed.status or 0:04X}", peer="pacs")


def _unheard(turn: int, codes: tuple[str, ...]) -> None:
    """By hand, what the archive said that is not so is nobody's to hear."""
