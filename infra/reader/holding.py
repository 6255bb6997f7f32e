"""What the reader holds for one attempt, from `begin` to `finish` or to the end of the connection."""

import os
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blocks.archive import Archive
from infra.reader.decode import crop, pixels
from infra.reader.listing import Listing, list_archive, query_digest
from infra.reader.meter import Meter
from infra.reader.moving import Receiving
from infra.reader.retrieval import Retrieval, Staged
from infra.reader.staging import Staging, sealed_size
from policies.records import Record, records_root
from policies.scope import Scope
from rapha.errors import PeerError, Refusal
from rapha.protocol import (
    ALL_FRAMES,
    BAD_REQUEST,
    CAP_REACHED,
    DESCRIBE,
    FACTS,
    MALFORMED,
    MAX_NAMES,
    NAMES,
    OK,
    OUT_OF_RANGE,
    READ,
    TOO_LARGE,
    UNSUPPORTED,
    Reply,
    Request,
    receive_request,
    send_reply,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Begin:
    """job, attempt, nonce: whose attempt; project: whose pseudonyms; cap: unique records that may be handed over."""

    job: str
    attempt: int
    nonce: str
    project: str
    manifest: Scope
    intent: Scope
    cap: int


class Holding:
    """The records, keys, staging and counts of one attempt."""

    def __init__(
        self,
        begin: Begin,
        archive: Archive,
        key: bytes,
        records: tuple[Record, ...],
        root: Path,
        receiving: Receiving | None = None,
    ) -> None:
        self.begin, self._receiving = begin, receiving
        self._archive, self._key, self._root = archive, key, root
        self._records = {record.record: record for record in records}
        self._staging: Staging | None = None
        self._listing: Listing | None = None
        self._staged: list[tuple[Record, Staged]] = []
        self._whole = False
        self._meter = Meter(0, begin.cap)
        self._lines: list[tuple[socket.socket, threading.Thread]] = []

    def query(self) -> dict[str, Any]:
        """Lists the archive; the facts of `policies.query.QueryEvidence`."""
        begin = self.begin
        self._listing = found = list_archive(self._archive, self._key, self._records, begin.manifest, begin.intent)
        return {
            "records_root": records_root(self._records.values()),
            "records_count": len(self._records),
            "query": query_digest(begin.manifest, begin.intent),
            "results": found.results,
            "answered": found.answered,
            "outside": found.outside,
            "ignored": found.ignored,
            "missing": found.missing,
            "changed": found.changed,
            "selected": len(found.places),
            "patients": len(found.patients),
        }

    def fetch(self) -> dict[str, Any]:
        """Retrieves what `query` selected into sealed staging; the facts of `policies.retrieve.RetrieveEvidence`.

        Raises `PeerError` pacs-set-changed when the set changes during the retrieval, and every other pacs-… code.
        """
        if self._listing is None:
            raise Refusal(["reader-not-queried"], "the archive was not queried in this attempt")
        self._drop_staging()
        try:
            return self._fetch(self._listing)
        except OSError:
            self._drop_staging()
            raise Refusal(["staging-unwritable"], "the staging folder cannot be written") from None
        except (PeerError, Refusal):
            self._drop_staging()
            raise

    def _fetch(self, listing: Listing) -> dict[str, Any]:
        before = self._list()
        self._staging = Staging(self._root, f"{self.begin.job.removeprefix('sha256:')[:32]}-{self.begin.attempt}")
        retrieval = Retrieval(self._archive, self._staging, self._key, self._receiving)
        if before.results == listing.results:  # else the gate refuses, and nothing needs to be retrieved for that
            retrieval.run(before.places, before.crowded)
        after = self._list()
        if before.results != after.results:
            raise PeerError("pacs-set-changed", "the archive's set changed during the retrieval", peer="pacs")
        wanted = [self._records[name] for name in sorted(listing.places)]
        self._staged = [(record, retrieval.received[record.record]) for record in wanted if record.record in retrieval.received]
        self._meter = Meter(len(self._staged), self.begin.cap)
        facts = self._facts(wanted, retrieval.extra, before, after) | {"movement": ",".join(sorted(retrieval.movement))}
        self._whole = _is_whole(facts)
        return facts

    def attach(self, fds: list[int]) -> int:
        """Serves the loader on each descriptor, with a thread of its own."""
        if not self._whole:
            for fd in fds:
                os.close(fd)
            raise Refusal(["reader-nothing-staged"], "there is nothing whole in staging to hand over")
        for sock in [socket.socket(fileno=fd) for fd in fds]:
            thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
            self._lines.append((sock, thread))
            thread.start()
        return len(self._lines)

    def counts(self) -> dict[str, int]:
        return self._meter.counts()

    def finish(self) -> dict[str, Any]:
        """Ends the handing over, destroys the staging key and files, and gives the final counts and their commitment."""
        self._hang_up()
        counts = self._meter.counts()
        commitment, salt = self._meter.commitment([record.record for record, _ in self._staged])
        destroyed = self._drop_staging()
        return {**counts, "cap": self.begin.cap, "commitment": commitment, "salt": salt, "destroyed": destroyed}

    def destroy(self) -> None:
        """Lets go of everything: the flow is gone, or the attempt is over."""
        self._hang_up()
        self._drop_staging()
        self._records, self._listing, self._key = {}, None, b""

    def _list(self) -> Listing:
        return list_archive(self._archive, self._key, self._records, self.begin.manifest, self.begin.intent)

    def _facts(self, wanted: list[Record], extra: int, before: Listing, after: Listing) -> dict[str, Any]:
        staged = self._staged
        received = [Record(record.record, record.patient, one.content, record.label) for record, one in staged]
        return {
            "results": self._listing.results if self._listing else "",
            "before": before.results,
            "after": after.results,
            "listed": len(wanted),
            "received": len(staged),
            "missing": len(wanted) - len(staged),
            "changed": sum(self._changed(record, one) for record, one in staged),
            "extra": extra,
            "undecodable": sum(one.image is None for _, one in staged),
            "burned_in": sum(one.image is None or one.image.burned_in for _, one in staged),
            "expected_root": records_root(wanted),
            "received_root": records_root(received),
            "bytes": sum(one.size for _, one in staged),
            "largest": max((one.size for _, one in staged), default=0),
            "sealed": self._sealed(),
        }

    def _changed(self, record: Record, one: Staged) -> bool:
        """Another content than the manifest's, or attributes that put it outside the job's intent."""
        image = one.image
        inside = image is None or self.begin.intent.admits(image.modality, image.body_part, image.study_date)
        patient = image is None or image.attributes.get("patient") == record.patient
        return one.content != record.content or not inside or not patient

    def _sealed(self) -> bool:
        """Every file in staging is one that was sealed here, whole."""
        if self._staging is None:
            return False
        sizes = {self._staging.path(one.number).name: sealed_size(one.size) for _, one in self._staged}
        return sizes == {path.name: path.stat().st_size for path in self._staging.folder.iterdir()}

    def _drop_staging(self) -> bool:
        gone = self._staging.destroy() if self._staging is not None else True
        self._staging, self._staged, self._whole = None, [], False
        return gone

    def _hang_up(self) -> None:
        for sock, _ in self._lines:
            with suppress(OSError):  # the other end may be gone already
                sock.shutdown(socket.SHUT_RDWR)
        for _, thread in self._lines:
            thread.join(timeout=30)
        self._lines = []

    def _serve(self, sock: socket.socket) -> None:
        with sock:
            try:
                while (request := receive_request(sock)) is not None:
                    send_reply(sock, self._reply(request))
            except (PeerError, OSError, MemoryError):
                return  # the trainer hung up, or speaks another protocol: this line is over

    def _reply(self, request: Request) -> Reply:
        if request.op == DESCRIBE:
            return Reply(OK, {"records": len(self._staged)})
        if request.index >= len(self._staged):
            return Reply(OUT_OF_RANGE)
        if request.op == NAMES:
            page = self._staged[request.index : request.index + min(request.frame, MAX_NAMES)]
            return Reply(OK, {"names": [[record.record, record.patient, record.label] for record, _ in page]})
        if request.op == FACTS:
            return Reply(UNSUPPORTED)  # of the reading service alone
        return self._read(request) if request.op == READ else Reply(BAD_REQUEST)

    def _read(self, request: Request) -> Reply:
        record, staged = self._staged[request.index]
        staging, image = self._staging, staged.image
        if request.level or staging is None or image is None:
            return Reply(UNSUPPORTED)
        frame = None if request.frame == ALL_FRAMES else request.frame
        if frame is not None and frame >= image.frames:
            return Reply(OUT_OF_RANGE)
        if not self._meter.reserve(request.index):
            return Reply(CAP_REACHED)
        try:
            with staging.open(staged.number, staged.size) as stream:
                whole = pixels(stream, image, frame)
        except (Refusal, OSError) as error:
            malformed = getattr(error, "codes", ()) != ("record-too-large",)
            self._meter.release(request.index, malformed=malformed)
            return Reply(MALFORMED if malformed else TOO_LARGE)
        region = crop(whole, image, request.x, request.y, request.width, request.height)
        if region is None:
            self._meter.release(request.index, malformed=False)
            return Reply(OUT_OF_RANGE)
        facts = {"record": record.record, "patient": record.patient, "label": record.label, "attributes": image.attributes}
        return Reply(OK, facts, region)


def _is_whole(facts: dict[str, Any]) -> bool:
    """What the reader demands of staging by itself before it hands anything over, whatever a gate says."""
    clean = facts["missing"] == facts["changed"] == facts["undecodable"] == 0 < facts["received"]
    same = facts["results"] == facts["before"] == facts["after"] and facts["expected_root"] == facts["received_root"]
    return clean and same and facts["sealed"] is True
