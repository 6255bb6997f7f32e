"""An OCI image layout, as a folder or packed as a tar: blobs by digest, each hashed before it is used.

From index.json the one manifest for linux/amd64 is followed, and nothing else: what is scanned is what is unpacked is what runs.
"""

import gzip
import hashlib
import io
import os
import stat
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from policies.image import (
    INDEX,
    LAYER_GZIP,
    MANIFEST,
    ROOT,
    candidates,
    config_codes,
    descriptor_codes,
    entry_points,
    layer_codes,
)
from policies.scan import ScanLimits
from rapha.canonical import parse
from rapha.errors import Refusal
from tasks.scanning.tar import members
from tasks.scanning.unpack import CHUNK, Unpacked

MAX_DOCUMENT = 1 << 20
MAX_INDEXES = 4


class Window(io.RawIOBase):
    """A part of a seekable stream, as a stream."""

    def __init__(self, stream: BinaryIO, offset: int, size: int) -> None:
        self._stream, self._offset, self._size, self._at = stream, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = max(0, offset + (0, self._at, self._size)[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._size - self._at))
        self._stream.seek(self._offset + self._at)
        block = self._stream.read(count)
        buffer[: len(block)] = block
        self._at += len(block)
        return len(block)


@dataclass(frozen=True)
class Layout:
    """name in the layout -> (stream, offset, size)."""

    parts: Mapping[str, tuple[BinaryIO, int, int]]

    def open(self, name: str) -> BinaryIO:
        """A part's bytes. Raises `Refusal` image-malformed when there is none."""
        if name not in self.parts:
            raise Refusal(["image-malformed"], side="job")
        return io.BufferedReader(Window(*self.parts[name]), CHUNK)

    def document(self, name: str) -> dict[str, Any]:
        stream = self.open(name)
        value = parse(stream.read(MAX_DOCUMENT + 1), limit=MAX_DOCUMENT, what="image document")
        if not isinstance(value, dict):
            raise Refusal(["image-malformed"], side="job")
        return value

    def blob(self, descriptor: Mapping[str, Any]) -> BinaryIO:
        """The blob that a descriptor names, at its start, after its size and digest were found right."""
        _demand(descriptor_codes(descriptor))
        name = "blobs/sha256/" + descriptor["digest"].removeprefix("sha256:")
        stream = self.open(name)
        if self.parts[name][2] != descriptor["size"] or _digest(stream) != descriptor["digest"]:
            raise Refusal(["image-blob-differs"], side="job")
        stream.seek(0)
        return stream


@contextmanager
def open_layout(path: Path) -> Iterator[Layout]:
    """The layout in a folder, or in a tar."""
    if path.is_dir():
        with _Streams() as streams:
            yield Layout({name: streams.part(path / name) for name in _names(path)})
    else:
        with path.open("rb") as stream:
            yield Layout({m.name.removeprefix("./"): (stream, m.offset, m.size) for m in members(stream) if m.kind == "file"})


def is_layout(path: Path) -> bool:
    """Whether there is an `oci-layout` file: in the folder, or among the first members of the tar."""
    if path.is_dir():
        return (path / "oci-layout").is_file()
    with path.open("rb") as stream:
        return any(m.name.removeprefix("./") == "oci-layout" for m in members(stream))


@dataclass(frozen=True)
class Image:
    """What was found: the platform manifest's digest and the entry point of the configuration ("" when it has none)."""

    manifest: str
    entry_point: str


def unpack_image(path: Path, tree: Unpacked, layers: Set[str], declared: str | None, entry_point: str | None) -> Image:
    """Unpacks the image's root file system into `tree`: /workload, and whole the layers whose diff id is in `layers`.

    Remarks on its configuration, and says which image it was. Raises `Refusal` for a layout that cannot be followed to its end.
    """
    with open_layout(path) as layout:
        if layout.document("oci-layout") != {"imageLayoutVersion": "1.0.0"}:
            raise Refusal(["image-malformed"], side="job")
        chosen = _choose(layout, layout.document("index.json"))
        if declared is not None and chosen["digest"] != declared:
            raise Refusal(["image-other-digest"], side="job")
        manifest = _read(layout, chosen)
        if manifest.get("mediaType", MANIFEST) != MANIFEST or manifest.get("schemaVersion") != 2 or "subject" in manifest:
            raise Refusal(["image-malformed"], side="job")
        config = _read(layout, manifest.get("config"))
        for code in config_codes(config, entry_point):
            tree.remark(code)
        _layers(layout, manifest.get("layers"), config.get("rootfs"), layers, tree)
    return Image(chosen["digest"], "".join(entry_points(config)[:1]))


def _choose(layout: Layout, index: Mapping[str, Any], depth: int = 0) -> Mapping[str, Any]:
    entries = index.get("manifests")
    if not isinstance(entries, list) or depth > MAX_INDEXES:
        raise Refusal(["image-malformed"], side="job")
    found = candidates(entries)
    if not found:
        raise Refusal(["image-other-platform"], side="job")
    if len(found) > 1:
        raise Refusal(["image-ambiguous"], side="job")
    _demand(descriptor_codes(found[0]))
    if found[0].get("mediaType") == INDEX:
        return _choose(layout, _read(layout, found[0]), depth + 1)
    return found[0]


def _read(layout: Layout, descriptor: Any) -> dict[str, Any]:
    _demand(descriptor_codes(descriptor))
    if descriptor["size"] > MAX_DOCUMENT:
        raise Refusal(["image-malformed"], side="job")
    value = parse(layout.blob(descriptor).read(), limit=MAX_DOCUMENT, what="image document")
    if not isinstance(value, dict):
        raise Refusal(["image-malformed"], side="job")
    return value


def _layers(layout: Layout, layers: Any, rootfs: Any, known: Set[str], tree: Unpacked) -> None:
    ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) and rootfs.get("type") == "layers" else None
    if not isinstance(layers, list) or len(layers) > 128:
        raise Refusal(["image-malformed"], side="job")
    _demand(layer_codes(layers, ids))
    for number, (layer, diff_id) in enumerate(zip(layers, ids or [], strict=True)):
        stream = layout.blob(layer)
        if layer["mediaType"] == LAYER_GZIP:
            with tempfile.TemporaryFile() as plain:
                _inflate(stream, plain, layer["size"], diff_id, tree.limits)
                tree.add_tar(plain, layer=number, root=ROOT, known=diff_id in known)
        elif layer["digest"] != diff_id:
            raise Refusal(["image-blob-differs"], side="job")
        else:
            tree.add_tar(stream, layer=number, root=ROOT, known=diff_id in known)


def _inflate(packed: BinaryIO, plain: Any, size: int, diff_id: str, limits: ScanLimits) -> None:
    """Unzips into `plain`, bounded, and compares the digest of what came out."""
    h, total = hashlib.sha256(), 0
    try:
        with gzip.GzipFile(fileobj=packed, mode="rb") as stream:
            while block := stream.read(CHUNK):
                total += len(block)
                if total > limits.max_bytes:
                    raise Refusal(["archive-too-large"], side="job")
                if total > limits.ratio * max(size, CHUNK):
                    raise Refusal(["archive-ratio"], side="job")
                h.update(block)
                plain.write(block)
    except (OSError, EOFError, zlib.error):
        raise Refusal(["archive-malformed"], side="job") from None
    if "sha256:" + h.hexdigest() != diff_id:
        raise Refusal(["image-blob-differs"], side="job")


def _digest(stream: BinaryIO) -> str:
    h = hashlib.sha256()
    while block := stream.read(CHUNK):
        h.update(block)
    return "sha256:" + h.hexdigest()


def _demand(codes: tuple[str, ...]) -> None:
    if codes:
        raise Refusal(list(codes), side="job")


def _names(folder: Path) -> list[str]:
    blobs = folder / "blobs" / "sha256"
    names = sorted(p.name for p in blobs.iterdir()) if blobs.is_dir() else []
    return ["oci-layout", "index.json", *(f"blobs/sha256/{name}" for name in names)]


class _Streams:
    """Files opened without following links, closed together."""

    def __init__(self) -> None:
        self._open: list[BinaryIO] = []

    def part(self, path: Path) -> tuple[BinaryIO, int, int]:
        try:
            stream = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")
        except OSError:
            raise Refusal(["image-malformed"], side="job") from None
        self._open.append(stream)
        found = os.fstat(stream.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise Refusal(["image-malformed"], side="job")
        return stream, 0, found.st_size

    def __enter__(self) -> "_Streams":
        return self

    def __exit__(self, *_: object) -> None:
        for stream in self._open:
            stream.close()
