"""`rapha receipt verify`: what an AI team or an auditor runs on a receipt, with no node at hand."""

from pathlib import Path
from typing import Any

import cyclopts
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from rapha.canonical import digest_file
from rapha.console.announce import RECEIPT
from rapha.console.app import AsJson, Result
from rapha.errors import ConfigurationError, Refusal
from rapha.files import open_regular, read_regular
from rapha.receipt import MAX_RECEIPT, Statement, verify_receipt
from rapha.signing import load_public

RELEASED = ("weights.safetensors", "metrics.json")
receipt = cyclopts.App(name="receipt", help=RECEIPT)


def register(app: cyclopts.App) -> None:
    app.command(receipt)


@receipt.command
def verify(
    file: Path,
    *,
    key: Path | None = None,
    rpc: str | None = None,
    release: Path | None = None,
    sealed: Path | None = None,
    job: str | None = None,
    as_json: AsJson = False,
) -> Result:
    """Check a receipt: signature, form, gates; with --rpc also its anchor and its settlement on the chain.

    The key is --key, or the pinned one beside the receipt (keys/receipt.pem). --release DIR and --sealed FILE also compare what
    was received with the receipt's subjects; --job the job's id.

    Example: `rapha receipt verify receipt.json --key keys/receipt.pem`
    """
    statement = verify_receipt(_read(file), _pinned(file, key), job=job)
    _compare(statement, release, sealed)
    data: dict[str, Any] = {
        "verdict": "cleared",
        "gate": "receipt",
        "codes": [],
        "subject": statement.digest,
        "mode": statement.mode,
        "statement": statement.document,
    }
    if rpc is not None:
        from rapha.anchor import check_anchor

        data["anchor"] = check_anchor(statement, rpc).to_json()
    return Result(data, _lines(statement, data))


def _read(file: Path) -> bytes:
    return read_regular(file, MAX_RECEIPT, "receipt-unreadable")


def _pinned(file: Path, key: Path | None) -> Ed25519PublicKey:
    return load_public(key or file.resolve().parent / "keys" / "receipt.pem")


def _compare(statement: Statement, release: Path | None, sealed: Path | None) -> None:
    files = {"sealed-result": sealed} if sealed else {}
    if release:
        files |= {name: release / name for name in RELEASED}
        if not release.is_dir():
            raise ConfigurationError(["release-missing"], f"{release}: there is no such folder")
        if {path.name for path in release.iterdir()} != set(RELEASED):
            raise Refusal(["receipt-other-output"], "the release folder holds other files than the receipt", gate="receipt")
    for name, path in files.items():
        if _digest_of(path) != statement.subjects[name]:
            raise Refusal(["receipt-other-output"], f"{name} is not the one in the receipt", gate="receipt")


def _digest_of(path: Path) -> str:
    try:
        with open_regular(path, "output-unreadable") as stream:
            return digest_file(stream)
    except OSError as error:
        raise ConfigurationError(["output-unreadable"], f"{path}: {error.strerror}") from None


def _lines(statement: Statement, data: dict[str, Any]) -> list[str]:
    p = statement.predicate
    lines = [
        f"verdict      cleared ({p.mode})",
        f"receipt      {statement.digest}",
        f"job          {p.job}, attempt {p.attempt}, node {p.node}",
        f"escrow       chain {p.escrow.chain_id}, vault {p.escrow.vault}, deposit {p.escrow.id}",
        f"records      {p.records.unique}, commitment {p.records.commitment}",
        f"leak budget  {p.leak_bits:,} bits; ran {p.duration}; platform {p.platform.tcb_status}",
        *(f"left         {name}  {value}" for name, value in statement.subjects.items()),
        *(f"gate         {result.gate:<14}{result.subject}" for result in p.gates),
    ]
    return [*lines, *(f"{name:<13}{value}" for name, value in data.get("anchor", {}).items())]
