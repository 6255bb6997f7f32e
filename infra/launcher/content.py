"""The bytes that go into a sandbox, copied into the launcher's own memory and hashed there, and what is copied out again."""

import hashlib
import io
import os
import re
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from blocks.launcher import tree_digest
from rapha.canonical import digest, digest_of
from rapha.errors import Refusal
from tasks.scanning.tar import Member, members

MAX_SOURCE = 64 << 20
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Inside:
    """Digests of what was put inside, and where the weights are ("" for none)."""

    workload: str
    launcher: str
    weights: str
    weights_path: str


def put_launcher(source: Path, wanted: str, folder: Path) -> str:
    """The hospital's launcher script as rapha/launch.py. Refuses other bytes than `wanted`."""
    raw = _read(source, 1 << 20, "launcher")
    if digest(raw) != wanted:
        raise Refusal(["launcher-digest"], "the launcher script is not the one the gates judged")
    (folder / "launch.py").write_bytes(raw)
    return digest(raw)


def put_source(source: Path, wanted: str, folder: Path) -> str:
    """Unpacks a source bundle. What is hashed is what is unpacked: the bytes are read once.

    The reader is the scan's own: two readers that took one archive for two trees would run what nobody has scanned (B01, B09).
    """
    raw = _read(source, MAX_SOURCE, "workload")
    if digest(raw) != wanted:
        raise Refusal(["workload-digest"], "the workload is not the one the gates judged")
    try:
        for member in members(io.BytesIO(raw)):
            _unpack(raw, member, folder)
    except OSError:
        raise Refusal(["workload-unreadable"], "the workload does not unpack", side="job") from None
    return digest(raw)


def check_root(root: Path, wanted: str) -> str:
    """The digest of an unpacked image's root file system. Refuses another than `wanted`."""
    try:
        found = tree_digest(root)
    except OSError:
        raise Refusal(["workload-unreadable"], "the image's files cannot be read") from None
    if found != wanted:
        raise Refusal(["workload-digest"], "the image's files are not those that the gates judged")
    return found


def put_weights(source: Path, wanted: str, place: Path) -> str:
    """Copies base weights to `place`. Refuses other bytes than `wanted`."""
    total = hashlib.sha256()
    try:
        with source.open("rb") as read, place.open("wb") as written:
            while block := read.read(_CHUNK):
                total.update(block)
                written.write(block)
    except OSError:
        raise Refusal(["weights-unreadable"], "the base weights cannot be copied in") from None
    if f"sha256:{total.hexdigest()}" != wanted:
        raise Refusal(["weights-digest"], "the base weights are not those that the gates judged")
    return f"sha256:{total.hexdigest()}"


def put_package(folder: Path) -> None:
    """The `rapha` package alone, out of the tree that this process runs from."""
    import rapha

    source = Path(str(rapha.__file__ or rapha.__path__[0])).resolve()
    source = source if source.is_dir() else source.parent
    shutil.copytree(source, folder / "rapha", ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))


def copy_out(source: Path, destination: Path, *, files: int, size: int) -> dict[str, object]:
    """Copies plain files of one flat folder into a new one; everything else is a code. Call it only when nothing lives inside.

    What is read is what is there: no link is followed, nothing is created but regular files of mode 0400 (C15, E16).
    """
    destination.mkdir(parents=True, mode=0o700)
    listing: list[list[object]] = []
    codes: set[str] = set()
    total = 0
    top = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        for name in sorted(os.listdir(top)):  # noqa: PTH208 - by descriptor
            wrong = _odd(top, name)
            total += 0 if wrong else os.stat(name, dir_fd=top, follow_symlinks=False).st_size
            wrong = wrong or ("out-too-many" if len(listing) >= files else "out-too-large" if total > size else "")
            if wrong:
                codes.add(wrong)
                continue
            listing.append([name, *_copy(top, name, destination / name)])
    finally:
        os.close(top)
    done = {"files": len(listing), "size": sum(int(str(item[1])) for item in listing), "digest": digest_of(listing)}
    return {**done, "codes": sorted(codes)}


def _odd(top: int, name: str) -> str:
    status = os.stat(name, dir_fd=top, follow_symlinks=False)
    if not _NAME.fullmatch(name):
        return "out-odd-name"
    if not stat.S_ISREG(status.st_mode):
        return "out-not-a-file"
    return "out-linked" if status.st_nlink != 1 else ""


def _copy(top: int, name: str, place: Path) -> tuple[int, str]:
    total, size = hashlib.sha256(), 0
    read = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=top)
    written = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
    try:
        while block := os.read(read, _CHUNK):
            total.update(block)
            size += len(block)
            os.write(written, block)
        os.fsync(written)
    finally:
        os.close(read)
        os.close(written)
    return size, f"sha256:{total.hexdigest()}"


def _unpack(raw: bytes, member: Member, folder: Path) -> None:
    parts = Path(member.name).parts
    if member.kind == "folder" and parts in ((), (".",)):
        return
    plain = member.kind in ("file", "folder")
    if not parts or any(not _NAME.fullmatch(part) for part in parts if part != ".") or not plain:
        raise Refusal(["workload-odd-member"], "the workload's archive holds something else than plain files", side="job")
    place = folder.joinpath(*(part for part in parts if part != "."))
    if member.kind == "folder":
        place.mkdir(parents=True, exist_ok=True)
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("xb") as stream:
        stream.write(raw[member.offset : member.offset + member.size])


def _read(path: Path, limit: int, what: str) -> bytes:
    try:
        with path.open("rb") as stream:
            raw = stream.read(limit + 1)
    except OSError:
        raise Refusal([f"{what}-unreadable"], f"the {what} cannot be read") from None
    if len(raw) > limit:
        raise Refusal([f"{what}-too-large"], f"the {what} is larger than {limit} bytes")
    return raw
