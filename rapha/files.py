"""Opening a file that a stranger may have put there: a regular file or nothing, and no waiting for what is none."""

import os
import stat
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
