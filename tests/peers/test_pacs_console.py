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
from tests.fixtures.misbehaving import Misbehaving
from tests.fixtures.receiving import Receiving

CT = Path(str(get_testdata_file("CT_small.dcm")))
Rapha = Callable[..., tuple[int, dict[str, Any]]]
PROFILE = """
pacs_endpoints:
  primary: {{host: localhost, port: {orthanc}, ae_title: ORTHANC, calling_ae_title: RAPHA, retrieve: C-GET}}
  second: {{host: localhost, port: {dcmqrscp}, ae_title: ARCHIVE, calling_ae_title: RAPHA}}
  web: {{host: localhost, port: 0, ae_title: ORTHANC, calling_ae_title: RAPHA, dicomweb_url: "{web}"}}
  nobody: {{host: localhost, port: {nobody}, ae_title: NOBODY, calling_ae_title: RAPHA}}
"""


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("archives")
    allowed = {"DicomAlwaysAllowGet": True, "DicomModalities": {"RAPHA": ["RAPHA", "127.0.0.1", 1]}}
    with running_orthanc(folder / "orthanc", **allowed) as orthanc, running_dcmqrscp(folder / "dcmqrscp", free_port()) as port:
        text = PROFILE.format(orthanc=orthanc.dicom_port, dcmqrscp=port, nobody=free_port(), web=orthanc.url)
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
    assert "CT Image" in record["stores"] and "1.2.840.10008.1.2.1" in record["syntaxes"]["CT Image"]
    assert record["roots"] == ["patient", "study"] and record["tls"] is None and record["max_pdu"] >= 16384
    assert CT.name not in json.dumps(record) and study not in json.dumps(record)
    assert json.loads((tmp_path / "state" / "capabilities" / f"{name}.json").read_bytes())["services"] == record["services"]
    assert rapha("pacs", "store", str(CT), "--pacs", name) == (0, {"pacs": name, "stored": 1})
    status, said = rapha("pacs", "find", f"StudyInstanceUID={study}", "--pacs", name)
    assert (status, said["count"], said["found"][0]["StudyInstanceUID"]) == (0, 1, study)
    status, said = rapha("pacs", "find", f"StudyInstanceUID={study}", "--pacs", name, "--level", "instance")
    assert [row["SOPInstanceUID"] for row in said["found"]] == [str(dataset.SOPInstanceUID)]
    assert rapha("pacs", "commit", str(CT), "--pacs", name) == (0, {"pacs": name, "held": 1, "by": "read-back"})
    status, said = rapha("pacs", "retrieve", study, "--out", str(tmp_path / "out"), "--pacs", name)
    assert (status, said.get("files")) == (0, 1), said
    assert attributes_digest((tmp_path / "out" / "000001.dcm").read_bytes()) == attributes_digest(CT.read_bytes())


def test_a_probe_of_an_archive_with_studies_says_how_it_answers(rapha: Rapha) -> None:
    expected = {"primary": {"NumberOfStudyRelatedInstances", "ModalitiesInStudy"}, "second": set[str]()}
    for name, computed in expected.items():
        rapha("pacs", "store", str(CT), "--pacs", name)
        record = rapha("pacs", "probe", "--pacs", name)[1]
        assert record["levels"] == dict.fromkeys(("STUDY", "SERIES", "IMAGE"), "answered"), name
        assert record["relational"] is True and record["limit"] == {"answers": 1, "sign": ""}, name
        assert computed <= set(record["keys"]) and "StudyInstanceUID" in record["keys"], name
        assert computed or "NumberOfStudyRelatedInstances" not in record["keys"]
    record = rapha("pacs", "probe", "--pacs", "web")[1]
    assert record["stow"] is True and record["services"] == ["QIDO-RS", "STOW-RS"]


def test_another_object_under_a_known_uid_is_a_conflict(rapha: Rapha, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An archive that keeps what it has: the second content is refused by comparing, whatever status it answered."""
    with Misbehaving([dcmread(CT)], stores=0x0111) as pacs:
        keys = f"host: localhost, port: {pacs.port}, ae_title: PACS, calling_ae_title: RAPHA, retrieve: C-GET"
        (tmp_path / "p.yaml").write_text(f"pacs_endpoints:\n  primary: {{{keys}}}\n")
        monkeypatch.setenv("RAPHA_PROFILE_PATH", str(tmp_path / "p.yaml"))
        assert rapha("pacs", "store", str(CT)) == (0, {"pacs": "primary", "known": 1})
        other = dcmread(CT)
        other.PatientWeight = 77
        other.save_as(tmp_path / "other.dcm")
        status, said = rapha("pacs", "store", str(tmp_path / "other.dcm"))
    assert (status, said["codes"]) == (3, ["store-conflict"])


def test_commitment_is_asked_for_where_the_receiver_can_hear_it(
    tmp_path: Path, rapha: Rapha, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = dcmread(CT)
    other.SOPInstanceUID = other.file_meta.MediaStorageSOPInstanceUID = "2.25.4711"
    other.save_as(tmp_path / "other.dcm")
    with Receiving(tmp_path / "r") as receiver:
        modalities = {"RAPHA": ["RAPHA", "127.0.0.1", receiver.port]}
        with running_orthanc(tmp_path / "orthanc", DicomModalities=modalities) as orthanc:
            keys = f"host: localhost, port: {orthanc.dicom_port}, ae_title: ORTHANC, calling_ae_title: RAPHA"
            (tmp_path / "p.yaml").write_text(f"pacs_endpoints:\n  primary: {{{keys}}}\n")
            monkeypatch.setenv("RAPHA_PROFILE_PATH", str(tmp_path / "p.yaml"))
            monkeypatch.setenv("RAPHA_RECEIVER_SOCKET", str(receiver.folder / "r.sock"))
            monkeypatch.setenv("RAPHA_RECEIVER_STORE", str(receiver.store))
            rapha("pacs", "probe"), rapha("pacs", "store", str(CT))
            assert rapha("pacs", "commit", str(CT)) == (0, {"pacs": "primary", "held": 1, "by": "commitment"})
            status, said = rapha("pacs", "commit", str(CT), str(tmp_path / "other.dcm"))
            assert (status, said["codes"]) == (3, ["not-committed"])


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
