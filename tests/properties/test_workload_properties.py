"""One random change in a clean bundle: either the scan refuses it, or what it would run is still what was scanned."""

import ast
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policies.scan import ScanLimits
from policies.wheels import table
from rapha.errors import Refusal
from tasks.scanning.scan import Scanned, scan
from tasks.scanning.tar import members
from tasks.scanning.unpack import digest_tree
from tests.fixtures.workload import CLEAN, FILES, tar_of

TAR = tar_of(FILES)
QUICK = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
WORDS = ["socket", "ctypes", "subprocess", "importlib", "http.client", "urllib.request", "asyncio", "pickle", "sys", "secret_lib"]


def scanned(raw: bytes, folder: Path) -> Scanned:
    (folder / "w.tar").write_bytes(raw)
    return scan(folder / "w.tar", folder / "tree", table(), ScanLimits(max_bytes=1 << 24), kind="source", entry_point="train.py")


@QUICK
@given(st.integers(0, len(TAR) - 1), st.integers(0, 255))
def test_one_byte_changed_in_a_clean_archive(at: int, value: int) -> None:
    raw = TAR[:at] + bytes([value]) + TAR[at + 1 :]
    with tempfile.TemporaryDirectory() as name:
        found = scanned(raw, Path(name))
        assert digest_tree(Path(name) / "tree") == found.report.tree
        outside = [p for p in Path(name).iterdir() if p.name not in {"w.tar", "tree"}]
        assert outside == []
        for path in (Path(name) / "tree").rglob("*.py"):
            if not found.report.codes:
                ast.parse(path.read_bytes())


@QUICK
@given(
    st.sampled_from(WORDS),
    st.sampled_from(["import {}", "import {} as json2", "from {} import x", "def f():\n    import {}"]),
    st.integers(0, 9),
)
def test_a_line_that_imports_what_is_not_allowed(module: str, form: str, place: int) -> None:
    lines = CLEAN.decode().split("\n")
    starts = [n for n, line in enumerate(lines) if line and not line.startswith((" ", ")", '"'))]
    at = starts[min(place, len(starts) - 1)]
    changed = "\n".join([*lines[:at], form.format(module), *lines[at:]])
    ast.parse(changed)
    with tempfile.TemporaryDirectory() as name:
        found = scanned(tar_of({**FILES, "train.py": changed.encode()}), Path(name))
    assert any(code.startswith("python-") for code in found.report.codes)


@QUICK
@given(st.text(alphabet="abc./\\ .\0\n\u202e~", min_size=1, max_size=24))
def test_no_path_leads_out(path: str) -> None:
    try:
        raw = tar_of({**FILES, path: b"x = 1\n"})
    except ValueError:
        return
    with tempfile.TemporaryDirectory() as name:
        found = scanned(raw, Path(name))
        assert {p.name for p in Path(name).iterdir()} <= {"w.tar", "tree"}
        assert all((Path(name) / "tree" / p).is_file() for p in FILES) or found.report.codes


@QUICK
@given(st.binary(max_size=4096))
def test_the_tar_reader_ends_or_refuses(raw: bytes) -> None:
    with tempfile.TemporaryFile() as stream:
        stream.write(raw)
        try:
            list(members(stream))
        except Refusal as refusal:
            assert refusal.codes[0].startswith("archive-")


@QUICK
@given(st.text(max_size=200))
def test_any_text_as_python_is_judged_without_running(text: str) -> None:
    from policies.python_source import judge_source

    assert isinstance(judge_source(text.encode("utf-8", "surrogatepass"), frozenset()), tuple)
