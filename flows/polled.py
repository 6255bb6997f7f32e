"""How an endpoint of the profile is polled."""

from zoneinfo import ZoneInfo

from blocks.archive import Capabilities
from blocks.profile import Profile
from flows.pacs.endpoints import chosen
from policies.polling import DAY, PollSettings

POLL_SECONDS = 300


def poll_settings(profile: Profile, name: str, probed: Capabilities | None = None) -> PollSettings:
    """As the profile has it; `probed`: what a probe found, which may be a lower limit of results than the profile's.

    Raises `ConfigurationError(pacs-unknown)`.
    """
    endpoint = chosen(profile, name)
    limits = [endpoint.max_results, *([probed.limit] if probed and probed.limit else [])]

    return PollSettings(
        pacs=name,
        overlap=_days(profile, "poll_overlap_days", 1),
        first=_days(profile, "first_poll_days", 1),
        sweep=sweep_seconds(profile),
        most=min(limits),
        zone=ZoneInfo(endpoint.timezone) if endpoint.timezone else None,
        priority=endpoint.priority,
    )


def polling_interval(profile: Profile) -> int | None:
    """Seconds from one poll to the next; None where no schedule makes them."""
    if profile.values.get("workflow.automated_polling", True) is not True:
        return None
    return int(profile.values.get("workflow.polling_interval_seconds", POLL_SECONDS))


def sweep_seconds(profile: Profile) -> int:
    """How far back the daily sweep looks; 0 for none."""
    return _days(profile, "sweep_days", 30)


def _days(profile: Profile, key: str, default: int) -> int:
    return DAY * int(profile.values.get(f"workflow.{key}", default))
