"""The group of processes behind the demo and `rapha serve`: side by side, ready or refused, ended whole."""

import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra import supervisor
from infra.supervisor import Member, Supervisor
from rapha.errors import PeerError

READY = "import time; print('ready', flush=True); time.sleep(60)"
SLOW = "import time; time.sleep(1); print('ready', flush=True); time.sleep(60)"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"


def member(name: str, program: str, **options: float) -> Member:
    return Member(name, [sys.executable, "-c", program], {}, **options)  # type: ignore[arg-type]


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Supervisor]:
    made = Supervisor(tmp_path / "logs")
    yield made
    made.stop()


def test_members_start_side_by_side(group: Supervisor) -> None:
    slow = [member(f"slow-{number}", SLOW) for number in range(3)]
    began = time.monotonic()
    group.start(*slow)
    assert time.monotonic() - began < 2.9
    assert all(one.process is not None and one.process.poll() is None for one in slow)


@pytest.mark.parametrize(
    "program", ["raise SystemExit(3)", "print('almost ready', flush=True); import time; time.sleep(60)", "import os; os.close(1)"]
)
def test_a_member_that_is_not_ready_did_not_start(group: Supervisor, program: str) -> None:
    with pytest.raises(PeerError) as raised:
        group.start(member("odd", program, timeout=1.0))
    assert raised.value.codes == ("odd-did-not-start",)


def test_the_end_reaches_those_who_do_not_listen(group: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "STOP_SECONDS", 0.5)
    deaf, listening = member("deaf", DEAF), member("listening", READY)
    group.start(deaf, listening)
    processes = [one.process for one in (deaf, listening)]
    group.stop()
    assert [process.returncode for process in processes if process is not None] == [-signal.SIGKILL, -signal.SIGTERM]


def test_what_dies_is_started_again(group: Supervisor) -> None:
    one = member("mortal", READY)
    group.start(one)
    first = one.process
    assert first is not None
    first.kill()
    first.wait()
    turns = iter([False, True])
    group.watch(lambda: next(turns), pause=0.01)
    assert one.process is not None
    assert one.process.pid != first.pid
    assert one.process.poll() is None
