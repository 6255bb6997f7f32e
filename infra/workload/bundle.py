"""The AI team's paper: the bundle of the source as a tar, the document that signs it, the declaration that asks for a run."""

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from infra.hospital.cohort import DATES, NAME, PROJECT
from rapha.canonical import canonical, digest
from rapha.declaration import read_declaration
from rapha.signing import JOB_TYPE, WORKLOAD_TYPE, sign

SOURCE = Path(__file__).parent / "source"
LAUNCHER = Path(__file__).parent / "launcher.py"
ENTRY_POINT = "train.py"
PURPOSE = "diagnostic-model-research"
THRESHOLD = 0.85  # accuracy on held-out patients that only the trained network passes
TENSORS = {
    "first.weight": (8, 1, 5, 5),
    "first.bias": (8,),
    "second.weight": (16, 8, 5, 5),
    "second.bias": (16,),
    "answer.weight": (2, 16),
    "answer.bias": (2,),
}
METRICS = ("accuracy", "majority-accuracy", "mean-intensity-accuracy", "untrained-accuracy")


@dataclass(frozen=True, slots=True)
class Bundle:
    """tar: the workload's bytes; digest: their name; signature: the signing document's bytes; signature_digest: its name."""

    tar: bytes
    digest: str
    signature: bytes
    signature_digest: str

    @property
    def blobs(self) -> dict[str, bytes]:
        """What the orchestrator serves, by digest."""
        return {self.digest: self.tar, self.signature_digest: self.signature}


def source_tar(folder: Path) -> bytes:
    """The .py and .json files of a folder as an uncompressed tar: the same bytes for the same files, whoever packs them."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path in sorted(folder.rglob("*")):
            if path.suffix not in (".py", ".json") or not path.is_file():
                continue
            entry = tarfile.TarInfo(path.relative_to(folder).as_posix())
            content = path.read_bytes()
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def sign_workload(workload: str, entry_point: str, key: Ed25519PrivateKey, *, kind: str = "source") -> bytes:
    """The document that signs a workload's digest in the role workload-signer."""
    document = {"version": 1, "workload": workload, "kind": kind, "entry_point": entry_point}
    return canonical(sign(document, WORKLOAD_TYPE, key, "workload-signer"))


def make_bundle(key: Ed25519PrivateKey, folder: Path = SOURCE) -> Bundle:
    """The demo's workload, packed and signed."""
    tar = source_tar(folder)
    signature = sign_workload(digest(tar), ENTRY_POINT, key)
    return Bundle(tar, digest(tar), signature, digest(signature))


def make_declaration(
    bundle: Bundle,
    *,
    node: str,
    owner: str,
    client_nonce: str,
    budget: dict[str, Any],
    deadline: int,
    recipient: str,
    epochs: int = 10,
    batch_size: int = 16,
    seed: int = 7,
    max_seconds: int = 600,
) -> dict[str, Any]:
    """The demo's job, unsigned. budget: its section; deadline: seconds since the epoch; recipient: X25519 key, base64."""
    return {
        "version": 1,
        "node": node,
        "owner": owner,
        "client_nonce": client_nonce,
        "workload": {
            "kind": "source",
            "digest": bundle.digest,
            "signature": bundle.signature_digest,
            "entry_point": ENTRY_POINT,
            "base_weights": None,
        },
        "dataset": {
            "cohort": NAME,
            "project": PROJECT,
            "purpose": PURPOSE,
            "modalities": ["DX"],
            "body_parts": ["CHEST"],
            "date_from": DATES[0],
            "date_to": DATES[1],
        },
        "outputs": {
            "tensors": [{"name": name, "shape": list(shape), "dtype": "F32"} for name, shape in TENSORS.items()],
            "metrics": [{"name": name, "minimum": 0.0, "maximum": 1.0, "digits": 3} for name in METRICS],
        },
        "budget": budget,
        "run": {"max_seconds": max_seconds, "epochs": epochs, "batch_size": batch_size, "seed": seed},
        "deadline": deadline,
        "recipient": recipient,
    }


def sign_declaration(document: dict[str, Any], key: Ed25519PrivateKey) -> bytes:
    """The declaration's file. Raises `Refusal` when it would not be read back."""
    raw = canonical(sign(document, JOB_TYPE, key, "ai-team")) + b"\n"
    read_declaration(raw)
    return raw
