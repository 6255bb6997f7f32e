"""The last step before bubblewrap, in a process of its own: joins the control groups, takes a network namespace with nothing
in it, lowers the limits, gives up the user's rights, becomes bwrap.

    python -m infra.launcher.stage PLAN   with PLAN = {"groups": [...], "limits": {...}, "uid": 65534 | null, "argv": [...]}

The network namespace is made here and not by bwrap, which would bring its loopback up.
"""

import ctypes
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

CLONE_NEWNET = 0x40000000
PR_SET_PDEATHSIG, SIGKILL = 1, 9


def become(plan: dict[str, Any]) -> None:
    """Does not return. Raises `OSError` when a step fails: nothing is started with less."""
    libc = ctypes.CDLL(None, use_errno=True)
    for group in plan["groups"]:
        (Path(group) / "cgroup.procs").write_text(str(os.getpid()))
    if libc.unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    for name, value in plan["limits"].items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
    if plan["uid"] is not None:
        os.setgroups([])
        os.setresgid(plan["uid"], plan["uid"], plan["uid"])
        os.setresuid(plan["uid"], plan["uid"], plan["uid"])
    libc.prctl(PR_SET_PDEATHSIG, SIGKILL)
    if os.getppid() != plan["parent"]:
        sys.exit(1)
    os.execv(plan["argv"][0], plan["argv"])  # noqa: S606 - no shell is the point


if __name__ == "__main__":
    become(json.loads(sys.argv[1]))
