"""The launcher as a process: `python -m infra.launcher`, inside the node's namespace."""

import argparse
import os
from pathlib import Path

from infra.daemon import serve
from infra.launcher import limits, mounts, runtime, sandbox
from infra.launcher.sandbox import NOBODY
from infra.launcher.service import Launcher, LauncherSession


def main() -> None:
    """Parses the options, leaves the host's mount namespace, then serves."""
    parser = argparse.ArgumentParser(prog="python -m infra.launcher", description=__doc__)
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--python", type=Path, required=True, help="the trainer's interpreter; its folders are bound read-only")
    parser.add_argument(
        "--packages", type=Path, action="append", default=[], help="a folder of packages to bind and to import from"
    )
    parser.add_argument("--keeper", type=Path, help="the keeper's socket; without it no sandbox passes the train gate")
    options = parser.parse_args()
    sandbox.check_version()
    limits.sweep()
    stage = mounts.enter_private_namespace()
    found = runtime.find(options.python.absolute(), tuple(path.resolve() for path in options.packages), stage / "runtime")
    launcher = Launcher(stage, found, options.keeper, drop=_can_become_nobody())
    serve(options.socket, lambda: LauncherSession(launcher), ready=lambda: print("ready", flush=True))


def _can_become_nobody() -> bool:
    """Whether another user than this one can be taken: real root, or a user namespace that maps one."""
    if os.getuid() != 0:
        return False
    for line in Path("/proc/self/uid_map").read_text().splitlines():
        first, _, count = (int(word) for word in line.split())
        if first <= NOBODY < first + count:
            return True
    return False


if __name__ == "__main__":
    main()
