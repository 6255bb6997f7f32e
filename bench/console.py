"""The console's start against an empty interpreter's."""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bench.row import Row, beside
from rapha.canonical import canonical, digest
from rapha.receipt import GATES, SUBJECTS, Predicate, sign_receipt
from rapha.signing import write_public


def rows() -> list[Row]:
    """`rapha --help`, and the command that an outsider runs on a receipt, beside `python -c pass`."""
    with tempfile.TemporaryDirectory(prefix="rapha-bench-") as name:
        receipt, key = made_receipt(Path(name))
        return [_row("--help", "--help"), _row("receipt verify FILE", "receipt", "verify", str(receipt), "--key", str(key))]


def made_receipt(folder: Path) -> tuple[Path, Path]:
    """A receipt of a job that never was, and its key: both files are whole, and it verifies."""
    key = Ed25519PrivateKey.generate()
    receipt, public = folder / "receipt.json", folder / "receipt.pem"
    subjects = {name: digest(name.encode()) for name in SUBJECTS}
    receipt.write_bytes(sign_receipt(Predicate.model_validate_json(canonical(_predicate())), subjects, key))
    write_public(public, key.public_key())
    return receipt, public


def _predicate() -> dict[str, Any]:
    named = {name: digest(name.encode()) for name in ("job", "declaration", "manifest", "policy", "workload", "launcher")}
    some = digest(b"some")
    return {
        **named,
        "version": 1,
        "mode": "development",
        "attempt": 1,
        "node": "bench",
        "escrow": {"chain_id": 31337, "vault": "0x" + "1f" * 20, "id": "0x" + "3" * 64},
        "platform": {"quote": some, "requote": some, "tcb_status": "UpToDate"},
        "records": {"unique": 40, "commitment": some},
        "gates": [{"gate": name, "subject": digest(name.encode()), "policy": some} for name in GATES],
        "leak_bits": 12345,
        "duration": "under-10m",
        "sealed_hour": 1_800_000_000,
        "ledger_head": some,
    }


def _row(said: str, *arguments: str) -> Row:
    return beside(
        f"console: rapha {said}",
        lambda: subprocess.run([sys.executable, "-m", "rapha.console", *arguments], check=True, capture_output=True),
        lambda: subprocess.run([sys.executable, "-c", "pass"], check=True, capture_output=True),
        peer_name="python -c pass",
        runs=9,
    )
