"""`python -m infra.attester --socket S --kind swtpm|software|device --state DIR [--pcrs 0,1,…]`; prints `ready` when it serves.

swtpm and software make DCAP evidence of a made-up machine kept in DIR/dcap (its root.der and collateral.json are what a
development node pins and imports). device uses /dev/tpmrm0 and the TEE's own interface, and refuses where either is absent.
"""

import argparse
import signal
import sys
import threading
from pathlib import Path

from infra.attester.service import PCRS, Attester
from infra.attester.software import SoftwareTpm
from infra.attester.tee import DeviceTee, SyntheticTee, Tee
from infra.attester.tpm import DeviceTpm, SwTpm, Tpm
from infra.daemon import serve
from rapha.errors import RaphaError


def devices(kind: str, state: Path) -> tuple[Tpm, Tee]:
    """The TPM and the TEE of this kind. Raises `Refusal` tpm-device-absent or tee-device-absent, `ConfigurationError`
    swtpm-missing."""
    if kind == "device":
        return DeviceTpm(state), DeviceTee()
    tee = SyntheticTee(state / "dcap")
    return (SwTpm(state) if kind == "swtpm" else SoftwareTpm(state)), tee


def main() -> int:
    """Serves until SIGTERM; the exit status is that of the error's kind."""
    parser = argparse.ArgumentParser(prog="python -m infra.attester")
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--kind", choices=("swtpm", "software", "device"), required=True)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--pcrs", default=",".join(map(str, PCRS)))
    options = parser.parse_args()
    pcrs = [int(index) for index in options.pcrs.split(",")]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        tpm, tee = devices(options.kind, options.state)
    except RaphaError as error:
        print(f"attester: {', '.join(error.codes)}: {error.message}", file=sys.stderr)
        return error.exit_status
    lock = threading.Lock()
    try:
        serve(options.socket, lambda: Attester(tpm, tee, lock, pcrs), ready=lambda: print("ready", flush=True))
    finally:
        tpm.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
