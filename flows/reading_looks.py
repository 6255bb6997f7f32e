"""What a doctor looks at in a reading node besides its settings: who may read its folders and keys, its records, its clock."""

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from blocks.audit import open_audit_trail
from blocks.launcher import Launcher
from flows.engine import engine_answers, engine_url
from rapha.errors import Refusal
from rapha.ledger import ENTRIES, read_entry
from rapha.signing import load_private
from rapha.trail import verify_trail

PRIVATE = ("ledger.key", "audit.pem", "study.pem")
CLOCK_SKEW = 300  # seconds


def looks(values: Mapping[str, str], *, served: bool) -> dict[str, Callable[[], object]]:
    """served: whether `rapha serve` was started: until then its parts are not asked."""
    found: dict[str, Callable[[], object]] = {
        "state folder": lambda: _own(Path(values["RAPHA_STATE_DIR"]), "state-open-to-others"),
        "keys": lambda: _keys(Path(values["RAPHA_KEYS_DIR"])),
        "audit entries": lambda: _trail(values),
        "clock": lambda: _clock(Path(values["RAPHA_STATE_DIR"]) / "ledger"),
        "engine": lambda: (engine_answers if served else engine_url)(values),
    }
    if served:
        found["isolation"] = lambda: _isolation(Path(values["RAPHA_MODEL_LAUNCHER_SOCKET"]))
    return found


def _own(path: Path, code: str) -> None:
    mode = path.stat().st_mode
    if mode & 0o077:
        raise Refusal([code], f"{path}: only its owner may read it; chmod go-rwx it")


def _keys(folder: Path) -> None:
    for name in PRIVATE:
        _own(folder / name, "key-open-to-others")
    load_private(folder / "ledger.key")
    load_private(folder / "audit.pem")
    try:
        private = load_pem_private_key((folder / "study.pem").read_bytes(), None)
        public = load_pem_public_key((folder / "study.pub").read_bytes())
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise Refusal(["study-key-unreadable"], "study.pem or study.pub holds no X25519 key") from None
    whole = isinstance(private, X25519PrivateKey) and isinstance(public, X25519PublicKey)
    if not whole or private.public_key().public_bytes_raw() != public.public_bytes_raw():  # type: ignore[union-attr]
        raise Refusal(["study-key-mismatch"], "study.pub is not the public key of study.pem: what is sealed could not be opened")


def _trail(values: Mapping[str, str]) -> None:
    """The whole of it, as an auditor would."""
    trail = open_audit_trail(values, make=False)
    report = verify_trail(trail.folder, load_private(Path(values["RAPHA_KEYS_DIR"]) / "audit.pem").public_key())
    if not report.ok:
        raise Refusal([f"audit-{report.kind}"], f"the audit trail does not verify: {report.detail}")


def _clock(ledger: Path) -> None:
    """A clock that was set back makes leases, overlaps and the trail's times wrong. There is no other clock to ask here."""
    with (ledger / ENTRIES).open("rb") as stream:
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - (1 << 17)))
        lines = stream.read().split(b"\n")[:-1]
    if lines and read_entry(lines[-1]).at > time.time() + CLOCK_SKEW:
        raise Refusal(["clock-behind-ledger"], f"this clock is more than {CLOCK_SKEW} s behind the ledger's newest entry")


def _isolation(socket: Path) -> None:
    """The launcher's own probe: what a sandbox of this machine can do that it must not."""
    with Launcher(socket, peer="launcher") as launcher:
        codes, _ = launcher.probe()
    if codes:
        raise Refusal(list(codes), f"a sandbox on this machine is open: {', '.join(codes)}")
