"""`python -m bench [name …]`: every measurement, a table on stdout and bench/results/latest.local.json."""

import importlib
import json
import os
import platform
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.row import Row

MODULES = ("gates", "ledger", "console", "sandbox", "loader", "wado")


def main(names: list[str]) -> int:
    """Runs the named measurements, or all."""
    rows: list[Row] = []
    for name in names or MODULES:
        print(f"measuring: {name}", file=sys.stderr)
        rows += importlib.import_module(f"bench.{name}").rows()
    table = Table("measurement", "ours, ms", "peer, ms", "ratio", "runs", "peer", "note")
    for row in rows:
        table.add_row(row.name, f"{row.ours:.3f}", f"{row.peer:.3f}", f"{row.ratio:.2f}", str(row.runs), row.peer_name, row.note)
    Console(width=160).print(table)
    machine = {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "at": int(time.time()),
    }
    target = Path(__file__).parent / "results" / "latest.local.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps({"machine": machine, "rows": [row.to_json() for row in rows]}, indent=1) + "\n")
    return 0


sys.exit(main(sys.argv[1:]))
