"""`rapha queue list` and `rapha queue priority`: which studies wait, and in which order. Rows and codes, no identifier."""

import os
from dataclasses import asdict

import cyclopts

from blocks.reading import open_reading_register
from rapha.console.app import AsJson, Result


def register(app: cyclopts.App) -> None:
    """Adds the commands."""
    queue = cyclopts.App(name="queue", help="What waits; move a study up or down.")
    queue.command(list_queue, name="list")
    queue.command(priority, name="priority")
    app.command(queue)


def list_queue(*, limit: int = 100, as_json: AsJson = False) -> Result:
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
    moved = open_reading_register(os.environ).set_priority(row, level)
    return Result({"row": moved.row, "priority": moved.priority}, [f"row {moved.row} is {moved.priority}"])
