"""`python -m infra.reader --socket S --archive URL --records FILE --hmac-key-env NAME --staging DIR [--ca PEM]`

Prints `ready` once it serves. The hospital's key comes from the environment variable that is named, and is taken out of it.
"""

import argparse
import base64
import binascii
import os
import shutil
import sys
from pathlib import Path

from blocks.pacs import DicomWeb, Timeouts
from infra.daemon import serve
from infra.reader.hardening import harden
from infra.reader.session import ReaderSession
from policies.minimise import project_key
from rapha.errors import ConfigurationError


def main() -> int:
    arguments = _arguments()
    harden("reader")
    try:
        key = hospital_key(os.environ.pop(arguments.hmac_key_env, ""), arguments.hmac_key_env)
    except ConfigurationError as error:
        print(", ".join(error.codes), file=sys.stderr)
        return error.exit_status
    clean(arguments.staging)
    token = os.environ.pop(arguments.token_env, None) if arguments.token_env else None
    timeouts = Timeouts(connect=arguments.connect_timeout, idle=arguments.idle_timeout)
    archive = DicomWeb(arguments.archive, timeouts=timeouts, ca=arguments.ca, token=token)
    serve(
        arguments.socket,
        lambda: ReaderSession(archive, key, arguments.records, arguments.staging),
        ready=lambda: print("ready", flush=True),
    )
    return 0


def hospital_key(text: str, name: str) -> bytes:
    """The 32 bytes in base64. Raises `ConfigurationError` pseudonym-key-missing, -malformed, -length, -weak."""
    if not text.strip():
        raise ConfigurationError(["pseudonym-key-missing"], f"{name} is not set")
    try:
        key = base64.b64decode(text, validate=True)
    except binascii.Error:
        raise ConfigurationError(["pseudonym-key-malformed"], f"{name} is not base64") from None
    project_key(key, "probe")
    if any(key == key[:period] * (len(key) // period) for period in (1, 2, 4, 8, 16)):
        raise ConfigurationError(["pseudonym-key-weak"], f"{name} is a pattern, not a random key")
    return key


def clean(staging: Path) -> None:
    """Removes what a killed reader left behind: its key is gone with it, so it is noise."""
    staging.mkdir(mode=0o700, parents=True, exist_ok=True)
    for left in staging.iterdir():
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m infra.reader", description="Holds the keys and clear data of one attempt.")
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--archive", required=True, help="base URL of the archive's DICOMweb service")
    parser.add_argument("--records", type=Path, required=True, help="the manifest's records file")
    parser.add_argument("--hmac-key-env", default="RAPHA_PHI_HMAC_KEY_BASE64")
    parser.add_argument("--staging", type=Path, required=True, help="folder of its own; what lies in it is removed")
    parser.add_argument("--ca", type=Path, help="PEM bundle to verify the archive with")
    parser.add_argument("--token-env", default="", help="environment variable with the archive's bearer token")
    parser.add_argument("--connect-timeout", type=float, default=5.0)
    parser.add_argument("--idle-timeout", type=float, default=30.0)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
