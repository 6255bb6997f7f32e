"""The reading service's settings: what must be set, and what follows from `RAPHA_STATE_DIR` where it is not set.

A node may read without training: nothing of the training half is asked for here.
"""

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path

from blocks.reading_rows import LONGEST_LEASE
from blocks.settings import MODE, development_keys, mode_of, weakened
from rapha.errors import ConfigurationError

NEEDED = (
    MODE,
    "RAPHA_NODE_ID",
    "RAPHA_STATE_DIR",
    "RAPHA_KEYS_DIR",
    "RAPHA_PROFILE_PATH",
    "RAPHA_REGISTER_KEY_BASE64",
    "RAPHA_AUDIT_KEY_BASE64",
    "RAPHA_MODELS_PATH",
    "RAPHA_TRAINER_COMMAND",
)
# Where the processes beside the flows serve, and their folders: below the state folder unless they are named.
PLACES = {
    "RAPHA_STUDY_SOCKET": "run/study.sock",
    "RAPHA_STUDY_STORE": "fetched",
    "RAPHA_MODEL_LAUNCHER_SOCKET": "run/models.sock",
}
RECEIVER_PLACES = {"RAPHA_RECEIVER_SOCKET": "run/receiver.sock", "RAPHA_RECEIVER_STORE": "received"}
BIND, RECEIVER_KEY = "RAPHA_RECEIVER_BIND", "RAPHA_RECEIVER_KEY_BASE64"
OPTIONAL = (
    BIND,
    "RAPHA_REGISTER_URL",
    "RAPHA_AUDIT_DIR",
    "RAPHA_AUDIT_RETENTION_YEARS",
    "RAPHA_AUDIT_SEGMENT",
    "RAPHA_READING_LEASE_SECONDS",
)
KEYS = ("ledger.key", "audit.pem", "study.pem", "study.pub")
RECEIVER_ALONE = RECEIVER_KEY  # the journal's key: no flow has it


LEASE_SECONDS, LEAST_LEASE, MOST_LEASE = 120, 5, LONGEST_LEASE


def lease_seconds(environment: Mapping[str, str]) -> int:
    """How long a worker's hold on a study lasts when nobody renews it: then somebody else takes a dead worker's study.

    It is renewed six times in that time: with less than the least, a register that is slow for some seconds would cost every
    study in flight its lease. Raises `ConfigurationError(bad-reading-lease-seconds)`.
    """
    text = environment.get("RAPHA_READING_LEASE_SECONDS", "").strip() or str(LEASE_SECONDS)
    if not (text.isascii() and text.isdecimal() and len(text) < 9 and LEAST_LEASE <= int(text) <= MOST_LEASE):
        said = f"RAPHA_READING_LEASE_SECONDS is a number of seconds from {LEAST_LEASE} to {MOST_LEASE}"
        raise ConfigurationError(["bad-reading-lease-seconds"], said)
    return int(text)


def reading_problems(environment: Mapping[str, str]) -> dict[str, str]:
    """code -> sentence, for every setting and key that the reading service lacks; empty where it may be configured so."""
    found = {f"missing-{_kebab(name)}": f"{name} is not set" for name in NEEDED if not environment.get(name, "").strip()}
    bind, key = environment.get(BIND, "").strip(), environment.get(RECEIVER_KEY, "").strip()
    if bind and not _is_address(bind):
        found["bad-receiver-bind"] = f"{BIND} is host:port, the address at which archives reach our receiver"
    if bind and not _is_key(key):
        found["weak-receiver-key-base64" if key else "missing-receiver-key-base64"] = f"{RECEIVER_KEY} must be 32 random bytes"
    folder = environment.get("RAPHA_KEYS_DIR", "").strip()
    for name in KEYS if folder else ():
        if not (Path(folder) / name).is_file():
            found[f"missing-key-{name.replace('.', '-')}"] = f"{Path(folder) / name} is not there; `rapha node init` makes one"
    return found | _mode_problems(environment)


def _mode_problems(environment: Mapping[str, str]) -> dict[str, str]:
    """A value that is none; in production what was made for development."""
    try:
        mode = mode_of(environment, absent="development")
        lease_seconds(environment)
    except ConfigurationError as error:
        return dict.fromkeys(error.codes, error.message)
    return weakened(environment) | development_keys(environment) if mode == "production" else {}


def reading_values(environment: Mapping[str, str]) -> dict[str, str]:
    """The settings of the reading service, those that follow from others filled in. Raises `ConfigurationError`, all at once."""
    missing = [name for name in NEEDED if not environment.get(name, "").strip()]
    if missing:
        raise ConfigurationError([f"missing-{_kebab(name)}" for name in missing], f"not set: {', '.join(missing)}")
    mode_of(environment)
    named = [*NEEDED, *OPTIONAL, *PLACES, *RECEIVER_PLACES]
    values = {name: environment[name] for name in named if environment.get(name, "").strip()}
    state = Path(values["RAPHA_STATE_DIR"])
    places = PLACES | (RECEIVER_PLACES if values.get(BIND) else {})
    return {name: str(state / place) for name, place in places.items()} | values


def _kebab(name: str) -> str:
    return name.removeprefix("RAPHA_").lower().replace("_", "-")


def _is_address(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(host) and port.isascii() and port.isdecimal() and 0 < int(port) < 65536


def _is_key(text: str) -> bool:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return False
    return len(raw) == 32 and len(set(raw)) >= 8
