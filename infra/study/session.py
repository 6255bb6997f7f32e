"""The study reader's verbs: open · facts · attach · detach · counts · fetch · fetched · report · check · store · verify ·
recipient · compare · holds."""

import base64
import os
import socket
import stat
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from blocks.archive import Archive, Listed
from blocks.models import ModelPackage
from blocks.validators import Check, check
from infra.study import storing
from infra.study.desk import Desk
from infra.study.fetching import Fetching
from infra.study.opened import Opened, Opener, SealedFile
from infra.study.reporting import NAMES, report
from rapha.canonical import is_digest
from rapha.errors import PeerError, Refusal

PAGE = 2000  # instances named in one message
MAX_INSTANCES = 50_000
MAX_WANTED = 5000  # instances fetched with one message
Archives = Callable[[str], Archive]
Answer = dict[str, Any]
_SESSIONS: "weakref.WeakSet[StudySession]" = weakref.WeakSet()


class StudySession:
    """Serves one connection. Answers hold indexes, counts, digests and codes; an instance's UID where the caller must pair it."""

    def __init__(
        self,
        opener: Opener,
        archives: Archives | None = None,
        store: Path | None = None,
        models: Sequence[ModelPackage] = (),
        validators: Check = check,
    ) -> None:
        """archives: an endpoint's name -> its archive; store: the folder for what is fetched and for reports; models: of which
        this site believes findings; validators: how a report is put before them."""
        self._opener, self._archives, self._store = opener, archives, store
        self._models, self._validators = {one.digest: one for one in models}, validators
        self._opened: Opened | None = None
        self._desk: Desk | None = None
        self._written: set[Path] = set()
        self._fetching: Fetching | None = None
        _SESSIONS.add(self)

    def do_open(self, message: Mapping[str, Any], fds: list[int]) -> Answer:
        """Opens sealed files of the study: the first page of them (`first`), then more. Answers facts by index."""
        _close(fds)
        _exact(message, {"first", "files"})
        files = _files(message["files"])
        if message["first"] is True:
            self._let_go()
            self._opened = self._opener.study()
        held = self._held()
        if len(held) + len(files) > MAX_INSTANCES:
            raise Refusal(["study-too-many"], "a study has more instances than this node reads")
        return {"instances": [self._entry(index) for index in held.add(files)]}

    def do_facts(self, message: Mapping[str, Any], fds: list[int]) -> Answer:
        """Once every page is open: which slide instances make a pyramid, and what of each is known, a page from `start` on."""
        _close(fds)
        _exact(message, {"start"})
        start = _whole(message["start"])
        held = self._held()
        held.pair()
        return {"instances": [self._entry(index) for index in range(start, min(start + PAGE, len(held)))], "total": len(held)}

    def do_attach(self, message: Mapping[str, Any], fds: list[int]) -> Answer:
        """Hands the instances of `indexes` to whoever holds the other ends of the sockets, as records 0, 1, …"""
        if not fds or not all(stat.S_ISSOCK(os.fstat(fd).st_mode) for fd in fds):
            _close(fds)
            raise Refusal(["study-request-odd"], "attach comes with sockets")
        sockets = [socket.socket(fileno=fd) for fd in fds]
        try:
            _exact(message, {"indexes"})
            held = self._held()
            desk = Desk(held, _indexes(message["indexes"], len(held)))
        except (Refusal, PeerError):
            for one in sockets:
                one.close()
            raise
        self._drop_desk()
        self._desk = desk
        return {"lines": desk.serve(sockets)}

    def do_detach(self, message: Mapping[str, Any], fds: list[int]) -> Answer:
        """Ends the handing over; what was handed, by index: [index, frames handed, decoding failed]."""
        _close(fds)
        _exact(message, set())
        if self._desk is None:
            raise Refusal(["study-not-attached"], "nothing is attached")
        handed = self._desk.handed()
        self._drop_desk()
        return {"handed": handed}

    def do_counts(self, message: Mapping[str, Any], fds: list[int]) -> Answer:
        _close(fds)
        _exact(message, set())
        return self._desk.counts() if self._desk else {"handed": 0, "unique": 0, "total": 0, "malformed": 0}

    def do_fetch(self, message: Mapping[str, Any], fds: list[int]) -> Answer:
        """One request of a retrieval by C-GET or WADO-RS: a series, or some instances of one, into sealed files.

        What the archive answered is in the answer, an association that broke off too; what came is for `fetched` to tell.
        """
        _close(fds)
        _exact(message, {"endpoint", "study", "level", "wanted"})
        archive, wanted = self._archive(message["endpoint"]), _wanted(message["wanted"])
        if archive.method == "C-MOVE":
            raise Refusal(["study-fetch-by-move"], "this endpoint is retrieved from by C-MOVE: ask the receiver")
        if message["level"] not in ("SERIES", "IMAGE"):
            raise _odd()
        ended = self._fetched_of(message).ask(archive, message["level"], wanted)
        error = ended.error.codes[0] if ended.error else ""
        counts = {"completed": ended.completed, "failed": ended.failed, "counted": ended.counted}
        return {"status": ended.status, "error": error, **counts}

    def do_fetched(self, message: Mapping[str, Any], fds: list[int]) -> Answer:
        """What came of a study on this connection, whichever request brought it, a page from `start` on."""
        _close(fds)
        _exact(message, {"endpoint", "study", "start"})
        fetching, start = self._fetched_of(message), _whole(message["start"])
        if start == 0:
            fetching.settle()
        received = fetching.received
        return {"received": received[start : start + PAGE], "total": len(received)}

    def _fetched_of(self, message: Mapping[str, Any]) -> Fetching:
        """The retrieval of this study from this endpoint. What one of another brought stays as long as the connection."""
        endpoint, study = _text(message["endpoint"]), _text(message["study"])
        if self._fetching is None or (self._fetching.endpoint, self._fetching.study) != (endpoint, study):
            self._written |= self._fetching.files if self._fetching else set()
            self._fetching = Fetching(self._folder(), self._opener.public, endpoint, study)
        return self._fetching

    def do_report(self, message: Mapping[str, Any], fds: list[int]) -> Answer:
        """The report of the open study: built from its own headers, sealed, described."""
        _close(fds)
        _exact(message, NAMES)
        held = self._held()
        held.pair()
        built = report(held, self._opener, self._folder(), self._models, message)
        self._written |= {Path(one["path"]) for one in (built, *built["segmentations"])}
        return built

    def do_check(self, message: Mapping[str, Any], fds: list[int]) -> Answer:
        """Whether a sealed report passes every check that it must pass before it is stored."""
        _close(fds)
        _exact(message, {"path"})
        return storing.check(self._opener, str(message["path"]), self._validators)

    def do_store(self, message: Mapping[str, Any], fds: list[int]) -> Answer:
        """Sends a sealed report to an endpoint's archive."""
        _close(fds)
        _exact(message, {"endpoint", "path"})
        return storing.store(self._opener, str(message["path"]), self._archive(message["endpoint"]))

    def do_verify(self, message: Mapping[str, Any], fds: list[int]) -> Answer:
        """Reads a report back from an endpoint's archive and compares every attribute."""
        _close(fds)
        _exact(message, {"endpoint", "path"})
        return storing.verify(self._opener, str(message["path"]), self._archive(message["endpoint"]))

    def do_recipient(self, message: Mapping[str, Any], fds: list[int]) -> Answer:
        """The public key (X25519, 32 bytes in base64) that this process opens files of."""
        _close(fds)
        _exact(message, set())
        return {"public": base64.b64encode(self._opener.public.public_bytes_raw()).decode()}

    def do_compare(self, message: Mapping[str, Any], fds: list[int]) -> Answer:
        """Compares every attribute of a report with what the archive sent of it to the receiver."""
        _close(fds)
        _exact(message, {"path", "given"})
        return storing.compare(self._opener, str(message["path"]), str(message["given"]))

    def do_holds(self, message: Mapping[str, Any], fds: list[int]) -> Answer:
        """How many studies are open in this process: for its health, and for whoever asks before a restart."""
        _close(fds)
        return {"holds": sum(session._opened is not None for session in list(_SESSIONS))}

    def closed(self) -> None:
        """Lets go of what was opened and removes what was written for this connection, but for what its client moved aside."""
        self._let_go()
        for path in self._written | (self._fetching.files if self._fetching else set()):
            path.unlink(missing_ok=True)
        self._written, self._fetching = set(), None

    def _let_go(self) -> None:
        self._drop_desk()
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def _archive(self, name: object) -> Archive:
        if self._archives is None or not isinstance(name, str):
            raise Refusal(["study-no-endpoint"], "the study reader was started without endpoints")
        return self._archives(name)

    def _folder(self) -> Path:
        if self._store is None:
            raise Refusal(["study-no-store"], "the study reader was started without a folder to write into")
        return self._store

    def _entry(self, index: int) -> Answer:
        held = self._held()
        return {**asdict(held.facts(index)), "sop_uid": held.header(index).sop_uid}

    def _held(self) -> Opened:
        if self._opened is None:
            # Its connection was lost, and with it what was held: the peer failed, no rule said no.
            raise PeerError("study-not-open", "no study is open on this connection", peer="study")
        return self._opened

    def _drop_desk(self) -> None:
        if self._desk is not None:
            self._desk.close()
            self._desk = None


def _files(value: object) -> list[SealedFile]:
    if not isinstance(value, list) or not 0 < len(value) <= PAGE:
        raise _odd()
    files = []
    for one in value:
        if not isinstance(one, dict) or set(one) != {"path", "sha256"} or not isinstance(one["path"], str):
            raise _odd()
        if not is_digest(one["sha256"]):
            raise _odd()
        files.append(SealedFile(one["path"], one["sha256"]))
    return files


def _wanted(value: object) -> list[Listed]:
    names = ("sop_uid", "sop_class", "series_uid")
    if not isinstance(value, list) or not 0 < len(value) <= MAX_WANTED:
        raise _odd()
    if not all(isinstance(one, dict) and set(one) == set(names) for one in value):
        raise _odd()
    return [Listed(*(_text(one[name]) for name in names)) for one in value]


def _text(value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 64:
        raise _odd()
    return value


def _indexes(value: object, total: int) -> tuple[int, ...]:
    if not isinstance(value, list) or not value or len(set(map(str, value))) != len(value):
        raise _odd()
    indexes = tuple(_whole(one) for one in value)
    if max(indexes) >= total:
        raise _odd()
    return indexes


def _whole(value: object) -> int:
    if type(value) is not int or value < 0:
        raise _odd()
    return value


def _exact(message: Mapping[str, Any], names: set[str]) -> None:
    if set(message) != {"verb", *names}:
        raise _odd()


def _odd() -> Refusal:
    return Refusal(["study-request-odd"], "a request to the study reader has other fields than its verb's")


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
