"""bwrap(1) for a process of ours that reads foreign bytes: no network, no files of the host's but what it runs, read-only."""

import sys
from collections.abc import Mapping
from pathlib import Path

from infra.launcher.sandbox import BWRAP


def bare(calls: int, shown: Mapping[Path, str]) -> list[str]:
    """The command up to the program. calls: descriptor of the system-call filter; shown: what it sees beside the interpreter's
    own trees, and where."""
    trees = dict.fromkeys(tree for tree in (sys.prefix, sys.base_prefix) if not tree.startswith("/usr") and tree != "/")
    argv = [BWRAP, "--unshare-all", "--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL"]
    for name in ("/usr", *trees):
        argv += ["--ro-bind", name, name]
    for name in ("/lib", "/lib64", "/bin"):
        path = Path(name)
        if path.is_symlink():
            argv += ["--symlink", str(path.readlink()), name]
        elif path.is_dir():
            argv += ["--ro-bind", name, name]
    argv += ["--proc", "/proc", "--dev", "/dev"]
    for source, place in shown.items():
        argv += ["--ro-bind", str(source), place]
    argv += ["--remount-ro", "/", "--setenv", "OMP_NUM_THREADS", "1"]
    return [*argv, "--seccomp", str(calls), "--"]
