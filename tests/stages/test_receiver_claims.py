"""A claim of many instances: one wait for the disk, all of it or none, and the journal says so after a kill."""

import errno
import os
import secrets
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from infra.receiver import store as receiver_store
from infra.receiver.alarms import Alarms
from infra.receiver.journal import Journal
from infra.receiver.session import ReceiverSession
from infra.receiver.store import Arrival, Store
from rapha.errors import PeerError

KEY, PUBLIC = secrets.token_bytes(32), X25519PrivateKey.generate().public_key()


def opened(folder: Path) -> Store:
    return Store(folder, PUBLIC, Journal(folder / "journal", KEY), 0)


def filled(folder: Path, count: int) -> Store:
    """A store that took so many instances of a C-MOVE, each with its file and its line."""
    folder.mkdir()
    store = opened(folder)
    came = []
    for number in range(count):
        file = f"{number:032x}.sealed"
        (folder / file).write_bytes(b"x")
        came.append({"what": "came", **vars_of(Arrival(f"1.2.{number}", "1.2", "1.2", "sha256:a", 1, file, "RAPHA", 7))})
    store.journal.append_all(came)
    return opened(folder)


def vars_of(one: Arrival) -> dict[str, Any]:
    return {name: getattr(one, name) for name in one.__slots__}


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    found, real = [], os.fsync

    def counted(fd: int) -> None:
        found.append(fd)
        real(fd)

    monkeypatch.setattr(os, "fsync", counted)
    return found


@pytest.mark.parametrize("what", ["claim", "drop"])
def test_five_hundred_instances_are_one_wait_for_the_disk(tmp_path: Path, syncs: list[int], what: str) -> None:
    store = filled(tmp_path / "s", 500)
    session = ReceiverSession(store, Alarms(tmp_path / "alarms.json"))
    wanted = [one.sop_instance for one in store.unclaimed()]
    ticket = (
        session.do_expect({"wanted": wanted, "originator": "RAPHA", "message_id": 7}, [])["ticket"] if what == "claim" else ""
    )
    files = [one.file for one in store.unclaimed()]
    syncs.clear()
    if what == "claim":
        session.do_claim({"ticket": ticket}, [])
        assert len(session._claimed) == 500 and all(path.exists() for path in session._claimed)
    else:
        assert session.do_drop({"files": files}, []) == {"dropped": 500}
        assert list((tmp_path / "s").glob("*.sealed")) == []
    assert len(syncs) == 1 and store._every() == []


@pytest.mark.parametrize("page", [3, 4000])
def test_after_a_kill_what_was_claimed_is_nobodys_and_what_was_not_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    monkeypatch.setattr(receiver_store, "CLAIMED_AT_ONCE", page)
    store = filled(tmp_path / "s", 12)
    ticket = store.expect("NOBODY", 1, [f"1.2.{number}" for number in range(10)])
    assert len(store.claim(ticket)) == 10
    again = opened(tmp_path / "s")  # killed here, and started again
    assert [one.sop_instance for one in again._every()] == ["1.2.10", "1.2.11"]
    assert len(list((tmp_path / "s").glob("*.sealed"))) == 2


def test_a_line_that_a_crash_cut_short_was_never_answered_for(tmp_path: Path) -> None:
    store = filled(tmp_path / "s", 10)
    journal = tmp_path / "s" / "journal"
    before = journal.stat().st_size
    store.claim(store.expect("NOBODY", 1, [f"1.2.{number}" for number in range(10)]))
    os.truncate(journal, (before + journal.stat().st_size) // 2)
    assert len(opened(tmp_path / "s")._every()) == 10


def test_a_claim_that_the_journal_does_not_take_leaves_all_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled(tmp_path / "s", 10)
    session = ReceiverSession(store, Alarms(tmp_path / "alarms.json"))
    ticket = session.do_expect({"wanted": ["1.2.1", "1.2.2"], "originator": "RAPHA", "message_id": 7}, [])["ticket"]

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(PeerError) as failed:
            session.do_claim({"ticket": ticket}, [])
    assert failed.value.codes == ("journal-unwritable",)
    assert len(store._every()) == 10 and len(store.arrived(ticket)) == 10 and session._claimed == []
    session.closed()
    assert len(list((tmp_path / "s").glob("*.sealed"))) == 10
    assert len(opened(tmp_path / "s")._every()) == 10


def test_the_largest_claim_is_read_again(tmp_path: Path) -> None:
    """UIDs and names as long as they can be, in one line."""
    folder = tmp_path / "s"
    folder.mkdir()
    store = opened(folder)
    page = [[f"{number:064d}", f"{number:032x}.sealed"] for number in range(receiver_store.CLAIMED_AT_ONCE)]
    store.journal.append(what="given-up", instances=page)
    assert opened(folder)._every() == []
