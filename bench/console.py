"""The console's start against an empty interpreter's."""

import subprocess
import sys

from bench.row import Row, beside


def rows() -> list[Row]:
    """`rapha --help`, and the help of the command that an outsider runs, beside `python -c pass`."""
    return [_row("--help"), _row("receipt", "verify", "--help")]


def _row(*arguments: str) -> Row:
    return beside(
        f"console: rapha {' '.join(arguments)}",
        lambda: subprocess.run([sys.executable, "-m", "rapha.console", *arguments], check=True, capture_output=True),
        lambda: subprocess.run([sys.executable, "-c", "pass"], check=True, capture_output=True),
        peer_name="python -c pass",
        runs=9,
    )
