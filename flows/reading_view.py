"""What a person sees of the reading service in the engine's UI: the studies that are owed as a table, each analysis as a bar.

A view and nothing else: when it cannot be drawn, the work goes on. Rows and codes, no identifier. Called in the stages' threads.
"""

import json
import logging
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from prefect.artifacts import create_progress_artifact, create_table_artifact, update_progress_artifact

from blocks.reading import QueuedStudy
from flows.drawing import drawn, replace

log = logging.getLogger("rapha.view")
MOST = 50  # rows of the table
STEP = 20  # percent between two words to the engine about one analysis
_NOW: dict[str, Any] = {"_sync": True}  # from a thread beside an asynchronous flow


class Board:
    """The studies that one shift sees: one artifact, `studies-<worker>`, that is written anew when something changed."""

    def __init__(self, worker: str) -> None:
        self._key = "studies-" + "".join(one if one.isalnum() else "-" for one in worker.lower())
        self._table: UUID | None = None
        self._shown = ""

    def show(self, queue: Sequence[QueuedStudy], ends: dict[str, int], why: Sequence[str] = ()) -> None:
        """queue: what is owed, in the order of its turn; ends: how many studies came to which end in this shift; why: codes for
        which nothing is claimed now."""
        rows = [_line(one) for one in queue[:MOST]] or [_row("", "nothing waits")]
        self._write(_held(why) + rows + [_row("", end, f"{count} in this shift") for end, count in sorted(ends.items())])

    def waits(self, why: Sequence[str]) -> None:
        """The shift has not begun yet, for these codes."""
        self._write(_held(why))

    def _write(self, rows: list[dict[str, str]]) -> None:
        data = json.dumps(rows)
        if data == self._shown:
            return
        self._shown = data
        if self._table is not None:
            replace(self._table, data)
            return
        told = "What is owed, the next first, and what this shift brought to an end. The register decides, not this table."
        self._table = drawn(lambda: create_table_artifact(json.loads(data), key=self._key, description=told, **_NOW))


class Bar:
    """One study's analysis: `analysis-row-<n>`, in percent of what a model was handed."""

    def __init__(self, row: int) -> None:
        self._row, self._shown = row, -STEP
        self._bar: UUID | None = None

    def show(self, model: str, handed: int, total: int) -> None:
        """A call in each process of analysis; only some reach the engine."""
        percent = min(100, 100 * handed // max(1, total))
        if percent < self._shown + STEP and not (percent == 100 > self._shown):
            return
        self._shown = percent
        log.info("row %d: %s %d of %d", self._row, model, handed, total)
        bar = self._bar
        if bar is not None:
            drawn(lambda: update_progress_artifact(bar, progress=float(percent), **_NOW))
            return
        told = f"Row {self._row}: what the model was handed of the study."
        key = f"analysis-row-{self._row}"
        self._bar = drawn(lambda: create_progress_artifact(float(percent), key=key, description=told, **_NOW))


def _line(one: QueuedStudy) -> dict[str, str]:
    return _row(str(one.row), f"{one.state}, {one.priority}", one.stage, " ".join(one.codes))


def _held(why: Sequence[str]) -> list[dict[str, str]]:
    return [_row("", "nothing is claimed", codes=" ".join(why))] if why else []


def _row(number: str, state: str, stage: str = "", codes: str = "") -> dict[str, str]:
    """The columns stand in the order of these names."""
    return {"row": number, "state": state, "stage": stage, "codes": codes}
