"""What arrives, to the receiver's own memory: any order of arrivals, tickets, claims and kills."""

import secrets
import tempfile
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.receiver.engine import Came, Command
from infra.receiver.journal import Journal
from infra.receiver.store import Store
from rapha.canonical import digest

PRIVATE = X25519PrivateKey.generate()
UIDS = st.sampled_from(["1.1", "1.2", "1.3", "1.4"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("come"), UIDS, st.integers(0, 1)),
        st.tuples(st.just("expect"), st.frozensets(UIDS, min_size=1)),
        st.tuples(st.just("claim")),
        st.tuples(st.just("restart")),
    ),
    max_size=14,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS)
def test_what_arrives_is_told_to_who_waits_for_it_until_it_is_claimed_and_survives_a_kill(steps: list[tuple[Any, ...]]) -> None:
    """A model says who is owed what: an instance of a UID and content once, a second content of a UID as a conflict."""
    with tempfile.TemporaryDirectory(prefix="rapha-") as name:
        place, key = Path(name), secrets.token_bytes(32)
        store, kept, tickets = opened_store(place, key), list[tuple[str, str]](), dict[str, frozenset[str]]()
        for what, *facts in steps:
            if what == "come":
                uid, content = facts
                assert store.keep(came(store, uid, b"%d" % content)) == 0
                one = (uid, digest(b"%d" % content))
                kept += [] if one in kept else [one]
            elif what == "expect":
                tickets[store.expect("ARCHIVE", store.next_message_id(), sorted(facts[0]))] = facts[0]
            elif what == "claim" and tickets:
                ticket, wanted = tickets.popitem()
                store.claim(ticket)
                kept = [one for one in kept if one[0] not in wanted]
            elif what == "restart":
                store, tickets = opened_store(place, key), {}
            for ticket, wanted in tickets.items():
                told = [(one.sop_instance, one.sha256) for one in store.arrived(ticket)]
                assert sorted(told) == sorted(one for one in kept if one[0] in wanted)
            waited = frozenset[str]().union(*tickets.values())
            assert sorted((one.sop_instance, one.sha256) for one in store.unclaimed()) == sorted(
                one for one in kept if one[0] not in waited
            )
        assert all((place / "store" / one.file).exists() for one in store.unclaimed())


def opened_store(place: Path, key: bytes) -> Store:
    return Store(place / "store", PRIVATE.public_key(), Journal(place / "journal", key), floor=1)


def came(store: Store, uid: str, content: bytes) -> Came:
    """As the engine has it sealed."""
    command = Command(uid, "1.2", "", 0)
    addressed = store.addressed(command)
    assert addressed is not None and addressed.ticket == ""
    addressed.writer.write(content)
    return Came(command, "1.2.840.10008.1.2.1", digest(content), addressed.writer.finish(), "")
