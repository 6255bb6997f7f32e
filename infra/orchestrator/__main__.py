"""`python -m infra.orchestrator --root DIR --port P`: prints `ready` once it serves on loopback.

The token that it asks for is in RAPHA_ORCHESTRATOR_TOKEN; `--token` is for tests, since a command line is there for all to read.

DIR/blobs/<hex> are the artefacts (put them there, or PUT them); DIR/jobs/<job hex>/<attempt>/result|receipt|report what a node
delivered.
"""

import argparse
import hmac
import os
import re
import tempfile
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

BLOB = re.compile(r"/blobs/sha256:([0-9a-f]{64})")
DOCUMENT = re.compile(r"/jobs/([0-9a-f]{64})/attempts/([1-9][0-9]{0,5})/(result|receipt|report)")
MAX_BODY = 4 << 30
CHUNK = 1 << 20


class Handler(BaseHTTPRequestHandler):
    """One request. Every path is matched whole; a name on disk is made of what matched, never of the path itself."""

    protocol_version = "HTTP/1.1"
    timeout = 60
    root: Path
    token: str

    def do_GET(self) -> None:
        path = self._target()
        if path is None or not path.is_file():
            return self._answer(404)
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(path.stat().st_size))
        self.end_headers()
        with path.open("rb") as stream:
            while block := stream.read(CHUNK):
                self.wfile.write(block)
        return None

    def do_PUT(self) -> None:
        path = self._target()
        length = self.headers.get("Content-Length", "")
        if path is None or not re.fullmatch(r"[0-9]{1,12}", length) or int(length) > MAX_BODY:
            self.close_connection = True
            return self._answer(404 if path is None else 411)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".put-", delete=False) as stream:
            temporary = Path(stream.name)
            digest = self._receive(int(length), stream.file)
            stream.flush()
            os.fsync(stream.fileno())
        try:
            return self._answer(self._store(temporary, path, digest))
        finally:
            temporary.unlink(missing_ok=True)

    def _receive(self, length: int, target: "object") -> str:
        h = sha256()
        while length > 0 and (block := self.rfile.read(min(CHUNK, length))):
            h.update(block)
            target.write(block)  # type: ignore[attr-defined]
            length -= len(block)
        return h.hexdigest() if length == 0 else ""

    def _store(self, temporary: Path, path: Path, digest: str) -> int:
        """200 for what is there already, 201 for new, 409 for other content, 400 for a blob that is not its name or a cut
        body.
        """
        if not digest or (path.parent.name == "blobs" and path.name != digest):
            return 400
        try:
            os.link(temporary, path)  # never over what is there
        except FileExistsError:
            return 200 if sha256(path.read_bytes()).hexdigest() == digest else 409
        return 201

    def _target(self) -> Path | None:
        given = self.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(given, f"Bearer {self.token}".encode()):
            return None
        if blob := BLOB.fullmatch(self.path):
            return self.root / "blobs" / blob[1]
        if document := DOCUMENT.fullmatch(self.path):
            return self.root / "jobs" / document[1] / document[2] / document[3]
        return None

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Silent: a path names a job."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m infra.orchestrator", description="the demo's orchestrator, on loopback")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one; printed before `ready`")
    parser.add_argument("--token", default=os.environ.get("RAPHA_ORCHESTRATOR_TOKEN"), help="or RAPHA_ORCHESTRATOR_TOKEN")
    options = parser.parse_args()
    if not options.token or len(options.token) < 16:
        parser.error("a token of 16 characters or more is needed")
    (options.root / "blobs").mkdir(parents=True, exist_ok=True)
    handler = type("Bound", (Handler,), {"root": options.root.resolve(), "token": options.token})
    server = ThreadingHTTPServer(("127.0.0.1", options.port), handler)
    print(f"port {server.server_address[1]}\nready", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
