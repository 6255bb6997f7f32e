"""`python -m bench [name …]`: every measurement, a table on stdout and bench/results/latest.local.json."""

import importlib
import json
import sys
import time
import traceback
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.machine import load, machine
from bench.row import Row

MODULES = (
    "console",
    "ledger",
    "audit",
    "gates",
    "sandbox",
    "loader",
    "wado",
    "receiver",
    "engine",
    "models",
    "backlog",
    "reports",
)
RESULT = Path(__file__).parent / "results" / "latest.local.json"


def main(names: list[str]) -> int:
    """Runs the named measurements, or all."""
    before, began = {**machine(), "load_before": load()}, time.monotonic()
    rows: list[Row] = []
    missing: list[str] = []
    for name in names or MODULES:
        print(f"measuring: {name}", file=sys.stderr, flush=True)
        try:
            rows += importlib.import_module(f"bench.{name}").rows()
        except Exception:  # noqa: BLE001  # the other measurements are not lost with it; the exit status tells
            traceback.print_exc()
            missing.append(name)
    Console(width=150).print(table(rows))
    for name in missing:
        print(f"not measured: {name}", file=sys.stderr)
    facts = {**before, "not_measured": missing, "load_after": load(), "seconds": round(time.monotonic() - began)}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({"machine": facts, "rows": [row.to_json() for row in rows]}, indent=1) + "\n")
    return 1 if missing else 0


def table(rows: list[Row]) -> Table:
    """One line a row; what is measured of the two is a median, lower is better."""
    made = Table("measurement", "ours", "peer", "unit", "ratio", "runs", "the peer", "note")
    for row in rows:
        made.add_row(
            row.name, f"{row.ours:.2f}", f"{row.peer:.2f}", row.unit, f"{row.ratio:.2f}", str(row.runs), row.peer_name, row.note
        )
    return made


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
