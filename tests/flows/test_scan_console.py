"""`rapha scan` as a person and as a program see it."""

import json
from pathlib import Path

import cyclopts
import pytest

from flows.console.scan import register
from rapha.console.app import run
from tests.fixtures.workload import FILES, Image, pack, tar_of


def scan(*words: object) -> int:
    app = cyclopts.App(name="rapha")
    register(app)
    return run(app, ["scan", *map(str, words)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        (tmp_path / "w").mkdir(exist_ok=True)
        (tmp_path / "w" / name).write_bytes(content)
    return tmp_path / "w"


def test_a_clean_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert scan(folder, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["verdict"], said["gate"], said["codes"], said["kind"]) == ("cleared", "workload", [], "source")
    assert said["subject"].startswith("sha256:") and said["own_files"] == 4


def test_folder_and_archive_have_the_same_subject(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "w.tar").write_bytes(tar_of(FILES))
    assert scan(folder, "--json") == scan(tmp_path / "w.tar", "--json") == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first["subject"] == second["subject"]


@pytest.mark.parametrize("packed", [False, True])
def test_an_image_as_layout_and_as_archive(tmp_path: Path, packed: bool, capsys: pytest.CaptureFixture[str]) -> None:
    name = Image().write(tmp_path / "layout")
    assert scan(pack(tmp_path / "layout", tmp_path / "i.tar") if packed else tmp_path / "layout", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["kind"], said["subject"], said["entry_point"]) == ("oci", name, "train.py")


def test_a_refusal_names_place_reason_and_remedy(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "net.py").write_text("import socket\n")
    (folder / "link.py").symlink_to("/etc/passwd")
    assert scan(folder, "--json") == 3
    said = json.loads(capsys.readouterr().out)
    assert said["verdict"] == "refused" and said["codes"] == ["file-link", "python-network"]
    assert {"code": "python-network", "path": "net.py"} in said["findings"]
    assert all(reason["wrong"] and reason["todo"] for reason in said["reasons"]) and len(said["reasons"]) == 2
    assert scan(folder) == 3
    assert "python-network" in capsys.readouterr().out


def test_nothing_there_is_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert scan(tmp_path / "absent", "--json") == 2
    assert json.loads(capsys.readouterr().out)["codes"] == ["scan-no-such-path"]


def test_an_empty_folder_and_a_file_of_noise_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "noise").write_bytes(bytes(range(256)) * 8)
    assert scan(tmp_path / "empty", "--json") == 3
    assert scan(tmp_path / "noise", "--json") == 3
