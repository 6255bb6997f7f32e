"""The frame of every command: an example in its help, `--json` as any switch, each verdict stamped, no negative limit."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cyclopts
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from blocks.ledger import Ledger
from flows.console import serve as serving
from flows.console.audit import Filter
from flows.console.progress import shown
from rapha.canonical import digest
from rapha.console.app import AsJson, Result, build, run
from rapha.errors import PeerError, Refusal
from tests.fixtures.audit import new_trail

APP = build()
HOME = Path(__file__).resolve().parents[2]


def commands(app: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command line that does something, sub-apps gone through."""
    below = [name for name in app if not name.startswith("-")]
    for name in below:
        yield from commands(app[name], (*words, name))
    if not below:
        yield words


def helped(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> str:
    APP([*words, "--help"], exit_on_error=False, result_action="return_value")
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


@pytest.mark.parametrize("words", list(commands(APP)), ids=" ".join)
def test_every_commands_help_has_an_example_and_its_json(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    said = helped(words, capsys)
    assert "Example: " in said and f"rapha {' '.join(words)}" in said.partition("Example: ")[2]
    assert "--json" in said


def test_the_first_line_of_an_options_help_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    said = helped(("ledger", "verify"), capsys)
    assert "The node's public ledger (or audit) key (PEM)." in said and "A head that was kept elsewhere" in said
    assert "A folder that is not there yet" in helped(("audit", "export"), capsys)


@pytest.fixture
def app() -> cyclopts.App:
    app = cyclopts.App(name="rapha")

    @app.command
    def judged(what: str = "", *, as_json: AsJson = False) -> Result:
        """Ends as it is told."""
        if what == "refused":
            raise Refusal(["no"])
        if what == "failed":
            raise PeerError("gone", "it is gone")
        return Result({"verdict": "cleared", "gate": "judged", "codes": []} if what == "cleared" else {"found": 1}, ["text"])

    return app


@pytest.mark.parametrize(
    ("words", "is_json"),
    [
        (["--json"], True),
        (["--json=true"], True),
        (["--json=True"], True),
        (["--json=1"], True),
        (["--json=false"], False),
        ([], False),
        (["--", "--json"], False),
    ],
)
def test_json_is_asked_for_as_any_switch_is(
    app: cyclopts.App, words: list[str], is_json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(app, ["judged", *words]) == 0
    said = capsys.readouterr().out
    assert json.loads(said) == {"found": 1} if is_json else said == "text\n"
    assert run(app, ["judged", "--nonsense", *words]) == 2
    assert capsys.readouterr().out.startswith("{") is is_json


@pytest.mark.parametrize(("setting", "stamp"), [("true", "production"), ("false", "development"), ("", "development")])
def test_every_verdict_is_stamped_and_names_its_gate(
    app: cyclopts.App, setting: str, stamp: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAPHA_ENABLE_HOSPITAL_DATA_INTEGRATION", setting)
    for what, status in (("cleared", 0), ("refused", 3), ("failed", 4)):
        assert run(app, ["judged", what, "--json"]) == status
        said = json.loads(capsys.readouterr().out)
        assert (said.get("mode"), said.get("gate")) == ((stamp, "judged") if what != "failed" else (None, None))


@pytest.mark.parametrize(
    "words", [["audit", "search"], ["queue", "list"], ["notify", "list"], ["job", "list"], ["pacs", "find", "PatientID=1"]]
)
def test_a_negative_limit_is_wrong_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(build(words[0]), [*words, "--limit", "-1", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["codes"] == ["usage"]


def test_serve_hands_json_on_and_says_in_it_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in os.environ if name.startswith("RAPHA_")]:
        monkeypatch.delenv(name)
    assert run(build("serve"), ["serve", "--json"]) == 2
    assert "missing-state-dir" in json.loads(capsys.readouterr().out)["codes"]
    started: list[list[str]] = []
    monkeypatch.setattr(serving, "load", lambda _: None)
    monkeypatch.setattr(serving, "halves", lambda *_: ("training",))
    monkeypatch.setattr(serving, "replace_process", lambda _, arguments: started.append(arguments))
    for words in (["--json"], []):
        run(build("serve"), ["serve", *words])
    assert ["--json" in arguments for arguments in started] == [True, False]
    done = subprocess.run([sys.executable, "-m", "infra.serve", "--json"], cwd=HOME, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "missing-state-dir" in json.loads(done.stdout)["codes"]


def test_a_ledger_that_cannot_be_followed_is_named_by_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Ledger.create(tmp_path / "l", Ed25519PrivateKey.generate(), "test").append("note", {"n": 1})
    entries = (tmp_path / "l" / "entries.jsonl").read_bytes()
    for change in (lambda: None, (tmp_path / "l" / "head.json").unlink):
        change()
        status = run(build("ledger"), ["ledger", "verify", str(tmp_path / "l"), "--json"])
        said = json.loads(capsys.readouterr().out)
        assert (said["gate"], said["mode"]) == ("ledger", "development")
        assert (said["subject"] == digest(entries)) is (status == 3) and said["subject"].startswith("sha256:")


def test_a_doctor_names_the_node(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RAPHA_NODE_ID", "st-elsewhere")
    assert run(build("doctor"), ["doctor", "--only", "train", "--json"]) == 3
    said = json.loads(capsys.readouterr().out)
    assert (said["gate"], said["mode"], said["subject"][:7], len(said["subject"])) == ("doctor", "development", "sha256:", 71)


def test_a_pseudonym_is_found_in_either_case(tmp_path: Path) -> None:
    trail = new_trail(tmp_path / "trail")
    known = trail.pseudonym("patient", "4711")
    assert Filter(pseudonym=known.upper()).wanted(trail) == Filter(pseudonym=known).wanted(trail)


def test_progress_is_shown_on_a_terminal_and_gone_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    import io
    import time

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream in (Terminal(), io.StringIO()):
        monkeypatch.setattr("sys.stderr", stream)
        with shown(lambda: "three of nine"):
            time.sleep(1.2)
        assert stream.getvalue().endswith("\r\x1b[K") is stream.isatty()
        assert ("three of nine, 1 s" in stream.getvalue()) is stream.isatty()
    monkeypatch.setattr("sys.stderr", quick := Terminal())
    with shown("nothing"):
        pass
    assert quick.getvalue() == ""
