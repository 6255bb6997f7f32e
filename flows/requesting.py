"""A person wants one study read: found in its archive, put into the register, at the level that the person gives."""

import time
from dataclasses import dataclass

from blocks.archive import Archive
from blocks.audit import Act, AuditTrail, audited
from blocks.reading import QueuedStudy, ReadingRegister
from flows.person import person
from policies.polling import PollSettings
from policies.priority import known_priority
from rapha.errors import Refusal
from tasks.reading.poll import look_up

OVER = ("completed", "canceled")
WANTED = "high"  # what a person asks for without a level


@dataclass(frozen=True, slots=True)
class Requested:
    """outcome: new, changed, known or reopened; study: its row, as it stands now."""

    outcome: str
    study: QueuedStudy


def request(register: ReadingRegister, archive: Archive, settings: PollSettings, study_uid: str, priority: str) -> Requested:
    """Raises `Refusal` study-not-found, `ConfigurationError` priority-unknown; `PeerError` of the archive and the register."""
    level, now = known_priority(priority), int(time.time())
    found = look_up(archive, settings, study_uid)
    if found is None:
        raise Refusal(["study-not-found"], "the archive lists no such study, or nothing in it but our own reports", gate="pacs")
    registered = register.found(settings.pacs, found, now, level)
    if registered.outcome == "own-report":
        raise Refusal(["study-not-found"], "there is nothing in this study but our own reports", gate="pacs")
    study = register.study(registered.row)
    if study.state == "scheduled" and study.priority != level:
        study = register.set_priority(study.row, level)
    return Requested(registered.outcome, study)


def reopened(register: ReadingRegister, trail: AuditTrail, asked: Requested, priority: str) -> Requested:
    """The study opened again at a person's word, where it is over; one that is owed is as it was asked for.

    The audit trail has it before it is done. Raises `PeerError` of the register, audit-unwritable.
    """
    row = asked.study.row
    if asked.study.state not in OVER:
        return asked
    with audited(trail, "operator", Act(person=person(), subject=f"urn:rapha:reading:{row}#read-again")):
        register.read_again(row, int(time.time()))
        return Requested("reopened", register.set_priority(row, priority))
