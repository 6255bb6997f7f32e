"""From the archive into sealed staging: streamed, hashed, encrypted, never in clear on a disk."""

import threading
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass

from blocks.multipart import Part
from blocks.pacs import DicomWeb
from blocks.part10 import ContentDigest
from infra.reader.decode import Image, look
from infra.reader.listing import Place
from infra.reader.staging import SealedWriter, Staging
from rapha.errors import PeerError, Refusal

WORKERS = 3


@dataclass(frozen=True, slots=True)
class Staged:
    """A record in staging. content: digest of what was received; image: None when it cannot be decoded."""

    number: int
    size: int
    content: str
    image: Image | None


class Retrieval:
    """One retrieval of the listed records. `received` by pseudonym; `extra`: objects that came beside them and were dropped."""

    def __init__(self, archive: DicomWeb, staging: Staging, key: bytes) -> None:
        self._archive, self._staging, self._key = archive, staging, key
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self.received: dict[str, Staged] = {}
        self.extra = 0

    def run(self, places: Mapping[str, Place], crowded: set[str]) -> None:
        """Retrieves all of `places`: series whole, but instance by instance where a series holds others too.

        Raises `PeerError` of the archive; staging is then the caller's to destroy.
        """
        by_series: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
        for name, place in places.items():
            by_series[place.study, place.series][place.instance] = name
        with ThreadPoolExecutor(WORKERS) as pool:
            jobs = [pool.submit(self._series, *place, wanted, place[1] in crowded) for place, wanted in by_series.items()]
            done, waiting = wait(jobs, return_when=FIRST_EXCEPTION)
            if waiting:
                self._stop.set()
                pool.shutdown(cancel_futures=True)
            for job in done:
                job.result()

    def _series(self, study: str, series: str, wanted: Mapping[str, str], crowded: bool) -> None:
        for instance in wanted if crowded or len(wanted) == 1 else (None,):
            with self._archive.retrieve(study, series, instance) as parts:
                for part in parts:
                    self._one(part, wanted)

    def _one(self, part: Part, wanted: Mapping[str, str]) -> None:
        content, head = ContentDigest(), bytearray()
        with ExitStack() as undo:
            writer = None
            for block in part.body:
                if self._stop.is_set():
                    raise PeerError("pacs-stopped", "another retrieval of this attempt failed", peer="pacs")
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
