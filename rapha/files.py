"""Opening a file that a stranger may have put there (a regular file or nothing, no waiting), and replacing ours durably."""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from rapha.errors import ConfigurationError


def open_regular(path: Path, code: str) -> BinaryIO:
    """The file, opened to read. `ConfigurationError(code)` for a pipe, a device, a folder, what is missing or not readable."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)  # a pipe's other end is not waited for
    except (OSError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) else "not a name of a file"
        raise ConfigurationError([code], f"{path}: {said}") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ConfigurationError([code], f"{path}: not a regular file")
    return os.fdopen(fd, "rb")


def read_regular(path: Path, limit: int, code: str) -> bytes:
    """The file's first `limit` + 1 bytes: what is longer is refused by the reader that knows the limit."""
    with open_regular(path, code) as stream:
        try:
            return stream.read(limit + 1)
        except OSError as error:
            raise ConfigurationError([code], f"{path}: {error.strerror}") from None


def made_folder(folder: Path, code: str) -> Path:
    """The folder, made where it is missing, for its owner alone. `ConfigurationError(code)` where it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except (OSError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) else "not a name of a folder"
        raise ConfigurationError([code], f"{folder}: {said}") from None
    return folder


def replace_durably(path: Path, write: bytes | Callable[[BinaryIO], object]) -> None:
    """Replaces a file whole, on disk when this returns: a crash leaves the old or the new. Raises `OSError`."""
    temporary = unfinished(path)
    with temporary.open("wb") as stream:
        if callable(write):
            write(stream)
        else:
            stream.write(write)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def unfinished(path: Path) -> Path:
    """Where `replace_durably` writes first: a kill leaves it there, and it may go once nobody writes `path` any more."""
    return path.with_name(path.name + ".new")


def sync_folder(folder: Path) -> None:
    """The folder's names on disk: what was made, renamed or removed in it stays so after a crash. Raises `OSError`."""
    held = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(held)
    finally:
        os.close(held)


@contextmanager
def in_memory(content: bytes) -> Iterator[tuple[int, Path]]:
    """(descriptor, path) of a file that lies in this process's memory alone, and is gone afterwards (memfd_create(2))."""
    fd = os.memfd_create("content")
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        yield fd, Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
