"""An endpoint of the profile as a person uses it: every access in the audit trail, under that person's name."""

from pathlib import Path

from blocks.archive import Archive
from blocks.audit import AuditTrail
from blocks.profile import Profile
from blocks.witnessed import WitnessedArchive
from rapha.errors import ConfigurationError, Refusal
from tasks.shared.probe import read_record


def witnessed(profile: Profile, name: str, state: Path, trail: AuditTrail, person: str) -> WitnessedArchive:
    """Raises `ConfigurationError(pacs-unknown)`; `Refusal` not-built where a choice between endpoints is asked for,
    capabilities-odd."""
    if name in ("auto", "any"):
        raise Refusal(["not-built"], "failover between archives is not built: name the endpoint")
    if name not in profile.endpoints:
        said = f"no endpoint of this name is configured; there is {', '.join(profile.endpoints)}"
        raise ConfigurationError(["pacs-unknown"], said)
    plain = Archive(profile.endpoints[name], read_record(state / "capabilities", name))
    return WitnessedArchive(plain, trail, person)
