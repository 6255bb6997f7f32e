"""`rapha job new` and `rapha job sign`: what an AI team does before it sends anything."""

import base64
import json
import secrets
import time
from pathlib import Path
from typing import Any

import cyclopts

from rapha.canonical import canonical, digest_file
from rapha.console.announce import JOB
from rapha.console.app import AsJson, Result, group
from rapha.declaration import MAX_DECLARATION, Declaration, read_declaration
from rapha.errors import ConfigurationError
from rapha.files import read_regular
from rapha.sealed import load_recipient, write_recipient
from rapha.signing import JOB_TYPE, load_private, sign, unsigned

NOTHING = "sha256:" + "0" * 64
MONTH = 30 * 86400


def register(app: cyclopts.App) -> None:
    """Adds the commands that need no node."""
    jobs = group(app, "job", JOB)
    jobs.command(new)
    jobs.command(sign_declaration, name="sign")


def new(
    path: Path,
    *,
    node: str = "node-name",
    owner: str = "team-name",
    workload: Path | None = None,
    workload_signature: Path | None = None,
    base_weights: Path | None = None,
    recipient_key: Path | None = None,
    as_json: AsJson = False,
) -> Result:
    """Write a template declaration to PATH: strict, unsigned, every field there to be filled in.

    Example: `rapha job new job.json --node st-elsewhere --owner team-a --workload bundle.tar --recipient-key team.x25519.pem`

    Parameters
    ----------
    path
        Where to write it; a file that exists is left alone.
    workload
        The source bundle (tar); its digest is filled in.
    workload_signature
        The document that signs the workload; its digest is filled in.
    base_weights
        Weights to fine-tune from; their digest is filled in.
    recipient_key
        The X25519 private key (PEM) that opens the result; made where it is missing.
    """
    if path.exists():
        raise ConfigurationError(["file-exists"], f"{path} exists; remove it or choose another name")
    document = _template(node, owner)
    document["workload"] |= {
        "digest": _digest(workload),
        "signature": _digest(workload_signature),
        "base_weights": _digest(base_weights) if base_weights else None,
    }
    document["recipient"] = _recipient(recipient_key) if recipient_key else "A" * 43 + "="
    Declaration.model_validate_json(canonical(document))
    path.write_text(json.dumps(document, indent=2) + "\n")
    said = f"wrote {path}: fill in its fields, then: rapha job sign {path} --key KEY.pem"
    return Result({"path": str(path)}, [said])


def sign_declaration(
    path: Path,
    *,
    key: Path,
    out: Path | None = None,
    as_json: AsJson = False,
) -> Result:
    """Sign the declaration at PATH in the role ai-team and print the job's id.

    Example: `rapha job sign job.json --key team.ed25519.pem`

    Parameters
    ----------
    path
        The declaration.
    key
        An Ed25519 private key (PEM, mode 0600).
    out
        Where to write the signed declaration; PATH itself by default.
    """
    _, document, job = read_declaration(_read(path))
    signed = sign(unsigned(document), JOB_TYPE, load_private(key), "ai-team")
    target = out or path
    target.write_bytes(canonical(signed) + b"\n")
    return Result({"job": job, "path": str(target)}, [f"job {job}", f"signed declaration in {target}"])


def _template(node: str, owner: str) -> dict[str, Any]:
    return {
        "version": 1,
        "node": node,
        "owner": owner,
        "client_nonce": secrets.token_hex(16),
        "workload": {"kind": "source", "entry_point": "train.py"},
        "dataset": {
            "cohort": "cohort-name",
            "project": "project-name",
            "purpose": "purpose-name",
            "modalities": ["CT"],
            "body_parts": ["CHEST"],
            "date_from": "20200101",
            "date_to": "20201231",
        },
        "outputs": {
            "tensors": [{"name": "head.weight", "shape": [2, 8], "dtype": "F32"}],
            "metrics": [{"name": "accuracy", "minimum": 0.0, "maximum": 1.0, "digits": 3}],
        },
        "budget": {
            "chain_id": 137,
            "vault": "0x" + "0" * 40,
            "token": "0x" + "0" * 40,
            "escrow": "0x" + "0" * 64,
            "price_per_record": 1000,
            "max_records": 1000,
        },
        "run": {"max_seconds": 3600, "epochs": 1, "batch_size": 8, "seed": 1},
        "deadline": int(time.time()) + MONTH,
    }


def _digest(path: Path | None) -> str:
    if path is None:
        return NOTHING
    try:
        with path.open("rb") as stream:
            return digest_file(stream)
    except OSError as error:
        raise ConfigurationError(["file-unreadable"], f"{path}: {error.strerror}") from None


def _recipient(path: Path) -> str:
    if not path.exists():
        return write_recipient(path)
    return base64.b64encode(load_recipient(path).public_key().public_bytes_raw()).decode()


def _read(path: Path) -> bytes:
    return read_regular(path, MAX_DECLARATION, "file-unreadable")
