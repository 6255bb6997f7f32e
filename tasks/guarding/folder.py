"""The output folder, read once: every entry looked at without following it, the two files copied into memory.

What is judged later is the copy. A file is opened without following links, must be the plain file that was listed, and must not
have changed while it was read.
"""

import errno
import os
import stat
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from policies.output import FolderFacts
from tasks.guarding.kinds import recognise, recognise_name

WEIGHTS, METRICS = "weights.safetensors", "metrics.json"
EXPECTED = (WEIGHTS, METRICS)
_LOOK = 1 << 20  # bytes of an undeclared file that are read, to say what it is
_MAX_ENTRIES = 4096
_HARMLESS_XATTRS = {"security.selinux"}  # a label that the host puts on every file


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """The folder's facts, the kinds that were recognised, and the bytes of the two files (None where one could not be had)."""

    facts: FolderFacts
    kinds: tuple[str, ...]
    weights: bytes | None
    metrics: bytes | None


def read_folder(folder: Path, max_bytes: int) -> Copy:
    """Looks at every entry of `folder` and copies the declared files; never raises for what it finds there."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return Copy(facts=FolderFacts(opened=False, missing=2), kinds=(), weights=None, metrics=None)
    try:
        return _read(fd, max_bytes)
    finally:
        os.close(fd)


def _read(fd: int, max_bytes: int) -> Copy:
    counts: Counter[str] = Counter()
    kinds: set[str] = set()
    contents: dict[str, bytes] = {}
    names = os.listdir(fd)
    counts["extra"] += max(0, len(names) - _MAX_ENTRIES)
    for name in sorted(names)[:_MAX_ENTRIES]:
        expected = name in EXPECTED
        if not expected:
            counts["dot" if name.startswith(".") else "extra"] += 1
            kinds |= recognise_name(name)
        content = _entry(fd, name, max_bytes if expected else _LOOK, counts)
        kinds |= recognise(content or b"")
        if expected and content is not None:
            contents[name] = content
    counts["missing"] += sum(1 for name in EXPECTED if name not in names)
    return Copy(
        facts=FolderFacts(opened=True, **counts),
        kinds=tuple(sorted(kinds)),
        weights=contents.get(WEIGHTS),
        metrics=contents.get(METRICS),
    )


def _entry(folder: int, name: str, cap: int, counts: Counter[str]) -> bytes | None:
    try:
        listed = os.stat(name, dir_fd=folder, follow_symlinks=False)
        odd = _kind_of(listed)
        if odd:
            counts[odd] += 1
            return None
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        counts["unreadable"] += 1
        return None
    try:
        return _content(fd, listed, cap, counts)
    except OSError:
        counts["unreadable"] += 1
        return None
    finally:
        os.close(fd)


def _kind_of(facts: os.stat_result) -> str:
    if stat.S_ISLNK(facts.st_mode):
        return "symlinks"
    if stat.S_ISDIR(facts.st_mode):
        return "folders"
    if not stat.S_ISREG(facts.st_mode):
        return "special"
    return ""


def _content(fd: int, listed: os.stat_result, cap: int, counts: Counter[str]) -> bytes | None:
    before = os.fstat(fd)
    counts["hard_links"] += before.st_nlink != 1
    counts["sparse"] += _has_hole(fd, before.st_size)
    counts["xattrs"] += bool(_attributes(fd) - _HARMLESS_XATTRS)
    counts["bytes"] += before.st_size
    with os.fdopen(fd, "rb", closefd=False) as stream:
        content = stream.read(before.st_size + 1 if before.st_size <= cap else _LOOK)  # over its cap: enough to say what it is
    after = os.fstat(fd)
    if _identity(listed) != _identity(before) or _identity(before) != _identity(after):
        counts["changed"] += 1
        return None
    return content


def _identity(facts: os.stat_result) -> tuple[int, ...]:
    return (facts.st_dev, facts.st_ino, facts.st_mode, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)


def _has_hole(fd: int, size: int) -> bool:
    try:
        return size > 0 and os.lseek(fd, 0, os.SEEK_HOLE) < size
    except OSError:
        return False  # a filesystem that knows no holes
    finally:
        os.lseek(fd, 0, os.SEEK_SET)


def _attributes(fd: int) -> set[str]:
    try:
        return set(os.listxattr(fd))
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.ENOSYS):
            return set()
        raise
