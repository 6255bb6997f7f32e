"""A new node's folder for reading: its keys, an empty ledger and audit trail, a profile to fill in, the list of models.

Nothing that is there is written over, and a key never leaves its file.
"""

import base64
import json
import secrets
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from blocks.audit import create_audit_trail
from blocks.ledger import Ledger
from blocks.models import site_list
from blocks.settings import DEVELOPMENT_MARK
from policies.gate import Mode
from rapha.errors import ConfigurationError
from rapha.signing import write_private, write_public

HOME = Path(__file__).resolve().parents[2]
RECEIVER = {"production": "0.0.0.0:11112", "development": "127.0.0.1:11112"}  # archives on port A send to it
SECRETS = ("RAPHA_REGISTER_KEY_BASE64", "RAPHA_AUDIT_KEY_BASE64", "RAPHA_RECEIVER_KEY_BASE64")


def begin(folder: Path, node_id: str, mode: Mode) -> dict[str, Path]:
    """Makes the folder; what a person looks at next, by name: env, profile, models, audit key, ledger key.

    Raises `ConfigurationError(node-exists)` where the folder holds anything.
    """
    folder = folder.absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigurationError(["node-exists"], f"{folder} is there and not empty: a node's keys are made once")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    keys = folder / "keys"
    keys.mkdir(mode=0o700)
    if mode == "development":
        (keys / DEVELOPMENT_MARK).write_text("These keys were made for development. A production node refuses them.\n")
    ledger = write_private(keys / "ledger.key")
    signers = {"ledger": ledger, "audit": write_private(keys / "audit.pem")}
    write_study_key(keys)
    (folder / "public").mkdir()
    for name, key in signers.items():
        write_public(folder / "public" / f"{name}.pem", key.public_key())
    shutil.copyfile(HOME / "infra" / "profiles" / f"{mode}.yaml", folder / "profile.yaml")
    models = site_list([HOME / "infra" / "models" / name for name in ("radiology", "slides")])
    (folder / "models.json").write_text(json.dumps(models, indent=1) + "\n")
    environment = _environment(folder, node_id, mode)
    _write_env(folder / "node.env", environment)
    _records(folder, environment, ledger)
    found = {"environment": folder / "node.env", "profile": folder / "profile.yaml", "models": folder / "models.json"}
    return {**found, "public keys": folder / "public"}


def _records(folder: Path, environment: Mapping[str, str], ledger: Ed25519PrivateKey) -> None:
    """The empty ledger and audit trail. The profile is a person's to fill in yet, and has no say in where the trail lies."""
    Ledger.create(folder / "ledger", ledger, environment["RAPHA_NODE_ID"])
    create_audit_trail({name: value for name, value in environment.items() if name != "RAPHA_PROFILE_PATH"})


def _environment(folder: Path, node_id: str, mode: Mode) -> dict[str, str]:
    return {
        "RAPHA_ENABLE_HOSPITAL_DATA_INTEGRATION": "true" if mode == "production" else "false",
        "RAPHA_NODE_ID": node_id,
        "RAPHA_STATE_DIR": str(folder),
        "RAPHA_KEYS_DIR": str(folder / "keys"),
        "RAPHA_AUDIT_DIR": str(folder / "audit"),
        "RAPHA_PROFILE_PATH": str(folder / "profile.yaml"),
        "RAPHA_MODELS_PATH": str(folder / "models.json"),
        "RAPHA_TRAINER_COMMAND": str(HOME / "infra" / "workload" / "launcher.py"),
        "RAPHA_RECEIVER_BIND": RECEIVER[mode],
        **{name: base64.b64encode(secrets.token_bytes(32)).decode() for name in SECRETS},
        "PREFECT_API_URL": "http://127.0.0.1:4200/api",
    }


def _write_env(path: Path, environment: Mapping[str, str]) -> None:
    path.touch(mode=0o600)
    lines = [f"{name}={shlex.quote(value)}" for name, value in environment.items()]
    path.write_text("# This node's settings, with its secrets:  set -a; . ./node.env; set +a\n" + "\n".join(lines) + "\n")


def write_study_key(keys: Path) -> None:
    """A new pair in this folder: the receiver seals to study.pub, the study reader opens with study.pem."""
    key, private = X25519PrivateKey.generate(), keys / "study.pem"
    private.touch(mode=0o600)
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (keys / "study.pub").write_bytes(public)
