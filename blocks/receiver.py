"""The receiver of C-MOVE, as a flow asks it. Verbs: message_id · expect · arrived · claim · close · unclaimed · drop ·
commitment · commitments · alarms · alarms_written."""

import base64
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

from blocks.channel import Channel
from blocks.dimse.services import Commitment
from rapha.errors import PeerError


@dataclass(frozen=True, slots=True)
class Arrived:
    """One received instance. sha256: of its data set as it was sent; conflict: it came with other content than before."""

    sop_uid: str
    sop_class: str
    sha256: str
    size: int
    path: Path
    conflict: bool


@dataclass(frozen=True, slots=True)
class Alarm:
    """What the receiver turned away. titles: AE titles that the peer called itself by; first, last: seconds since the epoch."""

    name: str
    code: str
    address: str
    titles: tuple[str, ...]
    first: int
    last: int
    count: int


class Receiver(Channel):
    """A connection to the receiver. store: the folder that it keeps sealed files in."""

    def __init__(self, path: Path, store: Path, *, timeout: float = 60.0) -> None:
        super().__init__(path, peer="receiver", timeout=timeout)
        self._store = store

    def message_id(self) -> int:
        """A message id that no other C-MOVE of this node uses now."""
        return int(self.call("message_id")["message_id"])

    def expect(self, originator: str, message_id: int, wanted: Sequence[str], *, seal_to: X25519PublicKey | None = None) -> str:
        """A ticket for the instances that a C-MOVE will bring.

        seal_to: a key of the caller's own, to which all of them are sealed. Such a ticket, and what came for it, ends with
        `forgo` or with this connection. Raises `Refusal(receiver-no-recipient)` without one where there is no study reader.
        """
        own: dict[str, Any] = {"seal_to": base64.b64encode(seal_to.public_bytes_raw()).decode()} if seal_to else {}
        return str(self.call("expect", originator=originator, message_id=message_id, wanted=list(wanted), **own)["ticket"])

    def arrived(self, ticket: str) -> list[Arrived]:
        """What has come for the ticket so far, and lies sealed on disk. Raises `PeerError(receiver-ticket-unknown)`."""
        found: list[Arrived] = []
        while True:
            answer = self.call("arrived", ticket=ticket, start=len(found))
            found += [self._one(entry) for entry in answer["arrived"]]
            if len(found) >= int(answer["count"]) or not answer["arrived"]:
                return found

    def claim(self, ticket: str) -> None:
        """They are the caller's now: removed when this connection ends, but for what was moved aside (`blocks.kept`)."""
        self.call("claim", ticket=ticket)

    def forgo(self, ticket: str) -> None:
        """Nobody waits any more; what came stays, unclaimed, but is removed where it is sealed to a key of the ticket's own."""
        self.call("close", ticket=ticket)

    def unclaimed(self) -> int:
        """How many instances came and are no open ticket's."""
        return int(self.call("unclaimed")["count"])

    def strays(self, start: int = 0) -> dict[str, str]:
        """Of the unclaimed ones a page from `start` on, in the order of their names: file -> SOP Instance UID. {}: no more."""
        found = self.call("unclaimed", start=start).get("first")
        if not isinstance(found, list) or not all(isinstance(one, list) and len(one) == 2 for one in found):
            raise PeerError("receiver-odd-answer", "the receiver's answer is not one to its verb", peer="receiver")
        return {str(file): str(uid) for uid, file in found}

    def drop(self, files: Sequence[str]) -> int:
        """Removes unclaimed ones that nobody is owed; how many. What a ticket waits for by now stays."""
        return int(self.call("drop", files=list(files))["dropped"])

    def commitment(self, transaction: str, seconds: float) -> Commitment | None:
        """The archive's report for a transaction, waited for; None when none came."""
        until = time.monotonic() + seconds
        while True:
            report = self.call("commitment", transaction=transaction)["report"]
            if report is not None:
                return _commitment(report)
            if time.monotonic() > until:
                return None
            time.sleep(0.05)

    def alarms(self) -> list[Alarm]:
        """What was turned away and is not in the audit trail yet; each stays until `alarm_written`."""
        try:
            return [Alarm(**{**one, "titles": tuple(map(str, one["titles"]))}) for one in self.call("alarms")["alarms"]]
        except (KeyError, TypeError):
            raise PeerError("receiver-odd-answer", "the receiver's answer is not one to its verb", peer="receiver") from None

    def alarm_written(self, one: Alarm) -> None:
        """It stands in the trail with this count. What came of it since stays with the receiver."""
        self.call("alarms_written", name=one.name, count=one.count)

    def commitments(self, transactions: Sequence[str]) -> list[Commitment]:
        """The reports that came for any of these transactions (at most 500) by now; nothing is waited for."""
        reports = self.call("commitments", transactions=list(transactions))["reports"] if transactions else []
        return [_commitment(one) for one in reports]

    def _one(self, entry: Any) -> Arrived:
        try:
            file = str(entry["file"])
            if "/" in file or file.startswith("."):
                raise ValueError(file)
            return Arrived(
                str(entry["sop_instance"]),
                str(entry["sop_class"]),
                str(entry["sha256"]),
                int(entry["size"]),
                self._store / file,
                entry["conflict"] is True,
            )
        except (KeyError, TypeError, ValueError):
            raise PeerError("receiver-odd-answer", "the receiver's answer is not one to its verb", peer="receiver") from None


def _commitment(report: Any) -> Commitment:
    """classes: none in a report that came before they were written down."""
    try:
        failed = {str(uid): int(reason) for uid, reason in report["failed"].items()}
        kept = {str(uid): "" for uid in report["kept"]} | {str(uid): str(name) for uid, name in report.get("classes", {}).items()}
        kept = {uid: name for uid, name in kept.items() if uid not in failed}
        return Commitment(str(report["transaction"]), frozenset(kept), failed, kept, int(report["number"]))
    except (AttributeError, KeyError, TypeError, ValueError):
        raise PeerError("receiver-odd-answer", "the receiver's answer is not one to its verb", peer="receiver") from None
