"""What a development node must be told about its own made-up machine: the site policy's section "attestation"."""

from pathlib import Path
from typing import Any

from infra.attester.synthetic import Enclave
from policies.platform import Platform
from rapha.canonical import digest


def development_policy(state: Path, platform: Platform) -> dict[str, Any]:
    """The strict limits, naming the development root, enclave and this enrolled machine. `state` is the attester's --state."""
    enclave = Enclave()
    signer = {"mrsigner": enclave.signer.hex(), "isv_prod_id": enclave.isv_prod_id, "min_isv_svn": enclave.isv_svn}
    return {
        "root": digest((state / "dcap" / "root.der").read_bytes()),
        "measurements": [enclave.measurement.hex()],
        "signers": [signer],
        "platforms": [platform.digest],
    }
