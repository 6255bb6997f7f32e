"""`rapha notify`: which notices are still owed, and who has them. Rows, codes and staff; no identifier of a patient."""

import os
import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import quote

import cyclopts
from cyclopts import Parameter

from blocks.audit import Act, audited, open_audit_trail
from blocks.reading import open_reading_register
from flows.console.announce import COMMANDS
from flows.person import person
from rapha.console.app import AsJson, AtMost, Result
from rapha.errors import ConfigurationError, Refusal

Person = Annotated[str | None, Parameter(help="Who has it, where that is not the one at the keyboard.")]
MAX_PERSON = 128


def register(app: cyclopts.App) -> None:
    """Adds the commands."""
    notify = cyclopts.App(name="notify", help=COMMANDS["notify"]["notify"])
    notify.command(list_notices, name="list")
    notify.command(ack, name="ack")
    notify.command(again, name="again")
    app.command(notify)


def list_notices(
    *, every: Annotated[bool, Parameter(name="--all")] = False, limit: AtMost = 100, as_json: AsJson = False
) -> Result:
    """What is still owed: not sent, taken by no channel, or critical and not acknowledged. `--all`: every notice there is.

    Example: `rapha notify list`
    """
    outbox = open_reading_register(os.environ)
    found = [asdict(one) for one in (outbox.notices()[-limit:] if every else outbox.open_notices(limit))]
    return Result({"notices": found}, [_line(one) for one in found] or ["nobody is owed a notice"])


def ack(notice: int, *, person: Person = None, as_json: AsJson = False) -> Result:
    """You have it: nobody else is told. The audit trail says so before it is done.

    Example: `rapha notify ack 17`
    """
    who = _who(person)
    outbox = open_reading_register(os.environ)
    with audited(open_audit_trail(os.environ), "operator", _act(notice, f"acknowledged-by={quote(who)}")):
        first = outbox.acknowledge(notice, who, int(time.time()))
    said = f"notice {notice} is {who}'s" if first else f"notice {notice} was acknowledged before"
    return Result({"notice": notice, "acknowledged": True, "first": first}, [said])


def again(notice: int, *, as_json: AsJson = False) -> Result:
    """Send a notice once more that no channel took (`dead` in the list). The audit trail says so before it is done.

    Example: `rapha notify again 17`
    """
    outbox = open_reading_register(os.environ)
    with audited(open_audit_trail(os.environ), "operator", _act(notice, "sent-again")):
        if not outbox.send_again(notice, int(time.time())):
            raise Refusal(["notice-not-dead"], "the notice waits, is sent or is acknowledged")
    return Result({"notice": notice, "state": "waiting"}, [f"notice {notice} is due again"])


def _act(notice: int, what: str) -> Act:
    return Act(person=person(), subject=f"urn:rapha:notice:{notice}#{what}")


def _who(given: str | None) -> str:
    """A name that fits a row of the register and a line of a list."""
    who = person() if given is None else given.strip()
    if not (0 < len(who) <= MAX_PERSON and who.isprintable()):
        raise ConfigurationError(["notice-person"], f"a person is named by 1 to {MAX_PERSON} printable characters")
    return who


def _line(one: dict[str, Any]) -> str:
    sent = datetime.fromtimestamp(one["sent_at"], UTC).strftime("%Y-%m-%dT%H:%MZ") if one["sent_at"] else "-"
    line = f"{one['id']:>6}  row {one['row']:<6} {one['kind']:<8} {one['recipient_group']:<10} {one['state']:<12} "
    return f"{line}person {one['level'] + 1}  sent {sent:<17}  {one['acknowledged_by']}{one['code']}".rstrip()
