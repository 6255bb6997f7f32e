"""What a person sees of a run in the engine's UI: the verdicts as a table, training as a progress bar, the receipt as text.

A view and nothing else: when it cannot be drawn, the run goes on.
"""

import logging
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import httpx
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.exceptions import PrefectException

log = logging.getLogger("rapha.view")


class View:
    """The artifacts of one attempt. Keys hold the job's first twelve hex digits and the attempt's number."""

    def __init__(self, job: str, attempt: int) -> None:
        self._name = f"{job.removeprefix('sha256:')[:12]}-{attempt}"
        self._rows: list[list[str]] = []
        self._bar: UUID | None = None
        self._shown = -1

    def verdict(self, verdict: Mapping[str, Any]) -> None:
        """Adds a gate's verdict to the table."""
        codes = ", ".join(verdict["codes"]) or "-"
        self._rows.append([verdict["gate"], verdict["verdict"], codes, verdict["subject"][7:19], str(len(verdict["ran"]))])
        table = [dict(zip(("gate", "verdict", "codes", "subject", "checks"), row, strict=True)) for row in self._rows]
        self._draw(lambda: create_table_artifact(table, key=f"verdicts-{self._name}", description=_stamp(verdict)))

    def progress(self, handed: int, expected: int) -> None:
        """Records handed to the trainer, as a share of what it was declared to take."""
        percent = min(100, 100 * handed // max(1, expected))
        if percent == self._shown:
            return
        self._shown = percent
        if self._bar is None:
            described = f"records handed over, of {expected} expected"
            made = self._draw(lambda: create_progress_artifact(0.0, key=f"training-{self._name}", description=described))
            self._bar = made if isinstance(made, UUID) else None
        bar = self._bar
        if bar is not None:
            self._draw(lambda: update_progress_artifact(bar, progress=float(percent)))

    def receipt(self, lines: Mapping[str, str]) -> None:
        """The end of it, as a short table."""
        text = "\n".join(["| | |", "|---|---|", *(f"| {name} | `{value}` |" for name, value in lines.items())])
        self._draw(
            lambda: create_markdown_artifact(text, key=f"receipt-{self._name}", description="What left, and who was paid.")
        )

    def _draw(self, draw: Any) -> object:
        try:
            made: object = draw()
        except (PrefectException, httpx.HTTPError) as error:
            log.warning("the engine's view could not be drawn: %s", type(error).__name__)
            return None
        return made


def _stamp(verdict: Mapping[str, Any]) -> str:
    return f"Verdicts of one attempt ({verdict['mode']}), in the order in which they fell. The ledger decides, not this table."
