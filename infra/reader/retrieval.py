"""From the archive into sealed staging: streamed, hashed, encrypted, never in clear on a disk."""

import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass

from blocks.archive import Archive, Listed
from blocks.part10 import ContentDigest
from infra.reader.decode import Image, look
from infra.reader.listing import Place
from infra.reader.moving import Moving, Receiving
from infra.reader.staging import SealedWriter, Staging
from policies.movement import Level
from rapha.errors import PeerError, Refusal
from tasks.shared.moving import Ask, Ended, by_get, until_delivered

WORKERS = 3


@dataclass(frozen=True, slots=True)
class Staged:
    """A record in staging. content: digest of what was received; image: None when it cannot be decoded."""

    number: int
    size: int
    content: str
    image: Image | None


class Retrieval:
    """One retrieval of the listed records, by whichever way the archive is asked.

    `received` by pseudonym; `extra`: objects that came beside them and were dropped; `movement`: codes of what the archive said
    of it that is not so.
    """

    def __init__(self, archive: Archive, staging: Staging, key: bytes, receiving: Receiving | None = None) -> None:
        self._archive, self._staging, self._key = archive, staging, key
        self._moving = Moving(archive, receiving) if receiving and archive.method == "C-MOVE" else None
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self.received: dict[str, Staged] = {}
        self.extra = 0
        self.movement: set[str] = set()

    def run(self, places: Mapping[str, Place], crowded: set[str]) -> None:
        """Retrieves all of `places`: series whole, but instance by instance where a series holds others too.

        Raises `PeerError` of the archive; staging is then the caller's to destroy.
        """
        by_series: dict[tuple[str, str], dict[Listed, str]] = defaultdict(dict)
        for name, place in places.items():
            by_series[place.study, place.series][Listed(place.instance, place.sop_class, place.series)] = name
        with ThreadPoolExecutor(WORKERS) as pool:
            jobs = [pool.submit(self._series, study, wanted, series in crowded) for (study, series), wanted in by_series.items()]
            done, waiting = wait(jobs, return_when=FIRST_EXCEPTION)
            if waiting:
                self._stop.set()
                pool.shutdown(cancel_futures=True)
            for job in done:
                job.result()

    def _series(self, study: str, wanted: Mapping[Listed, str], crowded: bool) -> None:
        names = {one.sop_uid: name for one, name in wanted.items()}
        by_one = crowded or len(wanted) == 1
        failed = self._asked(study, list(wanted), "IMAGE" if by_one else "SERIES", names)
        if failed is None:
            return
        came = any(name in self.received for name in names.values())
        if failed.error or (failed.status and not came):
            raise failed.error or PeerError("archive-incomplete", "nothing of a series came", peer="pacs")

    def _asked(self, study: str, wanted: Sequence[Listed], level: Level, names: Mapping[str, str]) -> Ended | None:
        """What does not come although the archive answered is missing, for the gate to see; how it ended where it is."""
        if self._archive.method == "C-MOVE":
            if self._moving is None:
                raise PeerError("receiver-missing", "retrieval is by C-MOVE, and no receiver is configured", peer="receiver")
            return self._moving.series(study, wanted, level, lambda blocks: self._one(blocks, names), self._paced, self._told)

        def delivered() -> set[str]:
            with self._lock:
                return {uid for uid, name in names.items() if name in self.received}

        def keep(_class: str, _uid: str, blocks: Iterable[bytes]) -> None:
            try:
                self._one(blocks, names)
            except OSError:
                raise Refusal(["staging-unwritable"], "the staging folder cannot be written") from None

        ask = by_get(self._archive, study, keep)
        return until_delivered(self._paced(ask), delivered, wanted, level, self._told)

    def _paced(self, ask: Ask) -> Ask:
        def asked(level: Level, left: Sequence[Listed]) -> Ended:
            self._go_on()
            return ask(level, left)

        return asked

    def _told(self, _round: int, codes: tuple[str, ...]) -> None:
        with self._lock:
            self.movement.update(codes)

    def _go_on(self) -> None:
        if self._stop.is_set():
            raise PeerError("pacs-stopped", "another retrieval of this attempt failed", peer="pacs")

    def _one(self, blocks: Iterable[bytes], wanted: Mapping[str, str]) -> None:
        content, head = ContentDigest(), bytearray()
        with ExitStack() as undo:
            writer = None
            for block in blocks:
                self._go_on()
                content.feed(block)
                if writer is not None:
                    writer.write(block)
                    continue
                head += block
                if content.meta is None:
                    continue
                if content.meta.sop_instance not in wanted:
                    break  # not listed: what is left of it passes by unread
                writer = self._create()
                undo.callback(writer.discard)
                writer.write(bytes(head))
            self._keep(writer, content, wanted)
            undo.pop_all()

    def _create(self) -> SealedWriter:
        with self._lock:
            return self._staging.create()

    def _keep(self, writer: SealedWriter | None, content: ContentDigest, wanted: Mapping[str, str]) -> None:
        if writer is None:
            content.digest()  # raises for what was no DICOM file at all
            with self._lock:
                self.extra += 1
            return
        assert content.meta is not None  # noqa: S101  # a writer is made only once the head is known
        name = wanted[content.meta.sop_instance]
        writer.close()
        staged = Staged(writer.number, writer.size, content.digest(), self._look(writer, name))
        with self._lock:
            if name in self.received:
                raise PeerError("pacs-duplicate", "the archive sent an instance twice", peer="pacs")
            self.received[name] = staged

    def _look(self, writer: SealedWriter, name: str) -> Image | None:
        with self._staging.open(writer.number, writer.size) as stream:
            try:
                image = look(stream, self._key)
            except Refusal as refusal:
                if refusal.codes != ("record-malformed",):
                    raise
                return None
        return image if image.attributes.get("record") == name else None
