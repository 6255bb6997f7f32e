"""How the reader is told of its archive, by the node's settings.

Without `RAPHA_TRAINING_ENDPOINT` it is the DICOMweb service at `RAPHA_DICOMWEB_BASE_URL` and retrieval is by WADO-RS. With it,
it is that endpoint of the profile at `RAPHA_PROFILE_PATH`, retrieved from as the profile declares and the last probe found.
"""

from collections.abc import Mapping
from pathlib import Path

from blocks.profile import load_profile
from blocks.settings import Settings

MODE = "RAPHA_ENABLE_HOSPITAL_DATA_INTEGRATION"


def retrieving(settings: Settings, environment: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """(options of `python -m infra.reader`, what it needs of the environment besides). Raises `ConfigurationError` profile-…"""
    endpoint = settings.optional("RAPHA_TRAINING_ENDPOINT")
    if not endpoint:
        bundle = settings.optional("RAPHA_CA_BUNDLE")
        return ["--archive", settings.text("RAPHA_DICOMWEB_BASE_URL"), *(["--ca", bundle] if bundle else [])], {}
    state, profile = settings.path("RAPHA_STATE_DIR"), settings.text("RAPHA_PROFILE_PATH")
    options = ["--endpoint", endpoint, "--profile", profile, "--capabilities", str(state / "capabilities")]
    if settings.optional("RAPHA_RECEIVER_BIND") or settings.optional("RAPHA_RECEIVER_SOCKET"):
        options += ["--receiver", settings.optional("RAPHA_RECEIVER_SOCKET") or str(state / "run/receiver.sock")]
        options += ["--received", settings.optional("RAPHA_RECEIVER_STORE") or str(state / "received")]
    named = load_profile(Path(profile), environment).variables
    needed = {name: environment[name] for name in named if name in environment}
    return options, {MODE: environment.get(MODE, "false"), **needed}
