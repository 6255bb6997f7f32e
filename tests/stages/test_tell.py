"""Tell, with a real register and a real mail server: the critical first, at least once, the next person when nobody answers."""

import secrets
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from blocks.mail import Notifications
from blocks.reading import FoundStudy, Notice, ReadingRegister
from blocks.reading_outbox import MAX_SENDS
from blocks.reading_rows import NoticeRow
from policies.notice import NoticeRules
from tasks.reading.tell import HOLD_SECONDS, tell
from tests.fixtures.certificates import authority
from tests.fixtures.mail import Answers, answering, post, server
from tests.fixtures.needles import Needles

ROOT = Path(__file__).resolve().parents[2]
KEY = secrets.token_bytes(32)
FIRST, SECOND, THIRD = PERSONS = tuple(f"{name}@hospital.example" for name in ("first", "second", "third"))
UID, PATIENT, NAME, ACCESSION = "1.2.826.0.1.3680043.8.498.47110815", "MRN-00471142", "Nightingale^Florence", "ACC-2026-114711"
FACTS = {"study": 1, "findings": 3, "critical": 1, "analysed": 12, "left_out": 2}
NOW = 1_790_000_000


@pytest.fixture(scope="module")
def ca(tmp_path_factory):
    return authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def register(tmp_path):
    opened = ReadingRegister.at(tmp_path / "reading.sqlite", KEY)
    yield opened
    opened.close()


def owe(register, *kinds, uid=UID, group="radiology"):
    """A study that is done, and owes a notice of each kind."""
    register.found(
        "pacs", FoundStudy(study_uid=uid, details={"patient": PATIENT, "name": NAME, "accession": ACCESSION}), NOW - 60
    )
    lease = register.claim("worker", NOW - 50, 60)
    notices = [Notice(kind=kind, recipient_group=group, template=kind, facts=FACTS) for kind in kinds]
    register.finish(lease, NOW - 40, notices=notices)


def by(ca, port, persons=PERSONS, **more):
    return Notifications(server=server(ca, port, **more), rules=NoticeRules(persons={"radiology": persons}, escalate_after=900))


def states(register):
    return [(one.state, one.level, one.code) for one in register.notices()]


def test_the_critical_is_sent_first_to_the_first_person_and_each_once(ca, register, tmp_path):
    owe(register, "result")
    owe(register, "critical", uid=f"{UID}.2")
    with post(ca, tmp_path / "box") as there:
        told = tell(register, by(ca, there.port), NOW)
        assert (told.sent, told.failed, told.escalated, told.dead, told.held_up) == (2, 0, 0, 0, "")
        assert tell(register, by(ca, there.port), NOW + 1).sent == 0
        mails = there.mails()
    assert [mail["Subject"] for mail in mails] == ["CRITICAL finding in row 2 (notice 2)", "Result for row 1 (notice 1)"]
    assert {mail["X-Envelope-To"] for mail in mails} == {FIRST}
    assert states(register) == [("sent", 0, ""), ("sent", 0, "")]


def test_no_mail_and_no_log_holds_what_belongs_to_a_patient(ca, register, tmp_path, caplog):
    caplog.set_level("DEBUG")
    owe(register, "critical", "result")
    with register._session() as session:  # a notice that somebody filled with what it must not hold
        row = session.get(NoticeRow, 2)
        row.facts = f'{{"findings": "{NAME}", "patient": "{PATIENT}", "critical": "{UID}", "analysed": "{ACCESSION}"}}'
        row.template = f"{PATIENT} {NAME}"
    with post(ca, tmp_path / "box") as there:
        assert tell(register, by(ca, there.port), NOW).sent == 2
        bare = there.mails()[1]
    needles = Needles([UID, PATIENT, NAME, ACCESSION])
    assert needles.below(tmp_path / "box") == {} and needles.in_(caplog.text.encode()) == set()
    assert needles.below(tmp_path), "the needles are there to be found"
    assert bare["Subject"] == "Notice 2 for row 1" and "notice-facts" in caplog.text


def test_nobody_acknowledges_and_one_after_the_other_is_told_until_somebody_does(ca, register, tmp_path):
    owe(register, "critical", "result")
    with post(ca, tmp_path / "box") as there:
        for minute in range(0, 61, 5):
            told = tell(register, by(ca, there.port), NOW + 60 * minute)
            assert told.sent == (2 if minute == 0 else minute % 15 == 0) and told.escalated == (minute > 0 and minute % 15 == 0)
        register.acknowledge(1, "dr", NOW + 3601)
        assert tell(register, by(ca, there.port), NOW + 10**6).sent == 0
        critical = [mail for mail in there.mails() if "CRITICAL" in mail["Subject"]]
    assert [mail["X-Envelope-To"] for mail in critical] == [FIRST, SECOND, THIRD, FIRST, SECOND]
    assert len({mail["Message-ID"] for mail in critical}) == 5


KILLED = """
import sys, time
from pathlib import Path
from blocks.mail import MailServer, Notifications
from blocks.reading import ReadingRegister
from policies.notice import NoticeRules
from tasks.reading.tell import tell
folder, bundle, port, now, key = sys.argv[1:]

class Register(ReadingRegister):
    def notice_sent(self, *args, **more):
        print("taken", flush=True)
        time.sleep(60)

server = MailServer(host="localhost", port=int(port), from_address="rapha@hospital.example", ca_bundle=Path(bundle))
rules = NoticeRules(persons={"radiology": ("first@hospital.example",)}, escalate_after=900)
tell(Register.at(Path(folder) / "reading.sqlite", bytes.fromhex(key)), Notifications(server=server, rules=rules), int(now))
"""


def test_killed_between_the_servers_yes_and_the_mark_it_is_sent_again_under_the_same_name(ca, register, tmp_path):
    owe(register, "critical")
    with post(ca, tmp_path / "box") as there:
        command = [sys.executable, "-c", KILLED, str(tmp_path), str(ca.bundle), str(there.port), str(NOW), KEY.hex()]
        teller = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
        try:
            assert teller.stdout.readline() == b"taken\n"
        finally:
            teller.kill()
            teller.wait()
            teller.stdout.close()
        assert states(register) == [("waiting", 0, "")]
        assert tell(register, by(ca, there.port), NOW + HOLD_SECONDS - 1).sent == 0, "another teller may still be at it"
        assert tell(register, by(ca, there.port), NOW + HOLD_SECONDS).sent == 1
        first, second = there.mails()
    assert first["Message-ID"] == second["Message-ID"] and first["X-Envelope-To"] == second["X-Envelope-To"] == FIRST
    assert states(register) == [("sent", 0, "")]


def test_while_the_server_is_down_nothing_is_lost_counted_or_passed_on(ca, register, tmp_path):
    owe(register, "critical", "result")
    with post(ca, tmp_path / "box") as there:
        port = there.port
    for minute in range(0, 600, 12):
        told = tell(register, by(ca, port), NOW + 60 * minute)
        assert (told.sent, told.failed, told.held_up, told.dead, told.escalated) == (0, 1, "mail-unreachable", 0, 0)
    assert states(register)[0] == ("waiting", 0, "mail-unreachable") and {one.tries for one in register.notices()} == {0}
    with answering(ca, answers := Answers()) as port:
        assert tell(register, by(ca, port), NOW + 60 * 600).sent == 2
    assert [to for to, _ in answers.heard] == [FIRST, FIRST] and b"CRITICAL" in answers.heard[0][1]


def test_who_is_refused_for_good_is_passed_over_in_the_next_round(ca, register):
    owe(register, "critical")
    answers = Answers(rcpt={FIRST: "550 gone", SECOND: "550 gone"})
    with answering(ca, answers) as port:
        rounds = [tell(register, by(ca, port), NOW + at) for at in range(3)]
        assert [(one.dead, one.escalated, one.sent) for one in rounds] == [(1, 0, 0), (1, 1, 0), (0, 1, 1)]
    assert [to for to, _ in answers.heard] == [THIRD] and states(register) == [("sent", 2, "")]


def test_where_all_are_refused_each_is_tried_again_once_an_escalation(ca, register):
    owe(register, "critical")
    answers = Answers(rcpt=dict.fromkeys(PERSONS, "550 gone"))
    with answering(ca, answers) as port:
        dead = sum(tell(register, by(ca, port), NOW + at).dead for at in range(0, 900, 30))
        assert dead == 3
        answers.rcpt.clear()
        assert [tell(register, by(ca, port), NOW + at).sent for at in (980, 995)] == [0, 1], "the last was given up at 60"
    assert [to for to, _ in answers.heard] == [FIRST]


def test_one_who_is_put_off_does_not_hold_up_the_others(ca, register):
    owe(register, "critical")
    for number in range(3):
        owe(register, "result", uid=f"{UID}.{number}")
    with answering(ca, Answers(data="452 full")) as port:
        told = tell(register, by(ca, port), NOW)
    assert (told.sent, told.failed, told.held_up) == (0, 4, "")
    assert {(one.state, one.code, one.tries) for one in register.notices()} == {("waiting", "mail-content-later", 1)}


def test_a_critical_one_that_is_put_off_again_and_again_goes_to_the_next_before_an_escalation_is_over(ca, register):
    owe(register, "critical")
    answers = Answers(rcpt={FIRST: "450 later"})
    with answering(ca, answers) as port:
        at = next(at for at in range(0, 900, 5) if tell(register, by(ca, port), NOW + at).sent)
    assert 300 < at < 900 and [to for to, _ in answers.heard] == [SECOND]


def test_a_group_without_persons_waits_for_the_profile_and_holds_up_nobody(ca, register, caplog):
    owe(register, "critical", group="cardiology")
    owe(register, "result", uid=f"{UID}.2")
    with answering(ca, Answers()) as port:
        told = tell(register, by(ca, port), NOW)
    assert (told.sent, told.failed) == (1, 1) and states(register)[0] == ("waiting", 0, "notice-nobody")


def test_a_sender_that_was_overtaken_does_not_speak_for_the_next_level(register):
    owe(register, "critical")
    (late,) = register.due_notices(NOW)
    (again,) = register.due_notices(NOW + HOLD_SECONDS)
    register.notice_sent(again.id, NOW + 121, escalate_at=NOW + 200, level=0)
    assert register.escalate(again.id, 0, NOW + 200)
    register.notice_sent(late.id, NOW + 201, escalate_at=NOW + 999, level=0)
    assert register.notice_failed(late.id, "mail-timeout", NOW + 202, level=0) == "waiting"
    (owed,) = register.due_notices(NOW + 203)
    assert (owed.level, owed.tries) == (1, 0)


def test_acknowledged_while_it_is_sent_again_it_stays_acknowledged(ca, register):
    owe(register, "critical")
    answers = Answers()
    with answering(ca, answers) as port:
        tell(register, by(ca, port), NOW)
        answers.meanwhile = lambda: register.acknowledge(1, "dr", NOW + 900)
        assert tell(register, by(ca, port), NOW + 900).sent == 1
        assert tell(register, by(ca, port), NOW + 10**6).sent == 0
    assert states(register) == [("acknowledged", 1, "")] and len(answers.heard) == 2


def test_many_tellers_at_once_send_each_notice_once(ca, register, tmp_path):
    for number in range(12):
        owe(register, "critical", "result", uid=f"{UID}.{number}")
    with post(ca, tmp_path / "box") as there:
        told, threads = [], []
        for _ in range(3):
            threads.append(threading.Thread(target=lambda: told.append(tell(register, by(ca, there.port), NOW))))
            threads[-1].start()
        for thread in threads:
            thread.join(60)
        names = [mail["Message-ID"] for mail in there.mails()]
    assert sum(one.sent for one in told) == len(names) == len(set(names)) == 24


def test_what_no_channel_took_for_days_is_dead_and_seen_and_sent_on_request(ca, register, monkeypatch):
    assert 0.75 * 3600 * (MAX_SENDS - 10) > 4 * 86400, "RFC 5321 section 4.5.4.1: four days at the least"
    monkeypatch.setattr("blocks.reading_outbox.MAX_SENDS", 6)
    owe(register, "result")
    answers = Answers(data="554 no")
    with answering(ca, answers) as port:
        assert [tell(register, by(ca, port), NOW + 3600 * hour).dead for hour in range(6)] == [0] * 5 + [1]
        assert states(register) == [("dead", 0, "mail-content-refused")] and len(register.open_notices()) == 1
        answers.data = ""
        assert register.send_again(1, NOW) and not register.send_again(1, NOW)
        assert tell(register, by(ca, port), NOW).sent == 1
    assert register.open_notices() == []


def test_acknowledged_between_the_look_and_the_escalation_it_is_not_passed_on(register):
    owe(register, "critical")
    (due,) = register.due_notices(NOW)
    register.notice_sent(due.id, NOW, escalate_at=NOW + 900, level=0)
    (late,) = register.escalations(NOW + 900)
    register.acknowledge(late.id, "dr", NOW + 900)
    assert not register.escalate(late.id, late.level, NOW + 900)
    assert states(register) == [("acknowledged", 0, "")] and register.due_notices(NOW + 10**6) == []
