"""The receiver's verbs: message_id · expect · arrived · claim · close · unclaimed · commitment.

Tickets outlive a connection, but for those with a key of their own: they end with the connection that opened them.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

from infra.receiver.store import Store
from rapha.errors import PeerError, Refusal

PAGE = 500
Answer = dict[str, Any]


class ReceiverSession:
    """One connection. What arrives belongs to tickets, not to connections."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._own: list[str] = []

    def closed(self) -> None:
        """What was sealed to a key of this connection's is removed: nobody else can open it."""
        for ticket in self._own:
            self._store.close_ticket(ticket)

    def do_message_id(self, message: Mapping[str, Any], fds: list[int]) -> Answer:
        try:
            return {"message_id": self._store.next_message_id()}
        except OSError:
            raise _unwritable() from None

    def do_expect(self, message: Mapping[str, Any], fds: list[int]) -> Answer:
        wanted, originator, number = message.get("wanted"), message.get("originator"), message.get("message_id")
        if not isinstance(wanted, list) or not all(isinstance(uid, str) for uid in wanted) or type(number) is not int:
            raise Refusal(["receiver-request-odd"])
        recipient = _recipient(message["seal_to"]) if "seal_to" in message else None
        try:
            ticket = self._store.expect(str(originator), number, wanted, recipient)
        except OSError:
            raise _unwritable() from None
        self._own += [ticket] if recipient else []
        return {"ticket": ticket}

    def do_arrived(self, message: Mapping[str, Any], fds: list[int]) -> Answer:
        start = message.get("start")
        found = sorted(self._store.arrived(str(message.get("ticket"))), key=lambda one: (one.sop_instance, one.file))
        first = start if isinstance(start, int) else 0
        return {"count": len(found), "arrived": [asdict(one) for one in found[first : first + PAGE]]}

    def do_claim(self, message: Mapping[str, Any], fds: list[int]) -> Answer:
        try:
            self._store.claim(str(message.get("ticket")))
        except OSError:
            raise _unwritable() from None
        return {}

    def do_close(self, message: Mapping[str, Any], fds: list[int]) -> Answer:
        self._store.close_ticket(str(message.get("ticket")))
        return {}

    def do_unclaimed(self, message: Mapping[str, Any], fds: list[int]) -> Answer:
        return {"count": len(self._store.unclaimed())}

    def do_commitment(self, message: Mapping[str, Any], fds: list[int]) -> Answer:
        report = self._store.commitment(str(message.get("transaction")))
        return {"report": report}


def _unwritable() -> PeerError:
    return PeerError("journal-unwritable", "the receiver's journal cannot be written", peer="disk")


def _recipient(text: object) -> X25519PublicKey:
    """32 bytes in base64 (RFC 7748 section 5)."""
    try:
        return X25519PublicKey.from_public_bytes(base64.b64decode(str(text), validate=True))
    except (binascii.Error, ValueError):
        raise Refusal(["receiver-request-odd"], "a ticket's own key is 32 bytes in base64") from None
