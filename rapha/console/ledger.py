"""`rapha ledger verify`: what an auditor runs, with a copy of the folder and, better, the node's public ledger key."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import cyclopts
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cyclopts import Parameter

from rapha.canonical import digest_file
from rapha.console.announce import LEDGER
from rapha.console.app import AsJson, Result, group
from rapha.errors import ConfigurationError
from rapha.ledger import ENTRIES, Report, examine
from rapha.signing import load_public
from rapha.trail import Kept, is_trail, read_kept, verify_trail


def register(app: cyclopts.App) -> None:
    group(app, "ledger", LEDGER).command(verify_ledger, name="verify")


def verify_ledger(
    path: Annotated[Path | None, Parameter(env_var="RAPHA_LEDGER_PATH")] = None,
    *,
    key: Path | None = None,
    head: Path | None = None,
    as_json: AsJson = False,
) -> Result:
    """Check the whole hash chain, its checkpoints and its signed head; exit 3 names the first bad entry and the kind.

    An audit trail is checked segment by segment, without its decryption key.

    Example: `rapha ledger verify /var/lib/rapha/ledger --key node-ledger.pem`

    Parameters
    ----------
    path
        The ledger's or the audit trail's folder; RAPHA_LEDGER_PATH, else `ledger` in RAPHA_STATE_DIR or here.
    key
        The node's public ledger (or audit) key (PEM). Without it the key that the folder itself names is used, which shows
        accidents and careless edits, not a ledger that was written anew as a whole.
    head
        A head that was kept elsewhere: what `--json` printed once, or a copy of a `head.json`. Without one, a folder that was set
        back to an older copy of itself is whole.
    """
    folder = path or Path(os.environ.get("RAPHA_STATE_DIR", ".")) / "ledger"
    if key is not None and not key.exists():
        raise ConfigurationError(["key-unreadable"], f"{key} does not exist")
    public, kept = load_public(key) if key else None, read_kept(head) if head else None
    report = verify_trail(folder, public, kept) if is_trail(folder) else _verified(folder, public, kept)
    codes = [] if report.ok else [f"ledger-{report.kind}"]
    data = {**report.to_json(), "verdict": "cleared" if report.ok else "refused", "gate": "ledger", "codes": codes}
    data |= {"subject": report.head or _digest(folder), "key": "given" if key else "own"}
    return Result(data, _lines(data), 0 if report.ok else 3)


def _digest(folder: Path) -> str:
    """Of the entries as they lie there, where no chain could be followed; "" where there are none."""
    try:
        with (folder / ENTRIES).open("rb") as stream:
            return digest_file(stream)
    except OSError:
        return ""


def _verified(folder: Path, key: Ed25519PublicKey | None, kept: Kept | None) -> Report:
    """One ledger; with a head that was kept, whether it lies on the chain."""
    report, entries = examine(folder, key)
    if not report.ok or kept is None:
        return report
    on_chain = kept.length == 0 or (kept.length <= len(entries) and entries[kept.length - 1].hash == kept.head)
    if on_chain:
        return report
    return replace(
        report, ok=False, kind="rolled-back", first_bad=min(kept.length, len(entries)), detail="the kept head is not on it"
    )


def _lines(data: dict[str, Any]) -> list[str]:
    parts = f" in {data['segments']} segments" if "segments" in data else ""
    if data["ok"]:
        own = "" if data["key"] == "given" else "; checked with the key that it names itself: give --key to be sure whose it is"
        gone = f", {data['retired']} of them removed after their time" if data.get("retired") else ""
        return [f"the ledger is whole: {data['entries']} entries{parts}{gone}, head {data['head']}{own}"]
    segment = "" if data.get("segment") is None else f", segment {data['segment']}"
    where = "" if data["first_bad"] is None else f", first bad entry {data['first_bad']}"
    return [f"refused: the ledger is {data['kind']}{segment}{where}: {data['detail']}"]
