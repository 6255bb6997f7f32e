"""`rapha pacs watermark`: up to where an archive was polled, and back from there."""

import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from blocks.audit import Act, audited, open_audit_trail
from blocks.profile import load_profile
from blocks.reading import Watermark, open_reading_register
from flows.pacs.endpoints import chosen
from flows.person import person
from rapha.console.app import AsJson, Result
from rapha.errors import ConfigurationError, Refusal

Set = Annotated[str | None, Parameter(name="--set")]


def watermark(endpoint: str, *, to: Set = None, as_json: AsJson = False) -> Result:
    """Show up to when an archive was polled, or set it back, so that the next poll looks at everything since.

    A poll while the machine's clock ran ahead leaves a watermark in the future, and polls refuse with clock-behind-watermark. It
    is set back only: what lies between would not be looked at again. The audit trail says who did it.

    Example: `rapha pacs watermark primary --set 2026-03-01T00:00:00Z`

    Parameters
    ----------
    endpoint
        The archive's name in the profile.
    to
        A time with its zone (ISO 8601), such as 2026-03-01T00:00:00Z.
    """
    chosen(load_profile(Path(_needed("RAPHA_PROFILE_PATH"))), endpoint)
    register, at = open_reading_register(os.environ), None if to is None else _seconds(to)
    if at is not None:
        _check(at, register.watermark(endpoint))
        act = Act(person=person(), subject=f"urn:rapha:poll:{endpoint}#{_text(at)}")
        with audited(open_audit_trail(os.environ), "operator", act):
            register.put_watermark(endpoint, at)
    mark = register.watermark(endpoint)
    known = {"watermark": _text(mark.at), "polled_at": _text(mark.polled_at)} if mark else {"watermark": None, "polled_at": None}
    lines = [f"{endpoint} was polled up to {known['watermark'] or 'nothing yet'}"]
    return Result({"pacs": endpoint, **known}, lines)


def _check(at: int, mark: Watermark | None) -> None:
    if at > (int(time.time()) if mark is None else mark.at):
        raise Refusal(["watermark-forward"], "a watermark is set back, never forward: studies would be passed over", gate="poll")


def _seconds(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = datetime.min
    if moment.tzinfo is None or moment.timestamp() < 0:
        raise ConfigurationError(["time-malformed"], "a time is ISO 8601 with its zone, such as 2026-03-01T00:00:00Z")
    return int(moment.timestamp())


def _text(at: int) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _needed(name: str) -> str:
    value = os.environ.get(name, "").strip()
    if not value:
        raise ConfigurationError([f"missing-{name.removeprefix('RAPHA_').lower().replace('_', '-')}"], f"{name} is not set")
    return value
