"""The console's index: what `rapha --help` says without importing a command is what the commands say themselves."""

import subprocess
import sys
from pathlib import Path

import pytest

from rapha.console.app import announced, build

HOME = Path(__file__).resolve().parents[2]
SLOW = ("prefect", "sqlalchemy", "web3", "torch", "pydicom", "pydantic", "flows.node")


@pytest.fixture(scope="module")
def whole():
    return build()


def first_paragraph(text):
    return " ".join(text.split("\n\n")[0].split())


def test_every_command_is_announced_and_every_announced_command_is_there(whole):
    names = {name for name, _, _ in announced()}
    assert names == {name for name in whole if not name.startswith("-")}


@pytest.mark.parametrize("name", sorted({name for name, _, _ in announced()}))
def test_the_announced_help_is_the_commands_own(whole, name):
    (text,) = {text for known, _, text in announced() if known == name}
    assert first_paragraph(text) == first_paragraph(whole[name].help)
    assert first_paragraph(build(name)[name].help) == first_paragraph(text)


@pytest.mark.parametrize("word", ["", "--help", "no-such-command"])
def test_nothing_slow_is_imported_for_the_help(word):
    script = (
        "import sys, rapha.console.app as app\n"
        f"built = app.build({word!r})\n"
        f"print(len([n for n in built if not n.startswith('-')]), *[m for m in {SLOW!r} if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=HOME, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(len({name for name, _, _ in announced()}))]


def test_the_job_commands_of_both_parts_are_one_group():
    assert {"new", "sign", "check", "run", "status", "list", "retry", "cancel", "fetch"} <= set(build("job")["job"])
