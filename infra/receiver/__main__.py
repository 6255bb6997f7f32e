"""`python -m infra.receiver --ae RAPHA --host H --port P --store DIR [--seal-to PEM] --socket S --key-env NAME --peer AE …`

Without --seal-to nothing is taken but what a ticket with a key of its own waits for. With --tls-cert, --tls-key and --tls-ca it
speaks TLS and nothing else; each new connection is served by these files as they are then. Prints `port N` and `ready`. The
journal's key (32 bytes in base64) comes from the environment variable that is named, and is taken out of it.
"""

import argparse
import base64
import binascii
import os
import sys
from pathlib import Path
from typing import get_args

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from blocks.endpoint import ReceiverTls, TlsSettings
from infra.daemon import serve
from infra.receiver.alarms import Alarms
from infra.receiver.certificates import Certificates
from infra.receiver.engine import Engine
from infra.receiver.journal import LEAST, Journal
from infra.receiver.session import ReceiverSession
from infra.receiver.store import Store
from rapha.errors import ConfigurationError, RaphaError


def main() -> int:
    options = _options()
    os.umask(0o077)
    try:
        options.store.mkdir(parents=True, exist_ok=True, mode=0o700)
        journal = Journal(options.store / "journal", _key(options.key_env), least=options.compact_at)
        store = Store(options.store, _recipient(options.seal_to) if options.seal_to else None, journal, options.disk_floor)
        alarms = Alarms(options.store / "alarms")
        port = Engine(options.ae, store, options.peer, alarms).start(options.host, options.port, _tls(options))
    except RaphaError as error:
        print(", ".join(error.codes), file=sys.stderr)
        return error.exit_status
    print(f"port {port}", flush=True)
    serve(options.socket, lambda: ReceiverSession(store, alarms), ready=lambda: print("ready", flush=True))
    return 0


def _tls(options: argparse.Namespace) -> Certificates | None:
    if not (options.tls_cert or options.tls_key or options.tls_ca):
        return None
    if not (options.tls_cert and options.tls_key and options.tls_ca):
        raise ConfigurationError(["tls-files-unusable"], "TLS needs certificate, key and CA bundle")
    made = TlsSettings(
        ca_bundle=options.tls_ca,
        cert_file=options.tls_cert,
        key_file=options.tls_key,
        version=options.tls_version,
        mutual_auth=True,
    )
    return Certificates(made)


def _key(name: str) -> bytes:
    try:
        key = base64.b64decode(os.environ.pop(name, ""), validate=True)
    except binascii.Error:
        key = b""
    if len(key) != 32 or len(set(key)) < 8:
        raise ConfigurationError(["receiver-key"], f"{name} must hold 32 random bytes in base64")
    return key


def _recipient(path: Path) -> X25519PublicKey:
    try:
        key: object = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError):
        key = None
    if not isinstance(key, X25519PublicKey):
        raise ConfigurationError(["receiver-seal-to"], "--seal-to names no X25519 public key in PEM")
    return key


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m infra.receiver", description="Receives what archives send us by C-MOVE.")
    parser.add_argument("--ae", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--store", type=Path, required=True, help="folder of sealed files and the journal")
    parser.add_argument("--seal-to", type=Path, help="the study reader's public key, where there is one")
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--key-env", default="RAPHA_RECEIVER_KEY_BASE64")
    parser.add_argument("--peer", action="append", default=[], required=True, help="an AE title that may send; may be repeated")
    parser.add_argument("--disk-floor", type=int, default=1 << 30, help="bytes that stay free; below them A700 is answered")
    parser.add_argument(
        "--compact-at", type=int, default=LEAST, help="bytes of lines after which the journal may be written anew"
    )
    for name in ("cert", "key", "ca"):
        parser.add_argument(f"--tls-{name}", type=Path)
    parser.add_argument("--tls-version", choices=get_args(ReceiverTls), default="TLS_1_3")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
