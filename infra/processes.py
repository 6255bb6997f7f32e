"""Who lives in a process namespace, by its inode, from /proc (pid_namespaces(7))."""

import os
from pathlib import Path


def living_in(inode: int) -> list[int]:
    """Process ids, as seen here, of everything in the process namespace `inode`.

    A zombie is left out: it runs nothing, holds nothing, and may wait long to be collected. A process that hides its namespace
    from us counts if it is in a nested one: it may be the one that we look for.
    """
    return [pid for pid in _all() if _namespace(pid) in (inode, None) and not _is_zombie(pid)]


def _all() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208 - names only, the hot loop


def _namespace(pid: int) -> int | None:
    """Inode of the process's namespace; 0 when it is gone or not nested; None when it is nested and hidden."""
    try:
        return int(str(Path(f"/proc/{pid}/ns/pid").readlink()).removeprefix("pid:[").removesuffix("]"))
    except PermissionError:
        return None if _nested(pid) else 0
    except (OSError, ValueError):
        return 0  # gone


def _nested(pid: int) -> bool:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return False
    # Our own uid only: another user's process cannot be one that the launcher started without root.
    uids = next((line.split()[1:] for line in lines if line.startswith("Uid:")), [])
    levels = next((line.split()[1:] for line in lines if line.startswith("NSpid:")), [])
    return len(levels) > 1 and str(os.getuid()) in uids


def _is_zombie(pid: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return text.rpartition(")")[2].split()[0] in "ZX"
