"""The orchestrator as a process of its own: blobs by digest, deliveries once, and nothing followed or sent elsewhere."""

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from blocks.orchestrator import Orchestrator
from rapha.canonical import digest
from rapha.errors import ConfigurationError, PeerError, Refusal
from tasks.training.deliver import deliver, report
from tests.fixtures.sealing import bench

TOKEN = "t" * 32
JOB = "sha256:" + "5" * 64


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[tuple[Orchestrator, Path]]:
    root = tmp_path / "orchestrator"
    command = [sys.executable, "-m", "infra.orchestrator", "--root", str(root), "--token", TOKEN]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        port = process.stdout.readline().split()[1]
        assert process.stdout.readline() == "ready\n"
        yield Orchestrator(f"http://127.0.0.1:{port}", TOKEN, timeout=5.0), root
    finally:
        process.kill()
        process.wait()


def _blob(root: Path, content: bytes) -> str:
    name = hashlib.sha256(content).hexdigest()
    (root / "blobs" / name).write_bytes(content)
    return f"sha256:{name}"


def test_a_blob_comes_whole_and_only_once(peer: tuple[Orchestrator, Path], tmp_path: Path) -> None:
    orchestrator, root = peer
    wanted = _blob(root, os.urandom(3_000_000))
    path = orchestrator.fetch_blob(wanted, tmp_path / "in", cap=4_000_000)
    assert digest(path.read_bytes()) == wanted
    (root / "blobs" / path.name).unlink()
    assert orchestrator.fetch_blob(wanted, tmp_path / "in", cap=4_000_000) == path


def test_a_kept_blob_that_rotted_is_fetched_again(peer: tuple[Orchestrator, Path], tmp_path: Path) -> None:
    orchestrator, root = peer
    wanted = _blob(root, b"workload")
    path = orchestrator.fetch_blob(wanted, tmp_path / "in", cap=100)
    path.write_bytes(b"worklord")
    assert orchestrator.fetch_blob(wanted, tmp_path / "in", cap=100).read_bytes() == b"workload"


def test_other_bytes_under_the_digest_are_not_kept(peer: tuple[Orchestrator, Path], tmp_path: Path) -> None:
    orchestrator, root = peer
    wanted = _blob(root, b"workload")
    (root / "blobs" / wanted.removeprefix("sha256:")).write_bytes(b"something else")
    with pytest.raises(PeerError) as caught:
        orchestrator.fetch_blob(wanted, tmp_path / "in", cap=100)
    assert caught.value.codes == ("orchestrator-blob-mismatch",)
    assert not any((tmp_path / "in").iterdir())


def test_a_blob_beyond_the_cap_is_refused_and_not_kept(peer: tuple[Orchestrator, Path], tmp_path: Path) -> None:
    orchestrator, root = peer
    with pytest.raises(Refusal) as caught:
        orchestrator.fetch_blob(_blob(root, b"x" * 101), tmp_path / "in", cap=100)
    assert caught.value.codes == ("blob-too-large",)
    assert not any((tmp_path / "in").iterdir())


def test_missing_blob_wrong_token_and_nobody_there_are_the_peers_failures(
    peer: tuple[Orchestrator, Path], tmp_path: Path
) -> None:
    orchestrator, _ = peer
    for client, code in (
        (orchestrator, "orchestrator-blob-missing"),
        (Orchestrator(orchestrator.base, "w" * 32), "orchestrator-blob-missing"),
        (Orchestrator("http://127.0.0.1:9", TOKEN), "orchestrator-unreachable"),
    ):
        with pytest.raises(PeerError) as caught:
            client.fetch_blob(JOB, tmp_path / "in", cap=100)
        assert caught.value.codes == (code,)
    assert TOKEN not in repr(orchestrator)


def test_a_document_is_stored_once_and_other_content_is_a_conflict(peer: tuple[Orchestrator, Path]) -> None:
    orchestrator, root = peer
    orchestrator.put(JOB, 1, "receipt", b"{}\n")
    orchestrator.put(JOB, 1, "receipt", b"{}\n")
    with pytest.raises(PeerError) as caught:
        orchestrator.put(JOB, 1, "receipt", b"{ }\n")
    assert caught.value.codes == ("orchestrator-conflict",)
    assert (root / "jobs" / JOB.removeprefix("sha256:") / "1" / "receipt").read_bytes() == b"{}\n"


def test_a_redirect_is_not_followed(tmp_path: Path) -> None:
    asked: list[str] = []

    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(302)
            self.send_header("Location", f"http://127.0.0.1:{self.server.server_address[1]}/stolen")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Elsewhere)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(PeerError) as caught:
            Orchestrator(f"http://127.0.0.1:{server.server_address[1]}", TOKEN).fetch_blob(JOB, tmp_path, cap=10)
    finally:
        server.shutdown()
        server.server_close()
    assert caught.value.codes == ("orchestrator-status",)
    assert asked == [f"/blobs/{JOB}"]


@pytest.mark.parametrize("base", ["ftp://h/", "http://", "http://user:secret@h/", "http://h/?q=1", "file:///etc/passwd"])
def test_an_odd_base_is_a_configuration_error(base: str) -> None:
    with pytest.raises(ConfigurationError):
        Orchestrator(base, TOKEN)


def test_a_sealed_attempt_is_delivered_once_whatever_the_repeats(
    peer: tuple[Orchestrator, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orchestrator, root = peer
    b = bench(tmp_path, monkeypatch)
    result = b.seal()
    for _ in range(2):
        assert deliver(b.attempt, orchestrator, result.statement)["receipt"] == result.receipt_digest
    home = root / "jobs" / b.attempt.job.removeprefix("sha256:") / "1"
    assert (home / "result").read_bytes() == result.sealed.read_bytes()
    assert (home / "receipt").read_bytes() == result.receipt.read_bytes()
    assert [entry.kind for entry in b.attempt.ledger.entries()].count("delivered") == 1


def test_a_result_is_delivered_after_a_failure_was_reported(
    peer: tuple[Orchestrator, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orchestrator, root = peer
    b = bench(tmp_path, monkeypatch)
    result = b.seal()
    report(b.attempt, orchestrator, "failed", ["chain-unreachable"])
    deliver(b.attempt, orchestrator, result.statement)
    assert (root / "jobs" / b.attempt.job.removeprefix("sha256:") / "1" / "receipt").exists()
    with pytest.raises(PeerError) as caught:
        deliver(b.attempt, Orchestrator(orchestrator.base, "w" * 32), result.statement)
    assert caught.value.codes == ("orchestrator-status",)


def test_nothing_is_delivered_that_the_ledger_does_not_name(
    peer: tuple[Orchestrator, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orchestrator, root = peer
    b = bench(tmp_path, monkeypatch)
    result = b.seal()
    result.sealed.write_bytes(b"other")
    with pytest.raises(Refusal) as caught:
        deliver(b.attempt, orchestrator, result.statement)
    assert caught.value.codes == ("deliver-changed",)
    assert not (root / "jobs").exists()


def test_a_report_carries_codes_and_never_text(
    peer: tuple[Orchestrator, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orchestrator, root = peer
    b = bench(tmp_path, monkeypatch)
    report(b.attempt, orchestrator, "refused", ["output-is-dicom", "Doe^Jane 1931"], gate="output", side="job")
    said = (root / "jobs" / b.attempt.job.removeprefix("sha256:") / "1" / "report").read_bytes()
    assert b"output-is-dicom" in said
    assert b"Doe" not in said
