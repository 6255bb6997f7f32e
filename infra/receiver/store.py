"""What the receiver keeps and whom it belongs to: arrivals, conflicts and commitments, rebuilt from the journal; and tickets."""

import errno
import os
import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

from blocks.instances import SealedWriter, sweep_finished, sweep_unfinished
from infra.receiver.engine import CANNOT_UNDERSTAND, NOT_AUTHORIZED, OUT_OF_RESOURCES, SUCCESS, Addressed, Came, Command
from infra.receiver.journal import Journal
from rapha.errors import PeerError, Refusal

IDS_AT_ONCE = 64  # message ids that one line of the journal reserves
CLAIMED_AT_ONCE = 4000  # instances that one line names: it stays below what the strict reader takes
COMMITMENT_SECONDS = 7 * 86_400  # an archive's report is kept for so long; who asked for it waits for minutes


@dataclass(frozen=True, slots=True)
class Arrival:
    """One kept instance. conflict: it came after another of its UID with other content; ticket: whose own key it is sealed to."""

    sop_instance: str
    sop_class: str
    transfer_syntax: str
    sha256: str
    size: int
    file: str
    originator: str
    message_id: int
    conflict: bool = False
    ticket: str = ""


@dataclass
class _Ticket:
    """recipient: its own key; None for what is sealed to the study reader's."""

    originator: str
    message_id: int
    wanted: frozenset[str]
    recipient: X25519PublicKey | None = None


@dataclass
class Store:
    """The receiver's memory. Every change is in the journal before it is in memory, and in memory before it is answered.

    `folder` is this process's alone: at its start it removes every sealed file in it that no arrival has, those among them that
    were claimed and not moved aside: the connections that claimed them are gone. What is sealed to a ticket's own key is never in
    the journal: it ends with the ticket, and the ticket with whoever opened it or with this process.

    recipient: the study reader's key; None where there is no reading service, and nothing but such tickets is served.
    """

    folder: Path
    recipient: X25519PublicKey | None
    journal: Journal
    floor: int
    now: Callable[[], float] = time.time
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _arrivals: dict[str, list[Arrival]] = field(default_factory=dict)
    _tickets: dict[str, _Ticket] = field(default_factory=dict)
    _commitments: dict[str, dict[str, Any]] = field(default_factory=dict)
    _reports: int = 0  # that came, for their order
    _over: set[tuple[str, int]] = field(default_factory=set)  # C-MOVEs of tickets with their own key, also of closed ones
    _last_id: int = field(default_factory=lambda: secrets.randbelow(60000))
    _reserved: int = 0
    _upto: int = 0  # the last id that the journal says was given

    def __post_init__(self) -> None:
        """Raises `Refusal(journal-unreadable)`."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        sweep_unfinished(self.folder)
        self._upto = self._last_id
        for entry in self.journal.entries:
            self._replay(entry)
        self._expire()
        self.journal.rewrite(self._live())
        self._sweep()

    def room(self) -> bool:
        room = os.statvfs(self.folder)
        return room.f_bavail * room.f_frsize > self.floor

    def addressed(self, command: Command) -> Addressed | None:
        with self._lock:
            name = self._waiting(command)
            recipient = self._tickets[name].recipient if name else None if self._stray(command) else self.recipient
        return Addressed(SealedWriter(self.folder, recipient), name) if recipient else None

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Alone with the memory. Afterwards the journal is written anew where that is due, while connections go on."""
        with self._lock:
            yield
            if self.journal.is_due:
                self._expire()
                self.journal.compact(self._live())

    def keep(self, came: Came) -> int:
        with self._changing():
            told, path = came.command, came.sealed.path
            if came.ticket and came.ticket not in self._tickets:
                path.unlink(missing_ok=True)
                return NOT_AUTHORIZED  # nobody waits for it any more
            same = [one for one in self._arrivals.get(told.sop_instance, []) if one.ticket == came.ticket]
            there = [one for one in same if (self.folder / one.file).exists()]
            if any(one.sha256 == came.sha256 for one in there):
                path.unlink(missing_ok=True)  # the same again is one instance
                return SUCCESS
            one = Arrival(
                told.sop_instance,
                told.sop_class,
                came.transfer_syntax,
                came.sha256,
                came.sealed.size,
                path.name,
                told.originator,
                told.message_id,
                conflict=bool(there),
                ticket=came.ticket,
            )
            try:
                if not came.ticket:
                    self.journal.append(what="came", **asdict(one))
            except OSError as error:
                path.unlink(missing_ok=True)
                return CANNOT_UNDERSTAND if error.errno == errno.EINVAL else OUT_OF_RESOURCES
            self._arrivals.setdefault(told.sop_instance, []).append(one)
            return SUCCESS

    def committed(self, transaction: str, kept: Mapping[str, str], failed: dict[str, int]) -> None:
        with self._changing():
            told = {"transaction": transaction, "kept": list(kept), "failed": failed, "classes": dict(kept)}
            report = {**told, "at": int(self.now())}
            self.journal.append(what="committed", **report)
            self._remember(report)
            self._expire()

    def _remember(self, report: dict[str, Any]) -> None:
        """The last one of a transaction, in the order in which they came: a later one may say otherwise."""
        self._commitments.pop(report["transaction"], None)  # the newest stand last
        self._reports += 1
        self._commitments[report["transaction"]] = {**report, "number": self._reports}

    def next_message_id(self) -> int:
        """One that no open ticket has and that was not given before a restart either, until all have been. Raises `OSError`."""
        with self._changing():
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
            upto = (self._last_id + IDS_AT_ONCE - 2) % 0xFFFE + 1
            self.journal.append(what="ids", last=upto)
            self._upto, self._reserved = upto, IDS_AT_ONCE
        self._reserved -= 1

    def expect(self, originator: str, message_id: int, wanted: Sequence[str], recipient: X25519PublicKey | None = None) -> str:
        """A ticket; with a recipient, what comes for it is sealed to that key alone. Raises `OSError`."""
        with self._changing():
            if recipient is None and self.recipient is None:
                raise Refusal(["receiver-no-recipient"], "this receiver seals to no study reader's key")
            self._over.discard((originator, message_id))
            if recipient is not None:
                self.journal.append(what="own", originator=originator, message_id=message_id)
                self._over.add((originator, message_id))
            name = secrets.token_hex(16)
            self._tickets[name] = _Ticket(originator, message_id, frozenset(wanted), recipient)
            return name

    def arrived(self, ticket: str) -> list[Arrival]:
        """Everything kept that the ticket waits for, and whatever names its C-MOVE besides."""
        with self._lock:
            held = self._ticket(ticket)
            if held.recipient is not None:
                return [one for one in self._every() if one.ticket == ticket]
            every = [one for one in self._every() if not one.ticket]
            return [one for one in every if one.sop_instance in held.wanted or _names(one, held)]

    def claim(self, ticket: str) -> list[Path]:
        """They are the caller's from now on, for as long as its connection lasts: their files. Raises `OSError`."""
        with self._changing():
            if self._ticket(ticket).recipient is not None:
                raise Refusal(["receiver-request-odd"], "what is sealed to a ticket's own key ends with the ticket")
            files = self._given_up(self.arrived(ticket))
            self._tickets.pop(ticket, None)
            return files

    def drop(self, files: Collection[str]) -> int:
        """Removes what came and nobody waits for; how many. What an open ticket waits for by now stays. Raises `OSError`."""
        with self._changing():
            gone = self._given_up([one for one in self.unclaimed() if one.file in files])
            for path in gone:
                path.unlink(missing_ok=True)
            return len(gone)

    def _given_up(self, several: Sequence[Arrival]) -> list[Path]:
        """They are not the receiver's any more: their files. The disk is waited for once however many they are, for every C-STORE
        waits meanwhile. Where the journal cannot be written they stay what they were: raises `OSError`."""
        names = [[one.sop_instance, one.file] for one in several]
        pages = [names[at : at + CLAIMED_AT_ONCE] for at in range(0, len(names), CLAIMED_AT_ONCE)]
        if pages:
            self.journal.append_all([{"what": "given-up", "instances": page} for page in pages])
        for sop_instance, file in names:
            self._forget(sop_instance, file)
        return [self.folder / file for _, file in names]

    def close_ticket(self, ticket: str) -> None:
        """Nobody waits any more. What is sealed to its own key is removed; anything else stays, unclaimed."""
        with self._lock:
            held = self._tickets.pop(ticket, None)
            for one in self._every() if held is not None and held.recipient is not None else ():
                if one.ticket == ticket:
                    (self.folder / one.file).unlink(missing_ok=True)
                    self._forget(one.sop_instance, one.file)

    def unclaimed(self) -> list[Arrival]:
        """Kept, and no open ticket's."""
        with self._lock:
            every, open_ = [one for one in self._every() if not one.ticket], list(self._tickets.values())
            return [one for one in every if not any(one.sop_instance in t.wanted or _names(one, t) for t in open_)]

    def commitment(self, transaction: str) -> dict[str, Any] | None:
        with self._lock:
            return self._commitments.get(transaction)

    def _ticket(self, name: str) -> _Ticket:
        if name not in self._tickets:
            said = "no ticket of this name is open: the receiver was restarted, or it was claimed"
            raise PeerError("receiver-ticket-unknown", said, peer="receiver")
        return self._tickets[name]

    def _every(self) -> list[Arrival]:
        return [one for several in self._arrivals.values() for one in several]

    def _waiting(self, command: Command) -> str:
        """The ticket with its own key that a C-STORE is for; "" for the study reader.

        It is the one whose C-MOVE it names. Where it names none of ours, the oldest ticket that waits for it and has it not.
        """
        for name, held in self._tickets.items():
            if _names(command, held):
                return name if held.recipient else ""
        for name, held in self._tickets.items():
            lacks = not any(
                one.ticket == (name if held.recipient else "") for one in self._arrivals.get(command.sop_instance, [])
            )
            if command.sop_instance in held.wanted and lacks:
                return name if held.recipient else ""
        return ""

    def _stray(self, command: Command) -> bool:
        """Whether it comes for a ticket with its own key that was closed: nobody may have it."""
        return (command.originator, command.message_id) in self._over

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
        elif entry["what"] == "claimed":  # as an earlier release wrote it
            self._forget(fields["sop_instance"], fields["file"])
        elif entry["what"] == "given-up":
            for sop_instance, file in fields["instances"]:
                self._forget(sop_instance, file)
        elif entry["what"] == "ids":
            self._last_id = self._upto = fields["last"]
        elif entry["what"] == "own":
            self._over.add((fields["originator"], fields["message_id"]))
        elif entry["what"] == "committed":
            self._remember({"at": int(self.now()), **fields})
            self._expire()

    def _expire(self) -> None:
        """The oldest reports go: they stand first."""
        old = self.now() - COMMITMENT_SECONDS
        while self._commitments and (first := next(iter(self._commitments.values())))["at"] < old:
            del self._commitments[first["transaction"]]

    def _live(self) -> Iterator[dict[str, Any]]:
        """The lines that still matter, as of now; each is made when it is asked for. A ticket's own is in no journal."""
        came, committed = [one for one in self._every() if not one.ticket], list(self._commitments.values())
        own, ids = sorted(self._over), {"what": "ids", "last": self._upto}
        return chain(
            ({"what": "came", **asdict(one)} for one in came),
            ({"what": "committed", **_untold(report)} for report in committed),
            ({"what": "own", "originator": title, "message_id": number} for title, number in own),
            [ids],
        )

    def _sweep(self) -> None:
        """A sealed file that no arrival has was never answered for, and its sender sends it again, or it was a connection's."""
        sweep_finished(self.folder, frozenset(one.file for one in self._every()))


def _names(one: Arrival | Command, ticket: _Ticket) -> bool:
    """Whether it came by the ticket's C-MOVE."""
    return one.message_id == ticket.message_id and one.originator == ticket.originator


def _untold(report: dict[str, Any]) -> dict[str, Any]:
    """Without its place in the order, which a start counts anew."""
    return {name: value for name, value in report.items() if name != "number"}
