"""The reading register on both of its databases, each real: what is leased, given back, given up, told, and never in clear."""

import secrets
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, text

from blocks import reading_shelf
from blocks.database import open_engine
from blocks.reading import (
    MAX_TRIES,
    ExpectedInstance,
    FoundSeries,
    FoundStudy,
    Notice,
    ReadingRegister,
    open_reading_register,
)
from blocks.reading_outbox import MAX_SENDS
from blocks.reading_rows import Base
from rapha.errors import ConfigurationError, PeerError, Refusal
from tests.fixtures.postgres import running_postgres

KEY = secrets.token_bytes(32)
UID, SERIES, SOP = "1.2.826.0.1.3680043.10.4711", "1.2.826.0.1.3680043.10.4712", "1.2.826.0.1.3680043.10.4713"
PATIENT = "HOSP-00004711"


@pytest.fixture(scope="module")
def postgres():
    with running_postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/reading.sqlite"
    return request.getfixturevalue("postgres").fresh()


@pytest.fixture
def register(url):
    opened = ReadingRegister(url, KEY)
    yield opened
    opened.close()


def study(uid=UID, *, count=2, contents="", more=()):
    series = (FoundSeries(series_uid=f"{uid}.1", modality="CT", instances=count, contents=contents), *more)
    return FoundStudy(study_uid=uid, series=series, modalities=("CT",), study_date="20240115", details={"patient": PATIENT})


def codes(error):
    return list(error.value.codes)


def leased(register, now=100, seconds=60):
    register.found("pacs", study(), now)
    lease = register.claim("worker", now, seconds)
    assert lease is not None and lease.study_uid == UID
    return lease


def test_the_migrations_make_the_tables_that_are_declared(register, url):
    engine = open_engine(url)
    with engine.begin() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": "reading_schema", "compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
    engine.dispose()


def test_an_older_register_is_migrated_and_keeps_its_rows(url):
    engine = open_engine(url)
    with engine.begin() as connection:
        command.upgrade(reading_shelf.migrations(connection), "r0001")
        connection.execute(text("INSERT INTO reading_watermarks (pacs, at, polled_at) VALUES ('pacs', 7, 8)"))
        assert "reading_notices" not in inspect(connection).get_table_names()
    opened = ReadingRegister(url, KEY)
    assert opened.watermark("pacs").at == 7
    assert opened.counts()["notices"] == {}
    opened.close()
    engine.dispose()


def test_a_newer_register_is_refused_and_untouched(register, url):
    engine = open_engine(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE reading_schema SET version_num = 'r9999'"))
    with pytest.raises(ConfigurationError) as error:
        ReadingRegister(url, KEY)
    assert codes(error) == ["register-newer"]
    with engine.begin() as connection:
        assert connection.execute(text("SELECT version_num FROM reading_schema")).scalar() == "r9999"
    engine.dispose()


def test_another_key_is_refused(register, url):
    with pytest.raises(ConfigurationError) as error:
        ReadingRegister(url, secrets.token_bytes(32))
    assert codes(error) == ["register-key-wrong"]


@pytest.mark.parametrize(
    "key",
    [b"", b"short", bytes(32), bytes(range(32)), b"0123456789abcdef" * 2, bytes((37 * n) % 251 for n in range(33))],
    ids=["empty", "short", "zeros", "counted", "repeated", "long"],
)
def test_weak_keys_are_refused(tmp_path, key):
    with pytest.raises(ConfigurationError) as error:
        ReadingRegister.at(tmp_path / "r.sqlite", key)
    assert codes(error) == ["weak-register-key"]
    assert not (tmp_path / "r.sqlite").exists()


def test_no_identifier_lies_in_the_database_in_clear(register, url, tmp_path):
    lease = leased(register)
    register.expect(lease, [ExpectedInstance(sop_uid=SOP, sop_class="1.2.840.10008.5.1.4.1.1.2", series_uid=SERIES)], "before")
    register.received(lease, [(SOP, "sha256:aa")])
    register.own_series(lease, SERIES)
    register.fail(lease, ["x"], 110)
    register.discard(register.dead_letters()[0].id, f"asked for by the ward of {PATIENT}", 111)
    if url.startswith("sqlite"):
        held = b"".join(path.read_bytes() for path in tmp_path.iterdir() if path.name.startswith("reading.sqlite"))
    else:
        plain = url.replace("+psycopg", "")
        held = subprocess.run(["/usr/lib/postgresql/15/bin/pg_dump", plain], capture_output=True, check=True, timeout=60).stdout
    assert b"worker" in held or b"pacs" in held, "the search looks at the real thing"
    for needle in (UID, SERIES, SOP, PATIENT, "20240115"):
        assert needle.encode() not in held and needle.encode().hex().encode() not in held


def test_a_sealed_column_opens_in_its_own_row_alone(register, url):
    register.found("pacs", study(), 1)
    register.found("pacs", study("1.2.9"), 1)
    engine = open_engine(url)
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE reading_studies SET uid_sealed = (SELECT uid_sealed FROM reading_studies WHERE id = 1) WHERE id = 2")
        )
    engine.dispose()
    assert register.claim("w", 5, 60, row=1).study_uid == UID
    with pytest.raises(PeerError) as error:
        register.claim("w", 5, 60, row=2)
    assert codes(error) == ["register-tampered"]


def test_many_workers_never_hold_the_same_row(register, url):
    for number in range(24):
        register.found("pacs", study(f"1.2.{number}"), 1)
    held, lock = [], threading.Lock()

    def work(worker):
        mine = ReadingRegister(url, KEY)
        while (lease := mine.claim(worker, 10, 600)) is not None:
            with lock:
                held.append(lease.row)
        mine.close()

    threads = [threading.Thread(target=work, args=(f"w{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(held) == list(range(1, 25)) or (len(held) == len(set(held)) == 24)


def test_several_pollers_register_a_study_once(register, url):
    outcomes, lock = [], threading.Lock()

    def poll():
        mine = ReadingRegister(url, KEY)
        for number in range(8):
            found = mine.found("pacs", study(f"1.3.{number}"), 1)
            with lock:
                outcomes.append(found.outcome)
        mine.close()

    threads = [threading.Thread(target=poll) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert outcomes.count("new") == 8 and outcomes.count("known") == 16


def test_an_urgent_study_is_next_and_a_waiting_one_can_be_moved(register):
    for number, level in enumerate(("low", "medium", "urgent", "high")):
        register.found("pacs", study(f"1.4.{number}"), 100 + number, level)
    assert [one.priority for one in register.queue()] == ["urgent", "high", "medium", "low"]
    first = register.claim("w", 200, 60)
    assert first is not None and first.priority == "urgent", "the last that was found but one, before all others"
    low = register.queue()[-1].row
    assert register.set_priority(low, "urgent").priority == "urgent"
    lease = register.claim("w", 200, 60)
    assert lease.row == low, "it keeps the time it has waited"
    with pytest.raises(Refusal) as error:
        register.set_priority(low, "high")
    assert codes(error) == ["study-not-queued"]
    with pytest.raises(ConfigurationError) as error:
        register.set_priority(low, "now")
    assert codes(error) == ["priority-unknown"]


def test_who_lost_the_lease_writes_nothing(register):
    lease = leased(register, 100, 60)
    assert register.reap(159) == []
    assert [(one.row, one.state) for one in register.reap(160)] == [(lease.row, "scheduled")]
    again = register.claim("other", 161, 60)
    assert again.attempt == 2
    writes = (
        lambda: register.renew(lease, 162, 60),
        lambda: register.enter(lease, "analyse", 162),
        lambda: register.finish(lease, 162),
        lambda: register.fail(lease, ["x"], 162),
        lambda: register.received(lease, [(SOP, "sha256:aa")]),
        lambda: register.expect(lease, [], "before"),
    )
    for write in writes:
        with pytest.raises(Refusal) as error:
            write()
        assert codes(error) == ["lease-lost"]
    assert register.finish(again, 163) == "completed"


def test_what_is_lost_too_often_becomes_a_dead_letter_and_replays_from_its_stage(register):
    lease, now = leased(register), 100
    for _ in range(MAX_TRIES - 1):
        register.enter(lease, "store", now)
        now += 60
        assert [one.state for one in register.reap(now)] == ["scheduled"]
        lease = register.claim("w", now, 60)
    assert [one.state for one in register.reap(now + 60)] == ["dead"]
    (letter,) = register.dead_letters()
    assert (letter.stage, letter.codes, letter.attempt) == ("store", ("lease-expired",), MAX_TRIES)
    assert register.claim("w", now + 61, 60) is None
    assert register.replay(letter.id, now + 62) == lease.row
    assert register.claim("w", now + 63, 60).stage == "store"
    with pytest.raises(Refusal):
        register.replay(letter.id, now + 64)


def test_a_failed_stage_waits_for_its_time(register):
    lease = leased(register)
    register.enter(lease, "prove", 101)
    assert register.fail(lease, ["pacs-down"], 102, retry_at=500) == "scheduled"
    assert register.claim("w", 499, 60) is None
    assert register.claim("w", 500, 60).stage == "prove"


def test_a_dead_letter_is_discarded_for_a_reason(register):
    register.fail(leased(register), ["x"], 101)
    (letter,) = register.dead_letters()
    with pytest.raises(Refusal) as error:
        register.discard(letter.id, "  ", 102)
    assert codes(error) == ["reason-missing"]
    register.discard(letter.id, "wrong patient", 103)
    assert register.dead_letters() == [] and register.study(letter.row).state == "canceled"


def test_late_series_reopen_and_our_own_report_does_not(register):
    lease = leased(register)
    register.own_series(lease, "1.99")
    register.finish(lease, 110)
    ours = FoundSeries(series_uid="1.99", modality="SR", instances=1)
    assert register.found("pacs", study(more=(ours,)), 120).outcome == "known"
    late = FoundSeries(series_uid="1.77", modality="CT", instances=1)
    assert register.found("pacs", study(more=(ours, late)), 130).outcome == "changed"
    again = register.claim("w", 131, 60)
    assert (again.order, again.stage, again.registered_at, again.content_at) == (1, "retrieve", 100, 130)


def test_the_same_count_with_other_contents_reopens(register):
    register.found("pacs", study(contents="a"), 100)
    register.finish(register.claim("w", 100, 60), 101)
    assert register.found("pacs", study(contents="b"), 102).outcome == "changed"
    assert register.found("pacs", study(contents="b"), 103).outcome == "known"


@pytest.mark.parametrize("end", ["finish", "fail", "reap"])
def test_what_changes_while_it_is_worked_on_is_opened_again_at_its_end(register, end):
    lease = leased(register)
    register.enter(lease, "store", 101)
    assert register.found("pacs", study(count=3), 105).outcome == "changed"
    if end == "finish":
        assert register.finish(lease, 106) == "scheduled"
    elif end == "fail":
        assert register.fail(lease, ["x"], 106) == "scheduled"
    else:
        assert register.reap(160)[0].state == "scheduled"
    again = register.claim("w", 200, 60)
    assert (again.order, again.stage) == (1, "retrieve") and register.dead_letters() == []


def test_a_dead_study_that_changes_is_opened_again(register):
    register.fail(leased(register), ["x"], 101)
    register.found("pacs", study(count=3), 105)
    assert register.dead_letters() == [] and register.claim("w", 106, 60).order == 1


def test_a_cancel_reaches_the_worker(register):
    lease = leased(register)
    register.cancel(lease.row, 101)
    with pytest.raises(Refusal) as error:
        register.renew(lease, 102, 60)
    assert codes(error) == ["study-canceled"]
    assert register.fail(lease, ["study-canceled"], 103) == "canceled" and register.dead_letters() == []


def test_stages_go_forward_and_are_known(register):
    lease = leased(register)
    register.enter(lease, "store", 101)
    for stage, code in (("analyse", "stage-backwards"), ("dream", "stage-unknown")):
        with pytest.raises(Refusal) as error:
            register.enter(lease, stage, 102)
        assert codes(error) == [code]


def test_the_sets_of_instances(register):
    lease = leased(register)
    listed = [ExpectedInstance(sop_uid=f"1.5.{n}", sop_class="1.2.3", series_uid="1.5") for n in range(3)]
    register.expect(lease, listed[:2], "before")
    register.expect(lease, listed, "after")
    register.received(lease, [(one.sop_uid, f"sha256:{n}") for n, one in enumerate(listed)])
    read = [("1.5.0", "sha256:0"), ("1.5.1", "sha256:1")]
    register.analysed(lease, read)
    register.not_applicable(lease, "1.5.2", "sha256:2", "sop-class-not-read")
    register.referenced(lease, read)
    states = {one.sop_uid: one for one in register.instances(lease.row)}
    assert {uid for uid, one in states.items() if one.before} == {"1.5.0", "1.5.1"}
    assert all(one.after and one.series_uid == "1.5" and one.sop_class == "1.2.3" for one in states.values())
    assert {uid for uid, one in states.items() if one.analysed and one.referenced} == {"1.5.0", "1.5.1"}
    assert states["1.5.2"].reason == "sop-class-not-read" and states["1.5.1"].sha256 == "sha256:1"
    assert [one.opened_sha256 for one in register.instances(lease.row)] == [one.sha256 for one in states.values()]
    assert {uid: one.referenced_sha256 for uid, one in states.items()} == dict([*read, ("1.5.2", "")])
    register.expect(lease, listed[:1], "before")
    assert sum(one.before for one in register.instances(lease.row)) == 1
    other = [("1.6", "sha256:0")]
    for write in (lambda: register.analysed(lease, other), lambda: register.referenced(lease, other)):
        with pytest.raises(Refusal) as error:
            write()
        assert codes(error) == ["instance-not-received"]
    assert sum(one.referenced for one in register.instances(lease.row)) == 2, "a refused write changes nothing"


def test_other_content_under_one_uid_is_a_conflict_until_it_is_fetched_anew(register):
    lease = leased(register)
    register.received(lease, [(SOP, "sha256:a"), (SOP, "sha256:a"), (SOP, "sha256:b")])
    assert [(one.sha256, one.conflict) for one in register.instances(lease.row)] == [("sha256:a", True)]
    register.fail(lease, ["content-conflict"], 101)
    register.replay(register.dead_letters()[0].id, 102)
    assert [(one.sha256, one.conflict) for one in register.instances(lease.row)] == [("", False)]


def test_what_a_later_retrieval_brings_takes_the_place_of_what_an_earlier_one_did(register):
    lease = leased(register)
    register.received(lease, [("1.5.0", "sha256:a"), ("1.5.1", "sha256:b")])
    register.analysed(lease, [("1.5.0", "sha256:a")])
    register.not_applicable(lease, "1.5.1", "sha256:b", "modality")
    register.referenced(lease, [("1.5.0", "sha256:a")])
    register.received(lease, [("1.5.0", "sha256:c")])
    states = register.instances(lease.row)
    assert {one.sop_uid: (one.sha256, one.conflict) for one in states} == {"1.5.0": ("sha256:c", False), "1.5.1": ("", False)}
    said = [(one.analysed, one.reason, one.opened_sha256, one.referenced, one.referenced_sha256) for one in states]
    assert set(said) == {(False, "", "", False, "")}


def test_notices_are_written_with_the_end_or_not_at_all(register):
    lease = leased(register)
    notice = Notice(kind="critical", recipient_group="radiology", template="critical-finding", facts={"findings": 2})
    with pytest.raises(Refusal):
        register.finish(lease, 999, notices=[notice])
    assert register.notices() == []
    register.enter(lease, "tell", 101, notices=[notice])
    result = Notice(kind="result", recipient_group="radiology", template="report-stored")
    register.finish(lease, 102, notices=[result, notice])
    due = register.due_notices(103)
    assert [one.kind for one in due] == ["critical", "result"] and due[0].facts == {"findings": 2}
    assert register.due_notices(104) == [], "held for the one who was given it"
    assert len(register.due_notices(103 + 120)) == 2


def test_a_critical_notice_is_escalated_until_somebody_has_it(register):
    register.finish(leased(register), 101, notices=[Notice(kind="critical", recipient_group="g", template="t")])
    (due,) = register.due_notices(102)
    with pytest.raises(Refusal) as error:
        register.acknowledge(due.id, "dr", 102)
    assert codes(error) == ["notice-not-sent"]
    register.notice_sent(due.id, 103, escalate_at=200)
    assert register.escalations(199) == []
    assert [one.id for one in register.escalations(200)] == [due.id]
    assert register.escalate(due.id, 0, 201) and not register.escalate(due.id, 0, 201)
    (again,) = register.due_notices(202)
    assert again.level == 1
    register.notice_sent(again.id, 203, escalate_at=300)
    assert register.acknowledge(due.id, "dr", 250) and not register.acknowledge(due.id, "another", 251)
    assert register.escalations(400) == []


def test_a_critical_notice_that_no_channel_takes_is_escalated(register):
    register.finish(leased(register), 101, notices=[Notice(kind="critical", recipient_group="g", template="t")])
    states = [register.notice_failed(1, "smtp-down", 200 + n) for n in range(MAX_SENDS)]
    assert states == ["waiting"] * (MAX_SENDS - 1) + ["dead"]
    assert [one.state for one in register.escalations(300)] == ["dead"]


def test_the_watermark_never_goes_back(register):
    assert register.watermark("pacs") is None
    for at in (100, 50, 120, 110):
        register.set_watermark("pacs", at, now=at)
    assert register.watermark("pacs").at == 120


def test_what_was_answered_survives_a_kill(url):
    program = (
        "import os, signal, sys; from blocks.reading import *\n"
        "r = ReadingRegister(sys.argv[1], bytes.fromhex(sys.argv[2]))\n"
        "r.found('pacs', FoundStudy(study_uid='1.2.3'), 1); r.claim('w', 1, 60); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, url, KEY.hex()], check=False, timeout=60, cwd=Path(__file__).parents[2])
    assert done.returncode == -9
    opened = ReadingRegister(url, KEY)
    assert [one.row for one in opened.reap(61)] == [1] and opened.claim("other", 62, 60).study_uid == "1.2.3"
    opened.close()


def test_a_register_on_sqlite_is_private_and_syncs_fully(tmp_path):
    opened = ReadingRegister.at(tmp_path / "r.sqlite", KEY)
    assert (tmp_path / "r.sqlite").stat().st_mode & 0o077 == 0
    with opened._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
    opened.close()


def test_a_database_that_is_gone_is_a_failed_peer_without_its_words():
    with pytest.raises(PeerError) as error:
        ReadingRegister("postgresql+psycopg://nobody:secret@127.0.0.1:1/none", KEY)
    assert codes(error) == ["register-unavailable"] and "secret" not in str(error.value)


def test_the_register_is_opened_from_settings(tmp_path):
    import base64

    key = base64.b64encode(KEY).decode()
    open_reading_register({"RAPHA_STATE_DIR": str(tmp_path), "RAPHA_REGISTER_KEY_BASE64": key}).close()
    assert (tmp_path / "reading.sqlite").exists()
    for environment, expected in (
        ({}, ["missing-register-key-base64", "missing-state-dir"]),
        ({"RAPHA_STATE_DIR": str(tmp_path), "RAPHA_REGISTER_KEY_BASE64": "?"}, ["bad-register-key"]),
        ({"RAPHA_REGISTER_URL": "mysql://x/y", "RAPHA_REGISTER_KEY_BASE64": key}, ["register-url"]),
        ({"RAPHA_REGISTER_URL": "nonsense", "RAPHA_REGISTER_KEY_BASE64": key}, ["register-url"]),
    ):
        with pytest.raises(ConfigurationError) as error:
            open_reading_register(environment)
        assert codes(error) == expected


def test_a_tally_counts_what_waits_what_was_done_and_how_long_it_took(register):
    empty = register.tally(100)
    assert (empty.studies, empty.waiting, empty.oldest_waiting_seconds, empty.average_seconds) == ({}, 0, None, 0.0)
    for number, level in enumerate(("low", "urgent", "medium", "medium")):
        register.found("pacs", study(f"{UID}.{number}"), 100 + number, level)
    done = register.claim("worker", 110, 60)
    register.enter(done, "tell", 111)
    register.finish(done, 131, notices=[Notice(kind="result", recipient_group="radiology", template="result")])
    given_up, later = register.claim("worker", 140, 60), register.claim("worker", 140, 60)
    register.fail(given_up, ["findings-kind"], 141)
    register.fail(later, ["pacs-down"], 142, retry_at=500)
    register.discard(register.dead_letters()[0].id, "read on film", 143)
    register.cancel(register.found("pacs", study(f"{UID}.9"), 144).row, 145)  # by a person: it has not failed
    found = register.tally(200)
    assert found.studies == {"completed": 1, "canceled": 2, "scheduled": 2}
    assert (found.priorities, found.stages) == ({"low": 1, "medium": 1}, {"retrieve": 2})
    assert (found.waiting, found.to_be_tried_again, found.oldest_waiting_seconds) == (2, 1, 100)
    assert (found.processed, found.average_seconds) == (1, 30.0)  # urgent: queued at 101, done at 131
    assert (found.failed, found.dead_letters, found.notices) == (1, 0, {"waiting": 1})
    assert register.content_at(done.row) == 101


def test_what_a_person_had_written_is_ours_too(register):
    """A report that was stored by hand is no change of its study; no lease is needed for it."""
    row = register.found("pacs", study(), 100).row
    register.own_series(row, f"{UID}.9000")
    ours = FoundSeries(series_uid=f"{UID}.9000", modality="SR", instances=1)
    assert register.found("pacs", study(more=(ours,)), 110).outcome == "known"
    with pytest.raises(Refusal) as unknown:
        register.own_series(row + 1, f"{UID}.9001")
    assert codes(unknown) == ["study-unknown"]


def test_a_study_that_changes_is_its_patients_as_they_are_now(register):
    row = register.found("pacs", study(), 0).row
    register.found("pacs", replace(study(count=3), details={"patient": "HOSP-CORRECTED"}), 1)
    assert register.details(row)["patient"] == "HOSP-CORRECTED"
    register.found("pacs", replace(study(count=4), details={}), 2)
    assert register.details(row)["patient"] == "HOSP-CORRECTED", "an answer that names nobody corrects nothing"
