"""The archive block and the reader against a real Orthanc, and against archives that misbehave."""

import datetime
import http.server
import io
import ipaddress
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import RLELossless

from blocks.pacs import DicomWeb, Timeouts, raw_query, value_of
from blocks.part10 import ContentDigest, content_digest
from blocks.reader import Reader
from policies.minimise import project_key, pseudonym
from policies.records import write_records
from policies.scope import Scope
from rapha.errors import PeerError
from rapha.loader import RaphaDataLoader
from tests.fixtures.orthanc import Orthanc, file_bytes, orthanc  # noqa: F401
from tests.fixtures.reading import (
    HOSPITAL_KEY,
    PROJECT,
    cohort,
    make_image,
    record_of,
    running_reader,
    set_pixels,
    write_records_file,
)

FIELDS = ("00080018", "0020000D", "0020000E", "00100020", "00080060", "00080020", "00180015")
SCOPE = Scope(modalities=("MR",), body_parts=("BRAIN",), date_from="20240101", date_to="20241231")
STUDY = "1.2.826.0.1.3680043.10.999.1.1"


def begin(reader: Reader, cap: int = 1000) -> None:
    reader.begin(job="sha256:" + "5" * 64, attempt=1, nonce="ab" * 32, project=PROJECT, manifest=SCOPE, intent=SCOPE, cap=cap)


def received(archive: DicomWeb, study: str) -> dict[str, str]:
    found = {}
    with archive.retrieve(study) as parts:
        for part in parts:
            content = ContentDigest()
            for block in part.body:
                content.feed(block)
            assert content.meta is not None
            found[content.meta.sop_instance] = content.digest()
    return found


def test_wildcards_names_and_blanks_reach_the_archive(orthanc: Orthanc) -> None:  # noqa: F811
    orthanc.clear()
    orthanc.store_all([make_image(1, 1), make_image(2, 1, body_part="LOWER LEG")])
    archive = DicomWeb(orthanc.url)
    assert len(archive.list_instances({"PatientName": "Gr*-0001^Zo*"}, FIELDS)) == 1
    assert [value_of(a, "00180015") for a in archive.list_instances({"BodyPartExamined": "LOWER LEG"}, FIELDS)] == ["LOWER LEG"]
    assert raw_query("/a%2Ab?x=%2a%5E%2C%3A&y=a+b%20c") == "/a%2Ab?x=*^,:&y=a*b*c"


def test_pages_are_joined(orthanc: Orthanc, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    orthanc.clear()
    orthanc.store_all(cohort(7, 2))
    monkeypatch.setattr(DicomWeb._page, "__defaults__", (3,))
    found = DicomWeb(orthanc.url).list_instances({"Modality": "MR"}, FIELDS)
    assert len({value_of(answer, "00080018") for answer in found}) == 14
    with pytest.raises(PeerError, match="more than 9"):
        DicomWeb(orthanc.url).list_instances({"Modality": "MR"}, FIELDS, most=9)


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm", "JPEG2000.dcm", "image_dfl.dcm"])
def test_objects_come_as_they_are_stored(name: str, orthanc: Orthanc) -> None:  # noqa: F811
    orthanc.clear()
    raw = Path(str(get_testdata_file(name))).read_bytes()
    orthanc.store(raw)
    study = str(dcmread(io.BytesIO(raw), stop_before_pixels=True).StudyInstanceUID)
    assert list(received(DicomWeb(orthanc.url), study).values()) == [content_digest(raw)]


def test_the_environment_changes_nothing(orthanc: Orthanc, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    orthanc.clear()
    orthanc.store(make_image(1, 1))
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere.pem")
    archive = DicomWeb(orthanc.url)
    assert len(archive.list_instances({"Modality": "MR"}, FIELDS)) == 1
    assert len(received(archive, STUDY)) == 1


@contextmanager
def scripted(answer: Callable[[Any], None], tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """An archive that answers as `answer` writes it."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            answer(self)
            self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{server.server_address[1]}/dicom-web"
    finally:
        server.shutdown()
        server.server_close()


def send(handler: Any, body: bytes, kind: str, status: int = 200, **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), "Connection": "close", **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


MULTIPART = 'multipart/related; type="application/dicom"; boundary=B'
WHOLE = file_bytes(make_image(1, 1))
HEAD = b"\r\n--B\r\nContent-Type: application/dicom\r\n"
END = b"\r\n--B--\r\n"
LENGTH = b"Content-Length: %d\r\n\r\n" % len(WHOLE)


@pytest.mark.parametrize("first", [b"", b"preamble"])
def test_parts_without_a_length_are_found_by_their_boundary(first: bytes) -> None:
    body = first + HEAD + b"\r\n" + WHOLE + HEAD + b"\r\n" + WHOLE + END
    with scripted(lambda handler: send(handler, body, MULTIPART)) as url, DicomWeb(url).retrieve(STUDY) as parts:
        assert [b"".join(part.body) for part in parts] == [WHOLE, WHOLE]


@pytest.mark.parametrize(
    ("body", "kind", "status", "code"),
    [
        (HEAD + LENGTH + WHOLE[:-9], MULTIPART, 200, "pacs-truncated"),
        (HEAD + b"\r\n" + WHOLE, MULTIPART, 200, "pacs-truncated"),
        (HEAD + LENGTH + WHOLE, MULTIPART, 200, "pacs-truncated"),
        (HEAD + b"Content-Length: 9\r\n\r\n" + WHOLE + END, MULTIPART, 200, "pacs-multipart-odd"),
        (HEAD + b"Content-Length: -9\r\n\r\n" + WHOLE + END, MULTIPART, 200, "pacs-multipart-odd"),
        (b"\r\n--B\r\nContent-Type: text/html\r\n" + LENGTH + WHOLE + END, MULTIPART, 200, "pacs-multipart-odd"),
        (HEAD + b"X: " + b"y" * 99999, MULTIPART, 200, "pacs-multipart-odd"),
        (HEAD + LENGTH + bytes(len(WHOLE)) + END, MULTIPART, 200, "pacs-not-dicom"),
        (WHOLE, "application/dicom", 200, "pacs-not-multipart"),
        (b"", MULTIPART, 500, "pacs-status"),
        (b"", MULTIPART, 206, "pacs-status"),
    ],
)
def test_a_broken_retrieval_is_a_failed_peer(body: bytes, kind: str, status: int, code: str) -> None:
    with scripted(lambda handler: send(handler, body, kind, status)) as url, pytest.raises(PeerError) as failed:
        received(DicomWeb(url), STUDY)
    assert failed.value.codes == (code,)


def test_a_redirect_is_not_followed() -> None:
    asked = []

    def answer(handler: Any) -> None:
        asked.append(handler.path)
        send(handler, b"", MULTIPART, 302, Location="http://127.0.0.1:9/elsewhere")

    with scripted(answer) as url:
        with pytest.raises(PeerError, match="status 302"):
            received(DicomWeb(url), STUDY)
        with pytest.raises(PeerError, match="status 302"):
            DicomWeb(url).list_instances({"Modality": "MR"}, FIELDS)
    assert len(asked) == 2


def test_silence_and_drips_are_failed_peers() -> None:
    stop = threading.Event()

    def drip(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", MULTIPART)
        handler.end_headers()
        while not stop.wait(0.05):
            handler.wfile.write(b"x")

    with scripted(drip) as url, pytest.raises(PeerError) as failed:
        received(DicomWeb(url, timeouts=Timeouts(idle=5, whole=0.5)), STUDY)
    stop.set()
    assert failed.value.codes == ("pacs-slow",)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        archive = DicomWeb(f"http://127.0.0.1:{silent.getsockname()[1]}", timeouts=Timeouts(idle=0.3))
        with pytest.raises(PeerError) as failed:
            archive.list_instances({"Modality": "MR"}, FIELDS)
        assert failed.value.codes == ("pacs-unreachable",)
        with pytest.raises(PeerError) as failed:
            received(archive, STUDY)
        assert failed.value.codes == ("pacs-retrieve",)


@pytest.mark.parametrize(
    ("page", "code"),
    [
        (b"[", "pacs-answer-odd"),
        (b'[{"00080018": 7}]', "pacs-paging-odd"),
        (b'["x"]', "pacs-answer-odd"),
        (json.dumps([{"00080018": {"vr": "UI", "Value": ["1.2"]}}]).encode(), "pacs-paging-odd"),
        (b"[" * 100_000, "pacs-answer-odd"),
    ],
)
def test_an_odd_answer_to_a_query_is_a_failed_peer(page: bytes, code: str) -> None:
    with scripted(lambda handler: send(handler, page, "application/dicom+json")) as url, pytest.raises(PeerError) as failed:
        DicomWeb(url).list_instances({"Modality": "MR"}, FIELDS)
    assert failed.value.codes == (code,)


def test_a_set_that_changes_during_the_retrieval_is_a_failed_peer(tmp_path: Path) -> None:
    datasets = cohort(9)
    write_records_file(tmp_path / "records.jsonl", datasets)
    listings = []

    def answer(handler: Any) -> None:
        if "/instances?" in handler.path:
            shown = datasets if len(listings) < 4 else datasets[1:]  # two pages a listing: the third listing is one short
            listings.append(handler.path)
            chosen = shown if "offset=0" in handler.path else []
            keep = {int(tag, 16) for tag in FIELDS}
            page = [{tag: v for tag, v in dataset.to_json_dict().items() if int(tag, 16) in keep} for dataset in chosen]
            return send(handler, json.dumps(page).encode(), "application/dicom+json")
        (dataset,) = [one for one in datasets if f"/{one.SeriesInstanceUID}/" in handler.path + "/"]
        raw = file_bytes(dataset)
        return send(handler, HEAD + b"Content-Length: %d\r\n\r\n" % len(raw) + raw + END, MULTIPART)

    with scripted(answer) as url, running_reader(tmp_path, url, tmp_path / "records.jsonl") as (path, _), Reader(path) as reader:
        begin(reader)
        assert reader.query().selected == 9
        with pytest.raises(PeerError) as failed:
            reader.fetch()
        assert failed.value.codes == ("pacs-set-changed",)
        assert list((tmp_path / "staging").iterdir()) == []


def peak(pid: int) -> int:
    """Peak resident memory of a process, in MiB."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024


def test_a_large_instance_passes_in_flat_memory(orthanc: Orthanc, tmp_path: Path) -> None:  # noqa: F811
    orthanc.clear()
    datasets = cohort(8)
    frames = np.repeat(np.arange(300, dtype=np.uint16).astype(np.uint8), 1 << 20).reshape(300, 1024, 1024)
    set_pixels(datasets[0], frames)
    orthanc.store_all(datasets)
    records = write_records_file(tmp_path / "records.jsonl", datasets)
    name = pseudonym(project_key(HOSPITAL_KEY, PROJECT), "record", str(datasets[0].SOPInstanceUID))
    index = [record.record for record in records].index(name)
    with running_reader(tmp_path, orthanc.url, tmp_path / "records.jsonl") as (path, process), Reader(path) as reader:
        begin(reader)
        reader.query()
        before = peak(process.pid)
        assert reader.fetch().largest > 300 << 20
        ours, theirs = socket.socketpair()
        reader.attach([ours.detach()])
        sample = RaphaDataLoader(1, fds=[theirs.fileno()]).read(index, frame=217)
        assert np.array_equal(sample.array, frames[217])
        assert peak(process.pid) - before < 48
        theirs.close()


def test_rle_and_other_byte_orders_are_decoded(orthanc: Orthanc, tmp_path: Path) -> None:  # noqa: F811
    orthanc.clear()
    datasets = cohort(8)
    clear = datasets[0].pixel_array.copy()
    datasets[0].compress(RLELossless, generate_instance_uid=False)
    orthanc.store_all(datasets)
    records = write_records_file(tmp_path / "records.jsonl", datasets)
    index = [record.record for record in records].index(record_of(datasets[0]).record)
    with running_reader(tmp_path, orthanc.url, tmp_path / "records.jsonl") as (path, _), Reader(path) as reader:
        begin(reader)
        reader.query()
        assert reader.fetch().undecodable == 0
        ours, theirs = socket.socketpair()
        reader.attach([ours.detach()])
        assert np.array_equal(RaphaDataLoader(1, fds=[theirs.fileno()])[index].array, clear)
        theirs.close()


def test_the_loader_is_deterministic_and_large_arrays_travel_in_sealed_memory(orthanc: Orthanc, tmp_path: Path) -> None:  # noqa: F811
    orthanc.clear()
    datasets = cohort(12)
    for dataset in datasets:
        set_pixels(dataset, np.random.default_rng(int(dataset.InstanceNumber)).integers(0, 9, (1024, 1024), dtype=np.uint16))
    orthanc.store_all(datasets)
    (tmp_path / "records.jsonl").write_bytes(write_records(record_of(d, label=i % 3) for i, d in enumerate(datasets)))
    with running_reader(tmp_path, orthanc.url, tmp_path / "records.jsonl") as (path, _), Reader(path) as reader:
        begin(reader)
        reader.query()
        reader.fetch()
        pairs = [socket.socketpair() for _ in range(3)]
        reader.attach([ours.detach() for ours, _ in pairs])
        fds = [theirs.fileno() for _, theirs in pairs]
        first, second = (RaphaDataLoader(5, shuffle=True, seed=4, fds=fds[:count]) for count in (1, 3))
        for _ in range(2):  # two epochs, each in its own order
            mixed = list(zip(first, second, strict=True))  # interleaved: the two share a connection
            assert [list(one.indices) for one, _ in mixed] == [list(two.indices) for _, two in mixed]
            assert all(np.array_equal(one.arrays, two.arrays) for one, two in mixed)
        assert first.order(0) != first.order(1) and sorted(first.order(0)) == list(range(12))
        assert len(first) == 3 and len(RaphaDataLoader(5, drop_last=True, fds=fds)) == 2
        sample = first[3]
        assert sample.array.nbytes == 2 << 20 and sample.label == first.records[3].label == first.labels()[3]
        with pytest.raises(ValueError, match="read-only"):
            sample.array[0, 0] = 1
        tensors = next(iter(RaphaDataLoader(2, tensors=True, fds=fds)))
        assert type(tensors.arrays).__name__ == "Tensor" and tensors.arrays.shape == (2, 1024, 1024)
        for _, theirs in pairs:
            theirs.close()


def test_a_trainer_that_speaks_another_protocol_loses_its_line_alone(orthanc: Orthanc, tmp_path: Path) -> None:  # noqa: F811
    orthanc.clear()
    datasets = cohort(8)
    orthanc.store_all(datasets)
    write_records_file(tmp_path / "records.jsonl", datasets)
    with running_reader(tmp_path, orthanc.url, tmp_path / "records.jsonl") as (path, process), Reader(path) as reader:
        begin(reader)
        reader.query()
        reader.fetch()
        for noise in (b"GET / HTTP/1.1\r\n\r\n" * 9, b"RPH1" + b"\xff" * 36, b"RPH1\x09" + bytes(35), b"RPH1"):
            ours, theirs = socket.socketpair()
            reader.attach([ours.detach()])
            theirs.sendall(noise)
            theirs.shutdown(socket.SHUT_WR)
            theirs.settimeout(3)
            with suppress(ConnectionResetError):
                while theirs.recv(1 << 16):
                    pass
            theirs.close()
        assert reader.counts().unique == 0
        started = time.monotonic()
        assert reader.finish().destroyed and time.monotonic() - started < 5
        assert process.poll() is None


def certificate(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """A self-signed certificate for 127.0.0.1, and a server's context with it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "archive")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
    builder = builder.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
    made = builder.add_extension(address, False).sign(key, hashes.SHA256())
    pem = made.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "both.pem").write_bytes(private + pem)
    (folder / "ca.pem").write_bytes(pem)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "both.pem")
    return folder / "ca.pem", context


def test_the_archive_is_known_by_the_configured_authority_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ca, context = certificate(tmp_path)

    def answer(handler: Any) -> None:
        if "/instances?" in handler.path:
            return send(handler, b"[]", "application/dicom+json")
        return send(handler, HEAD + LENGTH + WHOLE + END, MULTIPART)

    with scripted(answer, context) as url:
        archive = DicomWeb(url, ca=ca)
        assert archive.list_instances({"Modality": "MR"}, FIELDS) == []
        assert len(received(archive, STUDY)) == 1
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(ca))
        monkeypatch.setenv("CURL_CA_BUNDLE", str(ca))
        with pytest.raises(PeerError):
            DicomWeb(url).list_instances({"Modality": "MR"}, FIELDS)
        with pytest.raises(PeerError):
            received(DicomWeb(url), STUDY)
