"""`rapha dead-letters`: what was given up on, jobs and studies in one list; `reading:17` is a study's, a bare number a job's."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import cyclopts
from cyclopts import Parameter

from blocks.audit import Act, audited, open_audit_trail
from blocks.halves import halves
from blocks.reading import ReadingRegister, open_reading_register
from flows.console.announce import COMMANDS
from flows.node import Node
from flows.person import person
from rapha.canonical import digest
from rapha.console.app import AsJson, Result
from rapha.errors import ConfigurationError, Refusal

READING = "reading:"
Every = Annotated[bool, Parameter(name="--all", negative=(), help="Every letter of a study that nobody has resolved.")]
Code = Annotated[str, Parameter(name="--code", help="With --all: those of this code alone.")]


def register(app: cyclopts.App) -> None:
    """Adds the commands."""
    letters = cyclopts.App(name="dead-letters", help=COMMANDS["letters"]["dead-letters"])
    letters.command(list_letters, name="list")
    letters.command(show, name="show")
    letters.command(replay, name="replay")
    letters.command(discard, name="discard")
    app.command(letters)


def list_letters(*, as_json: AsJson = False) -> Result:
    """Every dead letter that nobody has resolved, oldest first.

    Example: `rapha dead-letters list`
    """
    found: list[dict[str, Any]] = []
    if "training" in halves():
        found += [_job(letter) for letter in Node.open().register.dead_letters()]
    if "reading" in halves():
        found += [_study(letter) for letter in open_reading_register(os.environ).dead_letters()]
    found.sort(key=lambda letter: letter["at"])
    lines = [f"{letter['id']:>12}  {_what(letter)}  {letter['stage']}  {' '.join(letter['codes'])}" for letter in found]
    return Result({"dead_letters": found}, lines or ["none"])


def show(letter: str, *, as_json: AsJson = False) -> Result:
    """One dead letter.

    Example: `rapha dead-letters show reading:17`
    """
    number, reading = _named(letter)
    found = _study(reading.dead_letter(number)) if reading else _job_letter(Node.open(), number)
    return Result(found, [f"{name}: {value}" for name, value in found.items()])


def replay(letter: str = "", *, every: Every = False, code: Code = "", as_json: AsJson = False) -> Result:
    """Owe it again: a study from the stage that failed, a job from Settle on in place, else all gates in a new attempt.

    --all: those of studies, oldest first. Example: `rapha dead-letters replay reading:17`, `… replay --all --code store-refused`
    """
    if every is bool(letter) or (code and not every):
        raise ConfigurationError(["dead-letter-name"], "name one letter of the list, or --all, with or without --code")
    return _replayed_all(code) if every else _replayed(letter)


def _replayed_all(code: str) -> Result:
    """Letter by letter, each in the trail before it is done; one that somebody resolved meanwhile is left out."""
    reading, rows = open_reading_register(os.environ), list[int]()
    for one in reading.dead_letters():
        if code and code not in one.codes:
            continue
        name = f"{READING}{one.id}"
        try:
            with _operated(name, "replayed"):
                rows.append(reading.replay(one.id, int(time.time())))
        except Refusal as refusal:
            if refusal.codes != ("dead-letter-unknown",):
                raise
    return Result({"rows": rows, "count": len(rows)}, [f"owed again: row {row}" for row in rows] or ["none"])


def _replayed(letter: str) -> Result:
    number, reading = _named(letter)
    with _operated(letter, "replayed"):
        if reading:
            row = reading.replay(number, int(time.time()))
            return Result({"row": row, "replayed": letter}, [f"owed again: row {row}"])
        node = Node.open()
        found = _job_letter(node, number)
        node.register.retry(found["job"], now=int(time.time()))
        return Result({"job": found["job"], "replayed": number}, [f"owed again: {found['job']}"])


def discard(letter: str, *, why: str, as_json: AsJson = False) -> Result:
    """Give it up for good. The reason is kept: of a study sealed in the register, of a job as its digest in the ledger.

    Example: `rapha dead-letters discard reading:17 --why "the ward read it on film"`
    """
    if not why.strip():
        raise ConfigurationError(["reason-missing"], "say why with --why")
    number, reading = _named(letter)
    with _operated(letter, "discarded"):
        if reading:
            row = reading.discard(number, why, int(time.time()))
            return Result({"row": row, "discarded": letter, "state": "canceled"}, [f"given up: row {row}"])
        node = Node.open()
        found = _job_letter(node, number)
        state = node.register.cancel(found["job"], now=int(time.time()))
        body = {"job": found["job"], "attempt": found["attempt"], "why": digest(why.encode())}
        node.ledger.append("dead-letter-discarded", body)
        return Result({"job": found["job"], "discarded": number, "state": state, "why": why}, [f"{state}: {found['job']}"])


def _named(letter: str) -> tuple[int, ReadingRegister | None]:
    """(number, the reading register where the letter is its). Raises `ConfigurationError(dead-letter-name)`."""
    kind, colon, number = letter.rpartition(":")
    if not (number.isascii() and number.isdecimal()) or (colon and kind not in ("reading", "training")):
        raise ConfigurationError(["dead-letter-name"], "a dead letter is named by the id of the list: 3, or reading:17")
    return int(number), open_reading_register(os.environ) if kind == "reading" else None


@contextmanager
def _operated(letter: str, what: str) -> Iterator[None]:
    """In the audit trail before it is done. A node that has no reading half need not have a trail: its ledger says it."""
    if not letter.startswith(READING) and not os.environ.get("RAPHA_AUDIT_KEY_BASE64", "").strip():
        yield
        return
    act = Act(person=person(), subject=f"urn:rapha:dead-letter:{letter}#{what}")
    with audited(open_audit_trail(os.environ), "operator", act):
        yield


def _job_letter(node: Node, wanted: int) -> dict[str, Any]:
    for letter in node.register.dead_letters():
        if letter.id == wanted:
            return _job(letter)
    raise Refusal(["dead-letter-unknown"], "no unresolved dead letter has this number")


def _job(letter: Any) -> dict[str, Any]:
    return {
        "id": letter.id,
        "job": letter.job,
        "attempt": letter.attempt,
        "kind": letter.kind,
        "stage": letter.stage,
        "codes": list(letter.codes),
        "at": letter.at,
    }


def _study(letter: Any) -> dict[str, Any]:
    return {
        "id": f"{READING}{letter.id}",
        "row": letter.row,
        "attempt": letter.attempt,
        "kind": "study",
        "stage": letter.stage,
        "codes": list(letter.codes),
        "at": letter.at,
    }


def _what(letter: dict[str, Any]) -> str:
    return str(letter["job"]) if "job" in letter else f"row {letter['row']}"
