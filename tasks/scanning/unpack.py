"""Untrusted trees onto disk: regular files only, below one folder, hashed as they are written, bounded.

What may not be is not written and noted as a remark; a bound that is passed ends the reading. No link is ever made and each file
is created anew, so a path cannot lead out of the folder.
"""

import hashlib
import os
import re
import shutil
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from policies.scan import Remark, ScanLimits
from rapha.canonical import digest
from rapha.errors import Refusal
from tasks.scanning.tar import Member, members

CHUNK = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9_.+@=,~#() -]+", re.ASCII)
_WHITEOUT, _OPAQUE = ".wh.", ".wh..wh..opq"


@dataclass(frozen=True, slots=True)
class Written:
    """A file of the tree: its size, its digest ("link <target>" for a link of a known layer), the layer that it came from, and
    whether that layer is known."""

    size: int
    digest: str
    layer: int
    known: bool = False


@dataclass
class Unpacked:
    """A tree on disk below `folder`, what is in it, and what was refused on the way."""

    folder: Path
    limits: ScanLimits
    files: dict[str, Written] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    remarks: list[Remark] = field(default_factory=list)
    size: int = 0
    seen: int = 0

    @property
    def tree(self) -> str:
        """Digest of the sorted paths and digests."""
        return digest("".join(f"{path}\0{self.files[path].digest}\n" for path in sorted(self.files)).encode())

    def remark(self, code: str, path: str = "") -> None:
        self.remarks.append(Remark(code, path))

    def add_tar(self, stream: BinaryIO, *, layer: int = 0, root: str = "", known: bool = False) -> None:
        """A tar. `root`: the one folder below which files may be (an image's), "" for all; `known`: a layer that passes whole,
        by its digest. Raises `Refusal` when it must stop."""
        for member in members(stream):
            self._count(member.size)
            path = _clean(member.name, self.limits.max_path)
            if path is None:
                self.remark("path-unsafe", _printable(member.name))
                continue
            if known:
                self._known(stream, member, path, layer)
            elif path and _below(path, root):
                self._member(stream, member, path, layer, whiteouts=bool(root))
            elif path and member.kind != "folder":
                self.remark("path-outside", path)

    def add_folder(self, source: Path) -> None:
        """A folder, read without following links."""
        for here, names, files in os.walk(source, followlinks=False):
            for name in sorted([*names, *files]):
                self._found(Path(here) / name, (Path(here) / name).relative_to(source).as_posix())

    def _found(self, path: Path, relative: str) -> None:
        before = path.lstat()
        self._count(before.st_size if stat.S_ISREG(before.st_mode) else 0)
        if _clean(relative, self.limits.max_path) != relative:
            self.remark("path-unsafe", _printable(relative))
        elif stat.S_ISLNK(before.st_mode):
            self.remark("file-link", relative)
        elif stat.S_ISDIR(before.st_mode):
            self._folder(relative)
        elif not stat.S_ISREG(before.st_mode):
            self.remark("file-device", relative)
        elif before.st_mode & 0o7000 or before.st_nlink > 1:
            self.remark("file-set-id" if before.st_mode & 0o7000 else "file-link", relative)
        else:
            with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as stream:
                self._write(stream, relative, before.st_size, 0)

    def _member(self, stream: BinaryIO, member: Member, path: str, layer: int, *, whiteouts: bool) -> None:
        name = path.rpartition("/")[2]
        if member.special:
            self.remark("file-set-id", path)
        elif member.kind in {"link", "device"}:
            self.remark(f"file-{member.kind}", path)
        elif whiteouts and name.startswith(_WHITEOUT):
            self._whiteout(path, layer)
        elif member.kind == "folder":
            self._folder(path)
        else:
            stream.seek(member.offset)
            self._write(stream, path, member.size, layer)

    def _known(self, stream: BinaryIO, member: Member, path: str, layer: int) -> None:
        """A member of a layer that the hospital knows: links stay links, set-id bits and hard links do not."""
        if path.rpartition("/")[2].startswith(_WHITEOUT):
            self._whiteout(path, layer)
        elif member.kind == "folder":
            self._folder(path)
        elif member.kind == "link" and member.target:
            self._link(path, member.target, layer)
        elif member.kind == "file":
            stream.seek(member.offset)
            self._write(stream, path, member.size, layer, known=True, executable=member.executable)
        else:
            self.remark(f"file-{member.kind}", path)

    def _link(self, path: str, target: str, layer: int) -> None:
        if path in self.files or path in self.folders or not self._folder(path.rpartition("/")[0]):
            self.remark("path-twice", path)
            return
        (self.folder / path).symlink_to(target)
        self.files[path] = Written(0, f"link {target}", layer, True)

    def _whiteout(self, path: str, layer: int) -> None:
        """Takes a path of the layers below away (OCI layer specification, "Whiteouts")."""
        folder, _, name = path.rpartition("/")
        opaque = name == _OPAQUE
        target = folder if opaque else "/".join(part for part in (folder, name.removeprefix(_WHITEOUT)) if part)
        for held in [p for p in self.files if not target or p == target or p.startswith(target + "/")]:
            if self.files[held].layer < layer:
                self.size -= self.files.pop(held).size
                (self.folder / held).unlink()

    def _folder(self, path: str) -> bool:
        """Makes a folder and those above it; False when a file is in the way."""
        parts = path.split("/") if path else []
        for depth in range(1, len(parts) + 1):
            here = "/".join(parts[:depth])
            if here in self.files:
                self.remark("path-twice", path)
                return False
            if here not in self.folders:
                (self.folder / here).mkdir(exist_ok=True)
                self.folders.add(here)
        return True

    def _write(
        self, stream: BinaryIO, path: str, size: int, layer: int, *, known: bool = False, executable: bool = False
    ) -> None:
        held = self.files.get(path)
        if path in self.folders or (held is not None and held.layer == layer):
            self.remark("path-twice", path)
            return
        if not self._folder(path.rpartition("/")[0]):
            return
        if held is not None:
            (self.folder / path).unlink()
        found = _copy(stream, self.folder / path, size)
        if found is None:
            self.remark("file-changed", path)
            return
        if executable:
            (self.folder / path).chmod(0o755)
        self.files[path] = Written(size, found, layer, known)

    def _count(self, size: int) -> None:
        self.seen += 1
        self.size += size
        limits = self.limits
        if self.seen > limits.max_files or self.size > limits.max_bytes or size > limits.max_file_bytes:
            raise Refusal(["archive-too-large"], side="job")


def _copy(stream: BinaryIO, target: Path, size: int) -> str | None:
    """Writes `size` bytes of `stream` to a new file; their digest, or None when the stream holds another number of bytes."""
    h, left = hashlib.sha256(), size
    with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644), "wb") as out:
        while left and (block := stream.read(min(CHUNK, left))):
            h.update(block)
            out.write(block)
            left -= len(block)
    return None if left else "sha256:" + h.hexdigest()


def _clean(name: str, longest: int) -> str | None:
    """A plain relative path, "" for the root itself, or None."""
    path = name[:-1] if name.endswith("/") else name
    path = path.removeprefix("./")
    if path in {"", "."}:
        return ""
    if len(path) > longest or path.startswith("/"):
        return None
    ok = all(part not in {"", ".", ".."} and _NAME.fullmatch(part) for part in path.split("/"))
    return path if ok else None


def _below(path: str, root: str) -> bool:
    return not root or path.startswith(root + "/")


def _printable(name: str) -> str:
    return ascii(name[:80])


def digest_tree(folder: Path) -> str:
    """`Unpacked.tree` of what lies below `folder` now: hashed again. A device or pipe gives another digest."""
    lines = []
    for here, names, files in os.walk(folder, followlinks=False):
        for path in [Path(here) / name for name in (*names, *files)]:
            mode = path.lstat().st_mode
            if not stat.S_ISDIR(mode):
                found = f"link {path.readlink()}" if stat.S_ISLNK(mode) else _digest_of(path) if stat.S_ISREG(mode) else "special"
                lines.append((path.relative_to(folder).as_posix(), found))
    return digest("".join(f"{path}\0{found}\n" for path, found in sorted(lines)).encode())


def _digest_of(path: Path) -> str:
    h = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(CHUNK):
            h.update(block)
    return "sha256:" + h.hexdigest()


def seal(folder: Path) -> None:
    """Makes the tree read-only for everybody; what was executable stays so."""
    for here, names, files in os.walk(folder, topdown=False):
        for path in [Path(here) / name for name in (*files, *names)]:
            mode = path.lstat().st_mode
            if not stat.S_ISLNK(mode):
                path.chmod(0o555 if stat.S_ISDIR(mode) or mode & 0o111 else 0o444)
    folder.chmod(0o555)


def remove(folder: Path) -> None:
    """Takes a sealed tree away again."""
    for here, _, _ in os.walk(folder):
        Path(here).chmod(0o755)
    shutil.rmtree(folder, ignore_errors=True)
