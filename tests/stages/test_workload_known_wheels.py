"""torch passes by digest: the wheel's real RECORD and the installed files, against the table that this repository holds."""

import shutil
from importlib.metadata import distribution
from pathlib import Path

import pytest

from policies.known_wheels import KNOWN_WHEELS
from policies.scan import ScanLimits
from policies.wheels import KnownTable, read_record, table
from rapha.errors import ConfigurationError
from tasks.scanning.scan import Scanned, hospital_wheels, scan
from tests.fixtures.workload import FILES, SITE_PACKAGES

INFO = "torch-2.13.0+cpu.dist-info"


def lay_out(folder: Path) -> Path:
    """The trainer, torch's own dist-info and the small part of torch (its nn package and machine code under 300 KiB)."""
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    target = folder / "site-packages"
    skip = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(SITE_PACKAGES / INFO, target / INFO, ignore=skip)
    shutil.copytree(SITE_PACKAGES / "torch" / "nn", target / "torch" / "nn", ignore=skip)
    for path in (SITE_PACKAGES / "torch").glob("*.py"):
        shutil.copy(path, target / "torch" / path.name)
    for path in [*(SITE_PACKAGES / "torch").glob("*.so"), *(SITE_PACKAGES / "torch" / "lib").glob("*.so*")]:
        if path.stat().st_size < 300 * 1024:
            out = target / path.relative_to(SITE_PACKAGES)
            out.parent.mkdir(exist_ok=True)
            shutil.copy(path, out)
    return folder


def scanned(source: Path, destination: Path, wheels: KnownTable | None = None) -> Scanned:
    return scan(source, destination, table() if wheels is None else wheels, ScanLimits(), kind="source", entry_point="train.py")


def test_the_table_holds_the_installed_wheels() -> None:
    for row in KNOWN_WHEELS:
        found = distribution(row["name"])
        record = read_record((found.read_text("RECORD") or "").encode())
        assert record is not None and (found.version, record.digest) == (row["version"], row["record"])


def test_torch_passes_by_its_real_record(tmp_path: Path) -> None:
    report = scanned(lay_out(tmp_path / "w"), tmp_path / "tree").report
    assert report.codes == ()
    assert report.known > 100 and report.own == len(FILES)
    assert any(path.suffix == ".so" for path in (tmp_path / "tree").rglob("*"))


def test_one_byte_in_a_file_of_torch_refuses(tmp_path: Path) -> None:
    source = lay_out(tmp_path / "w")
    hub = source / "site-packages" / "torch" / "hub.py"
    hub.write_bytes(hub.read_bytes() + b"\n")
    assert {"wheel-file-changed", "python-network"} <= set(scanned(source, tmp_path / "tree").report.codes)


def test_one_line_in_the_record_refuses_the_wheel(tmp_path: Path) -> None:
    source = lay_out(tmp_path / "w")
    record = source / "site-packages" / INFO / "RECORD"
    record.write_bytes(record.read_bytes() + b"torch/evil.py,sha256=47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU,0\n")
    assert "record-unknown" in scanned(source, tmp_path / "tree").report.codes


def test_a_file_of_a_known_wheel_at_another_path_is_judged(tmp_path: Path) -> None:
    source = lay_out(tmp_path / "w")
    shutil.copy(SITE_PACKAGES / "torch" / "hub.py", source / "fetch.py")
    assert "python-network" in scanned(source, tmp_path / "tree").report.codes


def test_without_the_table_nothing_passes_by_digest(tmp_path: Path) -> None:
    report = scanned(lay_out(tmp_path / "w"), tmp_path / "tree", KnownTable(frozenset())).report
    assert report.known == 0 and {"record-unknown", "elf-unknown"} <= set(report.codes)


def test_a_wheels_own_file_is_no_entry_point(tmp_path: Path) -> None:
    source = lay_out(tmp_path / "w")
    found = scan(source, tmp_path / "t", table(), ScanLimits(), kind="source", entry_point="site-packages/torch/hub.py")
    assert "entry-point-missing" in found.report.codes


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"name":"x"}]', '[{"name":"x","version":"1","record":"sha256:*"}]'])
def test_a_table_of_the_hospital_that_is_odd(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(ConfigurationError) as error:
        hospital_wheels(tmp_path / "t.json")
    assert error.value.codes == ("known-wheels-malformed",)
