"""TPM2_MakeCredential in software, by tpm2-tools without a TPM: a secret that only the TPM with this EK and this AK can open."""

import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from rapha.errors import ConfigurationError, PeerError


def make_credential(ek_public: bytes, ak_name: str, secret: bytes) -> bytes:
    """The credential for a TPM2B_PUBLIC endorsement key and an object's name (hex). Raises `PeerError` credential-failed."""
    if shutil.which("tpm2_makecredential") is None:
        raise ConfigurationError(["tpm2-tools-missing"], "tpm2-tools is not installed: apt-get install tpm2-tools")
    with TemporaryDirectory() as folder:
        at = Path(folder)
        (at / "ek").write_bytes(ek_public)
        (at / "secret").write_bytes(secret)
        command = ["tpm2_makecredential", "-T", "none", "-u", f"{at}/ek", "-s", f"{at}/secret", "-n", ak_name, "-o", f"{at}/out"]
        try:
            done = subprocess.run(command, capture_output=True, timeout=30, check=False)
        except subprocess.TimeoutExpired:
            raise PeerError("credential-failed", "tpm2_makecredential did not end in time", peer="tpm2-tools") from None
        if done.returncode != 0:
            raise PeerError("credential-failed", f"tpm2_makecredential ended with status {done.returncode}", peer="tpm2-tools")
        return (at / "out").read_bytes()
