"""Where the demo keeps things, and every key that it makes: for development, marked so, and refused in production."""

import base64
import json
import secrets
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from rapha.signing import load_private, write_private, write_public

NODE, OWNER, TEAM_KEY = "st-elsewhere", "aurora", "aurora-1"
APPROVERS = ("custodian", "dpo", "caldicott")
SIGNERS = ("ledger", "receipt", "audit", "team", "workload-signer", *APPROVERS)


@dataclass(frozen=True)
class Layout:
    """A demo's folder. `private` holds what nobody but its owner reads; the rest may be looked at."""

    root: Path

    @property
    def private(self) -> Path:
        return self.root / "private"

    @property
    def keys(self) -> Path:
        return self.root / "keys"

    @property
    def trust(self) -> Path:
        return self.root / "trust"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def node_env(self) -> Path:
        return self.root / "node.env"

    @property
    def node_keys(self) -> Path:
        return self.private / "node"

    def signer(self, name: str) -> Ed25519PrivateKey:
        """One of the demo's Ed25519 keys: ledger, receipt and audit are the node's own."""
        folder = self.node_keys if name in ("ledger", "receipt", "audit") else self.private
        path = folder / ("audit.pem" if name == "audit" else f"{name}.key")
        return load_private(path) if path.exists() else write_private(path)

    def secret(self, name: str, size: int = 32) -> str:
        """A random secret, base64, the same at every start."""
        path = self.private / f"{name}.secret"
        if not path.exists():
            write_secret(path, base64.b64encode(secrets.token_bytes(size)).decode())
        return path.read_text()

    def recipient(self) -> X25519PrivateKey:
        """The AI team's key that results are sealed to."""
        path = self.private / "recipient.key"
        if not path.exists():
            key = X25519PrivateKey.generate()
            write_secret(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode())
        loaded = load_pem_private_key(path.read_bytes(), None)
        if not isinstance(loaded, X25519PrivateKey):
            raise TypeError("recipient.key is not an X25519 key")
        return loaded


def prepare(root: Path) -> Layout:
    """The folder with its keys and the lists of whom the node trusts, made where they are missing."""
    layout = Layout(root)
    root.mkdir(parents=True, exist_ok=True, mode=0o700)  # one that was there stays as it is
    for folder in (layout.private, layout.node_keys, layout.run):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for folder in (layout.keys, layout.trust, layout.logs):
        folder.mkdir(parents=True, exist_ok=True)
    for name in SIGNERS:
        write_public(layout.keys / f"{name}.pem", layout.signer(name).public_key())
    raw = layout.recipient().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (layout.keys / "recipient.pem").write_bytes(raw)
    _trust(layout)
    for folder in (layout.node_keys, layout.trust):
        (folder / "DEVELOPMENT").write_text("These keys were made by the demo. A production node refuses them.\n")
    return layout


def _trust(layout: Layout) -> None:
    lists = {f"ai-teams/{OWNER}": "team", "workload/workload-signer": "workload-signer"}
    lists |= {f"manifest/{role}": role for role in APPROVERS}
    for place, name in lists.items():
        write_public(layout.trust / place / f"{name}.pem", layout.signer(name).public_key())
    keys = {TEAM_KEY: {"owner": OWNER, "secret_base64": layout.secret("webhook")}}
    write_secret(layout.private / "webhook-keys.json", json.dumps({"keys": keys}, indent=1) + "\n")


def write_secret(path: Path, text: str) -> None:
    """A file that only its owner reads."""
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_text(text)
