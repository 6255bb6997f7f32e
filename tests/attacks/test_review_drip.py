"""An orchestrator that answers drop by drop, each drop in time."""

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from blocks.orchestrator import Orchestrator
from rapha.errors import PeerError


class Drip(BaseHTTPRequestHandler):
    """A byte every tenth of a second of a body that is announced as a hundred."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "100")
        self.end_headers()
        try:
            for _ in range(100):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.1)
        except OSError:
            return

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


@pytest.fixture
def drip() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Drip)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def test_A01_a_body_that_drips_does_not_hold_intake_for_ever(drip: str, tmp_path: Path) -> None:
    orchestrator, began = Orchestrator(drip, "t" * 32, timeout=2.0, patience=1.0), time.monotonic()
    with pytest.raises(PeerError) as failed:
        orchestrator.fetch_blob("sha256:" + "0" * 64, tmp_path, cap=1000)
    assert failed.value.codes == ("orchestrator-slow",) and time.monotonic() - began < 4
    assert list(tmp_path.iterdir()) == []
