"""What a person sees of a run in the engine's UI: the verdicts as a table, training as a progress bar, the receipt as text.

A view and nothing else: when it cannot be drawn, the run goes on. Each is one artifact that grows, under the key
`verdicts-…`, `training-…` or `receipt-…` with the job's first twelve hex digits and the attempt's number.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from flows.drawing import drawn, replace

PARTIES = ("hospital", "node owner", "onboarder", "protocol")
DECIMALS = 6  # USDC's, and those of the development chain's token


def short(job: str) -> str:
    """The job as people call it: its first twelve hex digits."""
    return job.removeprefix("sha256:")[:12]


def tokens(millionths: int) -> str:
    """An amount of the vault's token, exactly."""
    whole, rest = divmod(millionths, 10**DECIMALS)
    return f"{whole}.{rest:0{DECIMALS}d}"


class View:
    """The artifacts of one attempt."""

    def __init__(self, job: str, attempt: int, mode: str) -> None:
        self._told = f"The gates' verdicts of one attempt ({mode}), as they fell. The ledger decides, not this table."
        self._name = f"{short(job)}-{attempt}"
        self._rows: list[dict[str, str]] = []
        self._table: UUID | None = None
        self._bar: UUID | None = None
        self._shown = -1

    def verdict(self, verdict: Mapping[str, Any]) -> None:
        """Adds a gate's verdict to the table."""
        checks, at = str(len(verdict["ran"])), int(verdict["at"])
        self._add(verdict["gate"], verdict["verdict"], verdict["codes"], checks, verdict["subject"][7:19], at)

    def refused(self, gate: str, codes: Sequence[str], at: int) -> None:
        """The table's last line, of an attempt that ends with it; gate "" where a stage refused before its gate."""
        self._add(gate or "stage", "refused", codes, "", "", at)

    def _add(self, gate: str, verdict: str, codes: Sequence[str], checks: str, subject: str, at: int) -> None:
        """The columns stand in the order of these names."""
        row = {"#": str(len(self._rows) + 1), "gate": gate, "verdict": verdict, "codes": ", ".join(codes) or "none"}
        row |= {"checks": checks, "subject": subject, "time (UTC)": datetime.fromtimestamp(at, UTC).strftime("%H:%M:%S")}
        self._rows.append(row)
        if self._table is not None:
            replace(self._table, json.dumps(self._rows))
            return
        rows = list(self._rows)
        self._table = drawn(lambda: create_table_artifact(rows, key=f"verdicts-{self._name}", description=self._told))

    def progress(self, handed: int, expected: int) -> None:
        """Records handed to the trainer, as a share of epochs times records; 100 is kept for the end."""
        self._progress(min(99, 100 * handed // max(1, expected)), expected)

    def trained(self) -> None:
        """Training has ended and its gate has cleared; how many records that took is the trainer's affair."""
        self._progress(100, 0)

    def _progress(self, percent: int, expected: int) -> None:
        if percent == self._shown:
            return
        self._shown = percent
        if self._bar is None:
            told = f"Training: records handed to the sandbox, of {expected} (epochs times records); 100 % when its gate cleared."
            self._bar = drawn(lambda: create_progress_artifact(float(percent), key=f"training-{self._name}", description=told))
            return
        bar = self._bar
        drawn(lambda: update_progress_artifact(bar, progress=float(percent)))

    def receipt(self, lines: Mapping[str, str]) -> None:
        """The end of it, as a short table."""
        text = "\n".join(["| what | value |", "|---|---|", *(f"| {name} | `{value}` |" for name, value in lines.items())])
        told = "What left the node, and who was credited. `rapha receipt verify` checks it without the node."
        drawn(lambda: create_markdown_artifact(text, key=f"receipt-{self._name}", description=told))
