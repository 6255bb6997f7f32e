"""What is nobody's is removed, all of it, and nothing of what may be somebody's."""

import errno
import os
import secrets
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from blocks.kept import KeptFiles
from blocks.receiver import Receiver
from blocks.sealed_columns import SealedColumns
from flows import tidying
from flows.clinic import Clinic
from infra import daemon
from infra.receiver import session as receiver_session
from infra.receiver.alarms import Alarms
from infra.receiver.journal import Journal
from infra.receiver.session import ReceiverSession
from infra.receiver.store import Arrival, Store
from rapha.errors import PeerError


class Register:
    """Studies are owed whose instances are called 1.2.1…"""

    def owed_among(self, uids: Iterable[str]) -> frozenset[str]:
        return frozenset(uid for uid in uids if uid.startswith("1.2.1."))

    def owed(self, row: int, order: int) -> bool:
        return True


def clinic_of(**parts: Any) -> Clinic:
    return cast(Clinic, SimpleNamespace(register=Register(), **parts))


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[tuple[Store, Receiver]]:
    """A receiver that took 12 instances of owed studies, 3 of nobody before them by name, 9 after."""
    folder = tmp_path / "s"
    folder.mkdir()
    store = Store(folder, X25519PrivateKey.generate().public_key(), Journal(folder / "journal", secrets.token_bytes(32)), 0)
    for uid in [f"1.1.{n}" for n in range(3)] + [f"1.2.1.{n}" for n in range(12)] + [f"1.2.9.{n}" for n in range(9)]:
        file = f"{secrets.token_hex(16)}.sealed"
        (folder / file).write_bytes(b"x")
        store._arrivals[uid] = [Arrival(uid, "1.2", "1.2", "sha256:a", 1, file, "RAPHA", 7)]
    ready = threading.Event()
    path = tmp_path / "r.sock"
    serving = {"ready": ready.set}
    alarms = Alarms(tmp_path / "alarms.json")
    threading.Thread(
        target=daemon.serve, args=(path, lambda: ReceiverSession(store, alarms)), kwargs=serving, daemon=True
    ).start()
    assert ready.wait(30)
    with Receiver(path, folder) as client:
        yield store, client


@pytest.mark.parametrize("page", [1, 5, 12, 500])
def test_what_nobody_is_owed_is_removed_also_behind_pages_of_what_somebody_is(
    receiver: tuple[Store, Receiver], monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    monkeypatch.setattr(receiver_session, "PAGE", page)
    store, client = receiver
    assert tidying._dropped(clinic_of(), client) == 12
    assert sorted(one.sop_instance for one in store.unclaimed()) == sorted(f"1.2.1.{n}" for n in range(12))
    assert len(list(store.folder.glob("*.sealed"))) == 12
    assert tidying._dropped(clinic_of(), client) == 0


@pytest.fixture
def kept(tmp_path: Path) -> tuple[KeptFiles, Path, Path]:
    """(the notes, the store, a live study's file that was kept aside)."""
    notes, store = KeptFiles(tmp_path / "notes", SealedColumns(secrets.token_bytes(32))), tmp_path / "store"
    store.mkdir()
    (store / "x.sealed").write_bytes(b"1")
    (place,) = notes.keep("1-0-1", {}, [store / "x.sealed"])
    return notes, store, place


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.EACCES])
@pytest.mark.parametrize("what", ["a note", "the folder"])
def test_a_note_that_cannot_be_read_now_makes_nobodys_of_no_file(
    kept: tuple[KeptFiles, Path, Path], monkeypatch: pytest.MonkeyPatch, what: str, number: int
) -> None:
    notes, store, place = kept
    environment = {"RAPHA_STUDY_STORE": str(store)}

    def fails(*_: Any) -> None:
        raise OSError(number, "")

    clinic = clinic_of(kept=notes, environment=environment, receiver=lambda: None)
    with monkeypatch.context() as patched:
        patched.setattr(*((Path, "read_bytes") if what == "a note" else (os, "listdir")), fails)
        for ask in (lambda: notes.strays([store]), lambda: notes.read("1-0-1") if what == "a note" else notes.names()):
            with pytest.raises(PeerError) as failed:
                ask()
            assert failed.value.codes == ("kept-unreadable",)
        tidying.tidy(clinic)
    assert place.exists() and notes.names() == ["1-0-1"]
    tidying.tidy(clinic)
    assert place.exists() and notes.strays([store]) == []


def test_a_file_without_a_note_is_nobodys(kept: tuple[KeptFiles, Path, Path]) -> None:
    notes, store, place = kept
    stray = place.with_name("y.sealed")
    stray.write_bytes(b"2")
    assert notes.strays([store]) == [stray] and notes.read("1-0-2") is None
    tidying.tidy(clinic_of(kept=notes, environment={"RAPHA_STUDY_STORE": str(store)}, receiver=lambda: None))
    assert place.exists() and not stray.exists()
