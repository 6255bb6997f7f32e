"""What is handed over to a sandbox, and counted where it is handed over: frame by frame, level by level.

A record is a number here, with allow-listed attributes and a name that means nothing elsewhere. "Analysed" is later held to these
counts: a model that did not look at every frame of an image cannot say that it did.
"""

import socket
import threading
from contextlib import suppress
from typing import Any

from infra.study.opened import Opened
from policies.applicability import unfit
from rapha.errors import PeerError, Refusal
from rapha.protocol import (
    ALL_FRAMES,
    BAD_REQUEST,
    DESCRIBE,
    FACTS,
    MALFORMED,
    MAX_NAMES,
    NAMES,
    OK,
    OUT_OF_RANGE,
    READ,
    TOO_LARGE,
    Reply,
    Request,
    receive_request,
    send_reply,
)

TOO_MANY_FRAMES = 65_536


class Desk:
    """The records of one model's run: `indexes` of the study, in the order in which the sandbox sees them."""

    def __init__(self, opened: Opened, indexes: tuple[int, ...]) -> None:
        opened.pair()
        # Whatever the flow asks for: a label, a report, a file that is not the one that arrived is never handed over.
        if any(unfit(opened.facts(index)) or not opened.facts(index).same for index in indexes):
            raise Refusal(["study-not-readable"], "an instance that no model may read is not handed over")
        self._opened, self._indexes = opened, indexes
        self._records = {index: record for record, index in enumerate(indexes)}
        self._frames: dict[int, set[int]] = {}
        self._failed: set[int] = set()
        self._handed, self._lock = 0, threading.Lock()
        self._broken: PeerError | None = None
        self._lines: list[tuple[socket.socket, threading.Thread]] = []

    def serve(self, sockets: list[socket.socket]) -> int:
        for sock in sockets:
            thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
            self._lines.append((sock, thread))
            thread.start()
        return len(self._lines)

    def close(self) -> None:
        for sock, _ in self._lines:
            with suppress(OSError):  # the other end may be gone already
                sock.shutdown(socket.SHUT_RDWR)
        for _, thread in self._lines:
            thread.join(timeout=30)
        self._lines = []

    def counts(self) -> dict[str, int]:
        """handed: replies with pixels; unique: instances among them; total: instances attached; malformed: not decoded.

        Raises the `PeerError` over which a line ended: what this node could not read, the model did not refuse to.
        """
        self._whole()
        with self._lock:
            total, malformed = len(self._indexes), len(self._failed)
            return {"handed": self._handed, "unique": len(self._frames), "total": total, "malformed": malformed}

    def handed(self) -> list[list[int]]:
        """[index, different frames handed over, 1 if any of it did not decode] of each attached instance. Raises as `counts`."""
        self._whole()
        with self._lock:
            return [[index, len(self._frames.get(index, ())), int(index in self._failed)] for index in self._indexes]

    def _serve(self, sock: socket.socket) -> None:
        with sock:
            try:
                while (request := receive_request(sock)) is not None:
                    send_reply(sock, self._answered(request))
            except (PeerError, OSError, MemoryError):
                return  # the sandbox hung up, speaks another protocol, or this node failed: this line is over

    def _answered(self, request: Request) -> Reply:
        """The reply; a failure of this node's is kept for whoever asks what was handed over."""
        try:
            return self._reply(request)
        except PeerError as error:
            self._broken = error
        except (OSError, MemoryError):
            self._broken = PeerError("study-no-memory", "the study reader lacks memory or descriptors", peer="study")
        raise self._broken

    def _whole(self) -> None:
        if self._broken is not None:
            raise PeerError(self._broken.codes[0], self._broken.message, peer="study")

    def _reply(self, request: Request) -> Reply:
        if request.op == DESCRIBE:
            return Reply(OK, {"records": len(self._indexes)})
        if request.index >= len(self._indexes):
            return Reply(OUT_OF_RANGE)
        if request.op == NAMES:
            last = min(request.index + min(request.frame, MAX_NAMES), len(self._indexes))
            return Reply(OK, {"names": [[_name(record), "", None] for record in range(request.index, last)]})
        if request.op == FACTS:
            return Reply(OK, self._facts(self._indexes[request.index]))
        return self._read(request) if request.op == READ else Reply(BAD_REQUEST)

    def _facts(self, index: int) -> dict[str, Any]:
        """levels: [rows, columns, record that stands for it or -1]; base: the record of the slide's finest level, or its own."""
        facts, header = self._opened.facts(index), self._opened.header(index)
        levels = [[rows, columns, self._records.get(who[0], -1)] for rows, columns, who in self._opened.levels(index)]
        spacing = list(header.spacing) if header.spacing else None
        base = self._records.get(facts.base, -1)
        return {"frames": facts.frames, "levels": levels, "base": base, "spacing": spacing, "attributes": dict(header.attributes)}

    def _read(self, request: Request) -> Reply:
        index = self._indexes[request.index]
        levels, facts = self._opened.levels(index), self._opened.facts(index)
        frame = None if request.frame == ALL_FRAMES else request.frame
        if request.level >= len(levels) or (frame is not None and frame >= facts.frames):
            return Reply(OUT_OF_RANGE)
        box = (request.x, request.y, request.width, request.height)
        try:
            array = self._opened.read(index, frame, request.level, box)
        except Refusal as refusal:
            return self._failure(levels[request.level][2], refusal)
        if array is None:
            return Reply(OUT_OF_RANGE)
        self._count(levels[request.level][2], frame, facts.frames)
        named = {"record": _name(request.index), "patient": "", "label": None}
        return Reply(OK, {**named, "attributes": dict(self._opened.header(index).attributes)}, array)

    def _failure(self, members: tuple[int, ...], refusal: Refusal) -> Reply:
        if refusal.codes == ("record-too-large",):
            return Reply(TOO_LARGE)
        if refusal.codes != ("record-malformed",):
            # A sealed file that is gone or was changed is no image that cannot be decoded: the run ends, nothing is left out.
            raise PeerError(refusal.codes[0], "a sealed file cannot be read any more", peer="study")
        with self._lock:
            self._failed.update(members)
        return Reply(MALFORMED)

    def _count(self, members: tuple[int, ...], frame: int | None, frames: int) -> None:
        with self._lock:
            self._handed += 1
            for index in members:
                self._frames.setdefault(index, set()).update(range(frames) if frame is None else (frame,))


def _name(record: int) -> str:
    return f"{record:06d}"
