"""A connection that is hung up by another thread: who waits in a call is woken, and no later call makes a new connection."""

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from blocks.channel import Channel
from infra import daemon
from rapha.errors import PeerError


class Waits:
    """Answers `quick` at once and `slow` never within a test; says when its client is gone."""

    def __init__(self, gone: threading.Event) -> None:
        self.gone = gone

    def do_quick(self, message: object, fds: object) -> dict[str, object]:
        return {}

    def do_slow(self, message: object, fds: object) -> dict[str, object]:
        time.sleep(2)
        return {}

    def closed(self) -> None:
        self.gone.set()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, threading.Event]]:
    gone, ready, path = threading.Event(), threading.Event(), tmp_path / "s"
    threading.Thread(target=daemon.serve, args=(path, lambda: Waits(gone)), kwargs={"ready": ready.set}, daemon=True).start()
    assert ready.wait(10)
    yield path, gone


def test_hanging_up_wakes_the_call_that_waits_and_ends_every_later_one(served: tuple[Path, threading.Event]) -> None:
    path, gone = served
    channel, failed = Channel(path, peer="study"), list[tuple[str, ...]]()
    channel.call("quick")

    def waits() -> None:
        for verb in ("slow", "quick", "quick"):
            try:
                channel.call(verb)
            except PeerError as error:
                failed.append(error.codes)

    waiting = threading.Thread(target=waits)
    waiting.start()
    time.sleep(0.1)
    began = time.monotonic()
    channel.hang_up()
    waiting.join(10)
    assert time.monotonic() - began < 1, "it was woken, and did not wait for its time-out"
    assert failed == [("study-gone",)] * 3
    assert gone.wait(5), "the other side lets go of what it held"
    channel.hang_up()
    channel.close()


def test_one_that_is_hung_up_while_it_connects_anew_is_not_used(served: tuple[Path, threading.Event]) -> None:
    channel = Channel(served[0], peer="study", timeout=0.2)
    with pytest.raises(PeerError):
        channel.call("slow")  # its connection is lost: the next call would make a new one
    channel.hang_up()
    with pytest.raises(PeerError) as raised:
        channel.call("quick")
    assert raised.value.codes == ("study-gone",)


def test_a_process_without_descriptors_serves_again_when_it_has_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EMFILE as accept(2) gives it: RLIMIT_NOFILE would take the test's own descriptors."""
    monkeypatch.setattr(daemon, "PAUSE", 0.05)
    left, accept = [24, 23, 103], socket.socket.accept

    def refusing(self: socket.socket) -> object:
        if left:
            raise OSError(left.pop(), "made up")
        return accept(self)

    monkeypatch.setattr(socket.socket, "accept", refusing)
    ready = threading.Event()
    thread = threading.Thread(
        target=daemon.serve, args=(tmp_path / "s", lambda: Waits(threading.Event())), kwargs={"ready": ready.set}, daemon=True
    )
    thread.start()
    assert ready.wait(10)
    with Channel(tmp_path / "s", peer="study", timeout=10) as channel:
        assert channel.call("quick")["ok"] is True
    assert left == [] and thread.is_alive()


def test_a_listener_that_is_no_more_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listener:
        pass
    with pytest.raises(OSError, match="Bad file descriptor"):
        daemon._accepted(listener)
