"""Makes the mutations of docs/properties.md, each alone in a copy of the tree, and runs the row's tests: they must fail.

    python -m scripts.mutations [number ...]

Minutes: part of `make soak`. Exit status 1 where a mutation lives, or where a row's tests fail without it.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.house.properties_table import HOME, Property, properties

SECONDS = 500
# A counterexample is enough; to make it small takes minutes.
QUICK = """from hypothesis import Phase, settings
settings.register_profile("quick", phases=[Phase.explicit, Phase.generate])
settings.load_profile("quick")
"""


def main(numbers: list[str]) -> int:
    rows = [one for one in properties() if one.function and (not numbers or str(one.number) in numbers)]
    with tempfile.TemporaryDirectory(prefix="rapha-mutations-") as folder:
        tree = copied(Path(folder))
        wrong = [row.number for row in rows if not killed(tree, row)]
    print(f"{len(rows) - len(wrong)} of {len(rows)} mutations are found" + (f"; not: {wrong}" if wrong else ""))
    return 1 if wrong else 0


def copied(folder: Path) -> Path:
    """Every file that git knows or would take, as it is now."""
    argv = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(argv, cwd=HOME, capture_output=True, check=True).stdout.decode().split("\0")
    for name in filter(None, listed):
        if (HOME / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(HOME / name, folder / name)
    (folder / "conftest.py").write_text(QUICK)
    return folder


def killed(tree: Path, row: Property) -> bool:
    """Whether the tests pass as the code is, and fail with the mutation."""
    path = tree / row.source.relative_to(HOME)
    right = path.read_text()
    passes = run(tree, row) == 0
    path.write_text(right.replace(row.old, row.new))
    fails = run(tree, row) == 1  # pytest's status for failed tests; a test that is not found is another
    path.write_text(right)
    print(
        f"{row.number:3} {'found' if passes and fails else 'FAILS ANYWAY' if not passes else 'LIVES'}  {row.function}", flush=True
    )
    return passes and fails


def run(tree: Path, row: Property) -> int:
    argv = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *row.tests]
    try:
        return subprocess.run(argv, cwd=tree, capture_output=True, timeout=SECONDS, check=False).returncode
    except subprocess.TimeoutExpired:
        return -1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
