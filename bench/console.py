"""The console's start against an empty interpreter's."""

import subprocess
import sys

from bench.row import Row, beside


def rows() -> list[Row]:
    """`rapha --help` beside `python -c pass`."""
    return [
        beside(
            "console: rapha --help",
            lambda: subprocess.run([sys.executable, "-m", "rapha.console", "--help"], check=True, capture_output=True),
            lambda: subprocess.run([sys.executable, "-c", "pass"], check=True, capture_output=True),
            peer_name="python -c pass",
        )
    ]
