"""A person wants one study read: found in its archive, put into the register, at the level that the person gives."""

import time
from dataclasses import dataclass

from blocks.archive import Archive
from blocks.reading import QueuedStudy, ReadingRegister
from policies.polling import PollSettings
from policies.priority import known_priority
from rapha.errors import Refusal
from tasks.reading.poll import look_up

WANTED = "high"  # what a person asks for without a level


@dataclass(frozen=True, slots=True)
class Requested:
    """outcome: new, changed or known; study: its row, as it stands now."""

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
