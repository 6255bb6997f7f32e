"""`python -m bench.report`: the last result as Markdown, for bench/results/README.md."""

import json
import sys
import time
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "latest.local.json"


def markdown(result: dict[str, Any]) -> str:
    """The rows as a table, and the machine below it."""
    lines = ["| measurement | ours | peer | unit | ratio | runs | the peer | note |", "|---|---:|---:|---|---:|---:|---|---|"]
    for row in result["rows"]:
        numbers = f"{row['ours']:.2f} | {row['peer']:.2f} | {row['unit']} | **{row['ratio']:.2f}** | {row['runs']}"
        lines.append(f"| {row['name']} | {numbers} | {row['peer_name']} | {row['note']} |")
    facts = dict(result["machine"])
    facts["at"] = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(facts["at"]))
    return "\n".join([*lines, "", *(f"- {name}: {value}" for name, value in facts.items())]) + "\n"


if __name__ == "__main__":
    sys.stdout.write(markdown(json.loads(RESULT.read_bytes())))
