"""Putting cleared bytes on disk: whole or not at all, and never over something that is there."""

import os
from collections.abc import Mapping
from pathlib import Path

from rapha.errors import ConfigurationError


def prepare_release(folder: Path) -> None:
    """Makes `folder`, or takes it if it is empty; anything else is `ConfigurationError(release-not-empty)`."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ConfigurationError(["release-not-a-folder"], f"{folder}: not a folder")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if any(folder.iterdir()):
        raise ConfigurationError(["release-not-empty"], f"{folder}: the release folder must be empty")


def write_release(folder: Path, files: Mapping[str, bytes]) -> None:
    """Writes `files` durably into the empty `folder`: new files, no name that is not a fixed one, times and modes our own."""
    prepare_release(folder)
    for name, content in sorted(files.items()):
        write_new(folder / name, content)
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_new(path: Path, content: bytes) -> None:
    """A new file, on disk when this returns; `FileExistsError` if the name is taken."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
