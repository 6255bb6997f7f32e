"""The serving side of `blocks.channel`: one thread a connection, the peer's user checked, verbs looked up in a table.

A handler is a `Session`: made when a client connects, `closed()` when the connection ends for whatever reason.
"""

import errno
import os
import resource
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from blocks.channel import receive, send
from rapha.errors import ConfigurationError, PeerError, Refusal

Answer = dict[str, Any]
MOST_FILES = 65_536
PAUSE = 0.5  # seconds
EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ECONNABORTED})


class Session(Protocol):
    """What serves one connection. Verbs are the methods named `do_<verb>(message, fds) -> answer fields`."""

    def closed(self) -> None:
        """The client is gone: let go of everything held for it."""


def many_files() -> None:
    """Raises the soft limit of open files to the hard one, MOST_FILES at most: a slide holds one for each of its instances."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def serve(path: Path, session: Callable[[], Session], *, ready: Callable[[], None] | None = None) -> None:
    """Serves for ever on a UNIX socket at `path`, mode 0600, to processes of this user and root only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    old = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(old)
    listener.listen(64)
    if ready:
        ready()
    while True:
        connection = _accepted(listener)
        if connection is not None:
            threading.Thread(target=_converse, args=(connection, session), daemon=True).start()


def _accepted(listener: socket.socket) -> socket.socket | None:
    """None, after a pause, where this process or its machine has no descriptor or memory left for one more: those that it serves
    go on and give theirs back, and who connects waits in the queue (accept(2))."""
    try:
        return listener.accept()[0]
    except OSError as error:
        if error.errno not in EXHAUSTED:
            raise
        print(f"accept: {errno.errorcode[error.errno]}", file=sys.stderr, flush=True)
        time.sleep(PAUSE)
        return None


def _converse(connection: socket.socket, make: Callable[[], Session]) -> None:
    with connection:
        if not _ours(connection):
            return
        session = make()
        try:
            while (request := _received(connection)) is not None:
                message, fds = request
                send(connection, _answer(session, message, fds))
        except OSError:
            return  # the client is gone; closed() below lets go of what it held
        finally:
            session.closed()


def _received(connection: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    try:
        return receive(connection)
    except (PeerError, Refusal):
        return None  # an odd frame ends the connection


def _answer(session: Session, message: dict[str, Any], fds: list[int]) -> Answer:
    verb = message.get("verb")
    handler = getattr(session, f"do_{verb}", None) if isinstance(verb, str) and verb.isidentifier() else None
    if handler is None:
        for fd in fds:
            os.close(fd)
        return {"ok": False, "codes": ["verb-unknown"], "kind": "refusal"}
    try:
        return {"ok": True, **handler(message, fds)}
    except (Refusal, ConfigurationError) as refusal:
        return {"ok": False, "codes": list(refusal.codes), "kind": "refusal"}
    except PeerError as error:
        return {"ok": False, "codes": list(error.codes), "kind": "peer"}
    except MemoryError:  # it may go better later
        return {"ok": False, "codes": ["process-no-memory"], "kind": "peer"}
    except Exception as error:  # the process's boundary: a bug answers with its type alone and the process lives on
        return {"ok": False, "codes": [f"bug-{type(error).__name__.lower()}"], "kind": "bug"}


def _ours(connection: socket.socket) -> bool:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", credentials)
    return uid in (0, os.getuid())
