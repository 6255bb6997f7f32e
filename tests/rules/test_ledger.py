"""The ledger: what was written stays written, and every way of changing it is named."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blocks.ledger import Ledger
from rapha.canonical import canonical
from rapha.errors import Refusal
from rapha.ledger import CHECKPOINTS, ENTRIES, GENESIS, HEAD, Entry, read, signed_head, verify
from rapha.signing import write_private

KEY = Ed25519PrivateKey.generate()
LENGTH = 20


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    made = Ledger.create(tmp_path / "ledger", KEY, "test")
    for n in range(LENGTH):
        made.append("mark", {"n": n}, at=1000 + n)
    return made


def lines(ledger: Ledger) -> list[bytes]:
    return (ledger.folder / ENTRIES).read_bytes().splitlines(keepends=True)


def put(ledger: Ledger, changed: list[bytes]) -> None:
    (ledger.folder / ENTRIES).write_bytes(b"".join(changed))


def entry_at(ledger: Ledger, n: int) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(lines(ledger)[n])
    return value


def rehashed(entry: dict[str, Any], **changes: Any) -> Entry:
    return Entry.make(**{**{k: entry[k] for k in ("seq", "prev", "at", "kind", "body")}, **changes})


def found(ledger: Ledger) -> tuple[str, int | None]:
    report = verify(ledger.folder)
    assert report.ok is False
    return report.kind, report.first_bad


def test_a_ledger_is_whole_and_names_its_head(ledger: Ledger) -> None:
    report = verify(ledger.folder, KEY.public_key())
    assert report.ok and report.entries == LENGTH and report.head == entry_at(ledger, LENGTH - 1)["hash"]
    assert [entry.body["n"] for entry in ledger.entries()] == list(range(LENGTH))


def test_an_empty_ledger_is_whole(tmp_path: Path) -> None:
    made = Ledger.create(tmp_path / "ledger", KEY, "test")
    assert verify(made.folder).ok and list(made.entries()) == []
    with pytest.raises(Refusal) as refusal:
        Ledger.create(made.folder, KEY, "test")
    assert refusal.value.codes == ("ledger-exists",)


@pytest.mark.parametrize("n", [0, 7, LENGTH - 1])
def test_H04_an_edited_entry_is_found(ledger: Ledger, n: int) -> None:
    changed = lines(ledger)
    changed[n] = changed[n].replace(b'"n":%d' % n, b'"n":999')
    put(ledger, changed)
    assert found(ledger) == ("edited", n)


@pytest.mark.parametrize("n", [0, 7, LENGTH - 1])
def test_H04_an_entry_that_was_edited_and_hashed_again_is_found(ledger: Ledger, n: int) -> None:
    changed = lines(ledger)
    changed[n] = rehashed(entry_at(ledger, n), body={"n": 999}).line()
    put(ledger, changed)
    assert found(ledger) == ("edited", n)


def test_H04_a_fork_with_every_hash_right_is_found(ledger: Ledger) -> None:
    changed, prev = lines(ledger)[:5], entry_at(ledger, 4)["hash"]
    for n in range(5, LENGTH):
        entry = rehashed(entry_at(ledger, n), prev=prev, body={"n": -n})
        changed, prev = [*changed, entry.line()], entry.hash
    put(ledger, changed)
    kind, first = found(ledger)
    assert kind == "edited" and first is not None and first >= 5


@pytest.mark.parametrize("n", [0, 7, LENGTH - 2])
def test_H04_a_deleted_entry_is_found(ledger: Ledger, n: int) -> None:
    put(ledger, lines(ledger)[:n] + lines(ledger)[n + 1 :])
    assert found(ledger) == ("deleted", n)


@pytest.mark.parametrize("n", [0, 7, LENGTH - 2])
def test_H04_two_entries_swapped_are_found(ledger: Ledger, n: int) -> None:
    changed = lines(ledger)
    changed[n], changed[n + 1] = changed[n + 1], changed[n]
    put(ledger, changed)
    assert found(ledger) == ("reordered", n)


@pytest.mark.parametrize("keep", [0, 7, LENGTH - 1])
def test_H04_a_truncated_ledger_is_found(ledger: Ledger, keep: int) -> None:
    put(ledger, lines(ledger)[:keep])
    assert found(ledger) == ("truncated", keep)


def test_H04_a_line_cut_in_the_middle_is_found(ledger: Ledger) -> None:
    put(ledger, [*lines(ledger)[:-1], lines(ledger)[-1][:-9]])
    assert found(ledger) == ("truncated", LENGTH - 1)


@pytest.mark.parametrize("where", [8, LENGTH])
def test_H04_a_replayed_entry_is_found(ledger: Ledger, where: int) -> None:
    changed = lines(ledger)
    changed.insert(where, changed[3])
    put(ledger, changed)
    assert found(ledger) == ("replayed", where)


def test_H04_an_entry_after_the_signed_head_is_found(ledger: Ledger) -> None:
    last = entry_at(ledger, LENGTH - 1)
    put(ledger, [*lines(ledger), Entry.make(LENGTH, last["hash"], 1, "verdict", {}).line()])
    assert found(ledger) == ("unsigned", LENGTH)


def test_H04_truncation_with_an_older_head_is_found_by_a_checkpoint(tmp_path: Path) -> None:
    made = Ledger.create(tmp_path / "ledger", KEY, "test")
    for n in range(3):
        made.append("mark", {"n": n})
    kept = {name: (made.folder / name).read_bytes() for name in (ENTRIES, HEAD)}
    for n in range(20):
        made.append("mark", {"n": n})
    for name, content in kept.items():
        (made.folder / name).write_bytes(content)
    assert found(made) == ("truncated", 3)


@pytest.mark.parametrize("which", [0, 1])
def test_H04_a_checkpoint_in_the_heads_place_does_not_shorten_the_ledger(ledger: Ledger, which: int) -> None:
    marks = (ledger.folder / CHECKPOINTS).read_bytes().splitlines(keepends=True)
    length = json.loads(marks[which])["length"]
    put(ledger, lines(ledger)[:length])
    (ledger.folder / CHECKPOINTS).write_bytes(b"".join(marks[: which + 1]))
    (ledger.folder / HEAD).write_bytes(marks[which])
    assert found(ledger)[0] == "unsigned"
    forged = json.loads(marks[which]) | {"checkpoints": 0, "bytes": 1}
    (ledger.folder / HEAD).write_bytes(canonical(forged))
    assert found(ledger)[0] == "unsigned"


@pytest.mark.parametrize("kept", [slice(0, 0), slice(1, None)])
def test_H04_a_checkpoint_that_was_removed_is_missed(ledger: Ledger, kept: slice) -> None:
    for n in range(16):  # the newest checkpoint is counted by the next head
        ledger.append("mark", {"n": n})
    path = ledger.folder / CHECKPOINTS
    marks = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(marks[kept]))
    assert found(ledger) == ("deleted", None)
    path.write_bytes(b"".join([*marks, *marks]))
    assert found(ledger)[0] == "replayed"


@pytest.mark.parametrize("name", [ENTRIES, HEAD, CHECKPOINTS, GENESIS])
def test_H04_a_missing_file_is_not_a_valid_ledger(ledger: Ledger, name: str) -> None:
    (ledger.folder / name).unlink()
    assert found(ledger)[0] == "missing"


def test_H04_a_missing_folder_is_not_a_valid_ledger(tmp_path: Path) -> None:
    assert verify(tmp_path / "none").kind == "missing"


def _foreign(mark: dict[str, Any]) -> dict[str, Any]:
    other = Ledger(Path(), Ed25519PrivateKey.generate())
    return {**mark, "signature": other._signature(signed_head(mark["length"], mark["head"], mark["checkpoints"]))}


HEADS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "length": lambda mark: mark | {"length": LENGTH - 1},
    "length as text": lambda mark: mark | {"length": str(LENGTH)},
    "length as truth": lambda mark: mark | {"length": True},
    "negative": lambda mark: mark | {"length": -1},
    "hash": lambda mark: mark | {"head": "sha256:" + "0" * 64},
    "signature": lambda mark: mark | {"signature": "AAAA"},
    "no signature": lambda mark: {"length": mark["length"], "head": mark["head"]},
    "foreign key": _foreign,
    "checkpoints": lambda mark: mark | {"checkpoints": mark["checkpoints"] - 1},
    "no checkpoints": lambda mark: {name: value for name, value in mark.items() if name != "checkpoints"},
    "a list": lambda mark: [mark],
    "nothing": lambda mark: None,
}


@pytest.mark.parametrize("name", HEADS)
def test_H04_a_head_that_was_tampered_with_is_found(ledger: Ledger, name: str) -> None:
    path = ledger.folder / HEAD
    path.write_bytes(canonical(HEADS[name](json.loads(path.read_bytes()))))
    assert found(ledger)[0] == "unsigned"
    for use in (lambda: ledger.append("mark", {}), lambda: list(ledger.entries()), ledger.recover):
        with pytest.raises(Refusal) as refusal:
            use()
        assert refusal.value.codes == ("ledger-broken",)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 1000])
def test_H04_an_unreadable_head_or_checkpoint_is_found(ledger: Ledger, content: bytes) -> None:
    (ledger.folder / CHECKPOINTS).write_bytes(content or b"\n")
    assert found(ledger)[0] == "unsigned"
    (ledger.folder / HEAD).write_bytes(content)
    assert found(ledger)[0] == "unsigned"


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"id":"test"}', b'{"id":"test","key":7}', b'{"id":"test","key":"x"}'])
def test_H04_an_odd_description_is_found(ledger: Ledger, content: bytes) -> None:
    (ledger.folder / GENESIS).write_bytes(content)
    assert found(ledger)[0] == "missing"


def test_a_ledger_written_anew_as_a_whole_needs_the_nodes_key_to_be_found(ledger: Ledger, tmp_path: Path) -> None:
    anew = Ledger.create(tmp_path / "anew", Ed25519PrivateKey.generate(), "test")
    anew.append("mark", {"n": 0})
    assert verify(anew.folder).ok
    assert verify(anew.folder, KEY.public_key()).kind == "unsigned"


def test_another_ledgers_entries_do_not_fit(ledger: Ledger, tmp_path: Path) -> None:
    other = Ledger.create(tmp_path / "other", KEY, "another")
    other.append("mark", {"n": 0}, at=1000)
    shutil.copy(other.folder / ENTRIES, ledger.folder / ENTRIES)
    assert found(ledger)[1] == 0


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_H04_any_single_byte_that_changes_is_found(ledger: Ledger, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([ENTRIES, HEAD, CHECKPOINTS]))
    path = ledger.folder / name
    good = path.read_bytes()
    at = data.draw(st.integers(0, len(good) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda b: b != good[at]))
    try:
        path.write_bytes(good[:at] + bytes([byte]) + good[at + 1 :])
        if name == ENTRIES:
            assert verify(ledger.folder).ok is False
        elif verify(ledger.folder).ok:  # the writer's own byte count, or a blank, says nothing about an entry
            assert name == HEAD and json.loads(path.read_bytes()).keys() >= {"length", "head", "signature"}
    finally:
        path.write_bytes(good)


# -- the writer


def test_an_entry_that_no_verifier_could_read_is_not_written(ledger: Ledger) -> None:
    for body in ({"x": "a" * 70_000}, {"x": float("nan")}, {"x": 2**60}, {"x": "\ud800"}, {"x": b"bytes"}, {"x": 1e20}):
        with pytest.raises(Refusal) as refusal:
            ledger.append("mark", body)
        assert refusal.value.codes == ("ledger-entry",)
    assert verify(ledger.folder).entries == LENGTH


def test_a_ledger_shorter_than_its_head_takes_no_entry(ledger: Ledger) -> None:
    put(ledger, lines(ledger)[:-1])
    for use in (lambda: ledger.append("mark", {}), lambda: list(ledger.entries())):
        with pytest.raises(Refusal) as refusal:
            use()
        assert refusal.value.codes == ("ledger-truncated",)


def test_H04_the_last_entry_written_anew_in_the_same_size_is_not_read(ledger: Ledger) -> None:
    changed = lines(ledger)
    changed[-1] = rehashed(entry_at(ledger, LENGTH - 1), body={"n": 91}).line()
    assert len(changed[-1]) == len(lines(ledger)[-1])
    put(ledger, changed)
    with pytest.raises(Refusal) as refusal:
        list(ledger.entries())
    assert refusal.value.codes == ("ledger-truncated",)


def test_a_torn_append_is_taken_back_and_a_whole_one_is_signed_for(ledger: Ledger) -> None:
    head = ledger.folder / HEAD
    before = head.read_bytes()
    ledger.append("mark", {"n": "whole"})
    head.write_bytes(before)  # the crash came between the entry and its head
    assert ledger.recover() == LENGTH + 1 and verify(ledger.folder).ok
    with (ledger.folder / ENTRIES).open("ab") as stream:
        stream.write(b'{"at":1,"body":{"n":"to')
    with (ledger.folder / CHECKPOINTS).open("ab") as stream:
        stream.write(b'{"head":"sha')
    assert ledger.recover() == LENGTH + 1 and verify(ledger.folder).ok
    assert verify(ledger.folder).entries == LENGTH + 1


@pytest.mark.parametrize("tail", [b"{}\n", b"\n", b"junk\n" * 3])
def test_what_does_not_extend_the_chain_is_never_adopted(ledger: Ledger, tail: bytes) -> None:
    with (ledger.folder / ENTRIES).open("ab") as stream:
        stream.write(tail)
    with pytest.raises(Refusal) as refusal:
        ledger.append("mark", {})
    assert refusal.value.codes == ("ledger-broken",)


def test_a_forged_entry_with_a_wrong_hash_is_never_adopted(ledger: Ledger) -> None:
    last = entry_at(ledger, LENGTH - 1)
    forged = Entry(LENGTH, last["hash"], 1, "verdict", {"verdict": "cleared"}, "sha256:" + "0" * 64)
    with (ledger.folder / ENTRIES).open("ab") as stream:
        stream.write(forged.line())
    with pytest.raises(Refusal):
        list(ledger.entries())


def test_H05_a_write_that_is_cut_short_is_an_error_and_leaves_nothing(ledger: Ledger) -> None:
    """A file size limit takes a part of the line, as a full disk does, without an error from the system."""
    script = (
        "import resource, sys, signal\nfrom pathlib import Path\nfrom blocks.ledger import Ledger\n"
        "from rapha.errors import Refusal\nfrom rapha.signing import load_private\n"
        "ledger = Ledger(Path(sys.argv[1]), load_private(Path(sys.argv[2])))\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))\n"
        "try:\n    ledger.append('mark', {'x': 'y' * 500})\n"
        "except Refusal as refusal:\n    print(*refusal.codes)\n"
    )
    key = ledger.folder.parent / "key.pem"
    write_private(key, KEY)
    size = (ledger.folder / ENTRIES).stat().st_size
    command = [sys.executable, "-c", script, str(ledger.folder), str(key), str(size + 100)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "ledger-unwritable\n"
    assert (ledger.folder / ENTRIES).stat().st_size == size
    assert verify(ledger.folder).ok and resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


WRITER = (
    "import sys\nfrom pathlib import Path\nfrom blocks.ledger import Ledger\nfrom rapha.signing import load_private\n"
    "ledger = Ledger(Path(sys.argv[1]), load_private(Path(sys.argv[2])))\n"
    "for n in range(60):\n    ledger.append('mark', {'by': sys.argv[3], 'n': n})\n"
)


def test_two_processes_append_to_one_chain_while_a_third_reads(tmp_path: Path) -> None:
    """Fresh interpreters: a fork of this one would carry whatever other tests have left in it."""
    made = Ledger.create(tmp_path / "ledger", KEY, "test")
    write_private(tmp_path / "key.pem", KEY)
    arguments = [sys.executable, "-c", WRITER, str(made.folder), str(tmp_path / "key.pem")]
    writers = [subprocess.Popen([*arguments, name], stderr=subprocess.PIPE) for name in ("a", "b")]
    reads = 0
    while any(writer.poll() is None for writer in writers):
        assert verify(made.folder, KEY.public_key()).ok  # never a false alarm on a living ledger
        assert len(list(made.entries())) >= 0
        reads += 1
    for writer in writers:
        assert writer.communicate()[1] == b"" and writer.returncode == 0
    assert reads > 3 and verify(made.folder, KEY.public_key()).entries == 120
    for name in ("a", "b"):
        assert [e.body["n"] for e in made.entries() if e.body["by"] == name] == list(range(60))


APPENDER = """
import sys
from pathlib import Path
from blocks.ledger import Ledger
from rapha.signing import load_private
ledger = Ledger(Path(sys.argv[1]), load_private(Path(sys.argv[2])))
for n in range(int(sys.argv[3]), 10_000):
    ledger.append("mark", {"n": n, "x": "y" * 3000})
    print(n, flush=True)
"""


def test_J09_kill_9_while_appending_loses_nothing_that_was_answered(tmp_path: Path) -> None:
    made = Ledger.create(tmp_path / "ledger", KEY, "test")
    key = tmp_path / "key.pem"
    write_private(key, KEY)
    answered = -1
    for pause in (0.003, 0.011, 0.017, 0.023, 0.029):
        command = [sys.executable, "-c", APPENDER, str(made.folder), str(key), str(made.recover())]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            answered = int(process.stdout.readline())
            time.sleep(pause)
            os.kill(process.pid, signal.SIGKILL)
            said = process.stdout.read().splitlines()
            answered = int(said[-1]) if said and said[-1].isdecimal() else answered
        length = made.recover()
        assert verify(made.folder, KEY.public_key()).ok
        assert answered + 1 <= length <= answered + 2  # at most the one that was under way
        assert [entry.body["n"] for entry in made.entries()] == list(range(length))


def test_the_description_names_the_key(ledger: Ledger) -> None:
    pem = json.loads((ledger.folder / GENESIS).read_bytes())["key"]
    assert pem == KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def test_the_reader_stops_at_the_first_bad_entry(ledger: Ledger) -> None:
    changed = lines(ledger)
    changed[3] = rehashed(entry_at(ledger, 3), body={}).line()
    put(ledger, changed)
    seen = []
    with pytest.raises(Refusal) as refusal:
        for entry in read(ledger.folder):
            seen.append(entry.seq)
    assert seen == [0, 1, 2, 3] and refusal.value.codes == ("ledger-broken",)


@pytest.mark.parametrize("at", [0, 1, LENGTH - 1, LENGTH])
def test_what_came_since_a_position_is_the_end_of_the_whole(ledger: Ledger, tmp_path: Path, at: int) -> None:
    other = Ledger.create(tmp_path / "other", KEY, "other")
    for n in range(at):
        other.append("mark", {"n": n}, at=1000 + n)
    position = other.position()
    assert other.since(position) == []
    for n in range(at, LENGTH):
        other.append("mark", {"n": n}, at=1000 + n)
    assert other.since(position) == list(other.entries())[at:]
    with pytest.raises(Refusal) as refusal:  # another ledger's entries are not on this chain
        ledger.since(position)
    assert refusal.value.codes[0].startswith("ledger-")


@pytest.mark.parametrize("change", ["edited", "swapped", "deleted", "cut", "replayed"])
def test_H04_what_came_since_a_position_is_found_changed(ledger: Ledger, change: str) -> None:
    position = ledger.position()
    for n in range(4):
        ledger.append("more", {"n": n}, at=2000 + n)
    kept = lines(ledger)
    changed = {
        "edited": [*kept[:-2], kept[-2].replace(b"2002", b"2009"), kept[-1]],
        "swapped": [*kept[:-3], kept[-2], kept[-3], kept[-1]],
        "deleted": [*kept[:-2], kept[-1]],
        "cut": kept[:-1],
        "replayed": [*kept[:-1], kept[-2]],
    }[change]
    (ledger.folder / ENTRIES).write_bytes(b"".join(changed))
    with pytest.raises(Refusal) as refusal:
        ledger.since(position)
    assert refusal.value.codes in (("ledger-broken",), ("ledger-truncated",))
