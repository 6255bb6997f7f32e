"""`rapha ledger verify`: what an auditor runs, with a copy of the folder and, better, the node's public ledger key."""

import os
from pathlib import Path
from typing import Annotated

import cyclopts
from cyclopts import Parameter

from rapha.console.announce import LEDGER
from rapha.console.app import AsJson, Result, group
from rapha.errors import ConfigurationError
from rapha.ledger import verify
from rapha.signing import load_public


def register(app: cyclopts.App) -> None:
    group(app, "ledger", LEDGER).command(verify_ledger, name="verify")


def verify_ledger(
    path: Annotated[Path | None, Parameter(env_var="RAPHA_LEDGER_PATH")] = None,
    *,
    key: Path | None = None,
    as_json: AsJson = False,
) -> Result:
    """Check the whole hash chain, its checkpoints and its signed head; exit 3 names the first bad entry and the kind.

    Parameters
    ----------
    path: the ledger's folder; RAPHA_LEDGER_PATH, else `ledger` in RAPHA_STATE_DIR or here.
    key: the node's public ledger key (PEM). Without it the key that the folder itself names is used, which shows accidents and
        careless edits, not a ledger that was written anew as a whole.

    Example: `rapha ledger verify /var/lib/rapha/ledger --key node-ledger.pem`
    """
    folder = path or Path(os.environ.get("RAPHA_STATE_DIR", ".")) / "ledger"
    if key is not None and not key.exists():
        raise ConfigurationError(["key-unreadable"], f"{key} does not exist")
    report = verify(folder, load_public(key) if key else None)
    codes = [] if report.ok else [f"ledger-{report.kind}"]
    data = {**report.to_json(), "verdict": "cleared" if report.ok else "refused", "gate": "ledger", "codes": codes}
    data |= {"subject": report.head, "key": "given" if key else "own"}
    return Result(data, _lines(data), 0 if report.ok else 3)


def _lines(data: dict[str, object]) -> list[str]:
    if data["ok"]:
        own = "" if data["key"] == "given" else "; checked with the key that it names itself: give --key to be sure whose it is"
        return [f"the ledger is whole: {data['entries']} entries, head {data['head']}{own}"]
    where = "" if data["first_bad"] is None else f", first bad entry {data['first_bad']}"
    return [f"refused: the ledger is {data['kind']}{where}: {data['detail']}"]
