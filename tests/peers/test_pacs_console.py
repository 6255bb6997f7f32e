"""`rapha pacs …` as on the first day: a profile, then echo, probe, find, retrieve, store, commit on real archives."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cyclopts
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file

from blocks.archive import attributes_digest
from flows.console import pacs as pacs_console
from infra.peers.orthanc import free_port, running_orthanc
from rapha.console.app import run
from tests.fixtures.dcmqrscp import running_dcmqrscp

CT = Path(str(get_testdata_file("CT_small.dcm")))
Rapha = Callable[..., tuple[int, dict[str, Any]]]
PROFILE = """
pacs_endpoints:
  primary: {{host: localhost, port: {orthanc}, ae_title: ORTHANC, calling_ae_title: RAPHA, retrieve: C-GET}}
  second: {{host: localhost, port: {dcmqrscp}, ae_title: ARCHIVE, calling_ae_title: RAPHA}}
  nobody: {{host: localhost, port: {nobody}, ae_title: NOBODY, calling_ae_title: RAPHA}}
"""


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("archives")
    allowed = {"DicomAlwaysAllowGet": True, "DicomModalities": {"RAPHA": ["RAPHA", "127.0.0.1", 1]}}
    with running_orthanc(folder / "orthanc", **allowed) as orthanc, running_dcmqrscp(folder / "dcmqrscp", free_port()) as port:
        text = PROFILE.format(orthanc=orthanc.dicom_port, dcmqrscp=port, nobody=free_port())
        (folder / "profile.yaml").write_text(text)
        yield folder / "profile.yaml"


@pytest.fixture
def rapha(profile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Rapha:
    for name in [name for name in os.environ if name.startswith("RAPHA_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAPHA_PROFILE_PATH", str(profile))
    monkeypatch.setenv("RAPHA_STATE_DIR", str(tmp_path / "state"))
    app = cyclopts.App(name="rapha")
    pacs_console.register(app)

    def command(*words: str) -> tuple[int, dict[str, Any]]:
        status = run(app, [*words, "--json"])
        return status, json.loads(capsys.readouterr().out)

    return command


@pytest.mark.parametrize("name", ["primary", "second"])
def test_an_archive_is_connected_step_by_step(rapha: Rapha, tmp_path: Path, name: str) -> None:
    dataset = dcmread(CT)
    study = str(dataset.StudyInstanceUID)
    assert rapha("pacs", "echo", "--pacs", name)[1]["by"] == "C-ECHO"
    status, record = rapha("pacs", "probe", "--pacs", name)
    assert status == 0
    assert {"C-ECHO", "C-FIND", "C-MOVE", "C-GET"} <= set(record["services"])
    assert ("storage commitment" in record["services"]) is (name == "primary")
    assert "CT Image" in record["stores"]
    assert json.loads((tmp_path / "state" / "capabilities" / f"{name}.json").read_bytes())["services"] == record["services"]
    assert rapha("pacs", "store", str(CT), "--pacs", name) == (0, {"pacs": name, "stored": 1})
    status, said = rapha("pacs", "find", f"StudyInstanceUID={study}", "--pacs", name)
    assert (status, said["count"], said["found"][0]["StudyInstanceUID"]) == (0, 1, study)
    status, said = rapha("pacs", "find", f"StudyInstanceUID={study}", "--pacs", name, "--level", "instance")
    assert [row["SOPInstanceUID"] for row in said["found"]] == [str(dataset.SOPInstanceUID)]
    assert rapha("pacs", "commit", str(CT), "--pacs", name) == (0, {"pacs": name, "held": 1})
    status, said = rapha("pacs", "retrieve", study, "--out", str(tmp_path / "out"), "--pacs", name)
    assert (status, said.get("files")) == (0, 1), said
    assert attributes_digest((tmp_path / "out" / "000001.dcm").read_bytes()) == attributes_digest(CT.read_bytes())


def test_what_the_archive_does_not_hold_as_it_is_is_not_committed(rapha: Rapha, tmp_path: Path) -> None:
    dataset = dcmread(CT)
    dataset.PatientWeight = 77
    dataset.save_as(tmp_path / "other.dcm")
    rapha("pacs", "store", str(CT))
    status, said = rapha("pacs", "commit", str(tmp_path / "other.dcm"))
    assert (status, said["codes"]) == (3, ["not-committed"])


def test_an_archive_that_is_not_there_is_a_failed_peer_and_a_wrong_name_is_usage(rapha: Rapha) -> None:
    assert rapha("pacs", "echo", "--pacs", "nobody")[0] == 4
    status, said = rapha("pacs", "echo", "--pacs", "elsewhere")
    assert (status, said["codes"]) == (2, ["pacs-unknown"])
    assert rapha("pacs", "store", "--pacs", "primary")[0] == 2
