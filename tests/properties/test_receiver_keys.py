"""To whose key an instance is sealed: any order of C-STOREs, tickets of both kinds, ends and restarts."""

import secrets
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from blocks.instances import SealedReader
from infra.receiver.engine import Came, Command
from infra.receiver.journal import Journal
from infra.receiver.store import Store
from rapha.canonical import digest
from rapha.errors import Refusal

STUDY = X25519PrivateKey.generate()
UIDS = st.sampled_from(["1.1", "1.2", "1.3"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("come"), UIDS, st.integers(0, 1), st.integers(0, 9)),
        st.tuples(st.just("expect"), st.frozensets(UIDS, min_size=1), st.booleans()),
        st.tuples(st.just("close"), st.integers(0, 9)),
        st.tuples(st.just("restart")),
    ),
    max_size=16,
)


@dataclass
class Ticket:
    """As the model has it. private: of its own key, None for the study reader's."""

    number: int
    wanted: frozenset[str]
    private: X25519PrivateKey | None
    open: bool = True
    has: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Model:
    """Who waits, oldest first, and what the study reader's side has."""

    tickets: dict[str, Ticket] = field(default_factory=dict)
    read: list[tuple[str, str]] = field(default_factory=list)

    def addressee(self, uid: str, number: int) -> Ticket | str:
        """The ticket, "study", or "nobody"."""
        named = [one for one in self.tickets.values() if one.number == number]
        for one in named:
            if one.open:
                return one if one.private else "study"
        for one in self.tickets.values():
            has = one.has if one.private else self.read
            if one.open and uid in one.wanted and uid not in [told for told, _ in has]:
                return one if one.private else "study"
        return "nobody" if any(one.private for one in named) else "study"


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_an_instance_is_sealed_to_who_waits_for_it_and_ends_with_them(steps: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory(prefix="rapha-") as name:
        place, key, model = Path(name), secrets.token_bytes(32), Model()
        store = opened(place, key)
        for what, *facts in steps:
            if what == "expect":
                private, number = X25519PrivateKey.generate() if facts[1] else None, store.next_message_id()
                ticket = store.expect("RAPHA", number, sorted(facts[0]), private.public_key() if private else None)
                model.tickets[ticket] = Ticket(number, facts[0], private)
            elif what == "come":
                came(store, model, *facts)
            elif what == "close" and model.tickets:
                ticket = list(model.tickets)[facts[0] % len(model.tickets)]
                store.close_ticket(ticket)
                model.tickets[ticket].open = False
            elif what == "restart":
                store = opened(place, key)
                for one in model.tickets.values():
                    one.open = False
            check(store, model, place)


def came(store: Store, model: Model, uid: str, content: int, which: int) -> None:
    """A C-STORE that names the C-MOVE of one of the tickets so far, open or closed, or none."""
    numbers = [0, *(one.number for one in model.tickets.values())]
    number = numbers[which % len(numbers)]
    command = Command(uid, "1.2", "RAPHA" if number else "", number)
    expected, addressed = model.addressee(uid, number), store.addressed(command)
    if expected == "nobody":
        assert addressed is None
        return
    assert addressed is not None
    assert addressed.ticket == next((name for name, one in model.tickets.items() if one is expected), "")
    raw = b"%d" % content
    addressed.writer.write(raw)
    sealed = addressed.writer.finish()
    private = expected.private if isinstance(expected, Ticket) else STUDY
    assert opens(sealed.path, private or STUDY) and (private is STUDY or not opens(sealed.path, STUDY))
    assert store.keep(Came(command, "1.2.840.10008.1.2.1", digest(raw), sealed, addressed.ticket)) == 0
    has = expected.has if isinstance(expected, Ticket) else model.read
    has += [] if (uid, digest(raw)) in has else [(uid, digest(raw))]


def check(store: Store, model: Model, place: Path) -> None:
    """Each open ticket of its own key is told of its own and of nothing else, and no more than that lies on the disk."""
    kept = len(model.read)
    for name, one in model.tickets.items():
        if not one.open:
            continue
        told = sorted((arrival.sop_instance, arrival.sha256) for arrival in store.arrived(name))
        if one.private:
            assert told == sorted(one.has)
            kept += len(one.has)
        else:
            assert {uid for uid, _ in told} >= {uid for uid, _ in model.read if uid in one.wanted}
            assert set(told) <= set(model.read)
    assert len(list((place / "store").glob("*.sealed"))) == kept


def opens(path: Path, private: X25519PrivateKey) -> bool:
    try:
        with SealedReader(path, private) as clear:
            clear.read()
    except Refusal:
        return False
    return True


def opened(place: Path, key: bytes) -> Store:
    return Store(place / "store", STUDY.public_key(), Journal(place / "journal", key), floor=1)
