"""`python -m infra.attestor --port P --key F --rpc URL --chain-id N --vault A --token A --state DIR`: prints `ready`.

POST /attest?expiry=SECONDS with a receipt (DSSE envelope): 200 and the signed claim, 403 {"codes"} for a no, 503 {"codes"} when a
party that it needs failed. GET /address: {"address"}. On 127.0.0.1 alone. `--new-key F` makes a key, prints its address and ends.
"""

import argparse
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from eth_account import Account

from blocks.chain import Chain, load_account
from infra.attestor.journal import Journal
from infra.attestor.sign import Attestor
from rapha.errors import ConfigurationError, PeerError, Refusal
from rapha.receipt import MAX_RECEIPT


def front(attestor: Attestor, port: int) -> ThreadingHTTPServer:
    """The HTTP front; one receipt at a time."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # headers and body in one segment: two would wait for a delayed acknowledgement
        timeout = 30

        def do_GET(self) -> None:
            if self.path == "/address":
                self._answer(200, {"address": attestor.account.address.lower()})
            else:
                self._answer(404, {"codes": ["not-found"]})

        def do_POST(self) -> None:
            parts = urlsplit(self.path)
            length = self.headers.get("Content-Length", "")
            expiry = parse_qs(parts.query).get("expiry", [""])[0]
            if parts.path != "/attest" or not length.isdecimal() or not expiry.isdecimal() or int(length) > MAX_RECEIPT:
                self.close_connection = True
                self._answer(400, {"codes": ["attest-request"]})
                return
            receipt = self.rfile.read(int(length))  # outside the lock: who sends slowly holds up nobody else
            with lock:
                answer = _attest(attestor, receipt, int(expiry))
            self._answer(*answer)

        def _answer(self, status: int, body: dict[str, Any]) -> None:
            raw = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, format: str, *args: Any) -> None:
            return

    made = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    made.daemon_threads = True
    return made


def _attest(attestor: Attestor, receipt: bytes, expiry: int) -> tuple[int, dict[str, Any]]:
    try:
        return 200, attestor.attest(receipt, expiry)
    except Refusal as refusal:
        return 403, {"codes": list(refusal.codes)}
    except PeerError as error:
        return 503, {"codes": list(error.codes)}


def new_key(path: Path) -> str:
    """Writes a new account key with mode 0600; its address. Does not replace one."""
    if path.exists():
        raise ConfigurationError(["key-exists"], f"{path}: there is a key already")
    made = Account.create()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(bytes(made.key).hex() + "\n")
    return str(made.address).lower()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="infra.attestor", description=__doc__)
    parser.add_argument("--new-key", type=Path)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--port-file", type=Path, help="where to write the port that was taken")
    parser.add_argument("--key", type=Path, help="64 hex digits, mode 0600")
    parser.add_argument("--rpc")
    parser.add_argument("--chain-id", type=int)
    parser.add_argument("--vault")
    parser.add_argument("--token")
    parser.add_argument("--confirmations", type=int, default=2)
    parser.add_argument("--state", type=Path, help="the folder of its journal")
    parser.add_argument("--receipt-key", type=Path, help="the public key (PEM) that the node's receipts must be signed with")
    parser.add_argument("--verifier", help="the command that verifies a receipt, as a JSON list")
    return parser.parse_args()


def main() -> None:
    options = _options()
    if options.new_key:
        print(new_key(options.new_key))
        return
    missing = [name for name in ("key", "rpc", "chain_id", "vault", "token", "state") if not getattr(options, name)]
    if missing:
        sys.exit(f"missing: {', '.join('--' + name.replace('_', '-') for name in missing)}")
    chain = Chain(options.rpc, options.chain_id, options.vault, options.token, confirmations=options.confirmations)
    command = (
        json.loads(options.verifier) if options.verifier else [sys.executable, "-m", "infra.attestor.verify", "receipt", "verify"]
    )
    if options.receipt_key:
        command += ["--key", str(options.receipt_key)]
    attestor = Attestor(load_account(options.key), chain, Journal(options.state / "signed.jsonl"), command)
    served = front(attestor, options.port)
    if options.port_file:
        options.port_file.write_text(str(served.server_address[1]))
    print("ready", flush=True)
    served.serve_forever()


if __name__ == "__main__":
    main()
