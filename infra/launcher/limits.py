"""Memory and process limits: a control group where this process may make one (v2, then v1), else a watchdog over /proc."""

import contextlib
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


@dataclass(slots=True)
class Group:
    """The control groups of one sandbox, below this process's own. mechanism: "cgroup-v2", "cgroup-v1" or "rlimits"."""

    mechanism: str
    folders: list[Path] = field(default_factory=list)

    def out_of_memory(self) -> bool:
        """Whether the kernel killed something in the group for memory."""
        for folder in self.folders:
            for name in ("memory.events", "memory.oom_control"):
                with contextlib.suppress(OSError):
                    words = (folder / name).read_text().split()
                    pairs = dict(zip(words[::2], words[1::2], strict=False))
                    if int(pairs.get("oom_kill", "0")) > 0:
                        return True
        return False

    def remove(self) -> None:
        """Removes the groups; the kernel needs a moment after the last process."""
        for folder in self.folders:
            for _ in range(50):
                try:
                    folder.rmdir()
                    break
                except FileNotFoundError:
                    break
                except OSError:
                    time.sleep(0.02)


def sweep() -> None:
    """Removes the empty groups of launchers that were killed; one that is in use cannot be removed."""
    for controller in ("", "memory", "pids"):
        own = _own(controller)
        if own is not None:
            for folder in (ROOT / controller / own).glob("rapha-*"):
                with contextlib.suppress(OSError):
                    folder.rmdir()


def make(name: str, memory_bytes: int, processes: int) -> Group:
    """The strongest group that can be made here."""
    return _make_v2(name, memory_bytes, processes) or _make_v1(name, memory_bytes, processes) or Group("rlimits")


def _make_v2(name: str, memory_bytes: int, processes: int) -> Group | None:
    own = _own("")
    if own is None or not (ROOT / "cgroup.controllers").exists():
        return None
    folder = ROOT / own / name
    wanted = {"memory.max": memory_bytes, "memory.swap.max": 0, "pids.max": processes, "memory.oom.group": 1}
    return _settle(Group("cgroup-v2", [folder]), folder, wanted, needed={"memory.max", "pids.max"})


def _make_v1(name: str, memory_bytes: int, processes: int) -> Group | None:
    group = Group("cgroup-v1")
    for controller, wanted, needed in (
        (
            "memory",
            {"memory.limit_in_bytes": memory_bytes, "memory.memsw.limit_in_bytes": memory_bytes},
            {"memory.limit_in_bytes"},
        ),
        ("pids", {"pids.max": processes}, {"pids.max"}),
    ):
        own = _own(controller)
        if own is None:
            group.remove()
            return None
        folder = ROOT / controller / own / name
        group.folders.append(folder)
        if _settle(group, folder, wanted, needed) is None:
            return None
    return group


def _settle(group: Group, folder: Path, wanted: dict[str, int], needed: set[str]) -> Group | None:
    try:
        folder.mkdir()
        for name, value in wanted.items():
            if name in needed or (folder / name).exists():
                with contextlib.nullcontext() if name in needed else contextlib.suppress(OSError):
                    (folder / name).write_text(str(value))
        (folder / "cgroup.procs").open("w").close()
    except OSError:
        group.remove()
        return None
    return group


def _own(controller: str) -> str | None:
    """This process's group for a v1 controller, or for v2 with "", relative to the hierarchy's root."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return path.lstrip("/")
    return None


def resident(pids: list[int]) -> int:
    """Bytes of memory held by these processes, shared pages counted once for each."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError, ValueError, IndexError):
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page
    return total


def threads(pids: list[int]) -> int:
    """Threads of these processes."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            total += len(os.listdir(f"/proc/{pid}/task"))  # noqa: PTH208 - names only
    return total
