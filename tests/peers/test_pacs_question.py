"""`rapha pacs` held to its question on real archives: what does not bound is not asked, what is beyond it is not shown.

What is not there is not retrieved, and what is wrong with the command line, a file or a folder is said as that.
"""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cyclopts
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

from blocks.archive import Archive
from flows.console import pacs as pacs_console
from infra.peers.orthanc import file_bytes, free_port, running_orthanc
from rapha.console.app import run
from rapha.errors import PeerError, Refusal
from tasks.shared.collect import save_by_move
from tests.fixtures.dcmqrscp import running_dcmqrscp
from tests.fixtures.misbehaving import Misbehaving

CT, MR = (dcmread(str(get_testdata_file(name))) for name in ("CT_small.dcm", "MR_small.dcm"))
Rapha = Callable[..., tuple[int, dict[str, Any]]]
PROFILE = """
pacs_endpoints:
  primary: {{host: localhost, port: {orthanc}, ae_title: ORTHANC, calling_ae_title: RAPHA, retrieve: C-GET}}
  second: {{host: localhost, port: {dcmqrscp}, ae_title: ARCHIVE, calling_ae_title: RAPHA, retrieve: C-GET}}
  web: {{host: localhost, port: 0, ae_title: ORTHANC, calling_ae_title: RAPHA, dicomweb_url: "{web}"}}
"""
EVERY = ("primary", "second", "web")


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Each holds a CT of one patient and an MR of another."""
    folder = tmp_path_factory.mktemp("archives")
    modalities = {"DicomAlwaysAllowGet": True, "DicomModalities": {"RAPHA": ["RAPHA", "127.0.0.1", 1]}}
    with running_orthanc(folder / "orthanc", **modalities) as orthanc, running_dcmqrscp(folder / "dcmqrscp", free_port()) as port:
        text = PROFILE.format(orthanc=orthanc.dicom_port, dcmqrscp=port, web=orthanc.url)
        (folder / "profile.yaml").write_text(text)
        for name, dataset in (("ct.dcm", CT), ("mr.dcm", MR)):
            (folder / name).write_bytes(file_bytes(dataset))
        yield folder


@pytest.fixture
def rapha(archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Rapha:
    for name in [name for name in os.environ if name.startswith("RAPHA_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAPHA_PROFILE_PATH", str(archives / "profile.yaml"))
    monkeypatch.setenv("RAPHA_STATE_DIR", str(tmp_path / "state"))
    app = cyclopts.App(name="rapha")
    pacs_console.register(app)

    def command(*words: str) -> tuple[int, dict[str, Any]]:
        status = run(app, [*words, "--json"])
        return status, json.loads(capsys.readouterr().out)

    return command


@pytest.fixture
def filled(rapha: Rapha, archives: Path) -> Rapha:
    if (archives / "filled").exists():
        return rapha
    (archives / "filled").touch()
    for name in ("primary", "second"):
        assert rapha("pacs", "store", str(archives / "ct.dcm"), str(archives / "mr.dcm"), "--pacs", name)[0] == 0
    return rapha


def found(rapha: Rapha, name: str, *keys: str) -> list[str]:
    status, said = rapha("pacs", "find", *keys, "--pacs", name)
    assert status == 0, said
    return sorted(row.get("PatientID", "") for row in said["found"])


UNBOUND = [
    ("SpecificCharacterSet=bogus", 2),
    ("PatientName==", 3),
    ("RetrieveAETitle=X", 2),
    ("TimezoneOffsetFromUTC=+0000", 2),
    ("InstanceAvailability=ONLINE", 2),
    ("NumberOfStudyRelatedInstances=5", 3),
    ("BodyPartExamined=ZZZ", 3),
    (f"PatientID={'a' * 66_000}", 2),
    ("PixelData=1", 2),
    ("Rows=abc", 2),
    ("ReferencedStudySequence=1", 2),
    ("=x", 2),
    ("PatientID=\udce9", 2),
    ("StudyDate=20260230", 2),
]


@pytest.mark.parametrize(("key", "status"), UNBOUND, ids=[key[:24].encode("ascii", "replace").decode() for key, _ in UNBOUND])
def test_what_does_not_bound_a_question_lists_nothing(filled: Rapha, key: str, status: int) -> None:
    for name in EVERY:
        ended, said = filled("pacs", "find", key, "--pacs", name)
        assert (ended, "found" in said) == (status, False), said


@pytest.mark.parametrize("name", EVERY)
def test_what_is_bound_is_found_alone(filled: Rapha, name: str) -> None:
    ct, mr = str(CT.PatientID), str(MR.PatientID)
    assert found(filled, name, f"PatientID={ct}") == found(filled, name, f"00100020={ct}") == [ct]
    assert found(filled, name, f"PatientID={mr}", f"StudyDate={MR.StudyDate}") == [mr]
    assert found(filled, name, f"PatientID={ct}", f"StudyInstanceUID={MR.StudyInstanceUID}") == []
    assert found(filled, name, "ModalitiesInStudy=MR") == [mr]
    assert found(filled, name, "PatientID=*T*", "Modality=CT") == [ct]
    assert found(filled, name, f"PatientName={str(CT.PatientName).lower()}") in ([ct], [])  # an archive is free in a name's case
    assert found(filled, name, f"PatientID={ct}", "PatientName=", "StudyDate=*") == [ct]  # only to be returned
    both = f"StudyInstanceUID={CT.StudyInstanceUID}\\{MR.StudyInstanceUID}"
    assert found(filled, name, both) == sorted([ct, mr])
    for level in ("series", "instance"):
        assert found(filled, name, f"PatientID={ct}", "Modality=CT", "--level", level) == [ct]
        assert found(filled, name, f"PatientID={ct}", "Modality=MR", "--level", level) == []


def test_an_archive_that_does_not_know_modalities_is_asked_for_its_series(filled: Rapha, archives: Path) -> None:
    """dcmqrscp has no ModalitiesInStudy: it answers with every study."""
    assert found(filled, "second", "ModalitiesInStudy=SM") == []


@pytest.mark.parametrize("limit", ["-1", "0", "many"])
def test_a_limit_is_a_number_of_answers(filled: Rapha, limit: str) -> None:
    assert filled("pacs", "find", "PatientID=*T*", "--limit", limit)[0] == 2
    assert filled("pacs", "find", "PatientID=*", "StudyDate=19000101-", "--limit", "1")[1]["count"] == 1


def test_an_archive_that_answers_beyond_the_question_is_a_failed_peer(
    rapha: Rapha, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It matches by dates and UIDs, and ignores every other key."""
    with Misbehaving([CT, MR]) as pacs:
        keys = f"host: localhost, port: {pacs.port}, ae_title: PACS, calling_ae_title: RAPHA"
        (tmp_path / "p.yaml").write_text(f"pacs_endpoints:\n  primary: {{{keys}}}\n")
        monkeypatch.setenv("RAPHA_PROFILE_PATH", str(tmp_path / "p.yaml"))
        assert [one.get("AccessionNumber", "") for one in (CT, MR)] == ["", ""]
        assert rapha("pacs", "find", "AccessionNumber=A1")[1]["found"] == []  # of no value it may say so (PS3.4 C.2.2.1.2)
        for key in ("PatientID=4711", f"PatientID={CT.PatientID}", "StudyID=1", "PatientBirthDate=19700101"):
            status, said = rapha("pacs", "find", key)
            assert (status, said["codes"], "found" in said) == (4, ["pacs-answer-outside"], False), key
        bound = f"StudyDate={CT.StudyDate}"
        said = rapha("pacs", "find", bound, "BodyPartExamined=KNEE", "--level", "series")[1]
        assert (said["codes"], "found" in said) == (["pacs-answer-outside"], False)  # nor does it show a body part
        status, said = rapha("pacs", "find", bound)
        assert (status, [row["PatientID"] for row in said["found"]]) == (0, [str(CT.PatientID)])


def test_a_series_of_another_study_is_not_listed(rapha: Rapha, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def elsewhere(answer: Dataset) -> None:
        if answer.QueryRetrieveLevel == level:
            answer.StudyInstanceUID = MR.StudyInstanceUID
        elif answer.QueryRetrieveLevel == "IMAGE":
            answer.StudyInstanceUID = None  # nor need it be given back

    with Misbehaving([CT], spoils=elsewhere) as pacs:
        keys = f"host: localhost, port: {pacs.port}, ae_title: PACS, calling_ae_title: RAPHA"
        (tmp_path / "p.yaml").write_text(f"pacs_endpoints:\n  primary: {{{keys}}}\n")
        monkeypatch.setenv("RAPHA_PROFILE_PATH", str(tmp_path / "p.yaml"))
        for level in ("SERIES", "IMAGE", "none"):
            status, _ = rapha("pacs", "find", f"StudyDate={CT.StudyDate}", "--level", "instance")
            assert status == (0 if level == "none" else 4), level


def test_nothing_is_moved_of_a_series_that_is_not_there(tmp_path: Path) -> None:
    """It is seen before the receiver is told to expect anything: there is none here."""
    with Misbehaving([CT]) as pacs:
        for series, instance, code in ((MR, None, "series-not-found"), (CT, MR, "instance-not-found")):
            named = str(CT.StudyInstanceUID), str(series.SeriesInstanceUID), str(instance.SOPInstanceUID) if instance else None
            with pytest.raises(Refusal) as none:
                save_by_move(Archive(pacs.endpoint()), None, *named, tmp_path)  # type: ignore[arg-type]
            assert none.value.codes == (code,)
        assert pacs.asked == []


@pytest.mark.parametrize("name", EVERY)
def test_a_series_or_an_instance_that_is_not_there_is_not_retrieved(filled: Rapha, tmp_path: Path, name: str) -> None:
    study, series = str(CT.StudyInstanceUID), str(CT.SeriesInstanceUID)
    asked = {
        "series-not-found": [study, "--series", str(MR.SeriesInstanceUID)],
        "instance-not-found": [study, "--series", series, "--instance", str(MR.SOPInstanceUID)],
        "study-not-found": ["1.2.3.4.5"],
    }
    for code, words in asked.items():
        status, said = filled("pacs", "retrieve", *words, "--out", str(tmp_path / code), "--pacs", name)
        assert (status, said["codes"], said["gate"]) == (3, [code], "pacs")
    words = [study, "--series", series, "--instance", str(CT.SOPInstanceUID)]
    assert filled("pacs", "retrieve", *words, "--out", str(tmp_path / "there"), "--pacs", name)[1]["files"] == 1


@pytest.mark.parametrize("folder", ["/proc/here", "{file}/below", "{tmp}/" + "n" * 300, "{tmp}/\0"])
def test_a_folder_that_cannot_be_is_wrong_usage(filled: Rapha, archives: Path, tmp_path: Path, folder: str) -> None:
    out = folder.format(file=archives / "ct.dcm", tmp=tmp_path)
    status, said = filled("pacs", "retrieve", str(CT.StudyInstanceUID), "--out", out)
    assert (status, said["codes"]) == (2, ["folder-unusable"])


def damaged(archives: Path) -> dict[str, bytes]:
    whole = (archives / "ct.dcm").read_bytes()
    vr = whole.index(b"\x20\x00\x0d\x00UI")  # of the Study Instance UID
    return {
        "cut short in a header": whole[:2000],
        "cut short in the pixels": whole[:-1],
        "a VR that there is none": whole[: vr + 4] + b"ZZ" + whole[vr + 6 :],
        "another file behind it": whole + whole,
        "nothing": b"",
    }


@pytest.mark.parametrize("how", ["cut short in a header", "cut short in the pixels"])
def test_a_file_that_was_cut_short_is_not_sent(rapha: Rapha, archives: Path, tmp_path: Path, how: str) -> None:
    (tmp_path / "cut.dcm").write_bytes(damaged(archives)[how])
    for command in ("store", "commit"):
        status, said = rapha("pacs", command, str(archives / "mr.dcm"), str(tmp_path / "cut.dcm"))
        assert (status, said["codes"]) == (2, ["file-not-dicom"])


@pytest.mark.parametrize("how", ["a VR that there is none", "another file behind it", "nothing"])
def test_a_damaged_file_is_not_sent(rapha: Rapha, archives: Path, tmp_path: Path, how: str) -> None:
    (tmp_path / "odd.dcm").write_bytes(damaged(archives)[how])
    assert rapha("pacs", "store", str(tmp_path / "odd.dcm"))[1]["codes"] == ["file-not-dicom"]


def test_the_receiver_is_asked_for_commitment_alone(filled: Rapha, archives: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAPHA_RECEIVER_SOCKET", "/nowhere/r.sock")
    monkeypatch.setenv("RAPHA_RECEIVER_STORE", "/nowhere")
    assert filled("pacs", "probe", "--pacs", "second")[0] == 0
    held = {"pacs": "second", "held": 1, "by": "read-back"}
    for words in (["--pacs", "second"], ["--pacs", "second", "--by", "read-back"]):
        assert filled("pacs", "commit", str(archives / "ct.dcm"), *words) == (0, held)
    assert filled("pacs", "commit", str(archives / "ct.dcm"), "--by", "read-back")[0] == 0
    assert filled("pacs", "commit", str(archives / "ct.dcm"), "--by", "commitment")[1]["codes"] == ["receiver-unreachable"]


@pytest.mark.parametrize("record", [b"", b"{", b"[]", b'"x"', b"\xff", b'{"services": 1}'])
def test_a_damaged_record_is_mended_by_a_probe(filled: Rapha, tmp_path: Path, record: bytes) -> None:
    path = tmp_path / "state" / "capabilities" / "second.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(record)
    status, said = filled("pacs", "echo", "--pacs", "second")
    assert (status, said["codes"], said["gate"]) == (3, ["capabilities-odd"], "pacs")
    assert filled("pacs", "probe", "--pacs", "second")[0] == 0
    assert filled("pacs", "echo", "--pacs", "second")[0] == 0


@pytest.mark.parametrize(
    ("mode", "url", "code"),
    [
        ("false", "http://192.0.2.1/dicom-web", "not-loopback-dicomweb-base-url"),
        ("false", "http://[", "bad-dicomweb-base-url"),
        ("false", "file:///etc/passwd", "bad-dicomweb-base-url"),
        ("true", "http://192.0.2.1/dicom-web", "clear-dicomweb-base-url"),
        ("true", "https://127.0.0.1/dicom-web", "loopback-dicomweb-base-url"),
    ],
)
def test_without_a_profile_an_address_is_held_to_the_mode(
    rapha: Rapha, monkeypatch: pytest.MonkeyPatch, mode: str, url: str, code: str
) -> None:
    monkeypatch.delenv("RAPHA_PROFILE_PATH")
    monkeypatch.setenv("RAPHA_ENABLE_HOSPITAL_DATA_INTEGRATION", mode)
    monkeypatch.setenv("RAPHA_DICOMWEB_BASE_URL", url)
    for words in (["echo"], ["find", "PatientID=1"]):
        status, said = rapha("pacs", *words)
        assert (status, said["codes"]) == (2, [code]), words


def test_a_questions_frame_is_no_key_below_either() -> None:
    with Misbehaving([CT]) as pacs:
        for name in ("SpecificCharacterSet", "QueryRetrieveLevel"):
            with pytest.raises(PeerError) as failed:
                Archive(pacs.endpoint()).find_studies({name: "IMAGE"})
            assert failed.value.codes == ("dimse-key-unknown",)


def test_a_series_key_alone_is_asked_of_a_relational_archive_only(filled: Rapha) -> None:
    key = f"SeriesInstanceUID={CT.SeriesInstanceUID}"
    assert found(filled, "web", key) == [str(CT.PatientID)]
    assert filled("pacs", "find", key, "--pacs", "second")[1]["codes"] == ["query-broad"]
