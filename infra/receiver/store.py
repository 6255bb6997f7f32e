"""What the receiver keeps and whom it belongs to: arrivals, conflicts and commitments, rebuilt from the journal; and tickets."""

import os
import secrets
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

from blocks.instances import SUFFIX, SealedWriter, sweep_unfinished
from infra.receiver.engine import OUT_OF_RESOURCES, SUCCESS, Came
from infra.receiver.journal import Journal
from rapha.errors import Refusal

IDS_AT_ONCE = 64  # message ids that one line of the journal reserves


@dataclass(frozen=True, slots=True)
class Arrival:
    """One kept instance. conflict: it came after another of its UID with other content."""

    sop_instance: str
    sop_class: str
    transfer_syntax: str
    sha256: str
    size: int
    file: str
    originator: str
    message_id: int
    conflict: bool = False


@dataclass
class _Ticket:
    originator: str
    message_id: int
    wanted: frozenset[str]


@dataclass
class Store:
    """The receiver's memory. Every change is in the journal before it is in memory, and in memory before it is answered.

    `folder` is this process's alone: at its start it removes every sealed file that its journal does not name.
    """

    folder: Path
    recipient: X25519PublicKey
    journal: Journal
    floor: int
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _arrivals: dict[str, list[Arrival]] = field(default_factory=dict)
    _tickets: dict[str, _Ticket] = field(default_factory=dict)
    _commitments: dict[str, dict[str, Any]] = field(default_factory=dict)
    _claimed: dict[str, str] = field(default_factory=dict)  # file to SOP instance, while the file is there
    _last_id: int = field(default_factory=lambda: secrets.randbelow(60000))
    _reserved: int = 0

    def __post_init__(self) -> None:
        """Raises `Refusal(journal-unreadable)`."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        sweep_unfinished(self.folder)
        for entry in self.journal.entries:
            self._replay(entry)
        self.journal.rewrite(self._snapshot())
        self._sweep()

    def room(self) -> bool:
        room = os.statvfs(self.folder)
        return room.f_bavail * room.f_frsize > self.floor

    def writer(self) -> SealedWriter:
        return SealedWriter(self.folder, self.recipient)

    def keep(self, came: Came) -> int:
        with self._lock:
            there = [one for one in self._arrivals.get(came.sop_instance, []) if (self.folder / one.file).exists()]
            if any(one.sha256 == came.sha256 for one in there):
                came.sealed.path.unlink(missing_ok=True)  # the same again is one instance
                return SUCCESS
            one = Arrival(
                came.sop_instance,
                came.sop_class,
                came.transfer_syntax,
                came.sha256,
                came.sealed.size,
                came.sealed.path.name,
                came.originator,
                came.message_id,
                conflict=bool(there),
            )
            try:
                self.journal.append(what="came", **asdict(one))
            except OSError:
                came.sealed.path.unlink(missing_ok=True)
                return OUT_OF_RESOURCES
            self._arrivals.setdefault(came.sop_instance, []).append(one)
            return SUCCESS

    def committed(self, transaction: str, kept: Sequence[str], failed: dict[str, int]) -> None:
        with self._lock:
            report = {"transaction": transaction, "kept": list(kept), "failed": failed}
            self.journal.append(what="committed", **report)
            self._commitments[transaction] = report

    def next_message_id(self) -> int:
        """One that no open ticket has and that was not given before a restart either, until all have been. Raises `OSError`."""
        with self._lock:
            used = {ticket.message_id for ticket in self._tickets.values()}
            for _ in range(0xFFFF):
                self._last_id = self._last_id % 0xFFFE + 1
                self._reserve()
                if self._last_id not in used:
                    return self._last_id
        raise Refusal(["receiver-busy"], "every message id is in use")

    def _reserve(self) -> None:
        """An id is given only when the journal says that it was: C-STOREs of a C-MOVE from before a kill may still come."""
        if self._reserved == 0:
            self.journal.append(what="ids", last=(self._last_id + IDS_AT_ONCE - 2) % 0xFFFE + 1)
            self._reserved = IDS_AT_ONCE
        self._reserved -= 1

    def expect(self, originator: str, message_id: int, wanted: Sequence[str]) -> str:
        with self._lock:
            name = secrets.token_hex(16)
            self._tickets[name] = _Ticket(originator, message_id, frozenset(wanted))
            return name

    def arrived(self, ticket: str) -> list[Arrival]:
        """Everything kept that the ticket waits for, and whatever names its C-MOVE besides."""
        with self._lock:
            held = self._ticket(ticket)
            every = [one for several in self._arrivals.values() for one in several]
            return [one for one in every if one.sop_instance in held.wanted or self._names(one, held)]

    def claim(self, ticket: str) -> None:
        """The caller has them in its register: they are not the receiver's any more. Raises `OSError`."""
        with self._lock:
            for one in self.arrived(ticket):
                self.journal.append(what="claimed", sop_instance=one.sop_instance, file=one.file)
                self._forget(one.sop_instance, one.file)
                self._claimed[one.file] = one.sop_instance
            self._tickets.pop(ticket, None)

    def close_ticket(self, ticket: str) -> None:
        with self._lock:
            self._tickets.pop(ticket, None)

    def unclaimed(self) -> list[Arrival]:
        """Kept, and no open ticket's."""
        with self._lock:
            every = [one for several in self._arrivals.values() for one in several]
            open_ = list(self._tickets.values())
            return [one for one in every if not any(one.sop_instance in t.wanted or self._names(one, t) for t in open_)]

    def commitment(self, transaction: str) -> dict[str, Any] | None:
        with self._lock:
            return self._commitments.get(transaction)

    def _ticket(self, name: str) -> _Ticket:
        if name not in self._tickets:
            raise Refusal(
                ["receiver-ticket-unknown"], "no ticket of this name is open: the receiver was restarted, or it was claimed"
            )
        return self._tickets[name]

    @staticmethod
    def _names(one: Arrival, ticket: _Ticket) -> bool:
        return one.message_id == ticket.message_id and one.originator == ticket.originator

    def _forget(self, sop_instance: str, file: str) -> None:
        left = [one for one in self._arrivals.get(sop_instance, []) if one.file != file]
        if left:
            self._arrivals[sop_instance] = left
        else:
            self._arrivals.pop(sop_instance, None)

    def _replay(self, entry: dict[str, Any]) -> None:
        fields = {name: value for name, value in entry.items() if name != "what"}
        if entry["what"] == "came":
            one = Arrival(**fields)
            if (self.folder / one.file).exists():
                self._arrivals.setdefault(one.sop_instance, []).append(one)
        elif entry["what"] == "claimed":
            self._forget(fields["sop_instance"], fields["file"])
            self._claimed[fields["file"]] = fields["sop_instance"]
        elif entry["what"] == "ids":
            self._last_id = fields["last"]
        elif entry["what"] == "committed":
            self._commitments[fields["transaction"]] = fields

    def _snapshot(self) -> list[dict[str, Any]]:
        self._claimed = {file: uid for file, uid in self._claimed.items() if (self.folder / file).exists()}
        came = [{"what": "came", **asdict(one)} for several in self._arrivals.values() for one in several]
        claimed = [{"what": "claimed", "sop_instance": uid, "file": file} for file, uid in self._claimed.items()]
        committed = [{"what": "committed", **report} for report in self._commitments.values()]
        return [*came, *claimed, *committed, {"what": "ids", "last": self._last_id}]

    def _sweep(self) -> None:
        """A sealed file that the journal does not name was never answered for: its sender will send it again."""
        named = {one.file for several in self._arrivals.values() for one in several} | set(self._claimed)
        for path in self.folder.glob(f"*{SUFFIX}"):
            if path.name not in named:
                path.unlink(missing_ok=True)
