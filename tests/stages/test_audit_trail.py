"""The audit trail: nothing goes on without its entry, nothing in it is in clear, and what is counted is what was written."""

import json
import logging
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from blocks.audit import Act, AuditTrail, Patient, Study, Wanted, _Waiter, audited, create_audit_trail, failure, open_audit_trail
from policies.audit_events import KINDS
from policies.audit_message import SopClass, disagreements, parse
from policies.audit_report import Recorded
from rapha.errors import ConfigurationError, PeerError, Refusal
from rapha.trail import segment_folder, segment_numbers, verify_trail
from tests.fixtures.audit import DAY, KEY, MRN, NAME, SIGNER, SOURCE, START, UID, new_trail, place, segmented, transfer


@pytest.fixture
def trail(tmp_path: Path) -> AuditTrail:
    return new_trail(tmp_path / "audit")


def whole(trail: AuditTrail) -> int:
    report = verify_trail(trail.folder, SIGNER.public_key())
    assert report.ok, report
    return report.entries


def told(trail: AuditTrail) -> list[tuple[str, str, int]]:
    return [(one.kind, one.stage, one.outcome) for one in trail.search()]


def test_begin_and_end_are_written_and_agree(trail: AuditTrail) -> None:
    with audited(trail, "transfer", transfer()) as act:
        assert told(trail) == [("transfer", "begin", 0)]  # it was there before the body ran
        sops = (SopClass("1.2.840.10008.5.1.4.1.1.2", 1, ("1.2.3",)),)
        act.learned(studies=(Study(f"{UID}.0", (), sops),))
    assert told(trail) == [("transfer", "begin", 0), ("transfer", "end", 0)]
    (begin, first), (end, second) = trail.messages()
    assert begin.operation == end.operation != "" and disagreements(parse(first), parse(second)) == []
    assert parse(second).studies[0].descriptions[0].sop_classes[0].count == 1 and whole(trail) == 2


class Odd(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "outcome", "reason"),
    [
        (PeerError("pacs-timeout", "x"), 4, "pacs-timeout"),
        (Refusal(["a-b", "c-d"], "x"), 8, "a-b c-d"),
        (ConfigurationError(["bad-x"], "x"), 8, "bad-x"),
        (Odd(NAME), 8, "Odd"),
        (MemoryError(), 12, "MemoryError"),
        (KeyboardInterrupt(), 12, "KeyboardInterrupt"),
        (SystemExit(NAME), 12, "SystemExit"),
        (GeneratorExit(), 12, "GeneratorExit"),
    ],
)
def test_every_way_out_is_written_with_codes_and_no_text(
    trail: AuditTrail, error: BaseException, outcome: int, reason: str
) -> None:
    with pytest.raises(type(error)), audited(trail, "store", transfer(patient=None)):
        raise error
    assert told(trail) == [("store", "begin", 0), ("store", "end", outcome)] and failure(error) == (outcome, reason)
    _, (_, xml) = trail.messages()
    assert parse(xml).event.description == reason and NAME.encode() not in xml


def test_a_body_may_say_that_it_failed_without_an_exception(trail: AuditTrail) -> None:
    with audited(trail, "query", transfer(query=b"q")) as act:
        act.ended(4, "pacs-slow")
        with pytest.raises(Refusal):
            act.ended(5)
    assert told(trail)[-1] == ("query", "end", 4)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_can_be_recorded(trail: AuditTrail, kind: str) -> None:
    types = {"alert": "110126", "login": "110122", "application": "110120", "network-entry": "110124"}
    trail.record(kind, transfer(query=b"q", subject="x", type=types.get(kind, "")))
    ((one, xml),) = trail.messages()
    assert one.kind == kind and parse(xml) == trail.message(one)


def test_what_the_standard_does_not_allow_is_refused_and_not_written(trail: AuditTrail) -> None:
    attempts: list[Callable[[], object]] = [
        lambda: trail.record("no-such", transfer()),
        lambda: trail.record("transfer", transfer(studies=())),
        lambda: trail.record("transfer", transfer(), outcome=3),
        lambda: trail.record("transfer", transfer(), stage="end"),
        lambda: trail.record("access", transfer(studies=tuple(Study(f"1.2.{n}") for n in range(65)))),
        lambda: trail.record("transfer", transfer(patient=Patient("x" * 70_000 + os.urandom(60_000).hex()))),
    ]
    for attempt in attempts:
        with pytest.raises(Refusal):
            attempt()
    assert told(trail) == [] and whole(trail) == 0


def test_a_message_with_very_many_instances_keeps_its_counts(trail: AuditTrail) -> None:
    uids = tuple(f"2.25.{int.from_bytes(os.urandom(15), 'big')}" for _ in range(9000))
    trail.record("transfer", transfer(studies=(Study(UID, (), (SopClass("1.2.840.10008.5.1.4.1.1.2", 9000, uids),)),)))
    ((_, xml),) = trail.messages()
    (sop,) = parse(xml).studies[0].descriptions[0].sop_classes
    assert (sop.count, sop.instances) == (9000, ()) and whole(trail) == 1


def test_nothing_of_a_person_patient_or_study_is_in_clear_on_disk(trail: AuditTrail) -> None:
    with audited(trail, "transfer", transfer(person="Dr Strange", studies=(Study(UID, ("ACC-99",)),))):
        pass
    stored = b"".join(path.read_bytes() for path in trail.folder.rglob("*") if path.is_file())
    for clear in (MRN, NAME, "Nightingale", UID, "Dr Strange", "dr strange", "ACC-99", "PACS"):
        for form in (clear.encode(), clear.encode("utf-16-le"), clear.encode().hex().encode()):
            assert form not in stored
    assert b'"kind":"audit.transfer"' in stored


def test_the_same_patient_written_in_other_ways_has_one_pseudonym_and_another_trail_another(
    trail: AuditTrail, tmp_path: Path
) -> None:
    ways = {trail.pseudonym("patient", way) for way in ("0042a", " 42A ", "42a^^^HOSP", "００４２Ａ")}
    assert len(ways) == 1 and all(len(way) == 64 for way in ways)
    assert trail.pseudonym("patient", "") == trail.pseudonym("study", " ") == trail.pseudonym("person", "") == ""
    assert len({trail.pseudonym(kind, "42") for kind in ("patient", "study", "person")}) == 3
    with pytest.raises(Refusal):
        trail.pseudonym("job", "42")
    other = new_trail(tmp_path / "other")
    assert other.pseudonym("patient", "42") != trail.pseudonym("patient", "42")


def test_searching_by_time_kind_outcome_and_whom(trail: AuditTrail) -> None:
    for n in range(6):
        trail.record("transfer", transfer(n, person=f"p{n % 2}"), at=START + n, outcome=8 if n == 3 else 0)
    trail.record("query", transfer(9, person="p1", studies=(), query=b"q"), at=START + 9)
    trail.record("transfer", transfer(9), at=START + 10, stage="begin", operation="ab")

    def seqs(**wanted: Any) -> list[int]:
        return [one.seq for one in trail.search(Wanted(**wanted))]

    assert seqs(since=START + 2, until=START + 4) == [2, 3, 4]
    assert seqs(kinds=("query",)) == [6] and seqs(outcomes=(8,)) == [3] and seqs(outcomes=(0,)) == [0, 1, 2, 4, 5, 6]
    assert seqs(person=trail.pseudonym("person", " P1 ")) == [1, 3, 5, 6]
    assert seqs(patient=trail.pseudonym("patient", f"{MRN.lower()}-9")) == [6, 7]
    assert seqs(study=trail.pseudonym("study", f"{UID}.4")) == [4] == seqs(pseudonym=trail.pseudonym("study", f"{UID}.4"))
    assert seqs(operation="ab") == [7] and seqs(pseudonym="0" * 64) == []


def test_statistics_count_acts(trail: AuditTrail) -> None:
    with audited(trail, "transfer", transfer(1)):
        pass
    with pytest.raises(Odd), audited(trail, "query", transfer(1, studies=(), query=b"q")):
        raise Odd
    trail.record("transfer", transfer(2), stage="begin", operation="lost")  # its process died
    trail.record("alert", Act(person="x", type="110126", subject="peer"), outcome=12)
    counts = trail.statistics()
    assert {name: counts[name] for name in counts if not name.startswith("events_")} == {
        "phi_access_count": 3,
        "total_events": 4,
        "failed_events": 2,
        "unfinished_events": 1,
        "security_alerts": 1,
        "users": 2,
        "patients": 2,
        "studies": 2,
        "retention_years": 7,
    }
    assert counts["events_by_outcome"] == {"0": 1, "8": 1, "12": 1, "unfinished": 1}


LIMITED = """
import resource, signal, sys
from pathlib import Path
from tests.fixtures.audit import *
from blocks.audit import audited
from rapha.errors import PeerError
from rapha.signing import load_private
trail = AuditTrail(Path(sys.argv[1]), bytes.fromhex(sys.argv[2]), load_private(Path(sys.argv[3])), source=SOURCE)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]), resource.RLIM_INFINITY))
try:
    with audited(trail, "transfer", transfer()):
        print("the body ran")
except PeerError as error:
    print(*error.codes)
"""


def limited(trail: AuditTrail, tmp_path: Path, size: int) -> str:
    from rapha.signing import write_private

    write_private(tmp_path / "key.pem", SIGNER)
    command = [sys.executable, "-c", LIMITED, str(trail.folder), KEY.hex(), str(tmp_path / "key.pem"), str(size)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    return done.stdout


def test_H05_a_disk_that_takes_a_part_of_a_line_stops_the_act_before_it_begins(trail: AuditTrail, tmp_path: Path) -> None:
    for n in range(3):
        trail.record("transfer", transfer(n))
    size = (segment_folder(trail.folder, 1) / "entries.jsonl").stat().st_size
    assert limited(trail, tmp_path, size + 100) == "audit-unwritable\n"
    assert whole(trail) == 3 and resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    trail.record("transfer", transfer())  # and there is room again
    assert whole(trail) == 4


class Full:
    """The disk says ENOSPC from the nth write of a line on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
        from blocks.ledger import Ledger

        self.tries, write = 0, Ledger._append_line

        def append(ledger: Ledger, name: str, line: bytes) -> None:
            self.tries += name == "entries.jsonl"
            if self.tries > after:
                raise OSError(28, "No space left on device")
            write(ledger, name, line)

        monkeypatch.setattr(Ledger, "_append_line", append)


def test_H05_the_body_does_not_run_and_the_failure_is_not_audited_itself(
    trail: AuditTrail, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    full, ran = Full(monkeypatch, 0), []
    with caplog.at_level(logging.ERROR), pytest.raises(PeerError) as error, audited(trail, "transfer", transfer()):
        ran.append(1)
    assert error.value.codes == ("audit-unwritable",) and error.value.peer == "audit" and ran == []
    assert full.tries == 1 and [record.message for record in caplog.records] == ["audit-unwritable"]  # no loop


def test_H05_an_end_that_cannot_be_written_is_an_error_of_an_act_that_went_well(
    trail: AuditTrail, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = Full(monkeypatch, 1)
    with pytest.raises(PeerError) as error, audited(trail, "transfer", transfer()):
        pass
    assert error.value.codes == ("audit-unwritable",) and full.tries == 2
    assert trail.statistics()["unfinished_events"] == 1


def test_H05_an_acts_own_refusal_stays_a_refusal_when_its_end_cannot_be_written(
    trail: AuditTrail, monkeypatch: pytest.MonkeyPatch
) -> None:
    Full(monkeypatch, 1)
    with pytest.raises(Refusal) as refused, audited(trail, "transfer", transfer()):
        raise Refusal(["gate-said-no"])
    assert refused.value.codes == ("gate-said-no",) and refused.value.__notes__ == ["audit-unwritable"]


def test_H05_a_rotation_that_fails_leaves_a_trail_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trail = segmented(tmp_path / "audit", segments=1)
    with monkeypatch.context() as patch:
        patch.setattr("blocks.audit_segments._make", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(PeerError):
            trail.record("transfer", transfer(), at=START + DAY)  # the carry-over is written, the next segment is not
        assert verify_trail(trail.folder).kind == "truncated"
    trail.record("transfer", transfer(), at=START + DAY)
    again = AuditTrail(trail.folder, KEY, SIGNER, source=SOURCE, period="day")
    again.record("transfer", transfer(), at=START + DAY)
    assert segment_numbers(trail.folder) == [1, 2] and whole(trail) == 5 + 1 + 2


def test_segments_by_day_by_month_and_by_size(tmp_path: Path) -> None:
    assert segment_numbers(segmented(tmp_path / "day", segments=3).folder) == [1, 2, 3]
    month = segmented(tmp_path / "month", segments=12, each=1, period="month")
    assert segment_numbers(month.folder) == [1, 2]  # 21 September to 2 October
    size = segmented(tmp_path / "size", segments=1, each=12, segment_bytes=6000)
    assert len(segment_numbers(size.folder)) > 2
    for folder in ("day", "month", "size"):
        assert verify_trail(tmp_path / folder, SIGNER.public_key()).ok
        assert [one.seq for one in AuditTrail(tmp_path / folder, KEY, SIGNER, source=SOURCE).search()]


def test_a_clock_that_goes_back_opens_no_segment(tmp_path: Path) -> None:
    trail = segmented(tmp_path / "audit", segments=2, each=1)
    for at in (START, START + DAY, START - 40 * DAY, START + DAY):
        trail.record("transfer", transfer(), at=at)
    assert segment_numbers(trail.folder) == [1, 2] and whole(trail) == 7
    assert len(list(trail.search(Wanted(until=START - 1)))) == 1


def test_a_search_passes_over_closed_segments_outside_its_time(tmp_path: Path) -> None:
    trail = segmented(tmp_path / "audit")
    (segment_folder(trail.folder, 2) / "entries.jsonl").chmod(0o600)
    broken = segment_folder(trail.folder, 2) / "entries.jsonl"
    lines = broken.read_bytes().splitlines(keepends=True)
    broken.write_bytes(b"".join([lines[0].replace(b"audit.transfer", b"audit.export__"), *lines[1:]]))
    assert len(list(trail.search(Wanted(since=START + 2 * DAY)))) == 10
    with pytest.raises(Refusal) as refused:
        list(trail.search(Wanted(since=START + DAY)))
    assert refused.value.codes == ("audit-broken",)


def test_two_trail_objects_on_one_folder_see_each_others_segments(tmp_path: Path) -> None:
    one = segmented(tmp_path / "audit", segments=1)
    other = AuditTrail(one.folder, KEY, SIGNER, source=SOURCE, period="day")
    for day in range(1, 5):
        (one if day % 2 else other).record("transfer", transfer(), at=START + day * DAY)
        (other if day % 2 else one).record("transfer", transfer(), at=START + day * DAY + 1)
    assert segment_numbers(one.folder) == [1, 2, 3, 4, 5]
    assert list(one.search()) == list(other.search()) and len(list(one.search())) == 5 + 8 and whole(one) == 13 + 4


def test_many_threads_append_and_share_flushes(trail: AuditTrail, monkeypatch: pytest.MonkeyPatch) -> None:
    flushes, write = [], trail._segments.append

    def counted(items: Any) -> Any:
        flushes.append(len(items))
        return write(items)

    monkeypatch.setattr(trail._segments, "append", counted)
    start = threading.Barrier(24)

    def work(name: int) -> None:
        start.wait()
        for n in range(10):
            trail.record("transfer", transfer(n, person=f"p{name}"))

    threads = [threading.Thread(target=work, args=(name,)) for name in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(flushes) == 240 and len(flushes) < 200 and max(flushes) > 1 and whole(trail) == 240
    for name in range(24):
        mine = [one for one in trail.search(Wanted(person=trail.pseudonym("person", f"p{name}")))]
        assert [one.studies[0] for one in mine] == [trail.pseudonym("study", f"{UID}.{n}") for n in range(10)]


def test_one_failed_flush_fails_everyone_who_waited_on_it_and_nobody_else(
    trail: AuditTrail, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes: list[str] = []

    def work() -> None:
        try:
            trail.record("transfer", transfer())
        except PeerError as error:
            codes.append(error.codes[0])

    with monkeypatch.context() as patch:
        Full(patch, 0)
        threads = [threading.Thread(target=work) for _ in range(100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert codes == ["audit-unwritable"] * 100
    trail.record("transfer", transfer())
    assert whole(trail) == 1


def test_more_than_one_group_that_waits_is_written_whole(trail: AuditTrail) -> None:
    answered: list[int] = []
    threads = [threading.Thread(target=lambda: answered.append(trail.record("transfer", transfer()).seq)) for _ in range(150)]
    with trail._writing:  # nobody gets to write until all of them wait
        for thread in threads:
            thread.start()
        while len(trail._waiting) < 150:
            threads[0].join(0.01)
    for thread in threads:
        thread.join(20)
    assert sorted(answered) == list(range(150)) and whole(trail) == 150


def test_who_gets_to_write_before_his_turn_writes_those_before_him_too(trail: AuditTrail) -> None:
    trail._waiting = [_Waiter(("audit.mark", {"n": n}, START)) for n in range(70)]  # more than one group
    assert trail.record("transfer", transfer()).seq == 70 and whole(trail) == 71


@pytest.mark.parametrize("years", [0, 11, -1, True, 2.5, "7"])
def test_a_retention_outside_one_to_ten_years_is_refused(tmp_path: Path, years: Any) -> None:
    with pytest.raises(ConfigurationError) as wrong:
        new_trail(tmp_path / "audit", years=years)
    assert wrong.value.codes == ("audit-retention",)


def test_only_what_is_past_its_time_is_removed_and_the_chain_still_holds(tmp_path: Path) -> None:
    trail = segmented(tmp_path / "audit", years=2)
    end = START + 2 * DAY + 4 + 2 * 31_557_600  # the last entry of segment 3 is two years old
    assert trail.expired(START + DAY) == [] and trail.expired(end - 1) == [1, 2] and trail.expired(end) == [1, 2, 3]
    before = list(trail.search())
    assert trail.retire("admin", now=end - 1) == [1, 2] and trail.expired(end - 1) == []
    report = verify_trail(trail.folder, SIGNER.public_key())
    assert (report.ok, report.retired) == (True, 2), report
    assert [path.name for path in segment_folder(trail.folder, 1).iterdir()] == ["carry.json"]
    kept = [one for one in trail.search() if one.kind == "transfer"]
    assert kept == [one for one in before if one.segment > 2]
    said = [one for one in trail.search(Wanted(kinds=("operator",)))]
    assert [one.stage for one in said] == ["begin", "end"] * 2
    assert b"#segment-1" in next(xml for one, xml in trail.messages(Wanted(kinds=("operator",))))
    assert trail.retire("admin", now=end) == [3] and verify_trail(trail.folder).retired == 3
    trail.record("transfer", transfer(), at=end + 40 * DAY)
    trail.record("transfer", transfer(), at=end + 400 * DAY)  # the segment that says so is closed, and its carry-over says it too
    assert verify_trail(trail.folder).ok


def test_a_removal_whose_own_entries_expired_is_still_known_by_the_carry_overs(tmp_path: Path) -> None:
    trail = segmented(tmp_path / "audit", years=1, segments=2)
    year = 31_557_600
    trail.retire("admin", now=START + year + DAY)
    for n in range(1, 5):
        trail.record("transfer", transfer(), at=START + n * 2 * year)
        trail.retire("admin", now=START + n * 2 * year + 1)
    report = verify_trail(trail.folder, SIGNER.public_key())
    assert report.ok and report.retired >= 4, report


def test_a_removal_that_was_cut_short_can_be_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trail = segmented(tmp_path / "audit", years=1)
    end = START + 2 * 31_557_600
    with monkeypatch.context() as patch:
        patch.setattr("blocks.audit_segments.replace_durably", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
        with pytest.raises(PeerError):
            trail.retire("admin", now=end)
    assert verify_trail(trail.folder).ok
    assert trail.retire("admin", now=end)[:3] == [1, 2, 3] and verify_trail(trail.folder, SIGNER.public_key()).ok


def test_H05_a_segment_is_not_removed_where_that_cannot_be_audited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trail = segmented(tmp_path / "audit", years=1)
    Full(monkeypatch, 0)
    with pytest.raises(PeerError):
        trail.retire("admin", now=START + 2 * 31_557_600)
    assert verify_trail(trail.folder).retired == 0 and len(list(trail.search())) == 20


def test_the_newest_and_a_young_segment_cannot_be_removed(tmp_path: Path) -> None:
    trail = segmented(tmp_path / "audit", years=1)
    for number in (1, 4):
        with pytest.raises(Refusal) as refused:
            trail._segments.retire(number, 1, START + 3 * DAY)
        assert refused.value.codes == ("audit-not-expired",)
    with pytest.raises(Refusal):
        trail._segments.retire(2, 1, START + 90 * 31_557_600)  # an older one is still there


def test_another_key_opens_nothing_and_signs_nothing(trail: AuditTrail) -> None:
    trail.record("transfer", transfer())
    other = AuditTrail(trail.folder, os.urandom(32), SIGNER, source=SOURCE)
    with pytest.raises(Refusal) as refused:
        list(other.messages())
    assert refused.value.codes == ("audit-sealed",)
    with pytest.raises(ConfigurationError) as wrong:
        AuditTrail(trail.folder, KEY, Ed25519PrivateKey.generate(), source=SOURCE)
    assert wrong.value.codes == ("audit-key-other",)


def test_no_salt_is_used_twice_and_no_ciphertext_says_how_alike_two_messages_are(trail: AuditTrail) -> None:
    for _ in range(50):
        trail.record("transfer", transfer(), at=START)
    sealed = [entry.body["sealed"] for _, entry in trail._segments.entries()]
    assert len({text[:37] for text in sealed}) == 50


def test_the_trail_opens_from_the_environment(tmp_path: Path) -> None:
    here = place(tmp_path)
    trail = here.open()
    assert trail.folder == tmp_path / "state" / "audit" and trail.years == 7 and trail.source.id == "test-node"
    trail.record("transfer", transfer())
    assert list(here.open().search()) == list(trail.search())
    elsewhere = replace(here, environment={**here.environment, "RAPHA_AUDIT_DIR": str(tmp_path / "elsewhere")})
    assert elsewhere.open().folder == tmp_path / "elsewhere"
    assert here.open(years=1).years == 1
    assert replace(here, environment={**here.environment, "RAPHA_AUDIT_RETENTION_YEARS": "10"}).open().years == 10


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"RAPHA_STATE_DIR": ""}, "missing-state-dir"),
        ({"RAPHA_KEYS_DIR": ""}, "missing-keys-dir"),
        ({"RAPHA_AUDIT_KEY_BASE64": ""}, "missing-audit-key-base64"),
        ({"RAPHA_AUDIT_KEY_BASE64": "?"}, "bad-audit-key-base64"),
        ({"RAPHA_AUDIT_KEY_BASE64": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}, "weak-audit-key-base64"),
        ({"RAPHA_AUDIT_KEY_BASE64": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="}, "weak-audit-key-base64"),
        ({"RAPHA_AUDIT_KEY_BASE64": "AAEC"}, "weak-audit-key-base64"),
        ({"RAPHA_AUDIT_RETENTION_YEARS": "0"}, "audit-retention"),
        ({"RAPHA_AUDIT_RETENTION_YEARS": "11"}, "audit-retention"),
        ({"RAPHA_AUDIT_RETENTION_YEARS": "seven"}, "audit-retention"),
        ({"RAPHA_AUDIT_SEGMENT": "year"}, "audit-segment"),
        ({"RAPHA_KEYS_DIR": "/nonexistent"}, "key-unreadable"),
    ],
)
def test_D04_what_is_missing_or_weak_is_refused(tmp_path: Path, change: dict[str, str], code: str) -> None:
    with pytest.raises(ConfigurationError) as wrong:
        open_audit_trail({**place(tmp_path).environment, **change})
    assert wrong.value.codes == (code,)


@pytest.mark.parametrize("name", ["RAPHA_PHI_HMAC_KEY_BASE64", "RAPHA_REGISTER_KEY_BASE64"])
def test_D04_a_key_that_has_another_use_too_is_refused(tmp_path: Path, name: str) -> None:
    environment = place(tmp_path).environment
    with pytest.raises(ConfigurationError) as wrong:
        open_audit_trail({**environment, name: environment["RAPHA_AUDIT_KEY_BASE64"]})
    assert wrong.value.codes == ("audit-key-shared",)


def test_a_signing_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    here = place(tmp_path)
    (tmp_path / "keys" / "audit.pem").chmod(0o644)
    with pytest.raises(ConfigurationError) as wrong:
        here.open()
    assert wrong.value.codes == ("key-readable-by-others",)


def test_H04_production_makes_no_new_trail_in_place_of_one_that_is_gone(tmp_path: Path) -> None:
    production = {**place(tmp_path).environment, "RAPHA_ENABLE_HOSPITAL_DATA_INTEGRATION": "true"}
    with pytest.raises(ConfigurationError) as wrong:
        open_audit_trail(production)
    assert wrong.value.codes == ("audit-missing",)
    trail = create_audit_trail(production)
    assert [(one.kind, one.action) for one in trail.search()] == [("alert", "E")]
    assert open_audit_trail(production).id == trail.id
    with pytest.raises(Refusal) as refused:
        create_audit_trail(production)
    assert refused.value.codes == ("audit-exists",)
    (trail.folder / "trail.json").unlink()
    for environment in (production, {**production, "RAPHA_ENABLE_HOSPITAL_DATA_INTEGRATION": "false"}):
        with pytest.raises((ConfigurationError, Refusal)):
            open_audit_trail(environment)


def test_what_everybody_may_see_of_an_entry(trail: AuditTrail) -> None:
    one = trail.record("transfer", transfer())
    (line,) = (segment_folder(trail.folder, 1) / "entries.jsonl").read_bytes().splitlines()
    entry = json.loads(line)
    assert set(entry["body"]) == {
        "v", "stage", "operation", "outcome", "action", "person", "patient", "studies", "sealed",
    }  # fmt: skip
    assert isinstance(one, Recorded) and one.to_json()["studies"] == entry["body"]["studies"]
    with pytest.raises(Refusal):
        trail.message(replace(one, seq=99))
