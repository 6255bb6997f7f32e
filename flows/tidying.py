"""What nobody owes any more is removed: sealed files kept for studies that are through, and instances that came for nobody.

At the start of a shift, while others work: a study that is owed, and one that the register does not know, keeps what it has.
"""

import logging
from collections.abc import Callable
from pathlib import Path

from blocks.kept import orphaned
from blocks.receiver import Receiver
from flows.clinic import Clinic
from flows.course import study_of_note
from rapha.errors import RaphaError

log = logging.getLogger("rapha.reading")


def tidy(clinic: Clinic) -> None:
    """Raises nothing: what fails is tried again at the next shift, and the studies that wait go first."""
    _told(lambda: _notes(clinic))
    _told(lambda: _unnamed(clinic))
    _told(lambda: _strays(clinic))


def _notes(clinic: Clinic) -> None:
    for name in {*clinic.kept.names(), *clinic.kept.unfinished()}:
        _told(lambda name=name: _note(clinic, name))  # type: ignore[misc]


def _note(clinic: Clinic, name: str) -> None:
    study = study_of_note(name)
    if not clinic.register.owed(*study) if study else orphaned(name):
        log.info("%d sealed files of nobody removed", clinic.kept.forget(name))


def _unnamed(clinic: Clinic) -> None:
    stores = [clinic.environment.get(f"RAPHA_{name}_STORE") for name in ("RECEIVER", "STUDY")]
    for path in clinic.kept.strays([Path(store) for store in stores if store]):
        path.unlink(missing_ok=True)


def _strays(clinic: Clinic) -> None:
    receiver = clinic.receiver()
    if receiver is not None:
        with receiver:
            _dropped(clinic, receiver)


def _dropped(clinic: Clinic, receiver: Receiver) -> int:
    """Of what no ticket waits for, what no study is owed either, page by page past what one is owed; how many it was."""
    start = gone = 0
    while strays := receiver.strays(start):
        owed = clinic.register.owed_among(strays.values())
        nobodys = [file for file, uid in strays.items() if uid not in owed]
        dropped = receiver.drop(nobodys) if nobodys else 0
        start, gone = start + len(strays) - dropped, gone + dropped
    return gone


def _told(step: Callable[[], None]) -> None:
    try:
        step()
    except (RaphaError, OSError) as error:
        log.warning("not tidied: %s", ", ".join(error.codes) if isinstance(error, RaphaError) else "disk")
