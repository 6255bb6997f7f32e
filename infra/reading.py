"""The processes of the reading service: receiver, study reader and the launcher of models, as members of a node's group."""

import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from blocks.endpoint import Endpoint
from blocks.profile import Profile, load_profile
from blocks.reading_settings import BIND, RECEIVER_KEY, RECEIVER_PLACES, reading_problems, reading_values
from infra.supervisor import Member, Opener
from rapha.errors import ConfigurationError

MODE = "RAPHA_ENABLE_HOSPITAL_DATA_INTEGRATION"
FLOOR = 1 << 30


def members(
    environment: Mapping[str, str],
    base: Mapping[str, str],
    *,
    disk_floor: int = FLOOR,
    popen: Opener = subprocess.Popen,
) -> list[Member]:
    """What serves the flows `poll` and `drain`. base: what every process of ours gets; disk_floor: bytes that stay free; popen:
    how the receiver is started.

    Raises `ConfigurationError` for settings, keys and a profile that are missing or wrong.
    """
    if found := reading_problems(environment):
        raise ConfigurationError(sorted(found), "; ".join(found[code] for code in sorted(found)))
    values = reading_values(environment)
    profile = load_profile(Path(values["RAPHA_PROFILE_PATH"]), environment)
    for name in ("RAPHA_STUDY_SOCKET", "RAPHA_STUDY_STORE", "RAPHA_MODEL_LAUNCHER_SOCKET"):
        folder = Path(values[name]) if name.endswith("STORE") else Path(values[name]).parent
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    base = {**base, MODE: values.get(MODE, "false"), "TCP_NODELAY": "1"}
    launching = _python("infra.launcher", "--socket", values["RAPHA_MODEL_LAUNCHER_SOCKET"], "--python", sys.executable)
    made = [_study(values, profile, environment, base), Member("models", launching, base)]
    if values.get(BIND):
        made.insert(0, _receiver(values, profile, environment, base, disk_floor, popen, seals=True))
    return made


def receiver_alone(environment: Mapping[str, str], base: Mapping[str, str], popen: Opener) -> Member:
    """The receiver of a node that trains by C-MOVE and does not read: it takes what a job's ticket waits for and nothing else."""
    places = {name: str(Path(environment["RAPHA_STATE_DIR"]) / place) for name, place in RECEIVER_PLACES.items()}
    values = {**places, **{name: value for name, value in environment.items() if value.strip()}}
    if not values.get(RECEIVER_KEY):
        raise ConfigurationError(["missing-receiver-key-base64"], f"{RECEIVER_KEY} must be 32 random bytes")
    profile = load_profile(Path(values["RAPHA_PROFILE_PATH"]), environment)
    base = {**base, MODE: values.get(MODE, "false"), "TCP_NODELAY": "1"}
    return _receiver(values, profile, environment, base, FLOOR, popen, seals=False)


def shift(environment: Mapping[str, str]) -> list[Member]:
    """The process that works shift after shift. environment: all that a flow may know, the engine's settings among it.

    Without it nothing is read and nothing is lost: what archives send is still received. So it is not vital.
    """
    return [Member("shift", _python("flows.shift"), environment, timeout=120, vital=False)]


def _receiver(
    values: Mapping[str, str],
    profile: Profile,
    environment: Mapping[str, str],
    base: Mapping[str, str],
    disk_floor: int,
    popen: Opener,
    *,
    seals: bool,
) -> Member:
    host, _, port = values[BIND].rpartition(":")
    endpoints = [one for one in profile.endpoints.values() if one.port]
    argv = _python("infra.receiver", "--ae", receiving_title(endpoints), "--host", host, "--port", port)
    argv += ["--store", values["RAPHA_RECEIVER_STORE"], "--socket", values["RAPHA_RECEIVER_SOCKET"]]
    argv += ["--disk-floor", str(disk_floor)]
    argv += ["--seal-to", str(Path(values["RAPHA_KEYS_DIR"]) / "study.pub")] if seals else []
    for title in sorted({one.ae_title for one in endpoints}):
        argv += ["--peer", title]
    if tls := next((one.tls for one in endpoints if one.tls), None):
        argv += ["--tls-cert", str(tls.cert_file), "--tls-key", str(tls.key_file), "--tls-ca", str(tls.ca_bundle)]
        argv += ["--tls-version", profile.values.get("security.receiver_tls_version", "TLS_1_3")]
    return Member("receiver", argv, {**base, RECEIVER_KEY: environment[RECEIVER_KEY]}, popen=popen)


def receiving_title(endpoints: list[Endpoint]) -> str:
    """The AE title that archives send to. Raises `ConfigurationError` where they would send to several, or to none."""
    titles = {one.move_destination or one.calling_ae_title for one in endpoints}
    if len(titles) != 1:
        said = "one receiver has one AE title: every endpoint's move_destination (else calling_ae_title) must be the same"
        raise ConfigurationError(["receiver-title"], said)
    return titles.pop()


def _study(values: Mapping[str, str], profile: Profile, environment: Mapping[str, str], base: Mapping[str, str]) -> Member:
    keys, state = Path(values["RAPHA_KEYS_DIR"]), Path(values["RAPHA_STATE_DIR"])
    argv = _python("infra.study", "--socket", values["RAPHA_STUDY_SOCKET"], "--key-file", str(keys / "study.pem"))
    for folder in filter(None, (values.get("RAPHA_RECEIVER_STORE"), values["RAPHA_STUDY_STORE"])):
        argv += ["--sealed", folder]
    argv += ["--store", values["RAPHA_STUDY_STORE"], "--profile", values["RAPHA_PROFILE_PATH"]]
    argv += ["--models", values["RAPHA_MODELS_PATH"], "--capabilities", str(state / "capabilities")]
    return Member("study", argv, {**base, **_taken(profile.variables, environment)})


def secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that the profile takes secrets from (`env:NAME`), the mail server's too; empty without a profile."""
    path = environment.get("RAPHA_PROFILE_PATH", "").strip()
    if not path:
        return {}
    profile = load_profile(Path(path), environment)
    mail = str(profile.values.get("notifications.email.password", ""))
    return _taken({*profile.variables, *([mail.removeprefix("env:")] if mail.startswith("env:") else [])}, environment)


def _taken(names: Iterable[str], environment: Mapping[str, str]) -> dict[str, str]:
    return {name: environment[name] for name in names if name in environment}


def _python(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, *arguments]
