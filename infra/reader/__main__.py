"""`python -m infra.reader --socket S (--archive URL | --profile YAML --endpoint NAME) --records FILE --staging DIR …`

--archive is a DICOMweb service and no more: then retrieval is by WADO-RS. --endpoint is one of the profile's, retrieved from as
it declares, else as its probe (--capabilities) says; for C-MOVE with --receiver and --received, the receiver's socket and folder.
Prints `ready` once it serves. The hospital's key comes from the environment variable that is named, and is taken out of it.
"""

import argparse
import base64
import binascii
import os
import shutil
import sys
from pathlib import Path

from blocks.archive import Archive
from blocks.endpoint import Endpoint
from infra.daemon import serve
from infra.reader.hardening import harden
from infra.reader.moving import Receiving
from infra.reader.session import ReaderSession
from policies.minimise import project_key
from rapha.errors import ConfigurationError, Refusal


def main() -> int:
    arguments = _arguments()
    harden("reader")
    try:
        key = hospital_key(os.environ.pop(arguments.hmac_key_env, ""), arguments.hmac_key_env)
        archive, receiving = _declared(arguments) if arguments.endpoint else _web(arguments), _receiving(arguments)
        if archive.method == "C-MOVE" and receiving is None:
            raise ConfigurationError(["receiver-missing"], "retrieval is by C-MOVE: --receiver and --received are needed")
    except (ConfigurationError, Refusal) as error:
        print(", ".join(error.codes), file=sys.stderr)
        return error.exit_status
    clean(arguments.staging)
    serve(
        arguments.socket,
        lambda: ReaderSession(archive, key, arguments.records, arguments.staging, receiving),
        ready=lambda: print("ready", flush=True),
    )
    return 0


def _web(arguments: argparse.Namespace) -> Archive:
    """The archive at a DICOMweb address, of which nothing else is known."""
    token = os.environ.pop(arguments.token_env, None) if arguments.token_env else None
    endpoint = Endpoint(
        name="archive",
        host="",
        port=0,
        ae_title="",
        calling_ae_title="",
        dicomweb_url=arguments.archive,
        dicomweb_token=token,
        connect_seconds=arguments.connect_timeout,
        idle_seconds=arguments.idle_timeout,
    )
    return Archive(endpoint, ca=arguments.ca)


def _declared(arguments: argparse.Namespace) -> Archive:
    """The profile's endpoint, with what its last probe found. Raises `ConfigurationError` endpoint-unknown, profile-…."""
    from blocks.profile import load_profile
    from tasks.shared.probe import read_record

    endpoints = load_profile(arguments.profile).endpoints
    if arguments.endpoint not in endpoints:
        raise ConfigurationError(["endpoint-unknown"], "the profile has no endpoint of this name")
    probed = read_record(arguments.capabilities, arguments.endpoint) if arguments.capabilities else None
    return Archive(endpoints[arguments.endpoint], probed)


def _receiving(arguments: argparse.Namespace) -> Receiving | None:
    return Receiving(arguments.receiver, arguments.received) if arguments.receiver else None


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
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--archive", help="base URL of the archive's DICOMweb service")
    which.add_argument("--endpoint", help="the archive by its name in --profile")
    parser.add_argument("--profile", type=Path, help="the profile that declares the endpoints")
    parser.add_argument("--capabilities", type=Path, help="the folder of the endpoints' capability records")
    parser.add_argument("--receiver", type=Path, help="the receiver's socket, for C-MOVE")
    parser.add_argument("--received", type=Path, help="the folder that the receiver keeps sealed files in")
    parser.add_argument("--records", type=Path, required=True, help="the manifest's records file")
    parser.add_argument("--hmac-key-env", default="RAPHA_PHI_HMAC_KEY_BASE64")
    parser.add_argument("--staging", type=Path, required=True, help="folder of its own; what lies in it is removed")
    parser.add_argument("--ca", type=Path, help="PEM bundle to verify the archive with")
    parser.add_argument("--token-env", default="", help="environment variable with the archive's bearer token")
    parser.add_argument("--connect-timeout", type=float, default=5.0)
    parser.add_argument("--idle-timeout", type=float, default=30.0)
    given = parser.parse_args()
    if bool(given.endpoint) != bool(given.profile) or bool(given.receiver) != bool(given.received):
        parser.error("--endpoint comes with --profile, --receiver with --received")
    return given


if __name__ == "__main__":
    sys.exit(main())
