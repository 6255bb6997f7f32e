"""Dead letters as a person meets them: many replayed at once, counted by `rapha health`, told by mail; and what becomes one."""

import base64
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from blocks.audit import Wanted
from blocks.mail import notifications
from blocks.profile import load_profile
from blocks.reading import FoundStudy, ReadingRegister, StudyLease
from flows import reading as flow
from flows.clinic import Clinic
from flows.reading_doctor import letters_told
from flows.reading_health import waits_for_a_person
from policies.audit_message import parse
from policies.notice import OPERATORS, words
from rapha.console.app import build, run
from rapha.errors import PeerError, RaphaError, Refusal
from tests.fixtures.audit import place
from tests.fixtures.profiles import production_text

KEY = secrets.token_bytes(32)
Node = tuple[Any, ReadingRegister]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    """A node with letters of three studies."""
    node = place(tmp_path)
    for name in [name for name in os.environ if name.startswith("RAPHA_")]:
        monkeypatch.delenv(name)
    for name, value in {**node.environment, "RAPHA_REGISTER_KEY_BASE64": base64.b64encode(KEY).decode()}.items():
        monkeypatch.setenv(name, value)
    register = ReadingRegister.at(tmp_path / "state" / "reading.sqlite", KEY)
    for number, code in enumerate(["store-refused", "findings-kind", "store-refused"]):
        register.found("pacs", FoundStudy(study_uid=f"2.25.{number}"), 100)
        lease = claimed(register, 101)
        register.enter(lease, "store", 102)
        register.fail(lease, [code], 103)
    yield node, register
    register.close()


def claimed(register: ReadingRegister, now: int) -> StudyLease:
    lease = register.claim("w", now, 60)
    assert lease is not None
    return lease


def letters(*words: str, capsys: pytest.CaptureFixture[str], status: int = 0) -> Any:
    capsys.readouterr()
    assert run(build("dead-letters"), ["dead-letters", *words, "--json"]) == status
    return json.loads(capsys.readouterr().out)


def replayed(node: Any) -> list[str]:
    found = [parse(xml).subjects[0].id for one, xml in node.open().messages(Wanted(kinds=("operator",))) if one.stage == "begin"]
    return [subject.removeprefix("urn:rapha:dead-letter:") for subject in found]


def test_all_of_one_code_are_replayed_from_their_stage_the_oldest_first_and_each_is_in_the_trail(
    here: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    node, register = here
    assert letters("replay", "--all", "--code", "store", capsys=capsys)["count"] == 0, "a code is whole, not a part of one"
    assert letters("replay", "--all", "--code", "store-refused", capsys=capsys) == {"rows": [1, 3], "count": 2}
    assert [(one.row, one.state, one.stage) for one in register.queue()] == [(1, "scheduled", "store"), (3, "scheduled", "store")]
    assert [one.row for one in register.dead_letters()] == [2]
    assert replayed(node) == ["reading:1#replayed", "reading:3#replayed"]
    assert letters("replay", "--all", capsys=capsys)["rows"] == [2] and register.dead_letters() == []
    assert letters("replay", "--all", capsys=capsys)["count"] == 0


def test_one_letter_or_all_of_them_is_said_and_not_guessed(here: Node, capsys: pytest.CaptureFixture[str]) -> None:
    _, register = here
    for wrong in (["replay"], ["replay", "reading:1", "--all"], ["replay", "reading:1", "--code", "store-refused"]):
        assert letters(*wrong, capsys=capsys, status=2)["codes"] == ["dead-letter-name"]
    assert len(register.dead_letters()) == 3
    assert letters("replay", "reading:2", capsys=capsys) == {"row": 2, "replayed": "reading:2"}


def test_letters_wait_for_a_person_until_they_are_resolved(here: Node) -> None:
    _, register = here
    assert waits_for_a_person(os.environ) == {"dead-letters": 3}
    register.replay(1, 200)
    register.discard(2, "read on film", 200)
    assert waits_for_a_person(os.environ) == {"dead-letters": 1}
    register.replay(3, 200)
    assert waits_for_a_person(os.environ) == {}


def test_health_counts_them_and_does_not_call_it_a_peer_that_failed(
    here: Node, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.console.state._LOOKS", {"reading": lambda _: {"reading register": ""}})
    monkeypatch.setattr("flows.console.state.halves", lambda: ("reading",))
    assert run(build("health"), ["health", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["overall_status"], said["attention"]) == ("healthy", {"dead-letters": 3})
    assert run(build("health"), ["health"]) == 0 and "dead-letters       3" in capsys.readouterr().out


def profile(folder: Path, *, operators: bool) -> Path:
    """The production example, with operators or without."""
    text, path = production_text(), folder / "profile.yaml"
    assert "    # operators: [" in text
    path.write_text(text.replace("    # operators: [", "    operators: [") if operators else text)
    return path


@pytest.mark.parametrize("operators", [True, False])
def test_operators_are_named_or_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operators: bool) -> None:
    environment = {"RAPHA_ENABLE_HOSPITAL_DATA_INTEGRATION": "true", "PACS_WEB_TOKEN": "t", "RAPHA_PACS_TOKEN": "t"}
    monkeypatch.setattr("blocks.profile.secret", lambda *_: "token")
    loaded = load_profile(profile(tmp_path, operators=operators), environment)
    assert Clinic({}, loaded).letters_to == (OPERATORS if operators else "")
    remarks = [(one.ok, OPERATORS in one.said) for one in letters_told(loaded)]
    assert remarks == ([] if operators else [(True, True)]), "the doctor says so, and the node may start all the same"
    by = notifications(loaded, environment)
    assert by is not None and (OPERATORS in by.rules.persons) is operators
    if not operators:
        with pytest.raises(Refusal):
            by.rules.person(OPERATORS, 0)


def test_the_mail_of_a_letter_says_row_stage_and_codes_and_nothing_else() -> None:
    facts = {"study": 17, "stage": "store", "codes": "store-refused dimse-timeout"}
    said = words(5, 17, "dead-letter", "dead-letter", facts)
    assert said.codes == () and said.subject == "Row 17 was given up on (notice 5)"
    assert "at stage store: store-refused dimse-timeout.\n" in said.body
    for wrong in ("Nightingale^Florence", "a\nb", "", 7, None, "x" * 65, "a  b", "a. b"):
        bare = words(5, 17, "dead-letter", "dead-letter", {**facts, "codes": wrong})
        assert bare.codes == ("notice-facts",) and "given up" not in bare.body
    assert words(5, 17, "dead-letter", "dead-letter", {**facts, "patient": "x"}).codes == ("notice-facts",)


class Told:
    """What a failed study leaves in register and ledger, for `flows.reading._failed`."""

    def __init__(self, register: ReadingRegister, to: str) -> None:
        self.register, self.letters_to, self.ended = register, to, list[dict[str, Any]]()
        self.trail, self.person = SimpleNamespace(record=lambda *_, **__: None), "reading@here"

    def attempt(self, _lease: StudyLease) -> Any:
        return SimpleNamespace(record=lambda what, **fields: self.ended.append({"what": what, **fields}))


Fail = Callable[[RaphaError], str]


@pytest.fixture
def failing(here: Node) -> tuple[Told, Fail]:
    _, register = here
    register.found("pacs", FoundStudy(study_uid="2.25.77"), 100)
    told = Told(register, OPERATORS)

    def fail(error: RaphaError) -> str:
        lease = register.claim("w", int(time.time()), 60, row=4)
        assert lease is not None
        return flow._failed(cast(Clinic, told), lease, error)

    return told, fail


def test_five_failures_of_an_archive_that_is_down_are_no_letter_and_stand_in_the_ledger(failing: tuple[Told, Fail]) -> None:
    told, fail = failing
    assert [fail(PeerError("dimse-unreachable", "down")) for _ in range(7)] == ["scheduled"] * 7
    assert [one["codes"] for one in told.ended] == [["dimse-unreachable"]] * 7 and told.register.notices(4) == []


def test_five_failures_of_one_that_answers_are_a_letter_and_told(failing: tuple[Told, Fail]) -> None:
    told, fail = failing
    assert [fail(PeerError("store-refused", "no")) for _ in range(5)] == ["scheduled"] * 4 + ["dead"]
    assert [one.recipient_group for one in told.register.notices(4)] == [OPERATORS]


def test_a_refusal_is_a_letter_at_once_whatever_its_code(failing: tuple[Told, Fail]) -> None:
    _, fail = failing
    assert fail(Refusal(["dimse-unreachable"], "a rule said so")) == "dead"
