"""What the demo shows: each verdict as it falls, progress while training runs, then the receipt, its verification, the money."""

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from infra.serve import base_environment
from rapha.errors import RaphaError
from rapha.ledger import Entry, read

PATIENCE = 600.0
OVER = ("delivered", "ended")
STEP = 20  # percent between two lines of progress where there is no terminal for a bar
PARTS = ("set-up", "until the first gate", "gates before training", "training", "output to delivery")


class Show:
    """Lines for a person on stderr's console when stdout is for JSON, else on stdout."""

    def __init__(self, *, as_json: bool) -> None:
        self.console = Console(stderr=as_json, highlight=False, soft_wrap=True)
        self.began = time.monotonic()
        self.verdicts: list[dict[str, Any]] = []
        self.marks: dict[str, float] = {}
        self.training = False
        self._bar: tuple[Progress, TaskID] | None = None
        self._told = 0

    def say(self, text: str) -> None:
        self.console.print(f"[dim]{time.monotonic() - self.began:6.1f} s[/dim]  {text}")

    def mark(self, name: str) -> None:
        """A moment that the table of times counts from; the first one of a name stands."""
        self.marks.setdefault(name, time.monotonic())

    def entry(self, entry: Entry) -> None:
        """One line of the ledger, where it says something to a person."""
        body = entry.body
        if entry.kind == "verdict":
            self._verdict(body)
        elif entry.kind == "door":
            self.say(f"  [bold cyan]door {body['door']}[/bold cyan] {'opened by the ledger' if body['opened'] else 'stays shut'}")
            if body["door"] == "train" and body["opened"]:
                self.training = True
                self.mark("train")
        elif entry.kind in ("sealed", "settled", "delivered", "ended"):
            self._trained()
            self.say(f"  [cyan]{entry.kind}[/cyan] {', '.join(body.get('codes', []))}")

    def _verdict(self, body: dict[str, Any]) -> None:
        self.mark("first")
        if body["gate"] == "train":
            self._trained()
        self.verdicts.append(body)
        good = body["verdict"] == "cleared"
        mark = "[green]cleared[/green]" if good else f"[red]refused[/red] {', '.join(body['codes'])}"
        # A refusal before any check ran, by the door itself, has neither.
        judged = f"{len(body['ran'])} checks, {body['subject'][:19]}…" if "ran" in body else "not judged"
        self.say(f"  gate [bold]{body['gate']:<14}[/bold] {mark}  [dim]{judged}[/dim]")

    def progress(self, percent: float) -> None:
        """Records handed over, as a bar on a terminal and as a few lines elsewhere."""
        if not self.console.is_terminal:
            if percent >= self._told + STEP:
                self._told = int(percent) // STEP * STEP
                self.say(f"  training: {percent:3.0f} % of the declared records handed to the sandbox")
            return
        if self._bar is None:
            columns = (TextColumn("          training"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
            bar = Progress(*columns, console=self.console, transient=True)
            bar.start()
            self._bar = bar, bar.add_task("training", total=100.0)
        self._bar[0].update(self._bar[1], completed=percent)

    def _trained(self) -> None:
        self.training = False
        self.mark("trained")
        self.close()

    def close(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar[0].stop()
            self._bar = None

    def times(self) -> dict[str, float]:
        """Seconds of each part of the run, by what was seen of it."""
        names = ("sent", "first", "train", "trained", "delivered")
        moments = [self.began, *(self.marks[name] for name in names)]
        return {part: round(moments[n + 1] - moments[n], 1) for n, part in enumerate(PARTS)}


class Engine:
    """What the demo asks of the engine while it waits: the run's page and the progress of training."""

    def __init__(self, ui: str, job: str) -> None:
        self._ui, self._short = ui, job.removeprefix("sha256:")[:12]

    def page(self) -> str:
        """Address of the run's page; "" while there is none."""
        found = self._ask("flow_runs", {"flow_runs": {"name": {"any_": [f"train-{self._short}"]}}, "limit": 1})
        return f"{self._ui}/runs/flow-run/{found[0]['id']}" if found else ""

    def progress(self) -> float:
        """Percent, from the progress artifact; 0 while there is none."""
        wanted = {"artifacts": {"key": {"like_": f"training-{self._short}-%"}}, "sort": "CREATED_DESC", "limit": 1}
        found = self._ask("artifacts", wanted)
        return float(found[0]["data"]) if found else 0.0

    def _ask(self, what: str, wanted: dict[str, Any]) -> list[dict[str, Any]]:
        """A view and nothing else: what cannot be asked is not shown."""
        request = urllib.request.Request(
            f"{self._ui}/api/{what}/filter", json.dumps(wanted).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=2) as answer:
                found: list[dict[str, Any]] = json.loads(answer.read())
                return found
        except (urllib.error.URLError, OSError, ValueError):
            return []


def follow(ledger: Path, job: str, show: Show, engine: Engine) -> Entry | None:
    """Shows the job's entries as they come; the last one ("delivered" or "ended"), or None when none came in time."""
    seen, asked, page, until = 0, 0.0, "", time.monotonic() + PATIENCE
    while time.monotonic() < until:
        entries = list(_whole(ledger))
        for entry in entries[seen:]:
            if entry.body.get("job") == job:
                show.entry(entry)
                if entry.kind in OVER:
                    show.mark(entry.kind)
                    return entry
        seen = max(seen, len(entries))
        if time.monotonic() - asked > 0.5 and (show.training or (show.verdicts and not page)):
            asked = time.monotonic()
            if not page and (page := engine.page()):
                show.say(f"  the run in the engine's UI: [bold]{page}[/bold]")
            if show.training:
                show.progress(engine.progress())
        time.sleep(0.2)
    return None


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


def clock(times: dict[str, float]) -> Table:
    """How long each part took."""
    table = Table("part", "seconds", title="times on this machine")
    for part, seconds in times.items():
        table.add_row(part, f"{seconds:.1f}")
    return table
