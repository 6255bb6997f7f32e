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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

from infra.demo.layout import Layout
from infra.demo.papers import PRICE
from infra.demo.reads import read_half
from infra.demo.show import Engine, Show, clock, follow, money, rapha
from infra.demo.world import World, world
from rapha.canonical import parse
from rapha.errors import PeerError, RaphaError

PARTIES = {"hospital": "hospital", "node owner": "node-owner", "onboarder": "onboarder", "protocol": "protocol"}
HALVES = ("train", "read")
PUBLISHED = ("workload", "outputs", "release")


def main() -> int:
    """Runs the demo; the exit status is that of the error's kind."""
    parser = argparse.ArgumentParser(prog="rapha demo")
    parser.add_argument("--studies", type=int, default=60)
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--workdir", type=Path)
    parser.add_argument("--only", choices=HALVES)
    options = parser.parse_args()
    served = threading.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda number, _: _stop(number, served))
    show = Show(as_json=options.json)
    with contextlib.ExitStack() as stack:
        folder = options.workdir or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rapha-demo-")))
        stack.callback(show.close)
        try:
            halves = (options.only,) if options.only else HALVES
            up = stack.enter_context(world(folder, max(24, options.studies // 2), show.say, halves=halves))
            show.say(f"everything is up; the engine's UI: [bold]{up.ui}[/bold]")
            report: dict[str, Any] = {"ui": up.ui, "workdir": str(up.layout.root)}
            if up.trains:
                report |= _job(up, show) if _is_new(up.layout) else _known(up, show)
            if up.reads:
                report["reading"] = _read(up, show)
            served.set()
            if options.json:
                print(json.dumps(report), flush=True)
            if options.serve:
                _serve(up, show)
        except RaphaError as error:
            return _failed(error, as_json=options.json and not served.is_set())
    return 0


def _stop(number: int, served: threading.Event) -> NoReturn:
    """The first signal unwinds everything that was started; a second one cannot interrupt that.

    Once the job is done and told, a signal is how it is meant to end: status 0.
    """
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, signal.SIG_IGN)
    sys.exit(0 if served.is_set() else 128 + number)


def _serve(up: World, show: Show) -> None:
    """Stays up until a signal."""
    show.say(f"up until you stop it (Ctrl-C). In another shell:  set -a; . {up.layout.node_env}; set +a;  rapha job list")
    if up.layout.root.name and "rapha-demo-" not in up.layout.root.name:
        show.say(f"again from the same folder:  rapha demo --serve --workdir {up.layout.root}")
    up.group.watch(lambda: False)


def _failed(error: RaphaError, *, as_json: bool) -> int:
    if as_json:
        print(json.dumps({"codes": list(error.codes), "error": error.message}))
    print(f"demo: {', '.join(error.codes)}: {error.message}", file=sys.stderr)
    return error.exit_status if "netns-not-allowed" not in error.codes else 3


def _read(up: World, show: Show) -> dict[str, Any]:
    """The reading half; in a folder that has its report already, only said."""
    report = up.layout.root / "report.dcm"
    if report.exists():
        show.say("this folder's studies are read already; the report is report.dcm")
        return {"report": str(report), "restarted": True}
    return read_half(up, show)


def _is_new(layout: Layout) -> bool:
    return not (layout.root / "receipt.json").exists()


def _known(up: World, show: Show) -> dict[str, Any]:
    """A folder whose job is done already: the world is up again around it."""
    receipt = up.layout.root / "receipt.json"
    status, verified = rapha("receipt", "verify", str(receipt), environment=up.environment)
    if status != 0:
        raise PeerError("demo-receipt-not-verified", "the receipt in this folder does not verify")
    show.say(f"this folder's job is done; its receipt verifies: {verified['subject'][:23]}…")
    return {
        "receipt": str(receipt),
        "verified": verified["verdict"],
        "restarted": True,
        "ui": up.ui,
        "workdir": str(up.layout.root),
    }


def _job(up: World, show: Show) -> dict[str, Any]:
    """One job from its declaration to the money; raises at the first thing that did not happen."""
    root = up.layout.root
    show.say("an AI team publishes a signed workload, funds the vault and declares a job")
    raw = up.job()
    job = up.send(raw)
    show.mark("sent")
    show.say(f"the webhook took it: job [bold]{job[:23]}…[/bold]; its event starts the run")
    last = follow(root / "ledger", job, show, Engine(up.ui, job))
    attempt = _last_attempt(root / "attempts" / job.removeprefix("sha256:"))
    if attempt is not None:
        _publish(root, attempt)
    if last is None or last.kind != "delivered":
        codes = ", ".join(last.body.get("codes", [])) if last is not None else "no end in time"
        raise PeerError("demo-job-not-delivered", f"the job was not delivered ({codes}); see {up.layout.logs}")
    return _checked(up, show, job)


def _last_attempt(folder: Path) -> Path | None:
    """The newest attempt's folder; None where no run began."""
    return max(folder.iterdir(), key=lambda path: int(path.name)) if folder.is_dir() else None


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
    with ThreadPoolExecutor() as pool:
        proved = pool.submit(rapha, "receipt", "verify", str(receipt), environment={})
        spoilt = pool.submit(_changed_refuses, receipt, up.layout)
        chained = pool.submit(rapha, "ledger", "verify", str(root / "ledger"), environment={})
    status, verified = proved.result()
    _must(status == 0 and verified.get("verdict") == "cleared", "demo-receipt-not-verified")
    show.say(f"receipt verified offline: {verified['subject'][:23]}… ({verified['mode']})")
    _must(spoilt.result(), "demo-changed-receipt-accepted")
    show.say("the same receipt with one byte changed: refused")
    status, whole = chained.result()
    _must(status == 0, "demo-ledger-not-verified")
    show.say(f"ledger verified: {whole['entries']} entries")
    metrics = parse((root / "release" / "metrics.json").read_bytes(), what="metrics")
    show.say("what the model learned: " + ", ".join(f"{name} {value}" for name, value in metrics.items()))
    credits = {party: up.chain_client("node").credit(up.chain["accounts"][role]) for party, role in PARTIES.items()}
    escrow = up.chain_client("node").escrow(json.loads((root / "job.json").read_bytes())["budget"]["escrow"])
    _must(sum(credits.values()) == escrow.records * PRICE > 0, "demo-money-odd")
    show.console.print(money(credits, escrow.deposit - sum(credits.values()), escrow.records, PRICE))
    times = show.times()
    show.console.print(clock(times))
    return {
        "job": job,
        "verdicts": show.verdicts,
        "receipt": str(receipt),
        "verified": verified["verdict"],
        "metrics": metrics,
        "credits": credits,
        "records": escrow.records,
        "seconds": times,
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
