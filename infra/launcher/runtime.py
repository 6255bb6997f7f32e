"""What of the host the sandbox may see, read-only: shared libraries, one interpreter, its packages, and the `rapha` package."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from infra.launcher import mounts
from rapha.errors import ConfigurationError

_ASK = "import json, sys; print(json.dumps([sys.executable, sys.prefix, sys.base_prefix, '%d.%d' % sys.version_info[:2]]))"
_SYSTEM = ("/usr/lib", "/usr/lib64", "/lib", "/lib64")


@dataclass(frozen=True, slots=True)
class Runtime:
    """python: path of the interpreter, the same inside and outside; binds: (source, place inside), folders or files;
    links: (target, place inside); packages: folders for PYTHONPATH."""

    python: str
    binds: tuple[tuple[str, str], ...]
    links: tuple[tuple[str, str], ...]
    packages: tuple[str, ...]


def find(python: Path, packages: tuple[Path, ...], stage: Path) -> Runtime:
    """The interpreter's trees, shown again below `stage`. Raises `ConfigurationError` when it does not run."""
    try:
        done = subprocess.run([str(python), "-I", "-c", _ASK], capture_output=True, check=True, timeout=30)
        executable, prefix, base, version = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        raise ConfigurationError(["launcher-no-python"], f"{python} does not run as an interpreter") from None
    trees = [Path(tree) for tree in dict.fromkeys([prefix, base, *map(str, packages)]) if not _is_system(Path(tree))]
    real = Path(executable).resolve()
    local = Path(f"/usr/local/lib/python{version}")
    files = [real] if real.is_relative_to("/usr") else []
    extra = [local] if base == "/usr/local" and local.is_dir() else []
    binds = [(tree, str(tree)) for tree in (*trees, *extra, *files)]
    system = [(Path(name), name) for name in _SYSTEM if Path(name).is_dir() and not Path(name).is_symlink()]
    links = tuple((str(Path(name).readlink()), name) for name in _SYSTEM if Path(name).is_symlink())
    inside = str(real) if real.is_relative_to("/usr") and not _below(executable, trees) else executable
    return Runtime(inside, tuple(_shown(binds, stage)) + tuple((str(s), p) for s, p in system), links, tuple(map(str, packages)))


def _is_system(tree: Path) -> bool:
    return str(tree) in {"/usr", "/usr/local", "/"}


def _below(path: str, trees: list[Path]) -> bool:
    return any(Path(path).is_relative_to(tree) for tree in trees)


def _shown(binds: list[tuple[Path, str]], stage: Path) -> list[tuple[str, str]]:
    stage.mkdir(exist_ok=True)
    out = []
    for number, (source, place) in enumerate(binds):
        mounts.show(source, stage / str(number))
        out.append((str(stage / str(number)), place))
    return out
