"""The embedded archive's DIMSE side against DCMTK's tools, and what its two doors share."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import StorageCommitmentPushModel  # type: ignore[attr-defined]

from infra.peers.orthanc import free_port

CT = Path(str(get_testdata_file("CT_small.dcm")))
RLE = Path(str(get_testdata_file("MR_small_RLE.dcm")))
PADDING = 0xFFFCFFFC
ENVIRONMENT = {**os.environ, "TCP_NODELAY": "1"}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """The archive with a CT and a compressed MR; `sink` is where it may move to, `caller` whom it reports to."""
    sink, caller = free_port(), free_port()
    argv = [sys.executable, "-m", "infra.hospital", "--root", str(tmp_path_factory.mktemp("dimse")), "--port", "0"]
    argv += ["--dimse-port", "0", "--destination", f"SINK=127.0.0.1:{sink}", "--destination", f"CALLER=127.0.0.1:{caller}"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    port = int(process.stdout.readline().split()[1])
    process.stdout.readline()
    assert process.stdout.readline() == "ready\n"
    made = SimpleNamespace(port=port, sink=sink, caller=caller)
    try:
        assert tool(made, "storescu", "-R", "-xs", str(CT)).returncode == 0
        assert tool(made, "storescu", "-R", "-xr", str(RLE)).returncode == 0
        yield made
    finally:
        process.terminate()
        process.wait(10)


def tool(archive: SimpleNamespace, name: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """One of DCMTK's SCUs; options first, then the address, then files."""
    files = [argument for argument in arguments if argument.endswith(".dcm")]
    options = [argument for argument in arguments if argument not in files]
    argv = [name, "-aec", "HOSPITAL", *options, "127.0.0.1", str(archive.port), *files]
    return subprocess.run(argv, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False)


def study_of(path: Path) -> str:
    return str(dcmread(path, stop_before_pixels=True).StudyInstanceUID)


def same(left: Path, right: Path) -> bool:
    """Equal data sets; the file meta information is each writer's own, and DCMTK drops Data Set Trailing Padding."""
    return [e for e in dcmread(left) if e.tag != PADDING] == [e for e in dcmread(right) if e.tag != PADDING]


def test_it_answers_an_echo(archive: SimpleNamespace) -> None:
    assert tool(archive, "echoscu").returncode == 0


def test_the_same_object_again_is_taken_and_another_with_its_uid_is_not(archive: SimpleNamespace, tmp_path: Path) -> None:
    assert tool(archive, "storescu", "-R", str(CT)).returncode == 0
    other = dcmread(CT)
    other.PatientName = "Other^Person"
    other.save_as(tmp_path / "other.dcm")
    assert tool(archive, "storescu", "-R", str(tmp_path / "other.dcm")).returncode != 0


def test_a_study_is_found_with_what_was_asked_for(archive: SimpleNamespace) -> None:
    keys = ["QueryRetrieveLevel=STUDY", f"StudyInstanceUID={study_of(CT)}", "PatientName", "NumberOfStudyRelatedInstances"]
    done = tool(archive, "findscu", "-S", *[word for key in keys for word in ("-k", key)])
    said = done.stdout + done.stderr
    assert "CompressedSamples^CT1" in said
    assert "Find Response: 1" in said
    assert "Find Response: 2" not in said
    assert "[1 ]" in said.split("NumberOfStudyRelatedInstances")[0].splitlines()[-1]


@pytest.mark.parametrize("path", [CT, RLE])
def test_a_move_delivers_what_was_stored(archive: SimpleNamespace, path: Path, tmp_path: Path) -> None:
    argv = ["storescp", "-aet", "SINK", "+xa", "-od", str(tmp_path), str(archive.sink)]
    listener = subprocess.Popen(argv, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _listening(archive.sink)
        keys = ["-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={study_of(path)}"]
        assert tool(archive, "movescu", "-S", "-aem", "SINK", *keys).returncode == 0
        (got,) = tmp_path.iterdir()
        assert same(got, path)
    finally:
        listener.kill()
        listener.wait()


def test_a_get_delivers_what_was_stored(archive: SimpleNamespace, tmp_path: Path) -> None:
    keys = ["-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={study_of(CT)}"]
    assert tool(archive, "getscu", "-S", "-od", str(tmp_path), *keys).returncode == 0
    (got,) = tmp_path.iterdir()
    assert same(got, CT)


def test_a_move_to_a_stranger_moves_nothing(archive: SimpleNamespace) -> None:
    keys = ["-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={study_of(CT)}"]
    assert tool(archive, "movescu", "-S", "-aem", "STRANGER", *keys).returncode != 0


def test_commitment_names_what_is_kept_and_what_is_not(archive: SimpleNamespace) -> None:
    told: list[tuple[int, Dataset]] = []
    came = threading.Event()

    def report(event: evt.Event) -> tuple[int, None]:
        told.append((event.event_type, event.event_information))
        came.set()
        return 0, None

    ae = AE("CALLER")
    ae.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)
    ae.add_requested_context(StorageCommitmentPushModel)
    server = ae.start_server(("127.0.0.1", archive.caller), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, report)])
    try:
        association = ae.associate("127.0.0.1", archive.port, ae_title="HOSPITAL")
        known = dcmread(CT, stop_before_pixels=True)
        asked = Dataset()
        asked.TransactionUID = "2.25.77"
        asked.ReferencedSOPSequence = [_reference(known.SOPClassUID, uid) for uid in (known.SOPInstanceUID, "2.25.78")]
        status, _ = association.send_n_action(asked, 1, StorageCommitmentPushModel, "1.2.840.10008.1.20.1.1")
        assert status.Status == 0
        assert came.wait(30)
        association.release()
    finally:
        assert server is not None
        server.shutdown()
    kind, information = told[0]
    assert kind == 2
    assert [str(item.ReferencedSOPInstanceUID) for item in information.ReferencedSOPSequence] == [str(known.SOPInstanceUID)]
    assert [int(item.FailureReason) for item in information.FailedSOPSequence] == [0x0112]


def _reference(sop_class: str, uid: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, uid
    return item


def _listening(port: int) -> None:
    for _ in range(200):
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        threading.Event().wait(0.05)
    raise AssertionError("the peer does not listen")
