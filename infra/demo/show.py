"""What the demo shows: each verdict as it falls, progress while training runs, then the receipt, its verification, the money."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from infra.serve import base_environment
from rapha.errors import RaphaError
from rapha.ledger import Entry, read

PATIENCE = 600.0
OVER = ("delivered", "ended")


class Show:
    """Lines for a person on stderr's console when stdout is for JSON, else on stdout."""

    def __init__(self, *, as_json: bool) -> None:
        self.console = Console(stderr=as_json, highlight=False, soft_wrap=True)
        self.began = time.monotonic()
        self.verdicts: list[dict[str, Any]] = []

    def say(self, text: str) -> None:
        self.console.print(f"[dim]{time.monotonic() - self.began:6.1f} s[/dim]  {text}")

    def entry(self, entry: Entry) -> None:
        """One line of the ledger, where it says something to a person."""
        body = entry.body
        if entry.kind == "verdict":
            self.verdicts.append(body)
            good = body["verdict"] == "cleared"
            mark = "[green]cleared[/green]" if good else f"[red]refused[/red] {', '.join(body['codes'])}"
            self.say(
                f"  gate [bold]{body['gate']:<14}[/bold] {mark}  [dim]{len(body['ran'])} checks, {body['subject'][:19]}…[/dim]"
            )
        elif entry.kind == "door":
            self.say(f"  [bold cyan]door {body['door']}[/bold cyan] {'opened by the ledger' if body['opened'] else 'stays shut'}")
        elif entry.kind in ("sealed", "settled", "delivered", "ended"):
            self.say(f"  [cyan]{entry.kind}[/cyan] {', '.join(body.get('codes', []))}")


def follow(ledger: Path, job: str, show: Show, over: threading.Event) -> str:
    """Shows the job's entries as they come; the kind of the last one ("delivered" or "ended"), or "" when none came in time."""
    seen, until = 0, time.monotonic() + PATIENCE
    while time.monotonic() < until and not over.is_set():
        entries = list(_whole(ledger))
        for entry in entries[seen:]:
            if entry.body.get("job") == job:
                show.entry(entry)
                if entry.kind in OVER:
                    return entry.kind
        seen = max(seen, len(entries))
        time.sleep(0.2)
    return ""


def _whole(ledger: Path) -> Iterator[Entry]:
    """The entries up to one that is being written just now."""
    try:
        yield from read(ledger)
    except RaphaError:
        return


def rapha(*arguments: str, environment: dict[str, str]) -> tuple[int, dict[str, Any]]:
    """One command of the console with --json, as a stranger would run it: (exit status, its object)."""
    done = subprocess.run(
        [sys.executable, "-m", "rapha.console", *arguments, "--json"],
        env={**base_environment(environment), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    answer: dict[str, Any] = json.loads(done.stdout) if done.stdout.strip() else {}
    return done.returncode, answer


def money(credits: dict[str, int], rest: int, records: int, price: int) -> Table:
    """Who was credited what, in USDC."""
    table = Table("party", "share", "USDC", title=f"{records} unique records at {price / 1e6:.6f} USDC")
    for (party, amount), share in zip(credits.items(), ("70 %", "20 %", "5 %", "5 %"), strict=True):
        table.add_row(party, share, f"{amount / 1e6:,.6f}")
    table.add_row("refundable to the AI team", "", f"{rest / 1e6:,.6f}")
    return table
