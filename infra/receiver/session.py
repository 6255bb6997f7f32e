"""The receiver's verbs: message_id · expect · arrived · claim · close · unclaimed · commitment. Tickets outlive a connection."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from infra.receiver.store import Store
from rapha.errors import PeerError, Refusal

PAGE = 500
Answer = dict[str, Any]


class ReceiverSession:
    """One connection. What arrives belongs to tickets, not to connections."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def closed(self) -> None:
        """Nothing is held for a connection."""

    def do_message_id(self, message: Mapping[str, Any], fds: list[int]) -> Answer:
        try:
            return {"message_id": self._store.next_message_id()}
        except OSError:
            raise _unwritable() from None

    def do_expect(self, message: Mapping[str, Any], fds: list[int]) -> Answer:
        wanted, originator, number = message.get("wanted"), message.get("originator"), message.get("message_id")
        if not isinstance(wanted, list) or not all(isinstance(uid, str) for uid in wanted) or type(number) is not int:
            raise Refusal(["receiver-request-odd"])
        return {"ticket": self._store.expect(str(originator), number, wanted)}

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
