"""The architecture, tested: who imports whom, how long things are, which words and habits have no place here."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from policies.required import REQUIRED_CHECKS, REQUIRED_GATES

HOME = Path(__file__).parents[2]
ROOMS = ("rapha", "policies", "blocks", "tasks", "flows", "infra")
BROAD = {"policies/gate.py", "infra/daemon.py", "rapha/console/app.py", "tasks/stage.py"}
# Written in parts, so that this file does not hold them.
WORDS = [
    re.compile(pattern)
    for pattern in (
        r"\bFAC" + r"ES\b",
        r"\bHOU" + r"SE(\.md| section)",
        r"THRE" + r"ATS\.md",
        r"/wor" + r"k/(main|shared)",
        r"/tmp/pl" + r"an",
        r"\bsee" + r"ds?/0?0",
        r"\bsee" + r"d 00[0-9]",
        r"(?i)\bhelper ses" + r"sion",
        r"(?i)\bCla" + r"ude\b",
    )
]
DANGEROUS = {"eval", "exec", "pickle.load", "pickle.loads", "marshal.loads", "os.system", "os.popen", "yaml.load", "dill.loads"}
IMPURE = {
    "os",
    "time",
    "socket",
    "subprocess",
    "urllib",
    "urllib3",
    "httpx",
    "prefect",
    "random",
    "secrets",
    "sqlalchemy",
    "threading",
}


def tracked(suffix: str = "") -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=HOME, capture_output=True, check=True).stdout.decode().split("\0")
    return [HOME / name for name in listed if name.endswith(suffix) and name and (HOME / name).is_file()]


def ours() -> list[Path]:
    return [path for path in tracked(".py") if path.relative_to(HOME).parts[0] in ROOMS]


def named(path: Path) -> str:
    return path.relative_to(HOME).as_posix()


def trees(paths: list[Path]) -> Iterator[tuple[Path, ast.Module]]:
    for path in paths:
        yield path, ast.parse(path.read_bytes())


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def test_imports_run_down_the_house() -> None:
    tool = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([tool, "--no-cache"], cwd=HOME, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_no_function_is_longer_than_80_lines() -> None:
    long = [
        f"{named(path)}:{node.name} {node.end_lineno - node.lineno + 1}"
        for path, tree in trees(tracked(".py"))
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno and node.end_lineno - node.lineno + 1 > 80
    ]
    assert long == []


def test_no_file_has_500_lines() -> None:
    long = [f"{named(p)} {n}" for p in ours() if (n := len(p.read_bytes().splitlines())) >= 500]
    assert long == []


def test_broad_excepts_stand_at_the_named_boundaries_only() -> None:
    found = {
        named(path)
        for path, tree in trees(ours())
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler) and _is_broad(node)
    }
    assert found <= BROAD, found - BROAD


def _is_broad(handler: ast.ExceptHandler) -> bool:
    """`except:`, `except Exception`, or `except BaseException` that does more than clean up and raise again."""
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    broad = any(kind is None or dotted(kind) in ("Exception", "BaseException") for kind in kinds)
    last = handler.body[-1]
    return broad and not (isinstance(last, ast.Raise) and last.exc is None)


def test_every_required_gate_has_its_checks_named() -> None:
    gates = {gate for door in REQUIRED_GATES.values() for gate in door}
    assert sorted(gate for gate in gates if not REQUIRED_CHECKS.get(gate)) == []


def test_the_seal_needs_all_that_training_needs() -> None:
    assert REQUIRED_GATES["seal"][: len(REQUIRED_GATES["train"])] == REQUIRED_GATES["train"]
    assert len(set(REQUIRED_GATES["seal"])) == len(REQUIRED_GATES["seal"])


def test_no_text_speaks_of_what_is_not_the_projects() -> None:
    found = []
    for path in tracked():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue  # an image or another binary
        found += [f"{named(path)}: {match[0]}" for word in WORDS if (match := word.search(text))]
    assert found == []


def test_no_file_is_named_after_nothing() -> None:
    nothing = {"utils", "common", "helpers", "core", "lib", "manager", "misc"}
    assert [named(p) for p in ours() if nothing & {p.stem, *p.relative_to(HOME).parts[:-1]}] == []


def test_nothing_that_arrives_is_run_or_unpickled() -> None:
    found = [
        f"{named(path)}:{node.lineno} {dotted(node.func)}"
        for path, tree in trees(ours())
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and (dotted(node.func) in DANGEROUS or _shell(node))
    ]
    assert found == []


def _shell(call: ast.Call) -> bool:
    return any(k.arg == "shell" and not (isinstance(k.value, ast.Constant) and k.value.value is False) for k in call.keywords)


def test_decisions_are_pure() -> None:
    found = [
        f"{named(path)}: {name}"
        for path, tree in trees([p for p in ours() if named(p).startswith("policies/")])
        for name in _imported(tree)
        if name.split(".")[0] in IMPURE
    ]
    assert found == []


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_stages_read_no_environment() -> None:
    found = [
        f"{named(path)}:{node.lineno}"
        for path, tree in trees([p for p in ours() if named(p).split("/")[0] in ("policies", "tasks")])
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and dotted(node) in ("os.environ", "os.getenv")
    ]
    assert found == []


def test_no_test_skips() -> None:
    skips = re.compile(r"pytest\.(skip|xfail|importorskip)|mark\.(skip|skipif|xfail)\b|unittest\.skip")
    tests = [p for p in tracked(".py") if named(p).startswith("tests/") and p != Path(__file__)]
    assert [named(path) for path in tests if skips.search(path.read_text())] == []


def commands() -> list[str]:
    files = (HOME / "pyproject.toml", HOME / "infra" / "package" / "pyproject.toml")
    return [
        target
        for path in files
        for target in tomllib.loads(path.read_text())["project"]["entry-points"]["rapha.commands"].values()
    ]


@pytest.mark.parametrize("target", commands())
def test_every_command_that_is_announced_is_there(target: str) -> None:
    module, function = target.split(":")
    assert callable(getattr(import_module(module), function))


def test_the_published_part_stands_alone() -> None:
    """What an AI team installs imports without the engine and without any of the node's rooms."""
    rooms = {*ROOMS[1:], "prefect", "sqlalchemy", "fastapi"}
    script = (
        "import sys, importlib, pkgutil, rapha\n"
        "for m in pkgutil.walk_packages(rapha.__path__, 'rapha.'):\n"
        "    if not m.name.endswith('__main__'): importlib.import_module(m.name)\n"
        f"print(*sorted({{m.split('.')[0] for m in sys.modules}} & {rooms!r}))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=HOME, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("", "")
