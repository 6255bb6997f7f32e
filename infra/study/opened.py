"""The sealed files of one study, opened: each hashed again, each header read once, slides put together level by level."""

import fcntl
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from blocks.instances import SealedReader
from blocks.part10 import MAX_META, FileMeta, read_meta
from infra.reader.decode import crop
from infra.study.decoder import Decoder
from infra.study.images import Header, facts_of, read_frame, read_header, session_key
from infra.study.slides import Slide
from policies.applicability import SLIDE, InstanceFacts
from rapha.errors import PeerError, Refusal

_CHUNK = 1 << 20
SELECTABLE = 1024  # FD_SETSIZE of glibc


@dataclass(frozen=True, slots=True)
class SealedFile:
    """path: of the sealed file; sha256: of the data set, as the receiver wrote it down."""

    path: str
    sha256: str


class ClearFile(SealedReader):
    """A sealed file in clear. budget: bytes that may still be read before `Refusal` record-malformed, None for any: a bound on
    what a header may hold."""

    budget: int | None = None

    def __init__(self, path: Path, private: X25519PrivateKey) -> None:
        super().__init__(path, private)
        self._file = _high(self._file)

    def read(self, size: int | None = -1) -> bytes:
        """As `SealedReader`. Raises `PeerError` study-file-unreadable: a disk that fails is no image that cannot be decoded."""
        try:
            found = super().read(
                size if self.budget is None else min(self.budget + 1, self.size if size is None or size < 0 else size)
            )
        except OSError:
            raise _unreadable() from None
        if self.budget is not None:
            self.budget -= len(found)
            if self.budget < 0:
                raise Refusal(["record-malformed"], "an instance's header is larger than this node reads")
        return found


class Opener:
    """What opens sealed files: the private key, and the folders in which they may lie."""

    def __init__(self, private: X25519PrivateKey, folders: Sequence[Path]) -> None:
        self._private = private
        self._folders = tuple(folder.resolve() for folder in folders)

    @property
    def public(self) -> X25519PublicKey:
        """What this process seals to: itself."""
        return self._private.public_key()

    def study(self) -> "Opened":
        return Opened(self)

    def open(self, path: str) -> ClearFile:
        """Raises `Refusal` study-path-outside, study-file-missing, sealed-…; `PeerError` study-file-unreadable."""
        real = Path(path).resolve()
        if not any(real.is_relative_to(folder) for folder in self._folders):
            raise Refusal(["study-path-outside"], "a sealed file lies outside the folders of this process")
        try:
            return ClearFile(real, self._private)
        except FileNotFoundError:
            raise Refusal(["study-file-missing"], "a sealed file is not there") from None
        except OSError:
            raise _unreadable() from None


class Opened:
    """Everything of one study that this process holds. Indexes count from 0 in the order of opening."""

    def __init__(self, opener: Opener) -> None:
        self._opener, self._key = opener, session_key()
        self._paths: list[str] = []
        self._headers: list[Header] = []
        self._facts: list[InstanceFacts] = []
        self._slides: dict[int, tuple[Slide, int]] = {}  # index -> its slide, and its level there
        self._paired, self._decoder = False, Decoder()

    def __len__(self) -> int:
        return len(self._headers)

    def add(self, files: Sequence[SealedFile]) -> range:
        """Opens more files; their indexes."""
        first = len(self)
        for one in files:
            self._add(one)
        self._paired = False
        return range(first, len(self))

    def facts(self, index: int) -> InstanceFacts:
        return self._facts[index]

    def header(self, index: int) -> Header:
        return self._headers[index]

    @contextmanager
    def stream(self, index: int) -> Iterator[ClearFile]:
        """The clear file of an instance, for as long as it is needed."""
        stream = self._opener.open(self._paths[index])
        try:
            yield stream
        finally:
            stream.close()

    def pair(self) -> None:
        """Finds the pyramids among the slide instances. A slide whose levels do not fit has a fault, and the rest goes on."""
        if self._paired:
            return
        self._close_slides()
        groups: dict[tuple[str, str], list[int]] = {}
        for index, header in enumerate(self._headers):
            if header.sop_class == SLIDE and header.flavour == "VOLUME" and header.image is not None:
                groups.setdefault((header.series, header.frame_of_reference), []).append(index)
        for members in groups.values():
            self._pair(members)
        self._paired = True

    def levels(self, index: int) -> list[tuple[int, int, tuple[int, ...]]]:
        """(rows, columns, indexes of the instances) of each level that can be read through `index`, finest first."""
        facts = self._facts[index]
        if index not in self._slides:
            return [(facts.rows, facts.columns, (index,))]
        slide, level = self._slides[index]
        shown = slide.levels if facts.base == index else slide.levels[level : level + 1]
        return [(one.rows, one.columns, one.members) for one in shown]

    def read(self, index: int, frame: int | None, level: int, box: tuple[int, int, int, int]) -> np.ndarray[Any, Any] | None:
        """The pixels, or None for a region that is not inside. Raises `Refusal` record-malformed, record-too-large, sealed-…."""
        if index in self._slides:
            slide, own = self._slides[index]
            rows, columns, _ = self.levels(index)[level]
            return slide.read(own + level, *(box if box != (0, 0, 0, 0) else (0, 0, columns, rows)))
        header = self._headers[index]
        if header.image is None:
            raise Refusal(["record-malformed"], "an instance has no pixels")
        with self.stream(index) as stream:
            return crop(read_frame(stream, header, self._decoder, frame), header.image, *box)

    def close(self) -> None:
        self._close_slides()
        self._decoder.close()
        self._headers, self._facts, self._paths, self._key = [], [], [], b""

    def _add(self, file: SealedFile) -> None:
        index = len(self)
        with _opened(self._opener, file.path) as stream:
            found, meta = content_of(stream)
            stream.seek(0)
            header = read_header(stream, self._key, meta)
        same = found == file.sha256
        self._paths.append(file.path)
        self._headers.append(header)
        self._facts.append(facts_of(header, index, found, same=same))

    def _pair(self, members: list[int]) -> None:
        names = {self._headers[index].sop_uid: index for index in members}
        forms = {index: self._headers[index].form for index in members}
        streams = self._streams(members)
        try:
            slide = Slide(streams, names, forms, self._decoder)
        except Refusal as refusal:
            if refusal.codes != ("slide-unreadable",):
                raise  # a sealed file that was changed is none that cannot be read
            for index in members:
                self._facts[index] = replace(self._facts[index], fault="slide-unreadable")
            return
        base = slide.levels[0].members[0]
        for level, found in enumerate(slide.levels):
            for index in found.members:
                self._slides[index] = (slide, level)
                levels = len(slide.levels) if index == base else 1
                self._facts[index] = replace(self._facts[index], base=base, levels=levels)
        for index in set(members) - set(self._slides):
            self._facts[index] = replace(self._facts[index], fault="slide-unreadable")

    def _streams(self, members: list[int]) -> dict[int, ClearFile]:
        """Each member's clear file, or none of them: what is opened is closed where one does not open."""
        found: dict[int, ClearFile] = {}
        try:
            for index in members:
                found[index] = self._opener.open(self._paths[index])
        except BaseException:
            for one in found.values():
                one.close()
            raise
        return found

    def _close_slides(self) -> None:
        for slide in {id(slide): slide for slide, _ in self._slides.values()}.values():
            slide.close()
        self._slides = {}


@contextmanager
def _opened(opener: Opener, path: str) -> Iterator[ClearFile]:
    stream = opener.open(path)
    try:
        yield stream
    finally:
        stream.close()


def content_of(stream: ClearFile) -> tuple[str, FileMeta]:
    """(`sha256:…` of the data set of a file of PS3.10, its meta information), in constant memory.

    Raises `Refusal` record-malformed.
    """
    head = bytearray()
    while (meta := _meta(head)) is None:
        block = stream.read(4096 if not head else _CHUNK)
        if not block or len(head) > MAX_META + _CHUNK:
            raise Refusal(["record-malformed"], "a sealed file is no DICOM file")
        head += block
    total = hashlib.sha256(memoryview(head)[meta.length :])
    while block := stream.read(_CHUNK):
        total.update(block)
    return "sha256:" + total.hexdigest(), meta


def _meta(head: bytearray) -> FileMeta | None:
    try:
        return read_meta(bytes(head))
    except PeerError:
        raise Refusal(["record-malformed"], "a sealed file is no DICOM file") from None


def _high(file: Any) -> Any:
    """The same file under a descriptor that select(2) does not know, for slides hold many: the low ones are left to sockets of
    associations, for which the library waits with it. Where the limit leaves none, the one that it has."""
    try:
        above = fcntl.fcntl(file.fileno(), fcntl.F_DUPFD_CLOEXEC, SELECTABLE)
    except OSError:
        return file
    file.close()
    return os.fdopen(above, "rb", buffering=0)


def _unreadable() -> PeerError:
    return PeerError("study-file-unreadable", "a sealed file is there and cannot be read now", peer="study")
