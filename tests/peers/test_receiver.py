"""The receiver against DCMTK and a real Orthanc: what it answers 0x0000 for is sealed, journalled and whole, after any kill."""

import hashlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.presentation import build_context

from blocks.archive import Archive, attributes_digest
from blocks.endpoint import Endpoint, TlsSettings
from blocks.part10 import read_meta
from infra.peers.orthanc import running_orthanc
from infra.receiver.head import named
from rapha.errors import PeerError
from tests.fixtures.certificates import authority
from tests.fixtures.receiving import ENVIRONMENT, Receiving

CT, MR = (Path(str(get_testdata_file(name))) for name in ("CT_small.dcm", "MR_small.dcm"))
SYNTAXES = [
    "MR_small_RLE.dcm",
    "JPGLosslessP14SV1_1s_1f_8b.dcm",
    "MR_small_implicit.dcm",
    "MR_small_bigendian.dcm",
    "image_dfl.dcm",
]


@pytest.fixture(scope="module")
def receiving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiving]:
    with Receiving(tmp_path_factory.mktemp("receiver")) as process:
        yield process


def uid_of(path: Path) -> str:
    return str(dcmread(path, stop_before_pixels=True).SOPInstanceUID)


def renamed(path: Path, folder: Path, number: int) -> Path:
    dataset = dcmread(path)
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"2.25.{number}"
    dataset.save_as(folder / f"{number}.dcm")
    return folder / f"{number}.dcm"


def test_what_was_sent_is_there_sealed_and_nothing_in_clear(receiving: Receiving) -> None:
    with receiving.client() as client:
        ticket = client.expect("ORTHANC", client.message_id(), [uid_of(CT)])
        assert client.arrived(ticket) == []
        assert receiving.send(CT) == 0
        (one,) = client.arrived(ticket)
        file = receiving.content(one)
        meta = read_meta(file)
        assert meta is not None
        assert attributes_digest(file) == attributes_digest(CT.read_bytes())
        assert one.sha256 == "sha256:" + hashlib.sha256(file[meta.length :]).hexdigest()
        needles = [b"CompressedSamples", uid_of(CT).encode(), dcmread(CT).PixelData[1000:1064]]
        for path in receiving.store.iterdir():
            assert not [needle for needle in needles if needle in path.read_bytes()]
            assert uid_of(CT) not in path.name
        client.claim(ticket)
        assert client.unclaimed() == 0


@pytest.mark.parametrize("name", SYNTAXES)
def test_every_transfer_syntax_is_kept_as_it_came(receiving: Receiving, name: str) -> None:
    path = Path(str(get_testdata_file(name)))
    dataset = dcmread(path)
    ae = AE("ORTHANC")
    ae.requested_contexts = [build_context(dataset.SOPClassUID, dataset.file_meta.TransferSyntaxUID)]
    with receiving.client() as client:
        ticket = client.expect("ORTHANC", client.message_id(), [str(dataset.SOPInstanceUID)])
        association = ae.associate("127.0.0.1", receiving.port, ae_title="RAPHA")
        assert association.send_c_store(dataset).Status == 0
        association.release()
        (one,) = client.arrived(ticket)
        got = dcmread(_file(receiving.content(one)))
        assert got.file_meta.TransferSyntaxUID == dataset.file_meta.TransferSyntaxUID
        assert got.PixelData == dataset.PixelData
        client.claim(ticket)


def _file(content: bytes) -> object:
    import io

    return io.BytesIO(content)


def test_the_head_of_a_data_set_names_it_in_every_syntax() -> None:
    for name in ("CT_small.dcm", *SYNTAXES):
        raw = Path(str(get_testdata_file(name))).read_bytes()
        meta = read_meta(raw)
        assert meta is not None
        assert named(raw[meta.length :][: 16 << 10], meta.transfer_syntax) == {
            "sop_class": meta.sop_class,
            "sop_instance": meta.sop_instance,
        }


def test_the_same_again_is_one_and_other_content_is_a_conflict(receiving: Receiving, tmp_path: Path) -> None:
    first = renamed(MR, tmp_path, 501)
    with receiving.client() as client:
        ticket = client.expect("ORTHANC", client.message_id(), ["2.25.501"])
        assert receiving.send(first) == receiving.send(first) == 0
        assert [one.conflict for one in client.arrived(ticket)] == [False]
        other = dcmread(first)
        other.PatientWeight = 99
        other.save_as(first)
        assert receiving.send(first) == 0
        assert sorted(one.conflict for one in client.arrived(ticket)) == [False, True]
        client.claim(ticket)


def test_a_data_set_that_is_another_than_the_command_says_is_kept_nowhere(receiving: Receiving, tmp_path: Path) -> None:
    dataset = dcmread(renamed(MR, tmp_path, 502))
    before = sorted(receiving.store.glob("*.sealed"))
    dataset.file_meta.MediaStorageSOPInstanceUID = "2.25.503"
    ae = AE("ORTHANC")
    ae.requested_contexts = [build_context(dataset.SOPClassUID, dataset.file_meta.TransferSyntaxUID)]
    association = ae.associate("127.0.0.1", receiving.port, ae_title="RAPHA", evt_handlers=[(evt.EVT_DIMSE_SENT, _lie)])
    status = association.send_c_store(dataset, originator_aet="ORTHANC", originator_id=1)
    wrong = _stored_as(receiving, dataset, "2.25.503")
    association.release()
    assert status.Status == 0
    assert wrong == 0xA900
    assert len(sorted(receiving.store.glob("*.sealed"))) == len(before) + 1


def _lie(event: evt.Event) -> None:
    """Nothing: the true data set goes first, so that what differs is the command alone."""


def _stored_as(receiving: Receiving, dataset: Dataset, uid: str) -> int:
    """Sends a C-STORE whose command names another instance than its data set."""
    from pynetdicom.dimse_primitives import C_STORE
    from pynetdicom.dsutils import encode

    ae = AE("ORTHANC")
    ae.requested_contexts = [build_context(dataset.SOPClassUID, dataset.file_meta.TransferSyntaxUID)]
    association = ae.associate("127.0.0.1", receiving.port, ae_title="RAPHA")
    request = C_STORE()
    request.MessageID, request.Priority = 7, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = dataset.SOPClassUID, uid
    request.DataSet = _file(encode(dataset, False, True) or b"")
    association._reactor_checkpoint.clear()
    while not association._is_paused:
        time.sleep(0.001)
    association.dimse.send_msg(request, association.accepted_contexts[0].context_id)
    _, answer = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    association.release()
    return int(answer.Status)


def test_a_stranger_is_rejected_and_an_echo_answered(receiving: Receiving) -> None:
    assert receiving.send(MR, options=("-R", "-aet", "STRANGER")) != 0
    argv = ["echoscu", "-aet", "ORTHANC", "-aec", "RAPHA", "127.0.0.1", str(receiving.port)]
    assert subprocess.run(argv, env=ENVIRONMENT, check=False).returncode == 0


def test_a_move_of_a_real_archive_is_tied_to_its_ticket(receiving: Receiving, tmp_path: Path) -> None:
    modalities = {"RAPHA": ["RAPHA", "127.0.0.1", receiving.port]}
    with running_orthanc(tmp_path / "orthanc", DicomModalities=modalities) as orthanc, receiving.client() as client:
        paths = [renamed(CT, tmp_path, 600 + number) for number in range(5)]
        orthanc.store_all(paths)
        endpoint = Endpoint(name="p", host="127.0.0.1", port=orthanc.dicom_port, ae_title="ORTHANC", calling_ae_title="RAPHA")
        number = client.message_id()
        ticket = client.expect("RAPHA", number, ["2.25.600"])
        outcome = Archive(endpoint).move(str(dcmread(CT).StudyInstanceUID), message_id=number)
        assert outcome.status == 0
        # One was expected by name; the others name the C-MOVE that they belong to.
        assert sorted(one.sop_uid for one in client.arrived(ticket)) == [f"2.25.{600 + n}" for n in range(5)]
        client.claim(ticket)
        transaction = "2.25.4711"
        asked = [(str(dcmread(CT).SOPClassUID), "2.25.600"), (str(dcmread(CT).SOPClassUID), "2.25.999")]
        report = Archive(endpoint).commit(asked, transaction, seconds=20, elsewhere=client.commitment)
        assert (report.committed, dict(report.failed)) == ({"2.25.600"}, {"2.25.999": 0x0112})


def test_what_nobody_expects_is_kept(receiving: Receiving, tmp_path: Path) -> None:
    with receiving.client() as client:
        before = client.unclaimed()
        assert receiving.send(renamed(MR, tmp_path, 700)) == 0
        assert client.unclaimed() == before + 1


def test_a_full_disk_is_answered_a700_and_keeps_nothing(tmp_path: Path) -> None:
    with Receiving(tmp_path / "r", "--disk-floor", str(1 << 60)) as full:
        assert full.send(CT) != 0
        assert list(full.store.glob("*.sealed")) == list(full.store.glob("*.part")) == []


def test_sigkill_in_a_storm_loses_nothing_that_was_answered(tmp_path: Path) -> None:
    with Receiving(tmp_path / "r") as process:
        answered: list[str] = []
        datasets = [dcmread(renamed(CT, tmp_path, 1000 + number)) for number in range(150)]

        def storm() -> None:
            ae = AE("ORTHANC")
            ae.requested_contexts = [build_context(datasets[0].SOPClassUID, datasets[0].file_meta.TransferSyntaxUID)]
            association = ae.associate("127.0.0.1", process.port, ae_title="RAPHA")
            for dataset in datasets:
                if not association.is_established:
                    return
                try:
                    if association.send_c_store(dataset).get("Status") != 0:
                        return  # the receiver is gone; the library may call the association established for a while yet
                    answered.append(str(dataset.SOPInstanceUID))
                except (RuntimeError, OSError):
                    return

        for _ in range(3):
            sender = threading.Thread(target=storm)
            sender.start()
            seen = len(answered)
            while len(answered) < seen + 12 and sender.is_alive():
                time.sleep(0.01)
            process.kill()
            sender.join(60)
            process.start()
        with process.client() as client:
            ticket = client.expect("ORTHANC", client.message_id(), [str(dataset.SOPInstanceUID) for dataset in datasets])
            arrived = client.arrived(ticket)
        assert len(answered) >= 36
        assert set(answered) <= {one.sop_uid for one in arrived}
        assert not any(one.conflict for one in arrived)
        for one in arrived:
            assert b"CompressedSamples" in process.content(one)[:4096]
        assert list(process.store.glob("*.part")) == []


def test_memory_does_not_grow_with_the_object(tmp_path: Path) -> None:
    with Receiving(tmp_path / "r") as process:
        dataset = dcmread(CT)
        dataset.Rows, dataset.Columns, dataset.NumberOfFrames = 4096, 4096, 6
        dataset.PixelData = bytes(4096) * (4096 * 6 * 2)  # 201 MB
        dataset.save_as(tmp_path / "large.dcm")
        del dataset
        assert process.send(tmp_path / "large.dcm") == 0
        assert process.process is not None
        status = Path(f"/proc/{process.process.pid}/status").read_text()
        peak = int(status.split("VmHWM:")[1].split()[0]) // 1024
        assert peak < 128, f"{peak} MB"


def test_tls_alone_and_only_for_those_who_show_a_certificate(tmp_path: Path) -> None:
    ours = authority(tmp_path / "ca")
    cert, key = ours.issue("127.0.0.1")
    options = ("--tls-cert", str(cert), "--tls-key", str(key), "--tls-ca", str(ours.bundle))
    with Receiving(tmp_path / "r", *options) as process:
        sender = ours.issue("sender.test")
        tls = TlsSettings(ca_bundle=ours.bundle, cert_file=sender[0], key_file=sender[1])
        there = {"name": "r", "host": "127.0.0.1", "port": process.port, "ae_title": "RAPHA", "calling_ae_title": "ORTHANC"}
        Archive(Endpoint(**there, tls=tls)).echo()  # type: ignore[arg-type]
        stranger = authority(tmp_path / "other").issue("sender.test")
        for wrong in (None, TlsSettings(ca_bundle=ours.bundle, cert_file=stranger[0], key_file=stranger[1])):
            with pytest.raises(PeerError):
                Archive(Endpoint(**there, tls=wrong, connect_seconds=3.0)).echo()  # type: ignore[arg-type]
        assert process.send(CT) != 0


def test_the_receiver_knows_only_what_it_needs() -> None:
    # pydicom brings an HTTP client along where one is installed; ours are not among what the receiver imports.
    script = "import sys, infra.receiver.__main__; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    ours = {
        "prefect",
        "sqlalchemy",
        "torch",
        "fastapi",
        "highdicom",
        "flows",
        "tasks",
        "policies",
    }
    assert set(found.split()) & ours == set()
