"""`rapha queue`: which studies wait, in which order. Rows and codes; `show` alone names a study."""

import os
from dataclasses import asdict
from urllib.parse import quote

import cyclopts

from blocks.audit import Act, Patient, Study, audited, open_audit_trail
from blocks.reading import open_reading_register
from flows.person import person
from policies.priority import known_priority
from rapha.console.app import AsJson, AtMost, Result


def register(app: cyclopts.App) -> None:
    """Adds the commands."""
    queue = cyclopts.App(name="queue", help="What waits; move a study up or down.")
    queue.command(list_queue, name="list")
    queue.command(priority, name="priority")
    queue.command(show)
    app.command(queue)


def list_queue(*, limit: AtMost = 100, as_json: AsJson = False) -> Result:
    """The studies that wait or are worked on, in the order of their turn.

    Example: `rapha queue list`
    """
    rows = [{**asdict(one), "codes": list(one.codes)} for one in open_reading_register(os.environ).queue(limit)]
    lines = [
        f"{r['row']:>6}  {r['priority']:<7} {r['state']:<12} {r['stage']:<9} {r['pacs']}  {' '.join(r['codes'])}" for r in rows
    ]
    return Result({"queue": rows}, lines or ["nothing waits"])


def priority(row: int, level: str, *, as_json: AsJson = False) -> Result:
    """Move a waiting study: urgent, high, medium or low. It keeps the time it has waited.

    Example: `rapha queue priority 17 urgent`
    """
    known_priority(level)
    register, subject = open_reading_register(os.environ), f"urn:rapha:reading:{row}#{quote(level)}"
    with audited(open_audit_trail(os.environ), "operator", Act(person=person(), subject=subject)):
        moved = register.set_priority(row, level)
    return Result({"row": moved.row, "priority": moved.priority}, [f"row {moved.row} is {moved.priority}"])


def show(row: int, *, as_json: AsJson = False) -> Result:
    """Which study a row is: UID, patient, accession number. For the hospital's side alone; the audit trail says who asked, first.

    Example: `rapha queue show 17`
    """
    register = open_reading_register(os.environ)
    known, state = register.identity(row), register.study(row)
    patient = Patient(known["patient"]) if known.get("patient") else None
    act = Act(person=person(), patient=patient, studies=(Study(known["study_uid"]),), subject=f"urn:rapha:reading:{row}")
    with audited(open_audit_trail(os.environ), "operator", act):
        data = {"row": row, "pacs": state.pacs, "state": state.state, "stage": state.stage, **known}
    return Result(data, [f"{name:<14} {value}" for name, value in data.items()])
