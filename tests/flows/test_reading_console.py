"""`rapha read`, `health`, `stats` and `dead-letters` of the reading service, as a person types them beside a running node."""

import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from blocks.audit import Wanted, open_audit_trail
from blocks.reading import MAX_TRIES, FoundStudy, Notice, ReadingRegister
from flows.person import person
from infra.hospital.reading_cohort import identifiers, make_study
from infra.serve import base_environment
from policies.audit_message import parse
from policies.outage import OUTAGE_SECONDS
from policies.polling import FoundSeries
from rapha.console.app import build, run
from rapha.ledger import read
from tests.fixtures.clinic import ROOT, Reading, reading

Typed = Callable[..., tuple[int, Any]]
DX, CT = make_study("dx", 41, 1), make_study("ct", 42, 0)


@pytest.fixture(scope="module")
def clinic() -> Iterator[Reading]:
    with reading([DX, CT], "C-GET") as up:
        yield up


def uid(study: list[Any]) -> str:
    return str(study[0].StudyInstanceUID)


def settings(clinic: Reading, **more: str) -> dict[str, str]:
    engine = {"PREFECT_API_URL": clinic.api, "PREFECT_LOGGING_LEVEL": "ERROR"}
    return {**base_environment(os.environ), **clinic.environment, **engine, **more}


def spawned(clinic: Reading, *words: str, **more: str) -> tuple[int, Any]:
    """The same in a process of its own: the engine's client keeps one engine for the life of a process."""
    argv = [sys.executable, "-m", "rapha.console", *words, "--json"]
    where = {"cwd": ROOT, "env": settings(clinic, **more)}
    done = subprocess.run(argv, **where, capture_output=True, text=True, timeout=200, check=False)  # type: ignore[call-overload]
    return done.returncode, json.loads(done.stdout)


@pytest.fixture
def typed(clinic: Reading, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Typed:
    """(exit status, what was printed) of a command, in this process; options are environment variables."""

    def command(*words: str, **more: str) -> tuple[int, Any]:
        for name in [name for name in os.environ if name.startswith(("RAPHA_", "PREFECT_API"))]:
            monkeypatch.delenv(name)
        for name, value in {**clinic.environment, "PREFECT_API_URL": clinic.api, **more}.items():
            monkeypatch.setenv(name, value)
        status = run(build(words[0]), [*words, "--json"])
        return status, json.loads(capsys.readouterr().out)

    return command


@pytest.mark.timeout(200)
def test_a_study_is_read_now_and_only_its_row_is_known_to_the_engine(clinic: Reading) -> None:
    terminal, end = pty.openpty()
    argv = [sys.executable, "-m", "rapha.console", "read", uid(DX), "--priority", "urgent", "--json"]
    with subprocess.Popen(argv, env=settings(clinic), cwd=ROOT, stdout=subprocess.PIPE, stderr=end, text=True) as running:
        assert running.stdout is not None
        said = json.loads(running.stdout.read())
    os.close(end)
    shown = os.read(terminal, 1 << 16).decode()
    os.close(terminal)
    assert running.returncode == 0, said
    row = said["row"]
    assert (said["end"], said["state"], said["priority"], said["started"], said["codes"]) == (
        "completed",
        "completed",
        "urgent",
        True,
        [],
    )
    assert f"row {row}: " in shown and " s" in shown  # progress, on a terminal
    held = [dcmread(path, stop_before_pixels=True) for path in clinic.archive.glob("*.dcm")]
    assert [one.StudyInstanceUID for one in held if one.Modality == "SR"] == [uid(DX)]
    status, again = spawned(clinic, "read", uid(DX))
    assert (status, again["end"], again["started"], again["codes"]) == (0, "not-owed", False, ["study-read-already"])
    for text in identifiers(DX):
        assert text not in json.dumps(said) + shown
    needles = [word for text in identifiers(DX) for word in ("-e", text)]
    everywhere = ["grep", "-r", "-l", "-F", "--exclude-dir=archive", *needles, str(clinic.folder)]
    found = subprocess.run(everywhere, capture_output=True, check=False)  # engine, logs, register, ledger, trail, sealed files
    assert (found.returncode, found.stdout) == (1, b"")
    asked = [
        parse(xml) for one, xml in open_audit_trail(clinic.environment).messages(Wanted(kinds=("query",))) if one.stage == "end"
    ]
    assert person() in {message.participants[-1].user for message in asked}


@pytest.mark.timeout(200)
def test_a_study_is_read_again_at_a_persons_word_and_its_report_names_the_earlier_one(clinic: Reading) -> None:
    def reports() -> dict[str, Any]:
        held = [dcmread(path, stop_before_pixels=True) for path in clinic.archive.glob("*.dcm")]
        return {str(one.SOPInstanceUID): one for one in held if one.Modality == "SR" and one.StudyInstanceUID == uid(DX)}

    before = reports()
    status, said = spawned(clinic, "read", uid(DX), "--again")
    assert (status, said["end"], said["outcome"], said["started"]) == (0, "completed", "reopened", True), said
    (name,) = set(reports()) - set(before)
    (study,) = reports()[name].PredecessorDocumentsSequence
    (series,) = study.ReferencedSeriesSequence
    (earlier,) = [before[one.ReferencedSOPInstanceUID] for one in series.ReferencedSOPSequence]
    assert (study.StudyInstanceUID, series.SeriesInstanceUID) == (earlier.StudyInstanceUID, earlier.SeriesInstanceUID)
    acts = [parse(xml) for one, xml in open_audit_trail(clinic.environment).messages(Wanted(kinds=("operator",)))]
    assert [act.subjects[-1].id for act in acts] == [f"urn:rapha:reading:{said['row']}#read-again"] * 2  # begun, ended


def test_a_failed_peer_leaves_it_owed(clinic: Reading, tmp_path: Path) -> None:
    gone = {"RAPHA_STUDY_SOCKET": str(tmp_path / "none.sock")}
    status, said = spawned(clinic, "read", uid(CT), **gone)
    assert (status, said["end"], said["codes"]) == (4, "scheduled", ["study-unreachable"])
    (queued,) = [one for one in clinic.clinic().register.queue() if one.row == said["row"]]
    assert (queued.state, queued.priority) == ("scheduled", "high")
    register, row, now = clinic.clinic().register, said["row"], int(time.time())
    for _ in range(MAX_TRIES):  # a peer that is down for everybody is not counted
        lease = register.claim("w", now, 60, row=row)
        assert lease is not None and register.set_aside(lease, ["study-unreachable"], now) == "scheduled"
    lease = register.claim("w", now, 60, row=row)
    assert lease is not None and register.fail(lease, ["pacs-gone"], now, retry_at=now) == "scheduled"
    lease = register.claim("w", now, 60, row=row)
    assert lease is not None and register.set_aside(lease, ["study-unreachable"], now - OUTAGE_SECONDS) == "scheduled"
    status, said = spawned(clinic, "read", uid(CT), **gone)  # after a day of it: given up on, and still a peer that failed
    assert (status, said["end"], said["codes"]) == (4, "dead", ["study-unreachable"])
    for letter in register.dead_letters():
        register.discard(letter.id, "the test is over", int(time.time()))


def test_what_cannot_be_read_says_why(typed: Typed) -> None:
    assert typed("read", "2.25.4711")[0] == 3
    assert typed("read", "2.25.4711")[1]["codes"] == ["study-not-found"]
    status, said = typed("read", uid(CT), "--priority", "soon")
    assert (status, said["codes"]) == (2, ["priority-unknown"])
    status, said = typed("read", "not-a-uid")
    assert (status, said["codes"]) == (2, ["uid-malformed"])
    status, said = typed("read", uid(CT), "--pacs", "elsewhere")
    assert (status, said["codes"]) == (2, ["pacs-unknown"])
    status, said = typed("read", uid(CT), PREFECT_API_URL="")
    assert (status, said["codes"]) == (2, ["missing-prefect-api-url"])
    status, said = typed("read", uid(CT), PREFECT_API_URL="notaurl")
    assert (status, said["codes"]) == (2, ["bad-prefect-api-url"])
    status, said = typed("read", uid(CT), PREFECT_API_URL="http://127.0.0.1:9/api")
    assert (status, said["codes"]) == (4, ["engine-unreachable"])
    status, said = typed("queue", "priority", "1", "urg\udcff")
    assert (status, said["codes"]) == (2, ["priority-unknown"])
    for words in (
        ("queue", "show", str(1 << 70)),
        ("queue", "list", "--limit", str(1 << 70)),
        ("queue", "priority", str(1 << 70), "low"),
    ):
        status, said = typed(*words)
        assert (status, said["codes"]) == (2, ["number-too-large"])


def test_the_archive_by_hand_is_in_the_trail_under_the_persons_name(clinic: Reading, typed: Typed, tmp_path: Path) -> None:
    trail = open_audit_trail(clinic.environment)
    before = len(list(trail.search()))
    assert typed("pacs", "find", f"PatientID={CT[0].PatientID}")[1]["count"] == 1
    status, said = typed("pacs", "retrieve", uid(CT), "--out", str(tmp_path / "out"))
    assert (status, said["files"], said["method"]) == (0, len(CT), "C-GET")
    assert typed("pacs", "find", f"StudyInstanceUID={uid(CT)}", "--pacs", "web", "--level", "instance")[1]["count"] == len(CT)
    found = [(one, parse(xml)) for one, xml in trail.messages()][before:]
    assert [one.kind for one, _ in found if one.stage == "end"] == [
        "query",
        "query",
        "export",
        "query",
        "query",
    ]  # the last: study, then instances
    assert {message.participants[-1].user for _, message in found} == {person()}
    assert [one.patient for one, _ in found if one.kind == "export"] == [trail.pseudonym("patient", str(CT[0].PatientID))] * 2


def test_health_names_every_part_and_ends_with_4_when_one_is_down(clinic: Reading, typed: Typed, tmp_path: Path) -> None:
    status, said = typed("health")
    parts = {
        "reading register",
        "audit trail",
        "study reader",
        "model launcher",
        "receiver",
        "reading disk",
        "pacs primary",
        "pacs web",
    }
    assert (status, said["overall_status"]) == (0, "healthy"), said
    assert parts <= set(said["components"]) and set(said["components"].values()) == {"healthy"}
    began = time.monotonic()
    status, said = typed(
        "health",
        RAPHA_RECEIVER_SOCKET=str(tmp_path / "none.sock"),
        RAPHA_PROFILE_PATH=str(unanswered(clinic, tmp_path)),
    )
    assert (status, said["overall_status"]) == (4, "unhealthy")
    assert said["components"]["receiver"] == "receiver-unreachable"
    assert said["components"]["pacs silent"] == "dimse-unreachable" or said["components"]["pacs silent"] == "dimse-timeout"
    assert said["components"]["mail server"].startswith("mail-")
    assert said["components"]["study reader"] == "healthy"
    assert time.monotonic() - began < 25  # two that do not answer cost no more than one


def test_a_notice_that_no_channel_took_is_bad_health(clinic: Reading, typed: Typed) -> None:
    register, now = clinic.clinic().register, int(time.time())
    row = register.found("primary", FoundStudy(study_uid="2.25.8890"), now).row
    lease = register.claim("w", now, 60, row=row)
    assert lease is not None
    register.finish(lease, now, notices=[Notice(kind="result", recipient_group="radiology", template="result")])
    (notice,) = register.notices(row)
    assert typed("health")[1]["components"]["outbox"] == "healthy"  # it waits, as it should
    while register.notice_failed(notice.id, "mail-recipient-later", now) != "dead":
        pass
    status, said = typed("health")
    assert (status, said["components"]["outbox"]) == (4, "notices-dead")
    register.acknowledge(notice.id, "Dr Test", now)
    assert typed("health")[1]["components"]["outbox"] == "healthy"


def unanswered(clinic: Reading, folder: Path) -> Path:
    """The profile with a mail server and two archives that take a connection and say nothing."""
    line = "  {name}: {{host: localhost, port: {port}, ae_title: SILENT, calling_ae_title: RAPHA}}\n"
    text = (clinic.folder / "profile.yaml").read_text()
    more = "".join(line.format(name=name, port=SILENT.getsockname()[1]) for name in ("silent", "mute"))
    text = text.replace("workflow:", f"{more}workflow:")
    mail = f"{{enabled: true, smtp_server: localhost, smtp_port: {SILENT.getsockname()[1]}, needs_outside_line: false, "
    mail += "from_address: rapha@hospital.example}"
    people = "{radiology: [reader@hospital.example]}"
    (folder / "profile.yaml").write_text(f"{text}notifications:\n  email: {mail}\n  recipients: {people}\n")
    return folder / "profile.yaml"


def _silent() -> Any:
    import socket

    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(16)
    return listener


SILENT = _silent()


def letter(register: ReadingRegister, number: int) -> str:
    """A study that was given up on; its letter's name."""
    row = register.found("primary", FoundStudy(study_uid=f"2.25.88{number}"), int(time.time())).row
    lease = register.claim("w", int(time.time()), 60, row=row)
    assert lease is not None
    register.fail(lease, ["dimse-find-refused"], int(time.time()))
    (found,) = [one for one in register.dead_letters() if one.row == row]
    return f"reading:{found.id}"


def test_dead_letters_are_listed_replayed_and_discarded_for_a_reason(clinic: Reading, typed: Typed) -> None:
    register, trail = clinic.clinic().register, open_audit_trail(clinic.environment)
    first, second = letter(register, 1), letter(register, 2)
    status, said = typed("dead-letters", "list")
    assert status == 0 and [one["id"] for one in said["dead_letters"]] == [first, second]
    assert {(one["kind"], one["stage"], tuple(one["codes"])) for one in said["dead_letters"]} == {
        ("study", "retrieve", ("dimse-find-refused",))
    }
    assert "2.25.88" not in json.dumps(said)
    assert typed("dead-letters", "show", first)[1]["id"] == first
    status, said = typed("dead-letters", "replay", first)
    assert status == 0 and register.study(said["row"]).state == "scheduled"
    status, said = typed("dead-letters", "discard", second, "--why", " ")
    assert (status, said["codes"]) == (2, ["reason-missing"])
    assert typed("dead-letters", "discard", second)[0] == 2
    assert typed("dead-letters", "discard", second, "--why", "read on film")[0] == 0
    assert register.dead_letters() == []
    assert typed("dead-letters", "show", second)[1]["codes"] == ["dead-letter-unknown"]
    assert typed("dead-letters", "show", "writing:1")[1]["codes"] == ["dead-letter-name"]
    acts = [parse(xml) for one, xml in trail.messages(Wanted(kinds=("operator",))) if one.stage == "begin"]
    acts = [message for message in acts if "dead-letter" in message.subjects[-1].id]
    assert [message.subjects[-1].id for message in acts] == [
        f"urn:rapha:dead-letter:{first}#replayed",
        f"urn:rapha:dead-letter:{second}#discarded",
    ]
    assert {message.participants[-1].user for message in acts} == {person()}


def test_stats_count_what_waits_and_what_was_done(clinic: Reading, typed: Typed) -> None:
    register = clinic.clinic().register
    before = register.tally(int(time.time()))
    register.found("primary", FoundStudy(study_uid="2.25.8891"), int(time.time()) - 3600, "low")
    letter(register, 9)
    status, said = typed("stats")
    counts = said["reading"]
    assert status == 0
    assert counts["failed"] == before.failed + 1 and counts["dead_letters"] == before.dead_letters + 1
    assert counts["processed"] == before.processed == counts["studies"].get("completed", 0)
    assert counts["priorities"]["low"] == before.priorities.get("low", 0) + 1
    assert counts["stages"]["retrieve"] >= 1
    assert sum(counts["priorities"].values()) == sum(counts["stages"].values()) == counts["waiting"] == before.waiting + 1
    assert 3600 <= counts["oldest_waiting_seconds"] < 3700
    assert set(counts["notices"]) <= {"waiting", "sent", "dead", "acknowledged"}


# -- the same by the flow alone


def test_a_study_that_is_not_there_is_not_owed(clinic: Reading) -> None:
    assert clinic.run("asyncio.run(flows.read(4711))") == {"row": 4711, "end": "not-owed", "peer": False}


def test_an_archive_that_is_gone_is_tried_again_later(clinic: Reading, tmp_path: Path) -> None:
    register = clinic.clinic().register
    series = FoundSeries(series_uid="2.25.5", modality="CT", instances=3, contents="new")
    row = register.found("primary", FoundStudy(study_uid="2.25.4712", series=(series,)), int(time.time())).row
    text = (clinic.folder / "profile.yaml").read_text()
    port = clinic.clinic().profile.endpoints["primary"].port
    (tmp_path / "gone.yaml").write_text(text.replace(f"port: {port},", "port: 9,"))
    found = clinic.run(f"asyncio.run(flows.read({row}))", RAPHA_PROFILE_PATH=str(tmp_path / "gone.yaml"))
    assert found == {"row": row, "end": "scheduled", "peer": True}
    (queued,) = [one for one in register.queue() if one.row == row]
    assert (queued.state, queued.codes) == ("scheduled", ("dimse-unreachable",))
    ended = [entry.body for entry in read(clinic.folder / "state" / "ledger") if entry.kind == "ended"]
    assert [one["codes"] for one in ended if one["row"] == row] == [["dimse-unreachable"]]
