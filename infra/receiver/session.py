"""The receiver's verbs: message_id · expect · arrived · claim · close · unclaimed · drop · commitment · commitments ·
alarms · alarms_written.

Tickets and claimed files end with the connection that opened or claimed them; a file that its owner has moved aside stays.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

from infra.receiver.alarms import Alarms
from infra.receiver.store import Store
from rapha.errors import PeerError, Refusal

PAGE = 500
Answer = dict[str, Any]


class ReceiverSession:
    """One connection. What arrives stays unclaimed when it ends; what it claimed is removed, unless it was moved aside."""

    def __init__(self, store: Store, alarms: Alarms) -> None:
        self._store, self._alarms = store, alarms
        self._tickets: list[str] = []
        self._claimed: list[Path] = []

    def closed(self) -> None:
        """What was sealed to a key of this connection's is removed as well: nobody else can open it."""
        for ticket in self._tickets:
            self._store.close_ticket(ticket)
        for path in self._claimed:
            path.unlink(missing_ok=True)

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
        self._tickets.append(ticket)
        return {"ticket": ticket}

    def do_arrived(self, message: Mapping[str, Any], fds: list[int]) -> Answer:
        start = message.get("start")
        found = sorted(self._store.arrived(str(message.get("ticket"))), key=lambda one: (one.sop_instance, one.file))
        first = start if isinstance(start, int) else 0
        return {"count": len(found), "arrived": [asdict(one) for one in found[first : first + PAGE]]}

    def do_claim(self, message: Mapping[str, Any], fds: list[int]) -> Answer:
        try:
            self._claimed += self._store.claim(str(message.get("ticket")))
        except OSError:
            raise _unwritable() from None
        return {}

    def do_close(self, message: Mapping[str, Any], fds: list[int]) -> Answer:
        self._store.close_ticket(str(message.get("ticket")))
        return {}

    def do_unclaimed(self, message: Mapping[str, Any], fds: list[int]) -> Answer:
        """How many, and a page of them from `start` on, in the order of their names: SOP Instance UID and file."""
        start = message.get("start", 0)
        if type(start) is not int or start < 0:
            raise Refusal(["receiver-request-odd"])
        found = self._store.unclaimed()
        page = sorted((one.sop_instance, one.file) for one in found)[start : start + PAGE]
        return {"count": len(found), "first": [list(one) for one in page]}

    def do_drop(self, message: Mapping[str, Any], fds: list[int]) -> Answer:
        files = message.get("files")
        if not isinstance(files, list) or not all(isinstance(name, str) for name in files):
            raise Refusal(["receiver-request-odd"])
        try:
            return {"dropped": self._store.drop(frozenset(files))}
        except OSError:
            raise _unwritable() from None

    def do_commitment(self, message: Mapping[str, Any], fds: list[int]) -> Answer:
        report = self._store.commitment(str(message.get("transaction")))
        return {"report": report}

    def do_commitments(self, message: Mapping[str, Any], fds: list[int]) -> Answer:
        """The reports that came for any of these transactions, as they are now."""
        named = message.get("transactions")
        if not isinstance(named, list) or len(named) > PAGE or not all(isinstance(one, str) for one in named):
            raise Refusal(["receiver-request-odd"])
        return {"reports": [one for name in named if (one := self._store.commitment(name)) is not None]}

    def do_alarms(self, message: Mapping[str, Any], fds: list[int]) -> Answer:
        return {"alarms": self._alarms.due()}

    def do_alarms_written(self, message: Mapping[str, Any], fds: list[int]) -> Answer:
        name, count = message.get("name"), message.get("count")
        if not isinstance(name, str) or type(count) is not int or count < 1:
            raise Refusal(["receiver-request-odd"])
        self._alarms.written({name: count})
        return {}


def _unwritable() -> PeerError:
    return PeerError("journal-unwritable", "the receiver's journal cannot be written", peer="disk")


def _recipient(text: object) -> X25519PublicKey:
    """32 bytes in base64 (RFC 7748 section 5)."""
    try:
        return X25519PublicKey.from_public_bytes(base64.b64decode(str(text), validate=True))
    except (binascii.Error, ValueError):
        raise Refusal(["receiver-request-odd"], "a ticket's own key is 32 bytes in base64") from None
