"""`python -m infra.demo`: brings the world up, sends one signed job, shows what happens, and checks it as an outsider would.

Exit 0 only if every step really happened: the job delivered, the receipt verified offline, a changed receipt refused, the ledger
verified, and the money credited.
"""

import argparse
import contextlib
import json
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from infra.demo.layout import Layout
from infra.demo.papers import PRICE
from infra.demo.show import Show, follow, money, rapha
from infra.demo.world import World, world
from rapha.canonical import parse
from rapha.errors import PeerError, RaphaError

PARTIES = {"hospital": "hospital", "node owner": "node-owner", "onboarder": "onboarder", "protocol": "protocol"}
PUBLISHED = ("workload", "outputs", "release")


def main() -> int:
    """Runs the demo; the exit status is that of the error's kind."""
    parser = argparse.ArgumentParser(prog="rapha demo")
    parser.add_argument("--studies", type=int, default=60)
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--workdir", type=Path)
    options = parser.parse_args()
    show = Show(as_json=options.json)
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    with contextlib.ExitStack() as stack:
        folder = options.workdir or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rapha-demo-")))
        try:
            up = stack.enter_context(world(folder, max(24, options.studies // 2), show.say))
            show.say(f"[bold]the engine's UI: {up.ui}[/bold]")
            report = _job(up, show, over) if _is_new(up.layout) else _known(up)
        except RaphaError as error:
            return _failed(error, as_json=options.json)
        if options.json:
            print(json.dumps(report), flush=True)
        if options.serve:
            show.say(f"up until you stop it:  set -a; . {up.layout.node_env}; set +a;  rapha job list")
            up.group.watch(over.is_set)
    return 0


def _failed(error: RaphaError, *, as_json: bool) -> int:
    if as_json:
        print(json.dumps({"codes": list(error.codes), "error": error.message}))
    print(f"demo: {', '.join(error.codes)}: {error.message}", file=sys.stderr)
    return error.exit_status if "netns-not-allowed" not in error.codes else 3


def _is_new(layout: Layout) -> bool:
    return not (layout.root / "receipt.json").exists()


def _known(up: World) -> dict[str, Any]:
    """A folder whose job is done already: the world is up again around it."""
    receipt = up.layout.root / "receipt.json"
    status, verified = rapha("receipt", "verify", str(receipt), environment=up.environment)
    if status != 0:
        raise PeerError("demo-receipt-not-verified", "the receipt in this folder does not verify")
    return {"receipt": str(receipt), "verified": verified["verdict"], "restarted": True}


def _job(up: World, show: Show, over: threading.Event) -> dict[str, Any]:
    """One job from its declaration to the money; raises at the first thing that did not happen."""
    root = up.layout.root
    show.say("an AI team publishes a signed workload, funds the vault and declares a job")
    raw = up.job()
    began = time.monotonic()
    job = up.send(raw)
    show.say(f"the webhook took it: job [bold]{job[:23]}…[/bold]; its event starts the run")
    ended = follow(root / "ledger", job, show, over)
    attempt = _last_attempt(root / "attempts" / job.removeprefix("sha256:"))
    _publish(root, attempt)
    if ended != "delivered":
        raise PeerError("demo-job-not-delivered", f"the job {ended or 'did not end in time'}; see {up.layout.logs}")
    show.say(f"from the webhook to the delivered result: {time.monotonic() - began:.1f} s")
    return _checked(up, show, job)


def _last_attempt(folder: Path) -> Path:
    return max(folder.iterdir(), key=lambda path: int(path.name))


def _publish(root: Path, attempt: Path) -> None:
    """What a person may look at and other people may change, one thing at a time: copies under the folder's own names."""
    for name in PUBLISHED:
        if (attempt / name).is_dir():
            shutil.rmtree(root / name, ignore_errors=True)
            shutil.copytree(attempt / name, root / name)
            for path in (root / name, *(root / name).rglob("*")):
                path.chmod(0o755 if path.is_dir() else 0o644)
    if (attempt / "evidence-files").is_dir():
        shutil.copytree(attempt / "evidence-files", root / "evidence", dirs_exist_ok=True)
    if (attempt / "receipt.json").exists():
        shutil.copy(attempt / "receipt.json", root / "receipt.json")


def _checked(up: World, show: Show, job: str) -> dict[str, Any]:
    """The receipt offline, a changed receipt, the ledger, and the credits on the chain."""
    root, receipt = up.layout.root, up.layout.root / "receipt.json"
    status, verified = rapha("receipt", "verify", str(receipt), environment={})
    _must(status == 0 and verified.get("verdict") == "cleared", "demo-receipt-not-verified")
    show.say(f"receipt verified offline: {verified['subject'][:23]}… ({verified['mode']})")
    _must(_changed_refuses(receipt, up.layout), "demo-changed-receipt-accepted")
    show.say("the same receipt with one byte changed: refused")
    status, whole = rapha("ledger", "verify", str(root / "ledger"), environment={})
    _must(status == 0, "demo-ledger-not-verified")
    show.say(f"ledger verified: {whole['entries']} entries")
    metrics = parse((root / "release" / "metrics.json").read_bytes(), what="metrics")
    show.say("  ".join(f"{name} {value}" for name, value in metrics.items()))
    credits = {party: up.chain_client("node").credit(up.chain["accounts"][role]) for party, role in PARTIES.items()}
    escrow = up.chain_client("node").escrow(json.loads((root / "job.json").read_bytes())["budget"]["escrow"])
    _must(sum(credits.values()) == escrow.records * PRICE > 0, "demo-money-odd")
    show.console.print(money(credits, escrow.deposit - sum(credits.values()), escrow.records, PRICE))
    return {
        "job": job,
        "verdicts": show.verdicts,
        "receipt": str(receipt),
        "verified": verified["verdict"],
        "metrics": metrics,
        "credits": credits,
        "records": escrow.records,
        "ui": up.ui,
        "workdir": str(root),
    }


def _changed_refuses(receipt: Path, layout: Layout) -> bool:
    """One byte in the middle of the file is another; the same command must say no."""
    raw = bytearray(receipt.read_bytes())
    raw[len(raw) // 2] ^= 1
    changed = receipt.with_name("receipt.changed.json")
    changed.write_bytes(raw)
    status, _ = rapha("receipt", "verify", str(changed), "--key", str(layout.keys / "receipt.pem"), environment={})
    changed.unlink()
    return status == 3


def _must(held: bool, code: str) -> None:
    if not held:
        raise PeerError(code, "a step of the demo did not happen as it must")


if __name__ == "__main__":
    sys.exit(main())
