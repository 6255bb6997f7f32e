"""A member without which the group still has its use: tried again for ever, and nobody waits for it or ends with it."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra import supervisor
from infra.reading import shift
from infra.supervisor import Member, Supervisor
from rapha.errors import PeerError

READY = "import time; print('ready', flush=True); time.sleep(60)"
# Ready once, and from then on ended before it is.
ONCE = (
    "import os, sys, time; new = not os.path.exists(sys.argv[1]); open(sys.argv[1], 'a').write('x'); print('ready') if new else 0"
)


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Supervisor]:
    monkeypatch.setattr(supervisor, "_pause", lambda member: 0.05)
    monkeypatch.setattr(supervisor, "MAX_DEATHS", 3)
    made = Supervisor(tmp_path / "logs")
    yield made
    made.stop()


def dying(tmp_path: Path, *, vital: bool) -> Member:
    return Member("dying", [sys.executable, "-c", ONCE, str(tmp_path / "starts")], {}, vital=vital)


def test_one_that_is_not_vital_takes_nobody_along(group: Supervisor, tmp_path: Path) -> None:
    other, starts = Member("receiver", [sys.executable, "-c", READY], {}), tmp_path / "starts"
    group.start(other, dying(tmp_path, vital=False))
    until = time.monotonic() + 20
    group.watch(lambda: len(starts.read_text()) > 4 or time.monotonic() > until, pause=0.01)
    assert len(starts.read_text()) > 4, "more often than a vital one may die"
    assert other.process is not None and other.process.poll() is None


def test_who_dies_meanwhile_is_started_again_at_once(group: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits out the pause of one that is not vital."""
    other, late = Member("receiver", [sys.executable, "-c", READY], {}), dying(tmp_path, vital=False)
    group.start(other, late)
    monkeypatch.setattr(supervisor, "_pause", lambda member: 30.0 if member is late else 0.0)
    assert late.process is not None and late.process.wait(10) == 0
    seen, first = iter([False, False]), other.process
    group.watch(lambda: next(seen, True), pause=0.01)
    assert late.again_at is not None and first is not None
    first.kill()
    first.wait()
    began, seen = time.monotonic(), iter([False])
    group.watch(lambda: next(seen, True), pause=0.01)
    assert time.monotonic() - began < 10 and other.process is not first
    assert other.process is not None and other.process.poll() is None


def test_a_vital_one_that_keeps_dying_ends_the_group(group: Supervisor, tmp_path: Path) -> None:
    group.start(dying(tmp_path, vital=True))
    with pytest.raises(PeerError) as raised:
        group.watch(lambda: False, pause=0.01)
    assert raised.value.codes[0] in ("dying-keeps-dying", "dying-did-not-start")


def test_the_shift_is_not_vital_and_everything_else_is() -> None:
    assert [one.vital for one in shift({})] == [False] and Member("receiver", [], {}).vital
