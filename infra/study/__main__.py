"""`python -m infra.study --socket S --key-file PEM --sealed DIR [--sealed DIR …] [--store DIR --profile YAML]`

Prints `ready` once it serves. The private key (X25519, PKCS #8 in PEM, mode 0600) is read once. With --store, a folder for what
it fetches, and --profile, whose endpoints are the only archives that it speaks with, it also retrieves by C-GET and WADO-RS.
"""

import argparse
import sys
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from blocks.archive import Archive
from blocks.instances import sweep_finished, sweep_unfinished
from blocks.models import load_models
from blocks.validators import check
from infra.daemon import many_files, serve
from infra.reader.hardening import harden
from infra.study.opened import Opener
from infra.study.session import Archives, StudySession
from infra.validator.warm import WarmValidator
from rapha.errors import ConfigurationError, Refusal


def main() -> int:
    arguments = _arguments()
    harden("study")
    many_files()
    try:
        folders = [*arguments.sealed, *([arguments.store] if arguments.store else [])]
        opener = Opener(private_key(arguments.key_file), folders)
        models = load_models(arguments.models) if arguments.models else ()
        archives = archives_of(arguments.profile, arguments.capabilities) if arguments.profile else None
    except ConfigurationError as error:
        print(", ".join(error.codes), file=sys.stderr)
        return error.exit_status
    if arguments.store:
        arguments.store.mkdir(mode=0o700, parents=True, exist_ok=True)
        sweep_unfinished(arguments.store)
        sweep_finished(arguments.store)

    # Only where there can be reports. The flow sends the first study seconds later: by then it is warm.
    asked = WarmValidator().check if arguments.store and arguments.models else check

    def session() -> StudySession:
        return StudySession(opener, archives, arguments.store, models, asked)

    serve(arguments.socket, session, ready=lambda: print("ready", flush=True))
    return 0


def archives_of(profile: Path, capabilities: Path | None = None) -> Archives:
    """The archives of a profile, by their endpoints' names, each with what the last probe found. Raises `ConfigurationError`."""
    from blocks.profile import load_profile  # a study reader over the receiver's files alone needs no profile

    endpoints = load_profile(profile).endpoints

    def archive(name: str) -> Archive:
        if name not in endpoints:
            raise Refusal(["study-no-endpoint"], "the profile has no endpoint of this name")
        if capabilities is None:
            return Archive(endpoints[name])
        from tasks.shared.probe import read_record

        return Archive(endpoints[name], read_record(capabilities, name))

    return archive


def private_key(path: Path) -> X25519PrivateKey:
    """Raises `ConfigurationError` study-key-missing, study-key-open (others may read it), study-key-malformed."""
    try:
        mode, raw = path.stat().st_mode, path.read_bytes()
    except OSError:
        raise ConfigurationError(["study-key-missing"], "the study reader's private key cannot be read") from None
    if mode & 0o077:
        raise ConfigurationError(["study-key-open"], "the study reader's private key may be read by others: chmod 600")
    try:
        key = load_pem_private_key(raw, None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, X25519PrivateKey):
        raise ConfigurationError(["study-key-malformed"], "the study reader's private key is no X25519 key in PEM")
    return key


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m infra.study", description="Opens sealed studies for the reading service.")
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--key-file", type=Path, required=True, help="the private key that the receiver seals to")
    parser.add_argument("--sealed", type=Path, action="append", required=True, help="a folder in which sealed files may lie")
    parser.add_argument("--store", type=Path, help="a folder of this process's own, for what it fetches")
    parser.add_argument("--profile", type=Path, help="the reading service's profile, for its endpoints")
    parser.add_argument("--models", type=Path, help="the site's list of models, of which findings are reported")
    parser.add_argument("--capabilities", type=Path, help="the folder of the endpoints' capability records")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
