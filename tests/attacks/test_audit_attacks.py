"""Attacks on the audit trail by somebody who may write to its disk, and on the node that writes it.

Each tampering is made on a trail of four segments and must be found offline, with the public key alone, naming the segment, the
first bad entry and the kind. What only a head that was kept elsewhere can show is tested as that.
"""

import base64
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blocks.audit import AuditTrail
from rapha.canonical import canonical
from rapha.console.app import build, run
from rapha.ledger import CHECKPOINTS, ENTRIES, GENESIS, HEAD, Entry
from rapha.signing import write_private, write_public
from rapha.trail import CARRY, CARRY_OVER, RETIRED, TRAIL, Kept, segment_folder, segment_id, verify_trail
from tests.fixtures.audit import DAY, KEY, MRN, SIGNER, SOURCE, START, UID, new_trail, segmented, transfer

PUBLIC = SIGNER.public_key()
HOME = Path(__file__).parents[2]
EACH = 5  # entries in a segment, before its carry-over


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return segmented(tmp_path_factory.mktemp("audit") / "audit", each=EACH).folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy to tamper with, as an auditor gets it."""
    return Path(shutil.copytree(made, tmp_path / "audit"))


def found(folder: Path) -> tuple[str, int | None, int | None]:
    report = verify_trail(folder, PUBLIC)
    assert report.ok is False
    return report.kind, report.segment, report.first_bad


def lines(folder: Path, number: int) -> list[bytes]:
    return (segment_folder(folder, number) / ENTRIES).read_bytes().splitlines(keepends=True)


def put(folder: Path, number: int, changed: list[bytes]) -> None:
    (segment_folder(folder, number) / ENTRIES).write_bytes(b"".join(changed))


def entry(folder: Path, number: int, n: int) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(lines(folder, number)[n])
    return value


def rechained(entries: list[dict[str, Any]], first: int) -> list[bytes]:
    """Every entry from `first` on hashed anew, as somebody without the signing key can do."""
    out, prev = [], entries[0]["prev"]
    for seq, each in enumerate(entries):
        anew = Entry.make(seq, prev if seq >= first else each["prev"], each["at"], each["kind"], each["body"])
        out.append(anew.line())
        prev = anew.hash
    return out


def test_a_trail_as_it_was_written_is_whole(folder: Path) -> None:
    report = verify_trail(folder, PUBLIC)
    assert (report.ok, report.segments, report.entries, report.length) == (True, 4, 4 * EACH + 3, EACH)
    assert verify_trail(folder).head == report.head == entry(folder, 4, EACH - 1)["hash"]


@pytest.mark.parametrize("number", [1, 3, 4])
@pytest.mark.parametrize("field", ["at", "kind", "outcome", "person", "sealed"])
def test_H04_an_edited_entry_is_found(folder: Path, number: int, field: str) -> None:
    changed = lines(folder, number)
    value = entry(folder, number, 2)
    edit = {"at": 1, "kind": "audit.query", "outcome": 0, "person": "0" * 64, "sealed": "AAAA"}
    if field in ("at", "kind"):
        value[field] = edit[field]
    else:
        value["body"][field] = 12 if field == "outcome" else edit[field]
    changed[2] = canonical(value) + b"\n"
    put(folder, number, changed)
    assert found(folder) == ("edited", number, 2)


@pytest.mark.parametrize("number", [1, 4])
def test_H04_an_edit_with_every_hash_after_it_made_anew_is_found_by_the_signatures(folder: Path, number: int) -> None:
    entries = [json.loads(raw) for raw in lines(folder, number)]
    entries[2]["body"]["outcome"] = 12
    put(folder, number, rechained(entries, 2))
    kind, segment, first_bad = found(folder)
    assert (kind, segment) == ("edited", number) and first_bad is not None and first_bad >= 2


@pytest.mark.parametrize(("number", "n"), [(1, 0), (2, 2), (4, 1), (3, EACH - 1)])
def test_H04_a_deleted_entry_is_found(folder: Path, number: int, n: int) -> None:
    changed = lines(folder, number)
    put(folder, number, changed[:n] + changed[n + 1 :])
    assert found(folder) == ("deleted", number, n)


@pytest.mark.parametrize(("number", "n"), [(1, 0), (2, 2), (4, 3)])
def test_H04_two_entries_swapped_are_found(folder: Path, number: int, n: int) -> None:
    changed = lines(folder, number)
    changed[n], changed[n + 1] = changed[n + 1], changed[n]
    put(folder, number, changed)
    assert found(folder) == ("reordered", number, n)


@pytest.mark.parametrize(("number", "keep"), [(4, EACH - 1), (4, 0), (2, 3), (1, EACH)])
def test_H04_a_truncated_segment_is_found(folder: Path, number: int, keep: int) -> None:
    put(folder, number, lines(folder, number)[:keep])
    kind, segment, first_bad = found(folder)
    assert (kind, segment, first_bad) == ("truncated", number, keep)


def test_H04_a_line_cut_in_the_middle_is_found(folder: Path) -> None:
    changed = lines(folder, 4)
    put(folder, 4, [*changed[:-1], changed[-1][:50]])
    assert found(folder) == ("truncated", 4, EACH - 1)


@pytest.mark.parametrize(("source", "n", "number"), [(4, 1, 4), (2, 2, 2)])
def test_H04_a_replayed_entry_is_found(folder: Path, source: int, n: int, number: int) -> None:
    put(folder, number, [*lines(folder, number), lines(folder, source)[n]])
    kind, segment, first_bad = found(folder)
    assert kind in ("replayed", "edited") and segment == number and first_bad is not None and first_bad >= EACH


def test_H04_an_entry_of_another_segment_does_not_fit(folder: Path) -> None:
    changed = lines(folder, 4)
    changed[2] = lines(folder, 2)[2]
    put(folder, 4, changed)
    kind, segment, first_bad = found(folder)
    assert (kind, segment, first_bad) == ("edited", 4, 2)


def test_H04_an_entry_after_the_signed_head_is_found(folder: Path) -> None:
    last = entry(folder, 4, EACH - 1)
    forged = Entry.make(EACH, last["hash"], last["at"], "audit.query", last["body"])
    put(folder, 4, [*lines(folder, 4), forged.line()])
    assert found(folder) == ("unsigned", 4, EACH)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_H04_a_whole_segment_deleted_is_found(folder: Path, number: int) -> None:
    shutil.rmtree(segment_folder(folder, number))
    assert found(folder) == ("deleted", number, 0)


def test_H04_the_last_segment_deleted_is_found(folder: Path) -> None:
    shutil.rmtree(segment_folder(folder, 4))
    assert found(folder) == ("truncated", 4, 0)


@pytest.mark.parametrize(("number", "other"), [(1, 2), (2, 3), (3, 4)])
def test_H04_two_segments_swapped_are_found(folder: Path, number: int, other: int) -> None:
    one, two, aside = segment_folder(folder, number), segment_folder(folder, other), folder / "aside"
    one.rename(aside)
    two.rename(one)
    aside.rename(two)
    assert found(folder) == ("reordered", number, 0)


@pytest.mark.parametrize(("source", "number"), [(1, 4), (2, 3), (3, 5), (4, 5), (1, 5)])
def test_H04_a_whole_segment_replayed_is_found(folder: Path, source: int, number: int) -> None:
    """In place of a later one, or after the last."""
    target = segment_folder(folder, number)
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(segment_folder(folder, source), target)
    assert found(folder) == ("replayed", number, 0)


def test_H04_segments_renumbered_over_a_deleted_one_are_found(folder: Path) -> None:
    shutil.rmtree(segment_folder(folder, 2))
    for number in (3, 4):
        segment_folder(folder, number).rename(segment_folder(folder, number - 1))
    assert found(folder) == ("reordered", 2, 0)


def test_H04_a_segment_of_another_trail_of_the_same_node_is_found(folder: Path, tmp_path: Path) -> None:
    other = segmented(tmp_path / "other").folder
    for number in (1, 3, 4):
        copy = Path(shutil.copytree(folder, tmp_path / f"copy{number}"))
        shutil.rmtree(segment_folder(copy, number))
        shutil.copytree(segment_folder(other, number), segment_folder(copy, number))
        assert found(copy) == ("foreign", number, 0)
    shutil.copytree(segment_folder(other, 4), segment_folder(folder, 5))
    assert found(folder) == ("foreign", 5, 0)


def test_H04_a_foreign_segment_that_says_it_belongs_here_does_not_fit(folder: Path, tmp_path: Path) -> None:
    other = segmented(tmp_path / "other").folder
    shutil.copytree(segment_folder(other, 3), segment_folder(folder, 3), dirs_exist_ok=True)
    described = json.loads((segment_folder(folder, 3) / GENESIS).read_bytes())
    described["id"] = segment_id(json.loads((folder / TRAIL).read_bytes())["id"], 3, entry(folder, 2, EACH)["hash"])
    (segment_folder(folder, 3) / GENESIS).write_bytes(canonical(described) + b"\n")
    assert found(folder) == ("edited", 3, 0)


@pytest.mark.parametrize("field", ["segment", "length", "last", "next", "first_at", "last_at", "retired", "signature"])
def test_H04_an_edited_carry_over_is_found(folder: Path, field: str) -> None:
    value = entry(folder, 2, EACH)
    value["body"][field] = 99 if isinstance(value["body"][field], int) else "sha256:" + "0" * 64
    put(folder, 2, [*lines(folder, 2)[:-1], canonical(value) + b"\n"])
    assert found(folder) == ("edited", 2, EACH)


def test_H04_a_carry_over_replayed_from_another_segment_is_found(folder: Path) -> None:
    put(folder, 3, [*lines(folder, 3)[:-1], lines(folder, 2)[-1]])
    kind, segment, first_bad = found(folder)
    # The last two entries do not fit: which of them was exchanged, their hashes alone do not say.
    assert (kind, segment) == ("edited", 3) and first_bad in (EACH - 1, EACH)


def test_H04_a_carry_over_taken_away_is_found(folder: Path) -> None:
    put(folder, 3, lines(folder, 3)[:-1])
    assert found(folder) == ("truncated", 3, EACH)


@pytest.mark.parametrize("body", [{}, {"segment": 2}, None])
def test_a_node_that_signs_a_carry_over_that_does_not_say_what_it_must_is_found(
    tmp_path: Path, body: Any, monkeypatch: Any
) -> None:
    """By a bug, or with the key in hand: a carry-over of odd content, or in the middle of a segment."""
    trail = segmented(tmp_path / "audit", segments=2)
    copy = trail._segments.closed(1)
    assert copy is not None
    trail._segments._ledger(2).append(CARRY_OVER, copy.body if body is None else body)
    assert found(trail.folder) == ("edited", 2, EACH)
    trail._segments._ledger(2).append("audit.query", {})
    assert found(trail.folder) == ("edited", 2, EACH)


def test_a_carry_over_whose_own_signature_is_wrong_is_found(tmp_path: Path) -> None:
    """Its hash is in the chain; the signature in it is what stands when the rest of its segment is gone."""
    trail = segmented(tmp_path / "audit", segments=1)
    last = entry(trail.folder, 1, EACH - 1)
    body = {"segment": 1, "length": EACH, "last": last["hash"], "next": 2, "first_at": 0, "last_at": 0, "retired": 0}
    trail._segments._ledger(1).append(CARRY_OVER, {**body, "signature": base64.b64encode(bytes(64)).decode()})
    assert found(trail.folder) == ("unsigned", 1, EACH)


@pytest.mark.parametrize("name", [HEAD, CHECKPOINTS, ENTRIES, GENESIS])
@pytest.mark.parametrize("number", [2, 4])
def test_H04_a_missing_file_is_not_a_valid_segment(folder: Path, name: str, number: int) -> None:
    (segment_folder(folder, number) / name).unlink()
    assert found(folder)[:2] == ("missing", number)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b'{"id":"x","key":"y","version":1}'])
def test_H04_a_missing_or_odd_description_is_not_a_valid_trail(folder: Path, content: bytes) -> None:
    (folder / TRAIL).write_bytes(content)
    assert found(folder)[0] == "missing"
    (folder / TRAIL).unlink()
    assert found(folder)[0] == "missing"
    assert verify_trail(folder / "nothing", PUBLIC).kind == "missing"


def test_H04_an_empty_trail_folder_is_not_a_valid_trail(folder: Path) -> None:
    shutil.rmtree(folder / "segments")
    (folder / "segments").mkdir()
    assert found(folder) == ("missing", 1, 0)


def test_H04_a_trail_written_anew_by_another_key_needs_the_nodes_key_to_be_found(tmp_path: Path) -> None:
    trail = new_trail(tmp_path / "audit", signer=Ed25519PrivateKey.generate())
    trail.record("transfer", transfer())
    assert verify_trail(trail.folder).ok  # by the key that it names itself
    assert found(trail.folder)[:2] == ("unsigned", 1)


def test_H04_a_segments_own_key_is_not_believed(folder: Path) -> None:
    path = segment_folder(folder, 2) / GENESIS
    described = json.loads(path.read_bytes())
    write_public(folder.parent / "other.pem", Ed25519PrivateKey.generate().public_key())
    described["key"] = (folder.parent / "other.pem").read_text()
    path.write_bytes(canonical(described) + b"\n")
    assert found(folder) == ("unsigned", 2, None)
    assert verify_trail(folder).kind == "unsigned"


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_H04_any_single_byte_that_changes_is_found(folder: Path, data: st.DataObject) -> None:
    """In any file of any segment that the format has, but the size that helps the writer alone."""
    number = data.draw(st.integers(1, 4))
    path = segment_folder(folder, number) / data.draw(st.sampled_from((ENTRIES, CHECKPOINTS, HEAD, GENESIS)))
    before = path.read_bytes()
    where = data.draw(st.integers(0, len(before) - 1))
    changed = bytearray(before)
    changed[where] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(changed)
    try:
        report = verify_trail(folder, PUBLIC)
        if report.ok:  # the only bytes that nobody signs: the size in the head, and how its JSON and base64 are written
            assert path.name in (HEAD, CHECKPOINTS) and _signed_parts(before) == _signed_parts(bytes(changed))
        else:
            assert report.segment == number
    finally:
        path.write_bytes(before)


def _signed_parts(raw: bytes) -> list[tuple[int, str, int | None, bytes]]:
    marks = [json.loads(line) for line in raw.split(b"\n") if line.strip()]
    return [
        (mark["length"], mark["head"], mark.get("checkpoints"), base64.b64decode(mark["signature"], validate=True))
        for mark in marks
    ]


def test_H04_a_rollback_to_an_older_copy_is_found_by_a_head_that_was_kept_elsewhere(tmp_path: Path) -> None:
    trail = segmented(tmp_path / "audit", segments=2)
    older = Path(shutil.copytree(trail.folder, tmp_path / "older"))
    for day in (2, 3):
        trail.record("transfer", transfer(), at=START + day * DAY)
    newest = verify_trail(trail.folder, PUBLIC)
    kept = Kept(newest.length, newest.head, newest.segment)
    assert verify_trail(older, PUBLIC).ok  # it is whole: it was so once
    back = verify_trail(older, PUBLIC, kept)
    assert (back.ok, back.kind, back.segment) == (False, "rolled-back", newest.segment)
    assert verify_trail(trail.folder, PUBLIC, kept).ok
    then = verify_trail(older, PUBLIC)
    for segment in (then.segment, None):
        assert verify_trail(trail.folder, PUBLIC, Kept(then.length, then.head, segment)).ok  # an older head is on the trail still
    trail.record("transfer", transfer(), at=START + 4 * DAY)
    assert verify_trail(trail.folder, PUBLIC, kept).ok
    assert verify_trail(trail.folder, PUBLIC, Kept(kept.length + 1, kept.head, kept.segment)).kind == "rolled-back"


def test_H04_a_fork_from_an_older_copy_is_found_by_a_kept_head(tmp_path: Path) -> None:
    trail = segmented(tmp_path / "audit", segments=2)
    fork = Path(shutil.copytree(trail.folder, tmp_path / "fork"))
    trail.record("transfer", transfer(1), at=START + DAY)
    newest = verify_trail(trail.folder, PUBLIC)
    AuditTrail(fork, KEY, SIGNER, source=SOURCE, period="day").record("transfer", transfer(2), at=START + DAY)
    assert verify_trail(fork, PUBLIC).ok
    assert verify_trail(fork, PUBLIC, Kept(newest.length, newest.head)).kind == "rolled-back"


YEAR = 31_557_600


@pytest.fixture
def retired(tmp_path: Path) -> AuditTrail:
    trail = segmented(tmp_path / "retired", years=1)
    assert trail.retire("admin", now=START + YEAR + DAY + 4) == [1, 2]
    return trail


def test_a_removed_segment_leaves_what_the_chain_needs(retired: AuditTrail) -> None:
    report = verify_trail(retired.folder, PUBLIC)
    assert (report.ok, report.retired) == (True, 2)


def _forged_carry(folder: Path, number: int) -> dict[str, Any]:
    """What anybody can make of a segment at hand: its carry-over, and its signed head."""
    place = segment_folder(folder, number)
    return {
        "id": json.loads((place / GENESIS).read_bytes())["id"],
        "entry": entry(folder, number, -1),
        "head": json.loads((place / HEAD).read_bytes()),
    }


def _gut(folder: Path, number: int) -> None:
    left = _forged_carry(folder, number)
    for path in segment_folder(folder, number).iterdir():
        path.unlink()
    (segment_folder(folder, number) / CARRY).write_bytes(canonical(left) + b"\n")


@pytest.mark.parametrize("numbers", [(1,), (1, 2), (2,), (1, 2, 3)])
def test_H04_a_segment_removed_as_if_it_had_expired_is_found(folder: Path, numbers: tuple[int, ...]) -> None:
    """Everything that a removal leaves can be made without any key; what says that it was removed cannot."""
    for number in numbers:
        _gut(folder, number)
    assert found(folder) == ("deleted", numbers[0], 0)


def test_H04_a_further_segment_removed_beside_the_expired_ones_is_found(retired: AuditTrail) -> None:
    _gut(retired.folder, 3)
    assert found(retired.folder) == ("deleted", 3, 0)


@pytest.mark.parametrize("change", ["entry", "head", "signature", "id", "other", "gone", "odd"])
def test_H04_a_tampered_remainder_of_a_removed_segment_is_found(retired: AuditTrail, change: str) -> None:
    path = segment_folder(retired.folder, 2) / CARRY
    left = json.loads(path.read_bytes())
    if change == "entry":
        left["entry"]["body"]["last_at"] = 1
    elif change == "head":
        left["head"]["length"] = 1
    elif change == "signature":
        left["head"]["signature"] = base64.b64encode(bytes(64)).decode()
    elif change == "id":
        left["id"] += "x"
    elif change == "other":
        left = json.loads((segment_folder(retired.folder, 1) / CARRY).read_bytes())
    path.write_bytes(b"{}" if change == "odd" else canonical(left) + b"\n")
    if change == "gone":
        path.unlink()
    assert found(retired.folder)[:2] == ("missing" if change == "gone" else "edited", 2)


def test_H04_a_removed_segment_cannot_be_put_in_anew(retired: AuditTrail, folder: Path) -> None:
    shutil.rmtree(segment_folder(retired.folder, 1))
    shutil.copytree(segment_folder(folder, 1), segment_folder(retired.folder, 1))
    assert found(retired.folder) == ("foreign", 1, 0)


def test_a_node_that_removes_a_segment_before_its_time_is_found(tmp_path: Path) -> None:
    """With the signing key in hand: the removal is in the trail, and its time is wrong."""
    trail = segmented(tmp_path / "audit", years=1)
    carry = trail._segments.closed(1)
    assert carry is not None
    for years, at in ((1, START + 2 * DAY), (0, START + 2 * YEAR), (True, START + 2 * YEAR)):
        copy = Path(shutil.copytree(trail.folder, tmp_path / f"copy-{years}-{at}"))
        there = AuditTrail(copy, KEY, SIGNER, source=SOURCE)
        body = {"segment": 1, "carry": carry.hash, "last_at": carry.body["last_at"], "years": years}
        there._segments.append([(RETIRED, body, at)])
        _gut(copy, 1)
        assert found(copy) == ("deleted", 1, 0)
    there._segments.append([(RETIRED, {**body, "years": 1, "carry": "sha256:0"}, START + 2 * YEAR)])
    assert found(copy) == ("deleted", 1, 0)


def test_H04_the_writer_itself_takes_no_entry_on_a_broken_trail(folder: Path) -> None:
    from rapha.errors import Refusal

    put(folder, 4, lines(folder, 4)[:-1])
    with pytest.raises(Refusal) as refused:
        AuditTrail(folder, KEY, SIGNER, source=SOURCE).record("transfer", transfer())
    assert refused.value.codes == ("audit-broken",)


def test_H04_the_writer_does_not_sign_for_an_entry_that_somebody_added(folder: Path) -> None:
    """It extends the chain; nobody was answered for it, so it is dropped and not adopted."""
    last = entry(folder, 4, EACH - 1)
    put(folder, 4, [*lines(folder, 4), Entry.make(EACH, last["hash"], last["at"], "audit.query", last["body"]).line()])
    AuditTrail(folder, KEY, SIGNER, source=SOURCE, period="day").record("transfer", transfer(), at=START + 3 * DAY)
    assert [json.loads(raw)["kind"] for raw in lines(folder, 4)] == ["audit.transfer"] * (EACH + 1)
    assert verify_trail(folder, PUBLIC).ok


def test_H04_a_broken_segment_is_not_carried_over(folder: Path) -> None:
    from rapha.errors import Refusal

    changed = lines(folder, 4)
    value = entry(folder, 4, 1)
    value["body"]["outcome"] = 8
    put(folder, 4, [changed[0], canonical(value) + b"\n", *changed[2:]])
    with pytest.raises(Refusal) as refused:
        AuditTrail(folder, KEY, SIGNER, source=SOURCE, period="day").record("transfer", transfer(), at=START + 9 * DAY)
    assert refused.value.codes == ("audit-broken",)


def test_the_index_cannot_be_moved_to_another_ciphertext_even_with_the_signing_key(tmp_path: Path) -> None:
    from rapha.errors import Refusal

    trail = new_trail(tmp_path / "audit")
    trail.record("transfer", transfer(1))
    ((_, one),) = trail._segments.entries()
    trail._segments.append([(one.kind, {**one.body, "outcome": 8}, one.at)])
    trail._segments.append([("audit.query", one.body, one.at)])
    trail._segments.append([(one.kind, one.body, one.at + 1)])
    assert verify_trail(trail.folder, PUBLIC).ok
    opened = 0
    with pytest.raises(Refusal) as refused:
        for _ in trail.messages():
            opened += 1
    assert refused.value.codes == ("audit-sealed",) and opened == 1


def test_D05_no_unkeyed_digest_of_an_identifier_is_in_the_trail(tmp_path: Path) -> None:
    trail = new_trail(tmp_path / "audit")
    trail.record("transfer", transfer(7))
    stored = b"".join(path.read_bytes() for path in trail.folder.rglob("*") if path.is_file()).lower()
    for clear in (f"{MRN}-7", f"{MRN}-7".lower(), f"{UID}.7", "reading@node"):
        for digest in (hashlib.sha256, hashlib.sha1, hashlib.md5):
            for prefix in (b"", b"patient\n", b"study\n", b"person\n"):
                made = digest(prefix + clear.encode())
                assert made.hexdigest().encode() not in stored
                assert base64.b64encode(made.digest()).lower() not in stored


WRITER = """
import random, sys, time
from pathlib import Path
from tests.fixtures.audit import *
from rapha.signing import load_private
folder, key, signer, name, first, count, segment_bytes = sys.argv[1:]
trail = AuditTrail(Path(folder), bytes.fromhex(key), load_private(Path(signer)), source=SOURCE, segment_bytes=int(segment_bytes))
for n in range(int(first), int(first) + int(count)):
    trail.record("transfer", transfer(n, person=name))
    print(n, flush=True)
"""


def writer(folder: Path, key: Path, name: str, first: int, count: int, segment_bytes: int = 9000) -> list[str]:
    return [sys.executable, "-c", WRITER, str(folder), KEY.hex(), str(key), name, str(first), str(count), str(segment_bytes)]


def test_two_processes_append_at_once_while_a_third_verifies(tmp_path: Path) -> None:
    """Over many segments; the verifier never cries wolf over a living trail."""
    trail = new_trail(tmp_path / "audit")
    write_private(tmp_path / "key.pem", SIGNER)
    running = [
        subprocess.Popen(writer(trail.folder, tmp_path / "key.pem", name, 0, 60), cwd=HOME, stdout=subprocess.PIPE)
        for name in ("a", "b")
    ]
    seen, reads = 0, 0
    while any(process.poll() is None for process in running):
        report = verify_trail(trail.folder, PUBLIC)
        assert report.ok and report.entries >= seen, report
        seen, reads = report.entries, reads + 1
    for process in running:
        process.communicate()
        assert process.returncode == 0
    report = verify_trail(trail.folder, PUBLIC)
    assert report.ok and reads > 3 and report.segments > 5 and report.entries == 120 + report.segments - 1
    for name in ("a", "b"):
        mine = [one.studies for one in trail.search() if one.person == trail.pseudonym("person", name)]
        assert mine == [(trail.pseudonym("study", f"{UID}.{n}"),) for n in range(60)]


@pytest.mark.parametrize("seed", range(3))
def test_J09_kill_9_while_appending_loses_nothing_that_was_answered(tmp_path: Path, seed: int) -> None:
    """Segments of a few entries, so that kills fall into rotations too."""
    rolled = random.Random(seed)
    trail = new_trail(tmp_path / "audit")
    write_private(tmp_path / "key.pem", SIGNER)
    answered, started = 0, 0
    for _ in range(5):
        command = writer(trail.folder, tmp_path / "key.pem", "k", started, 100_000, 3000)
        with subprocess.Popen(command, cwd=HOME, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            said = [process.stdout.readline()]
            time.sleep(rolled.uniform(0, 0.08))
            os.kill(process.pid, signal.SIGKILL)
            said += process.stdout.read().splitlines()
        numbers = [int(line) for line in said if line.strip().isdecimal()]
        answered += len(numbers)
        again = AuditTrail(trail.folder, KEY, SIGNER, source=SOURCE, segment_bytes=3000)
        again.record("audit-log", transfer(person="x", subject="x"))  # the next start mends what the kill cut short
        report = verify_trail(trail.folder, PUBLIC)
        assert report.ok, report
        written = [one.studies[0] for one in again.search() if one.kind == "transfer"]
        expected = [trail.pseudonym("study", f"{UID}.{n}") for n in range(started, numbers[-1] + 1)]
        assert [one for one in written if one in set(expected)] == expected  # all that was answered, in order, once
        started = numbers[-1] + 2  # one more may have been written and not answered
    total = sum(one.kind == "transfer" for one in again.search())
    assert answered <= total <= answered + 5


def test_J09_kill_9_at_every_step_of_a_rotation_is_mended_by_the_next_start(tmp_path: Path) -> None:
    """The process ends at each call that touches the disk, in turn; the next one goes on from there."""
    write_private(tmp_path / "key.pem", SIGNER)
    script = """
import os, sys
from pathlib import Path
import blocks.audit_segments, blocks.ledger, rapha.files
from tests.fixtures.audit import *
from rapha.signing import load_private
left = int(sys.argv[4])
real = os.fsync
def counted(fd):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), 9)
    real(fd)
os.fsync = counted
trail = AuditTrail(Path(sys.argv[1]), bytes.fromhex(sys.argv[2]), load_private(Path(sys.argv[3])), source=SOURCE, period="day")
trail.record("transfer", transfer(), at=START + DAY)
print("answered")
"""
    made = segmented(tmp_path / "made", segments=1).folder
    steps = 0
    while True:
        folder = Path(shutil.copytree(made, tmp_path / f"step{steps}"))
        command = [sys.executable, "-c", script, str(folder), KEY.hex(), str(tmp_path / "key.pem"), str(steps)]
        done = subprocess.run(command, cwd=HOME, capture_output=True, text=True, check=False)
        again = AuditTrail(folder, KEY, SIGNER, source=SOURCE, period="day")
        again.record("transfer", transfer(), at=START + DAY)
        report = verify_trail(folder, PUBLIC)
        assert report.ok and report.segments == 2, (steps, report)
        assert report.entries in ((5 + 1 + 2,) if done.returncode == 0 else (5 + 1 + 1, 5 + 1 + 2))
        if done.returncode == 0:
            assert done.stdout == "answered\n"
            break
        assert done.returncode == -signal.SIGKILL and done.stdout == ""
        steps += 1
    assert steps > 8


def console(*arguments: str, capsys: Any) -> tuple[int, dict[str, Any]]:
    status = run(build("ledger"), ["ledger", "verify", *arguments, "--json"])
    value: dict[str, Any] = json.loads(capsys.readouterr().out)
    return status, value


def test_the_auditors_command_needs_the_public_key_and_nothing_else(folder: Path, tmp_path: Path, capsys: Any) -> None:
    write_public(tmp_path / "audit.pub", PUBLIC)
    status, said = console(str(folder), "--key", str(tmp_path / "audit.pub"), capsys=capsys)
    assert status == 0 and said["ok"] and said["segments"] == 4 and said["verdict"] == "cleared" and said["key"] == "given"
    (tmp_path / "kept.json").write_text(json.dumps(said))
    assert console(str(folder), "--head", str(tmp_path / "kept.json"), capsys=capsys)[0] == 0
    shutil.copy(segment_folder(folder, 2) / HEAD, tmp_path / "copied.json")
    assert console(str(folder), "--head", str(tmp_path / "copied.json"), capsys=capsys)[0] == 0
    (tmp_path / "kept.json").write_text(json.dumps({**said, "length": said["length"] + 1}))
    status, said = console(str(folder), "--head", str(tmp_path / "kept.json"), capsys=capsys)
    assert status == 3 and said["codes"] == ["ledger-rolled-back"]
    shutil.rmtree(segment_folder(folder, 4))
    status, said = console(str(folder), "--key", str(tmp_path / "audit.pub"), capsys=capsys)
    assert status == 3 and (said["codes"], said["segment"], said["first_bad"]) == (["ledger-truncated"], 4, 0)


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '{"head": 1, "length": 1}', '{"head": "x", "length": true}', '{"head": "x"}']
)
def test_a_kept_head_that_is_none_is_a_usage_error(folder: Path, tmp_path: Path, content: str, capsys: Any) -> None:
    (tmp_path / "kept.json").write_text(content)
    status, said = console(str(folder), "--head", str(tmp_path / "kept.json"), capsys=capsys)
    assert status == 2 and said["codes"] == ["head-unreadable"]


def test_a_kept_head_works_for_a_plain_ledger_too(tmp_path: Path, capsys: Any) -> None:
    from blocks.ledger import Ledger

    ledger = Ledger.create(tmp_path / "ledger", SIGNER, "test")
    for n in range(4):
        ledger.append("mark", {"n": n})
    older = Path(shutil.copytree(ledger.folder, tmp_path / "older"))
    ledger.append("mark", {"n": 4})
    _, said = console(str(ledger.folder), capsys=capsys)
    (tmp_path / "kept.json").write_text(json.dumps(said))
    assert console(str(ledger.folder), "--head", str(tmp_path / "kept.json"), capsys=capsys)[0] == 0
    status, said = console(str(older), "--head", str(tmp_path / "kept.json"), capsys=capsys)
    assert (status, said["codes"]) == (3, ["ledger-rolled-back"])


def test_the_verifier_imports_nothing_of_the_node(folder: Path) -> None:
    """What an auditor installs is the published part alone."""
    script = (
        "import sys\nfrom pathlib import Path\nfrom rapha.trail import verify_trail\n"
        "print(verify_trail(Path(sys.argv[1])).ok, [m for m in sys.modules if m.split('.')[0] in "
        "('blocks', 'policies', 'flows', 'tasks', 'infra')])\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(folder)], cwd=HOME, capture_output=True, text=True, check=True)
    assert done.stdout == "True []\n"
