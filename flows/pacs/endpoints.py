"""An endpoint of the profile as a person uses it: every access in the audit trail, under that person's name."""

from pathlib import Path

from blocks.archive import Archive
from blocks.audit import AuditTrail
from blocks.endpoint import Endpoint
from blocks.profile import Profile
from blocks.witnessed import WitnessedArchive
from rapha.errors import ConfigurationError, Refusal
from tasks.shared.probe import read_record


def chosen(profile: Profile, name: str) -> Endpoint:
    """The endpoint of this name: asked before the audit trail is opened, so that a wrong name is told as that also on a
    machine that has no trail yet. Raises `ConfigurationError(pacs-unknown)`; `Refusal` not-built where a choice between
    endpoints is asked for."""
    if name in ("auto", "any"):
        raise Refusal(["not-built"], "failover between archives is not built: name the endpoint")
    if name not in profile.endpoints:
        said = f"no endpoint of this name is configured; there is {', '.join(profile.endpoints)}"
        raise ConfigurationError(["pacs-unknown"], said)
    return profile.endpoints[name]


def witnessed(endpoint: Endpoint, state: Path, trail: AuditTrail, person: str) -> WitnessedArchive:
    """The archive, every access to which is in the trail first. Raises `Refusal` capabilities-odd."""
    return WitnessedArchive(Archive(endpoint, read_record(state / "capabilities", endpoint.name)), trail, person)
