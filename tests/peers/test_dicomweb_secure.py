"""DICOMweb by the endpoint's own TLS, cell by cell; and what an archive may answer to a STOW-RS."""

import http.server
import json
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file

from blocks import stow as stowing
from blocks.archive import Archive
from blocks.dimse.services import ToStore
from blocks.endpoint import Endpoint, TlsSettings
from rapha.errors import PeerError
from tests.fixtures.certificates import Authority, authority

CT = Path(str(get_testdata_file("CT_small.dcm")))
V12, V13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


@contextmanager
def answering(status: int, body: bytes, tls: ssl.SSLContext | None = None) -> Iterator[tuple[str, list[bytes]]]:
    """A DICOMweb service that answers everything alike; its address, and the bodies that it was sent."""
    bodies: list[bytes] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(200, b"[]")

        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.answer(status, body)

        def answer(self, code: int, content: bytes) -> None:
            self.send_response(code)
            for name, value in (("Content-Type", "application/dicom+json"), ("Content-Length", str(len(content)))):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{server.server_address[1]}/dicom-web", bodies
    finally:
        server.shutdown()
        server.server_close()


def web(url: str, tls: TlsSettings | None = None) -> Archive:
    facts = {"name": "web", "host": "127.0.0.1", "port": 0, "ae_title": "A", "calling_ae_title": "RAPHA"}
    return Archive(Endpoint(**facts, dicomweb_url=url, tls=tls, connect_seconds=3.0, idle_seconds=5.0))  # type: ignore[arg-type]


def one() -> ToStore:
    dataset = dcmread(CT, stop_before_pixels=True)
    return ToStore(CT, str(dataset.SOPClassUID), str(dataset.SOPInstanceUID), str(dataset.file_meta.TransferSyntaxUID))


def serving(ours: Authority, name: str, expired: bool, only: ssl.TLSVersion | None) -> ssl.SSLContext:
    certificate, key = ours.issue(name, expired=expired)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(ours.bundle)
    context.verify_mode = ssl.CERT_REQUIRED
    if only is not None:
        context.minimum_version = context.maximum_version = only
    return context


REFUSED = {"pacs-unreachable", "stow-unreachable", "pacs-retrieve", "tls-handshake-failed"}  # shows only after the handshake
MATRIX: dict[str, tuple[str, bool, ssl.TLSVersion | None, dict[str, Any], set[str]]] = {
    "right": ("127.0.0.1", False, None, {}, set()),
    "right by another name": ("pacs.test", False, None, {"server_name": "pacs.test"}, set()),
    "wrong name": ("other.test", False, None, {}, {"tls-name-differs"}),
    "expired": ("127.0.0.1", True, None, {}, {"tls-certificate-expired"}),
    "foreign CA": ("127.0.0.1", False, None, {"ca_bundle": "foreign"}, {"tls-certificate-untrusted"}),
    "our certificate of a foreign CA": ("127.0.0.1", False, None, {"cert_file": "foreign"}, REFUSED),
    "1.3 wanted, 1.2 offered": ("127.0.0.1", False, V12, {}, {"tls-handshake-failed"}),
    "1.2 as the exception": ("127.0.0.1", False, V12, {"version": "TLS_1_2"}, set()),
    "1.2 wanted, 1.3 alone offered": ("127.0.0.1", False, V13, {"version": "TLS_1_2"}, {"tls-handshake-failed"}),
}


@pytest.mark.parametrize("case", list(MATRIX))
def test_every_request_is_made_by_the_endpoints_tls(tmp_path: Path, case: str) -> None:
    name, expired, only, changes, codes = MATRIX[case]
    ours, foreign = authority(tmp_path / "ca"), authority(tmp_path / "foreign", "Foreign")
    certificate, key = (foreign if changes.get("cert_file") else ours).issue("rapha.test")
    facts: dict[str, Any] = {"ca_bundle": foreign.bundle if changes.get("ca_bundle") else ours.bundle}
    facts |= {"cert_file": certificate, "key_file": key}
    facts |= {key: value for key, value in changes.items() if key not in ("ca_bundle", "cert_file")}
    with answering(200, stored([one().sop_instance]), serving(ours, name, expired, only)) as (url, _):
        requests = (
            lambda: web(url, TlsSettings(**facts)).echo(),
            lambda: web(url, TlsSettings(**facts)).store("2.25.1", [one()]),
            lambda: web(url, TlsSettings(**facts)).offers_stow(),
        )
        for request in requests:
            if not codes:
                request()
                continue
            with pytest.raises(PeerError) as failed:
                request()
            assert set(failed.value.codes) <= codes


def stored(uids: Sequence[str], failed: Sequence[tuple[str, int | None]] = (), warned: int | None = None) -> bytes:
    def item(uid: str, tag: str, reason: int | None) -> dict[str, Any]:
        named = {"00081155": {"vr": "UI", "Value": [uid]}}
        return named | ({tag: {"vr": "US", "Value": [reason]}} if reason is not None else {})

    answer: dict[str, Any] = {}
    if uids:
        answer["00081199"] = {"vr": "SQ", "Value": [item(uid, "00081196", warned) for uid in uids]}
    if failed:
        answer["00081198"] = {"vr": "SQ", "Value": [item(uid, "00081197", reason) for uid, reason in failed]}
    return json.dumps(answer).encode()


UID = one().sop_instance
#   status  body                                    what it comes to
STOW = [
    (200, stored([UID]), "stored"),
    (202, stored([UID], warned=0xB000), "known"),  # stored, with something changed: to be read back
    (409, stored([], [(UID, 0x0111)]), "known"),  # it has one of this UID: the same content is success
    (409, stored([], [(UID, 0xA700)]), "store-full"),
    (409, stored([], [(UID, 0x0122)]), "store-refused"),
    (409, stored([], [(UID, None)]), "store-refused"),  # a failure without a reason is a failure
    (409, stored([], [(UID, 0)]), "store-refused"),
    (200, stored([UID], [(UID, 0xC000)]), "store-refused"),  # both stored and failed: failed
    (200, stored(["1.2.3"]), "store-refused"),  # says nothing of ours
    (200, b"{}", "store-refused"),
    (200, b"", "stow-answer-odd"),
    (409, b"<html>", "stow-answer-odd"),
    (200, b"[" * 200 + b"]" * 200, "stow-answer-odd"),
    (200, json.dumps({"00081199": {"Value": [{"00081155": {}}]}}).encode(), "stow-answer-odd"),
    (302, b"", "stow-status"),
    (400, b"", "stow-status"),
    (503, b"", "stow-unavailable"),
    (401, b"", "stow-login"),
]


@pytest.mark.parametrize(("status", "body", "comes"), STOW)
def test_each_answer_to_a_stow(status: int, body: bytes, comes: str) -> None:
    with answering(status, body) as (url, _):
        if comes in ("stored", "known"):
            assert web(url).store("2.25.1", [one()]) == {UID: comes}
            return
        with pytest.raises(PeerError) as failed:
            web(url).store("2.25.1", [one()])
    assert failed.value.codes == (comes,) and UID not in failed.value.message


def test_requests_are_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stowing, "BATCH_BYTES", 3 * CT.stat().st_size)
    with answering(200, stored([UID])) as (url, bodies):
        web(url).store("2.25.1", [one()] * 7)
    assert [body.count(CT.read_bytes()[132:]) for body in bodies] == [3, 3, 1]
