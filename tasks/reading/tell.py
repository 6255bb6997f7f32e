"""Tell: what the outbox owes is sent, the critical first, and a critical notice that nobody acknowledges goes to the next person.

At least once: a notice is marked after the server has it, so that a process which dies in between sends it again, under the same
Message-ID. One notice is taken at a time, for longer than a mail may last, so that two tellers do not send the same.
"""

import logging
import time
from dataclasses import dataclass

from blocks.mail import Notifications
from blocks.reading_outbox import Outbox
from blocks.reading_rows import DueNotice
from policies.notice import after_failure, message_id, words
from rapha.errors import PeerError, Refusal

ROUND_SECONDS = 120  # what comes due meanwhile is the next round's, so that no escalation waits for a long outbox
HOLD_SECONDS = 120  # a mail lasts at most 60
ENDS = ("sent", "waiting", "dead", "acknowledged", "nobody")
log = logging.getLogger("rapha.reading.tell")


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """Counts of one round. dead: notices that no channel takes any more; held_up: the code of a channel that is down, or ""."""

    sent: int = 0
    failed: int = 0
    escalated: int = 0
    dead: int = 0
    held_up: str = ""


def tell(register: Outbox, by: Notifications, now: int) -> Told:
    """One round. now: seconds since the epoch. `PeerError` of the register; a mail server that is down is told in the result."""
    escalated = sum(_escalated(register, by, one, now) for one in register.escalations(now))
    ends, held_up, started, moment = list[str](), "", time.monotonic(), now
    while moment < now + ROUND_SECONDS and not held_up:
        due = register.due_notices(moment, limit=1, hold=HOLD_SECONDS)
        if not due:
            break
        end = _told(register, by, due[0], moment)
        ends.append(end)
        held_up = "" if end in ENDS else end
        moment = now + int(time.monotonic() - started)
    sent, dead = ends.count("sent"), ends.count("dead")
    return Told(sent=sent, failed=len(ends) - sent - dead, escalated=escalated, dead=dead, held_up=held_up)


def _escalated(register: Outbox, by: Notifications, notice: DueNotice, now: int) -> bool:
    at = by.rules.escalated_at(notice.recipient_group, notice.level, now, given_up=notice.state == "dead")
    return register.escalate(notice.id, notice.level, now, at=at)


def _told(register: Outbox, by: Notifications, notice: DueNotice, now: int) -> str:
    """How it ended: sent, waiting, dead, nobody, or the code of a channel that is down."""
    wait = by.rules.escalate_after
    try:
        _send(by, notice)
    except Refusal as refusal:  # the profile names nobody, or something that is no address: for the engineer to mend
        log.error("notice %d: %s", notice.id, ", ".join(refusal.codes))
        register.notice_held_up(notice.id, refusal.codes[0], now)
        return "nobody"
    except PeerError as error:
        log.warning("notice %d: %s", notice.id, error.codes[0])
        after = after_failure(error.codes[0], notice.kind, notice.tries, wait)
        if after != "held-up":
            return register.notice_failed(notice.id, error.codes[0], now, level=notice.level, last=after == "given-up")
        register.notice_held_up(notice.id, error.codes[0], now)
        return error.codes[0]
    escalate_at = now + wait if notice.kind == "critical" else None
    register.notice_sent(notice.id, now, escalate_at=escalate_at, level=notice.level)
    return "sent"


def _send(by: Notifications, notice: DueNotice) -> None:
    to, sender = by.rules.person(notice.recipient_group, notice.level), by.server.from_address
    said = words(
        notice.id,
        notice.row,
        notice.kind,
        notice.template,
        notice.facts,
        level=notice.level,
        escalate_after=by.rules.escalate_after,
    )
    for code in said.codes:
        log.warning("notice %d: %s", notice.id, code)
    name = message_id(notice.id, notice.created_at, notice.level, to, sender)
    by.server.send(to, said.subject, said.body, name, urgent=notice.kind == "critical")
