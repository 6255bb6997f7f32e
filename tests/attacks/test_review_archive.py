"""One archive that two readers take for two trees: what is scanned must be what is run."""

import io
import tarfile
from pathlib import Path

import pytest

from infra.launcher.content import put_source
from policies.scan import ScanLimits
from policies.wheels import table
from rapha.canonical import digest
from rapha.errors import Refusal
from tasks.scanning.scan import scanned_aside

GOOD = b"print(1)\n"
EVIL = b"import socket\n"


def _member(name: str, content: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = len(content), kind
    return info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % 512)


def _pax(**fields: str) -> bytes:
    records = b""
    for key, value in fields.items():
        size = len(key) + len(value) + 3
        size += len(str(size + len(str(size))))
        records += f"{size} {key}={value}\n".encode()
    return _member("x", records, tarfile.XHDTYPE)


def _long(name: str) -> bytes:
    return _member("././@LongLink", name.encode() + b"\0", tarfile.GNUTYPE_LONGNAME)


def _archive(*parts: bytes) -> bytes:
    return b"".join((_member("train.py", GOOD), *parts, bytes(1024)))


TWO_TREES = {
    "two pax names": _archive(_pax(path="evil.py") + _pax(path="README.md") + _member("plain.md", EVIL)),
    "two pax sizes": _archive(
        _pax(size="0") + _pax(size=str(len(_member("evil.py", EVIL)))) + _member("README.md", _member("evil.py", EVIL))
    ),
    "a long name and a pax name": _archive(_long("evil.py") + _pax(path="README.md") + _member("plain.md", EVIL)),
}


@pytest.mark.parametrize("case", TWO_TREES)
def test_B09_an_archive_with_two_readings_is_neither_cleared_nor_run(tmp_path: Path, case: str) -> None:
    raw, path = TWO_TREES[case], tmp_path / "bundle.tar"
    path.write_bytes(raw)
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        assert "evil.py" in archive.getnames()  # what another reader would put into the sandbox
    with scanned_aside(path, table([]), ScanLimits()) as found:
        assert "archive-malformed" in found.report.codes
    (tmp_path / "inside").mkdir()
    with pytest.raises(Refusal) as refused:
        put_source(path, digest(raw), tmp_path / "inside")
    assert refused.value.codes == ("archive-malformed",)
    assert not (tmp_path / "inside" / "evil.py").exists()


def test_a_plain_bundle_is_unpacked_as_it_was_scanned(tmp_path: Path) -> None:
    raw, path = _archive(_pax(path="deep/" + "n" * 110 + ".py") + _member("short.py", GOOD)), tmp_path / "bundle.tar"
    path.write_bytes(raw)
    (tmp_path / "inside").mkdir()
    assert put_source(path, digest(raw), tmp_path / "inside") == digest(raw)
    assert (
        (tmp_path / "inside" / "deep" / ("n" * 110 + ".py")).read_bytes() == GOOD == (tmp_path / "inside/train.py").read_bytes()
    )
