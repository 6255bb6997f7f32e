"""`rapha notify` as a person types it: what is owed, who has it, and that the audit trail knew first."""

import base64
import json
import os
import time

import pytest

from blocks.audit import Wanted
from blocks.reading import FoundStudy, Notice, ReadingRegister
from flows.person import person
from policies.audit_message import parse
from rapha.console.app import build, run
from tests.fixtures.audit import KEY as AUDIT_KEY
from tests.fixtures.audit import place

KEY = bytes(os.urandom(32))
UID, PATIENT = "1.2.826.0.1.3680043.8.498.47110815", "MRN-00471142"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A node with a critical notice that was sent, and a result that was not."""
    node = place(tmp_path)
    assert AUDIT_KEY != KEY
    environment = {**node.environment, "RAPHA_REGISTER_KEY_BASE64": base64.b64encode(KEY).decode()}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    register = ReadingRegister.at(tmp_path / "state" / "reading.sqlite", KEY)
    register.found("pacs", FoundStudy(study_uid=UID, details={"patient": PATIENT}), 100)
    kinds = [Notice(kind=kind, recipient_group="radiology", template=kind) for kind in ("critical", "result")]
    register.finish(register.claim("worker", 101, 60), 102, notices=kinds)
    for notice in register.due_notices(103):
        if notice.kind == "critical":
            register.notice_sent(notice.id, 104, escalate_at=1004)
    yield node, register
    register.close()


def notify(*words, capsys, status=0):
    capsys.readouterr()
    assert run(build("notify"), ["notify", *words, "--json"]) == status
    return json.loads(capsys.readouterr().out)


def acts(node):
    """(stage, outcome, subject) of every operator action in the trail."""
    found = list(node.open().messages(Wanted(kinds=("operator",))))
    return [(one.stage, one.outcome, parse(xml).subjects[0].id) for one, xml in found]


def test_what_is_owed_is_listed_and_taken(here, capsys):
    node, register = here
    listed = notify("list", capsys=capsys)["notices"]
    assert [(one["id"], one["kind"], one["state"]) for one in listed] == [(1, "critical", "sent"), (2, "result", "waiting")]
    assert UID not in str(listed) and PATIENT not in str(listed)
    before = int(time.time())
    assert notify("ack", "1", capsys=capsys) == {"notice": 1, "acknowledged": True, "first": True}
    (taken,) = [one for one in register.notices() if one.id == 1]
    assert (taken.state, taken.acknowledged_by) == ("acknowledged", person()) and taken.acknowledged_at >= before
    assert [one["id"] for one in notify("list", capsys=capsys)["notices"]] == [2]
    assert [one["id"] for one in notify("list", "--all", capsys=capsys)["notices"]] == [1, 2]
    assert register.escalations(10**10) == []
    assert [(stage, outcome) for stage, outcome, _ in acts(node)] == [("begin", 0), ("end", 0)]
    assert notify("ack", "1", capsys=capsys)["first"] is False


def test_somebody_else_has_it_and_both_are_in_the_trail(here, capsys):
    node, register = here
    notify("ack", "1", "--person", "Dr. Åse Lund", capsys=capsys)
    assert register.notices()[0].acknowledged_by == "Dr. Åse Lund"
    assert acts(node)[0][2] == "urn:rapha:notice:1#acknowledged-by=Dr.%20%C3%85se%20Lund"
    assert next(node.open().search(Wanted(kinds=("operator",)))).person == node.open().pseudonym("person", person())


@pytest.mark.parametrize(("notice", "code"), [("99", "notice-unknown"), ("2", "notice-not-sent")])
def test_what_cannot_be_taken_is_refused_and_the_trail_says_so(here, capsys, notice, code):
    node, _ = here
    assert notify("ack", notice, capsys=capsys, status=3)["codes"] == [code]
    assert [(stage, outcome) for stage, outcome, _ in acts(node)] == [("begin", 0), ("end", 8)]


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "x" * 129])
def test_a_person_is_a_name(here, capsys, name):
    node, register = here
    assert notify("ack", "1", "--person", name, capsys=capsys, status=2)["codes"] == ["notice-person"]
    assert register.notices()[0].state == "sent" and acts(node) == []


def test_what_the_trail_does_not_take_is_not_done(here, capsys, monkeypatch):
    _, register = here
    monkeypatch.delenv("RAPHA_AUDIT_KEY_BASE64")
    assert notify("ack", "1", capsys=capsys, status=2)["codes"] == ["missing-audit-key-base64"]
    assert register.notices()[0].state == "sent"


def test_a_trail_that_cannot_be_written_stops_it(here, capsys):
    node, register = here
    next(node.open().folder.rglob("*.jsonl")).unlink()
    assert notify("ack", "1", capsys=capsys, status=4)["codes"] == ["audit-unwritable"]
    assert register.notices()[0].state == "sent"


def test_a_dead_notice_is_sent_again_on_request(here, capsys):
    node, register = here
    assert notify("again", "2", capsys=capsys, status=3)["codes"] == ["notice-not-dead"]
    register.notice_failed(2, "mail-content-refused", 200, last=True)
    assert notify("again", "2", capsys=capsys) == {"notice": 2, "state": "waiting"}
    assert [one.id for one in register.due_notices(int(time.time()))] == [2]
    assert {subject for _, _, subject in acts(node)} == {"urn:rapha:notice:2#sent-again"}


def test_a_person_reads_lines(here, capsys):
    assert run(build("notify"), ["notify", "list"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.split()[:7] == ["1", "row", "1", "critical", "radiology", "sent", "person"] and "1970-01-01T00:01Z" in first
    assert second.split()[:6] == ["2", "row", "1", "result", "radiology", "waiting"]
