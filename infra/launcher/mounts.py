"""The launcher's own mount namespace: what a sandbox writes lives in memory, seen by no other process, gone with this one."""

import contextlib
import ctypes
import os
from pathlib import Path

from rapha.errors import ConfigurationError, PeerError

CLONE_NEWNS = 0x20000
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _BIND, _REC, _PRIVATE, _DETACH = 1, 2, 4, 8, 0x20, 0x1000, 0x4000, 1 << 18, 2
_PLACES = ("/media", "/mnt", "/srv", "/opt")
_libc = ctypes.CDLL(None, use_errno=True)


def enter_private_namespace() -> Path:
    """Leaves the host's mount namespace and returns an empty folder in memory, world-searchable. Call before any thread starts.

    Raises `ConfigurationError` without the right to (root, or root of a user namespace).
    """
    place = next((Path(name) for name in _PLACES if _is_empty(Path(name))), None)
    if place is None:
        raise ConfigurationError(["launcher-no-place"], f"none of {', '.join(_PLACES)} is an empty folder to mount over")
    if _libc.unshare(CLONE_NEWNS) != 0:
        raise ConfigurationError(["launcher-no-rights"], "the launcher needs root, or root of the node's user namespace")
    _mount(None, Path("/"), None, _REC | _PRIVATE, None)
    memory(place, size=1 << 30, entries=100_000, mode="0755", executable=True)
    return place


def memory(place: Path, *, size: int, entries: int, mode: str, owner: int = 0, executable: bool = False) -> None:
    """A tmpfs of at most `size` bytes and `entries` files."""
    place.mkdir(exist_ok=True)
    flags = _NOSUID | _NODEV | (0 if executable else _NOEXEC)
    _mount("tmpfs", place, "tmpfs", flags, f"size={size},nr_inodes={entries},mode={mode},uid={owner},gid={owner}")


def show(source: Path, place: Path) -> None:
    """The same tree at a second place, so that a user who may not search the folders above it can be given it."""
    if source.is_dir():
        place.mkdir(parents=True, exist_ok=True)
    else:
        place.touch()
    _mount(str(source), place, None, _BIND | _REC, None)


def drop(place: Path) -> None:
    """Lets go of a mount; its memory is freed with its last user."""
    _libc.umount2(os.fsencode(place), _DETACH)


def _is_empty(place: Path) -> bool:
    with contextlib.suppress(OSError):
        return place.is_dir() and not place.is_symlink() and not os.listdir(place)  # noqa: PTH208
    return False


def _mount(source: str | None, target: Path, kind: str | None, flags: int, options: str | None) -> None:
    encoded = [os.fsencode(text) if text is not None else None for text in (source, str(target), kind)]
    data = options.encode() if options is not None else None
    if _libc.mount(*encoded, ctypes.c_ulong(flags), data) != 0:
        raise PeerError("mount-failed", f"a mount failed: {os.strerror(ctypes.get_errno())}", peer="launcher")
