"""Associations that are cut, stall, drip or lie, at every place of a real exchange: each operation ends in time, with a code."""

import logging
import secrets
import ssl
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from pydicom import DataElement, dcmread
from pydicom.config import IGNORE
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

from blocks.archive import Archive, Listed
from blocks.dimse.association import _Checkpoint
from blocks.dimse.services import ToStore
from blocks.endpoint import Endpoint, TlsSettings
from blocks.reading import ReadingRegister
from infra.peers.orthanc import Orthanc, running_orthanc
from infra.study.fetching import Fetching
from policies.polling import PollSettings
from rapha.errors import ConfigurationError, PeerError
from tasks.reading.poll import poll
from tasks.shared.probe import probe, read_record, write_record
from tests.fixtures import misbehaving as m
from tests.fixtures.certificates import Authority, authority
from tests.fixtures.misbehaving import Misbehaving, Reply
from tests.fixtures.wire import Cut, Wire
from tests.peers.test_misbehaving import listed, study

CT = Path(str(get_testdata_file("CT_small.dcm")))
# An association that is cut or stalled keeps one of its threads busy for a while; it has four unless it is told otherwise.
ALLOWED = {"DicomAlwaysAllowGet": True, "DicomThreadsCount": 64, "DicomModalities": {"RAPHA": ["RAPHA", "127.0.0.1", 1]}}
ENDS = {"dimse-aborted", "dimse-hung-up", "dimse-timeout", "dimse-slow", "dimse-unreachable", "commitment-timeout"}
STUDY = str(dcmread(CT).StudyInstanceUID)


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with running_orthanc(tmp_path_factory.mktemp("orthanc"), **ALLOWED) as archive:
        archive.store(CT)
        yield archive


def archive_at(port: int, **changes: object) -> Archive:
    facts: dict[str, object] = {"name": "primary", "host": "127.0.0.1", "port": port, "ae_title": "ORTHANC", "retrieve": "C-GET"}
    facts |= {"calling_ae_title": "RAPHA", "connect_seconds": 1.5, "idle_seconds": 1.0, "move_idle_seconds": 1.0}
    return Archive(Endpoint(**{**facts, **changes}))  # type: ignore[arg-type]


def to_store(path: Path = CT) -> ToStore:
    dataset = dcmread(path, stop_before_pixels=True)
    return ToStore(path, str(dataset.SOPClassUID), str(dataset.SOPInstanceUID), str(dataset.file_meta.TransferSyntaxUID))


def got(archive: Archive) -> int:
    """How many bytes of the study came whole."""
    sizes: list[int] = []
    archive.get(STUDY, archive.list_study(STUDY), lambda _class, _uid, blocks: sizes.append(sum(map(len, blocks))))
    return sum(sizes)


OPERATIONS: dict[str, Callable[[Archive], Any]] = {
    "echo": lambda archive: archive.echo(),
    "find": lambda archive: archive.find_studies({"StudyInstanceUID": STUDY}),
    "list": lambda archive: archive.list_study(STUDY),
    "move": lambda archive: archive.move(STUDY, message_id=5).status,
    "get": got,
    "store": lambda archive: archive.store(STUDY, [to_store()]),
    "commit": lambda archive: archive.commit([("1.2.840.10008.5.1.4.1.1.2", "1.2.3")], "2.25.1", seconds=0.1),
}


def outcome(operation: str, archive: Archive) -> tuple[Any, float]:
    began = time.monotonic()
    try:
        answer = OPERATIONS[operation](archive)
    except PeerError as error:
        answer = error.codes
    return answer, time.monotonic() - began


@pytest.mark.parametrize("how", ["stall", "close", "reset"])
@pytest.mark.parametrize("operation", list(OPERATIONS))
def test_a_cut_anywhere_ends_the_operation_in_time(orthanc: Orthanc, operation: str, how: str) -> None:
    with Wire(orthanc.dicom_port) as wire:
        whole, _ = outcome(operation, archive_at(wire.port))
    length = len(wire.came)
    places = sorted({0, 3, length // 4, length // 2, length - length // 5, length - 11})

    def cut(place: int) -> tuple[int, Any, float]:
        with Wire(orthanc.dicom_port, Cut(place, how)) as broken:  # type: ignore[arg-type]
            return (place, *outcome(operation, archive_at(broken.port)))

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(cut, places))
    for place, answer, seconds in found:
        # Each association counts from nothing: what lists first may get past a cut that lies beyond its answer.
        assert answer == whole or (isinstance(answer, tuple) and set(answer) <= ENDS), (place, answer)
        assert seconds < 12, (place, seconds)
    assert any(answer != whole for _, answer, _ in found)


def test_an_archive_that_does_not_read_what_we_send(orthanc: Orthanc, tmp_path: Path) -> None:
    dataset = dcmread(CT)
    dataset.Rows = dataset.Columns = 4096
    dataset.PixelData = bytes(4096 * 4096 * 2)
    dataset.save_as(tmp_path / "large.dcm")
    with Wire(orthanc.dicom_port, Cut(200_000, "stall", ours=True)) as wire:
        began = time.monotonic()
        with pytest.raises(PeerError) as failed:
            archive_at(wire.port).store(STUDY, [to_store(tmp_path / "large.dcm")])
    assert failed.value.codes == ("dimse-timeout",) and time.monotonic() - began < 8


@pytest.mark.parametrize(("after", "code", "limit"), [(3, "dimse-timeout", 5), (400, "dimse-slow", 6)])
def test_a_drip_is_not_waited_for(orthanc: Orthanc, after: int, code: str, limit: int) -> None:
    with Wire(orthanc.dicom_port, Cut(after, "drip", every=0.3)) as wire:
        began = time.monotonic()
        with pytest.raises(PeerError) as failed:
            archive_at(wire.port, whole_seconds=3.0).list_study(STUDY)
    assert failed.value.codes == (code,) and time.monotonic() - began < limit


def test_a_slow_archive_is_not_a_silent_one(orthanc: Orthanc) -> None:
    """Bytes come, though the whole message takes longer than the idle time."""
    with Wire(orthanc.dicom_port, Cut(30_000, "drip", every=0.0004)) as wire:
        began = time.monotonic()
        assert got(archive_at(wire.port, idle_seconds=0.8)) > CT.stat().st_size - 4096
    assert time.monotonic() - began > 1.0


def test_a_pdu_that_claims_gigabytes_is_not_made_room_for(orthanc: Orthanc) -> None:
    class Liar(Wire):
        def _pump(self, source: Any, to: Any, record: bytearray, ours: bool) -> None:
            if ours:
                super()._pump(source, to, record, ours)
            else:
                source.recv(1 << 16)
                to.sendall(b"\x02\x00\xff\xff\xff\xf0" + b"\0" * 64)

    with Liar(orthanc.dicom_port) as wire:
        answer, seconds = outcome("echo", archive_at(wire.port))
    assert set(answer) <= ENDS and seconds < 4


def test_a_peer_that_accepts_and_then_says_nothing_over_tls(tmp_path: Path, orthanc: Orthanc) -> None:
    ours = authority(tmp_path)
    certificate, key = ours.issue("rapha.test")
    tls = TlsSettings(ca_bundle=ours.bundle, cert_file=certificate, key_file=key)
    for cut in (Cut(0, "stall"), Cut(0, "drip", every=0.5)):
        with Wire(orthanc.dicom_port, cut) as wire:
            answer, seconds = outcome("echo", archive_at(wire.port, tls=tls))
        assert answer[0].startswith(("tls-", "dimse-")) and seconds < 5


def needles() -> list[bytes]:
    dataset = dcmread(CT)
    return [str(dataset[name].value).encode() for name in ("PatientName", "PatientID", "StudyInstanceUID", "SOPInstanceUID")]


def tls_of(ours: Authority, **changes: object) -> TlsSettings:
    certificate, key = ours.issue("rapha.test")
    return TlsSettings(**{"ca_bundle": ours.bundle, "cert_file": certificate, "key_file": key, **changes})  # type: ignore[arg-type]


def exchanged(port: int, **changes: object) -> bytes:
    """Everything that passed while every service was used."""
    with Wire(port) as wire:
        archive = archive_at(wire.port, idle_seconds=10.0, **changes)
        archive.store(STUDY, [to_store()])
        assert archive.find_studies({"PatientID": str(dcmread(CT).PatientID)})
        assert got(archive) > 0
        archive.move(STUDY, message_id=3)
        with pytest.raises(PeerError):
            archive.commit([("1.2.840.10008.5.1.4.1.1.2", str(dcmread(CT).SOPInstanceUID))], "2.25.3", seconds=0.1)
    return wire.seen()


def test_in_clear_everything_can_be_read(orthanc: Orthanc) -> None:
    """The control of the next test: the wire does see what there is to see."""
    seen = exchanged(orthanc.dicom_port)
    assert [needle for needle in needles() if needle not in seen] == []


@pytest.mark.parametrize("version", ["TLS_1_3", "TLS_1_2"])
def test_over_tls_nothing_can_be_read(tmp_path: Path, version: str) -> None:
    ours = authority(tmp_path / "ca")
    certificate, key = ours.issue("127.0.0.1")
    tls = {"DicomTlsEnabled": True, "DicomTlsCertificate": str(certificate), "DicomTlsPrivateKey": str(key)}
    tls |= {"DicomTlsTrustedCertificates": str(ours.bundle), "DicomTlsRemoteCertificateRequired": True}
    with running_orthanc(tmp_path / "orthanc", **ALLOWED, **tls) as archive:
        seen = exchanged(archive.dicom_port, tls=tls_of(ours, version=version))
    secret = [*needles(), b"ORTHANC", b"1.2.840.10008", b"ISO_IR"]
    assert len(seen) > 2 * CT.stat().st_size and [needle for needle in secret if needle in seen] == []


def serving(ours: Authority, name: str = "127.0.0.1", *, expired: bool = False, only: ssl.TLSVersion | None = None) -> Any:
    """A pynetdicom PACS's TLS."""
    certificate, key = ours.issue(name, expired=expired)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(ours.bundle)
    context.verify_mode = ssl.CERT_REQUIRED
    if only is not None:
        context.minimum_version = context.maximum_version = only
    return context


V12, V13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
#        the PACS's certificate        its versions  ours       what we are told
TLS_MATRIX = {
    "right": ({}, None, {}, "answered"),
    "right by another name": ({"name": "pacs.test"}, None, {"server_name": "pacs.test"}, "answered"),
    "wrong name": ({"name": "other.test"}, None, {}, "tls-name-differs"),
    "expired": ({"expired": True}, None, {}, "tls-certificate-expired"),
    "foreign CA": ({}, None, {"ca_bundle": "foreign"}, "tls-certificate-untrusted"),
    "our certificate of a foreign CA": ({}, None, {"cert_file": "foreign"}, "dimse-aborted"),
    "we are asked for a certificate and have none": ({}, None, {"cert_file": None, "mutual_auth": False}, "dimse-aborted"),
    "1.3 wanted, 1.2 offered": ({}, V12, {}, "tls-handshake-failed"),
    "1.2 wanted as the exception, 1.3 alone offered": ({}, V13, {"version": "TLS_1_2"}, "tls-handshake-failed"),
    "1.2 as the exception": ({}, V12, {"version": "TLS_1_2"}, "answered"),
}


@pytest.mark.parametrize("case", list(TLS_MATRIX))
def test_each_cell_of_tls(tmp_path: Path, case: str) -> None:
    theirs, only, changes, told = TLS_MATRIX[case]
    ours, foreign = authority(tmp_path / "ca"), authority(tmp_path / "foreign", "Foreign")
    settings = dict(changes)
    if changes.get("ca_bundle"):
        settings["ca_bundle"] = foreign.bundle
    if changes.get("cert_file"):
        settings["cert_file"], settings["key_file"] = foreign.issue("rapha.test")
    elif "cert_file" in changes:
        settings["key_file"] = None
    with Misbehaving([], tls=serving(ours, only=only, **theirs)) as pacs:
        archive = Archive(pacs.endpoint(tls=tls_of(ours, **settings)))
        answer, _ = outcome("echo", archive)
    assert ("answered" if answer is None else answer[0]) == told


def test_a_secure_endpoint_has_no_clear_dicomweb(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as refused:
        archive_at(1, tls=tls_of(authority(tmp_path)), dicomweb_url="http://127.0.0.1:1/dicom-web")
    assert refused.value.codes == ("endpoint-clear-dicomweb",)


def studies(count: int) -> list[Dataset]:
    made = []
    for number in range(count):
        (dataset,) = study(1)
        dataset.StudyDate, dataset.StudyTime = "20240115", f"{number % 12:02d}{number % 60:02d}00"
        made.append(dataset)
    return made


@pytest.mark.parametrize("limit", ["cap", "refuses_beyond"])
def test_a_cap_of_500_loses_no_study(tmp_path: Path, limit: str) -> None:
    """One stops at 500 and calls it success, one refuses with 0xA700: 620 studies are there, 620 are found."""

    class Flat(Archive):
        """Each study's one series, without the question: what is below a study is not what is tested."""

        def find_series(self, study: str) -> list[dict[str, Any]]:
            return [{"0020000E": {"Value": [f"{study}.1"]}, "00080060": {"Value": ["CT"]}, "00201209": {"Value": [1]}}]

    noon = 1705320000  # 2024-01-15 12:00 UTC
    register = ReadingRegister.at(tmp_path / "r.sqlite", secrets.token_bytes(32))
    with Misbehaving(studies(620), **{limit: 500}) as pacs:
        found = poll(register, Flat(pacs.endpoint(idle_seconds=20.0)), PollSettings(pacs="primary", most=500), noon)
    assert found.new == 620
    register.close()


def test_a_probe_sees_a_cap_a_refusal_and_the_tls(tmp_path: Path) -> None:
    noon, ours = 1705320000, authority(tmp_path)
    with Misbehaving(studies(60), cap=50) as pacs:
        assert probe(Archive(pacs.endpoint()), noon)["limit"] == {"answers": 50, "sign": "round-number"}
    with Misbehaving(studies(20), refuses_beyond=10) as pacs:
        assert probe(Archive(pacs.endpoint()), noon)["limit"] == {"answers": 0, "sign": "more-or-refused"}
    with Misbehaving(studies(2), find_status=0xC000) as pacs:
        assert probe(Archive(pacs.endpoint()), noon)["levels"]["STUDY"] == "dimse-find-refused"
    with Misbehaving([], tls=serving(ours)) as pacs:
        record = probe(Archive(pacs.endpoint(tls=tls_of(ours))), noon)
    assert record["tls"]["version"] == "TLSv1.3" and record["tls"]["certificate_until"].endswith("GMT")
    assert record["levels"] == {"STUDY": "answered", "SERIES": "nothing-to-ask", "IMAGE": "nothing-to-ask"}
    assert read_record(write_record(tmp_path / "c", record).parent, "primary").services >= {"C-FIND", "C-GET", "C-MOVE"}


def test_a_query_that_ends_badly_gives_no_part_of_an_answer() -> None:
    for status, code in ((0xC000, "dimse-find-refused"), (0xFE00, "dimse-too-many"), (0xA900, "dimse-find-refused")):
        with Misbehaving(study(3), find_status=status) as pacs, pytest.raises(PeerError) as failed:
            Archive(pacs.endpoint()).find_studies({})
        assert failed.value.codes == (code,)
    with Misbehaving(studies(5), refuses_beyond=3) as pacs, pytest.raises(PeerError) as failed:
        Archive(pacs.endpoint()).find_studies({})
    assert failed.value.codes == ("dimse-too-many",)
    with Misbehaving(studies(5)) as pacs, pytest.raises(PeerError) as failed:
        Archive(pacs.endpoint()).find_studies({}, most=4)
    assert failed.value.codes == ("dimse-too-many",)


def test_names_come_in_the_archives_character_set() -> None:
    datasets = study(1)
    for charset, name in (
        ("ISO_IR 100", "Müller^Zoë"),
        ("ISO_IR 192", "山田^太郎"),
        ("ISO 2022 IR 6\\ISO 2022 IR 87", "Yamada^Tarou=山田^太郎"),
    ):
        datasets[0].SpecificCharacterSet, datasets[0].PatientName = charset.split("\\"), name
        with Misbehaving(datasets) as pacs:
            (answer,) = Archive(pacs.endpoint()).find_studies({"PatientName": ""})
        assert "=".join(answer["00100010"]["Value"][0].values()) == name


def test_what_an_archive_encodes_wrongly_is_in_no_log(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def spoil(answer: Dataset) -> None:
        for name, vr, value in (
            ("StudyDate", "DA", "NEEDLE-31.2."),
            ("StudyTime", "TM", "NEEDLE"),
            ("AccessionNumber", "SH", "NEEDLE" * 9),
            ("InstanceCreatorUID", "UI", "1.NEEDLE.2"),
        ):
            answer[name] = DataElement(name, vr, value, validation_mode=IGNORE)

    datasets = study(2)
    datasets[0].PatientID = datasets[1].PatientID = "NEEDLE-7"
    caplog.set_level(logging.DEBUG)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with Misbehaving(datasets, spoils=spoil) as pacs:
            archive = Archive(pacs.endpoint())
            assert len(archive.find_studies({"PatientID": "NEEDLE-7"})) == 1
            archive.list_study(str(datasets[0].StudyInstanceUID))
            archive.find_studies({"PatientID": "NEEDLE" * 12, "StudyDate": "NEEDLE"})
            fetched(by_get(pacs), datasets, tmp_path)
    said = capfd.readouterr()
    everything = caplog.text + said.out + said.err + " ".join(str(one.message) for one in warned)
    assert "NEEDLE" not in everything and str(datasets[0].StudyInstanceUID) not in everything


def fetched(archive: Archive, datasets: list[Dataset], folder: Path) -> list[dict[str, Any]]:
    """What one request for the series leaves."""
    fetching = Fetching(folder, X25519PrivateKey.generate().public_key(), "primary", str(datasets[0].StudyInstanceUID))
    fetching.ask(archive, "SERIES", listed(datasets))
    return fetching.received


def by_get(pacs: Misbehaving) -> Archive:
    return Archive(pacs.endpoint(retrieve="C-GET"))


@pytest.mark.parametrize("status", [0x0000, 0xB000, 0xC000, 0xA702])
def test_c_get_counts_what_came_under_its_own_name(tmp_path: Path, status: int) -> None:
    datasets = study(4, 1)
    for deliver, names in ((m.everything, datasets), (m.some(2), datasets[:2]), (m.nothing, [])):
        with Misbehaving(datasets, replies=[Reply(status=status, deliver=deliver, counts="wrong")]) as pacs:
            came = fetched(by_get(pacs), datasets, tmp_path)
        assert [one["sop_uid"] for one in came] == [str(one.SOPInstanceUID) for one in names]


def test_c_get_of_two_contents_is_a_conflict_and_of_a_wrong_name_a_failed_peer(tmp_path: Path) -> None:
    datasets = study(2, 1)
    with Misbehaving(datasets, replies=[Reply(deliver=m.twice_with_other_content)]) as pacs:
        came = fetched(by_get(pacs), datasets, tmp_path)
    assert sorted((one["sop_uid"], one["conflict"]) for one in came) == [
        (str(datasets[0].SOPInstanceUID), False),
        (str(datasets[0].SOPInstanceUID), True),
        (str(datasets[1].SOPInstanceUID), False),
    ]
    (tmp_path / "other").mkdir()
    with Misbehaving(datasets[:1], replies=[Reply(deliver=m.misnamed)]) as pacs, pytest.raises(PeerError) as failed:
        fetched(by_get(pacs), datasets, tmp_path / "other")
    assert failed.value.codes == ("pacs-misnamed",) and list((tmp_path / "other").iterdir()) == []


@pytest.mark.parametrize("ends", ["abort", "silence"])
def test_c_get_that_breaks_off_keeps_what_came_whole(tmp_path: Path, ends: str) -> None:
    """What is here need not come again: with 2,999 of 3,000 one is missing, and not 3,000."""
    datasets = study(3, 1)
    with Misbehaving(datasets, replies=[Reply(deliver=m.some(2), ends=ends)]) as pacs:  # type: ignore[arg-type]
        came = fetched(by_get(pacs), datasets, tmp_path)
    assert [one["sop_uid"] for one in came] == [str(one.SOPInstanceUID) for one in datasets[:2]]
    assert {str(path) for path in tmp_path.iterdir()} == {one["path"] for one in came}


def test_a_long_series_is_asked_for_in_portions_that_fit_a_key(tmp_path: Path) -> None:
    """1,200 UIDs of 60 characters are more than one value holds in Explicit VR."""
    uids = [f"2.25.{10**54 + number}" for number in range(1200)]
    wanted = [Listed(uid, "1.2.840.10008.5.1.4.1.1.2", "2.25.8", "CT") for uid in uids]
    with Misbehaving([], replies=[Reply(deliver=m.nothing)]) as pacs:
        by_get(pacs).get("2.25.9", wanted, lambda *_: None)
        Archive(pacs.endpoint()).move("2.25.9", message_id=1, series="2.25.8", instances=uids)
    assert [len(asked) for _, asked in pacs.asked] == [500, 500, 200] * 2
    assert [uid for _, asked in pacs.asked[:3] for uid in asked] == uids


STORED = {0x0000: "stored", 0xB000: "known", 0xB006: "known", 0xB007: "known", 0x0111: "known"}
REFUSED = {
    0xA700: "store-full",
    0xA900: "store-refused",
    0xC000: "store-refused",
    0x0122: "store-refused",
    0x0124: "store-refused",
}


@pytest.mark.parametrize("status", [*STORED, *REFUSED])
def test_each_status_of_a_c_store(status: int) -> None:
    one = to_store()
    with Misbehaving([], stores=status) as pacs:
        archive = Archive(pacs.endpoint())
        if status in STORED:
            assert archive.store(STUDY, [one]) == {one.sop_instance: STORED[status]}
        else:
            with pytest.raises(PeerError) as failed:
                archive.store(STUDY, [one])
            assert failed.value.codes == (REFUSED[status],)


def test_the_checkpoint_lets_nobody_send_before_the_reactor_is_parked() -> None:
    checkpoint, order, parked = _Checkpoint(), [], threading.Event()

    def reactor() -> None:
        parked.wait(5)
        time.sleep(0.1)
        order.append("parked")
        checkpoint.wait()

    thread = threading.Thread(target=reactor, daemon=True)
    thread.start()
    parked.set()
    checkpoint.clear()
    order.append("cleared")
    checkpoint.set()
    thread.join(5)
    assert order == ["parked", "cleared"] and not thread.is_alive()


def test_no_answer_is_lost_beside_busy_threads(orthanc: Orthanc) -> None:
    stop = threading.Event()

    def spin() -> None:
        while not stop.is_set():
            sum(range(2000))

    for _ in range(2):
        threading.Thread(target=spin, daemon=True).start()
    try:
        archive = archive_at(orthanc.dicom_port, idle_seconds=20.0)
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: len(archive.find_studies({"StudyInstanceUID": STUDY})), range(20)))
    finally:
        stop.set()
    assert found == [1] * 20
