"""`rapha read`: one study now. It goes through the register like any other; the engine is given its row and nothing else."""

import asyncio
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import cyclopts
from cyclopts import Parameter

from blocks.reading import QueuedStudy, ReadingRegister
from flows.clinic import Clinic
from flows.engine import engine_answers, engine_told, engine_url
from flows.pacs.endpoints import chosen, witnessed
from flows.pacs.saving import check_uid
from flows.person import person
from flows.requesting import WANTED, reopened, request
from policies.priority import known_priority
from rapha.console.app import AsJson, Result

Pacs = Annotated[str, Parameter(name="--pacs", help="The endpoint's name in the profile.")]
Again = Annotated[bool, Parameter(name="--again", negative=())]
SHOWN_EVERY, WAIT_SECONDS = 0.5, 3600.0
# How a run may end -> exit status; what is not here is our bug.
STATUS = {"in-progress": 4, "completed": 0, "canceled": 3, "dead": 3, "scheduled": 4, "lost": 4, "put-back": 2}


def register(app: cyclopts.App) -> None:
    """Adds the command."""
    app.command(read, name="read")


def read(study: str, *, priority: str = WANTED, pacs: Pacs = "primary", again: Again = False, as_json: AsJson = False) -> Result:
    """The reading flow for one study now, in this process: retrieved, analysed, its report stored and proven stored.

    A study that is read already, and has not changed since, is not read again without --again; for one that another worker has
    just taken, the command waits. What fails for a peer's sake stays owed.

    Example: `rapha read 1.2.840.10008.1.2.3 --priority urgent`

    Parameters
    ----------
    study
        Study Instance UID. It is looked for at the endpoint and kept in the register alone.
    priority
        urgent, high, medium or low: its place should it have to wait after all.
    again
        Read it once more, whole, where it is read already or was given up on. Its new report names the earlier one.
    """
    known_priority(priority)
    engine_url(os.environ)
    uid, clinic = check_uid(study), Clinic.open()
    engine_answers(os.environ)
    archive = witnessed(chosen(clinic.profile, pacs), clinic.state, clinic.trail, person())
    asked = request(clinic.register, archive, clinic.polling(pacs), uid, priority)
    if again:
        asked = reopened(clinic.register, clinic.trail, asked, priority)
    row = asked.study.row
    from flows.reading import read as reading  # the engine takes a second to import

    with _shown(clinic.register, row), engine_told():
        ended = asyncio.run(reading(row))
        end = str(ended["end"])
        now, elsewhere = _ended(clinic.register, row) if end == "not-owed" else (clinic.register.study(row), False)
    end = now.state if elsewhere else end
    codes = list(now.codes) or _why_not(end, now)
    data = {
        "row": row,
        "pacs": pacs,
        "outcome": asked.outcome,
        "priority": now.priority,
        "started": end != "not-owed" and not elsewhere,
        "end": end,
        "state": now.state,
        "stage": now.stage,
        "codes": codes,
    }
    return Result(data, [f"row {row}  {end}  {' '.join(codes)}".rstrip()], _status(end, now, by_peer=ended["peer"] is True))


def _ended(register: ReadingRegister, row: int) -> tuple[QueuedStudy, bool]:
    """The row once no other worker has it, and whether one had: whoever was first brings the study to its end."""
    now, elsewhere, until = register.study(row), False, time.monotonic() + WAIT_SECONDS
    while now.state == "in-progress" and time.monotonic() < until:
        elsewhere = True
        time.sleep(SHOWN_EVERY)
        now = register.study(row)
    return now, elsewhere


def _why_not(end: str, now: QueuedStudy) -> list[str]:
    """The code of an end that no failure has explained."""
    if end == "not-owed":
        return {"completed": ["study-read-already"], "in-progress": ["study-in-progress"]}.get(now.state, ["study-given-up"])
    return ["study-changed"] if end == "scheduled" else []


def _status(end: str, now: QueuedStudy, *, by_peer: bool) -> int:
    """by_peer: the last failure was a peer's, after which a study may be given up on as well."""
    if end == "not-owed":
        return 0 if now.state == "completed" else 3
    if end == "dead" and by_peer:
        return 4
    return 1 if any(code.startswith("bug-") for code in now.codes) else STATUS.get(end, 1)


@contextmanager
def _shown(register: ReadingRegister, row: int) -> Iterator[None]:
    """Says on a terminal which stage the study is in, and for how long."""
    if not sys.stderr.isatty():
        yield
        return
    over = threading.Event()
    watching = threading.Thread(target=_watched, args=(register, row, over), daemon=True)
    watching.start()
    try:
        yield
    finally:
        over.set()
        watching.join()
        sys.stderr.write("\r\x1b[K")


def _watched(register: ReadingRegister, row: int, over: threading.Event) -> None:
    began, stage = time.monotonic(), ""
    while not over.wait(SHOWN_EVERY):
        now = register.study(row).stage
        began, stage = (began, stage) if now == stage else (time.monotonic(), now)
        sys.stderr.write(f"\r\x1b[Krow {row}: {stage}, {time.monotonic() - began:.0f} s")
        sys.stderr.flush()
