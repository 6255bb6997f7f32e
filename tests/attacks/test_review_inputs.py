"""Files that are none, at every command which works with no peer: exit 2 or 3 with a code; never a wait, a yes, or a bug."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from blocks.ledger import Ledger
from rapha import ledger as written
from rapha.console.app import build, run
from rapha.ledger import Entry, read_entry, verify
from rapha.signing import write_public
from tests.fixtures.receipts import KEY, receipt

AT = ("--at", "2025-06-25T00:00:00Z")


def _links(path: Path) -> None:
    path.symlink_to(path.name)


def _deep(path: Path) -> None:
    path.write_bytes(b'{"a":' * 50_000 + b"1" + b"}" * 50_000)


def _sparse(path: Path) -> None:
    with path.open("wb") as stream:
        stream.truncate(1 << 30)


HOSTILE: dict[str, Callable[[Path], object]] = {
    "folder": Path.mkdir,
    "empty": Path.touch,
    "missing": lambda path: None,
    "pipe": os.mkfifo,
    "loop": _links,
    "deep": _deep,
    "huge": _sparse,
    "binary": lambda path: path.write_bytes(os.urandom(4096)),
    "null": lambda path: path.write_text("null"),
    "list": lambda path: path.write_text("[7]"),
    "object": lambda path: path.write_text("{}"),
}
COMMANDS: dict[str, Callable[[str, str, str], list[str]]] = {
    "receipt": lambda bad, good, new: ["receipt", "verify", bad],
    "receipt-key": lambda bad, good, new: ["receipt", "verify", good, "--key", bad],
    "sign": lambda bad, good, new: ["job", "sign", bad, "--key", good],
    "ledger": lambda bad, good, new: ["ledger", "verify", bad],
    "ledger-key": lambda bad, good, new: ["ledger", "verify", new, "--key", bad],
    "guard-job": lambda bad, good, new: ["guard", new, "--job", bad, "--release", new + "-release"],
    "scan": lambda bad, good, new: ["scan", bad],
    "wheels": lambda bad, good, new: ["scan", new, "--wheels", bad],
    "minimise": lambda bad, good, new: ["minimise", bad],
    "quote": lambda bad, good, new: ["attest", "verify", "--quote", bad, "--collateral", good, "--policy", good, *AT],
    "collateral": lambda bad, good, new: ["attest", "verify", "--quote", good, "--collateral", bad, "--policy", good, *AT],
    "limits": lambda bad, good, new: ["attest", "verify", "--quote", good, "--collateral", good, "--policy", bad, *AT],
    "tpm": lambda bad, good, new: [
        "attest",
        "verify",
        "--quote",
        good,
        "--collateral",
        good,
        "--policy",
        good,
        "--tpm",
        bad,
        *AT,
    ],
    "manifest": lambda bad, good, new: ["manifest", "check", bad],
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("command", COMMANDS)
def test_A11_E14_a_hostile_file_is_answered_with_a_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, kind: str
) -> None:
    for name in [name for name in os.environ if name.startswith("RAPHA_")]:
        monkeypatch.delenv(name)
    bad, good, new = tmp_path / os.fsdecode(b"na\xffme"), tmp_path / "object.json", tmp_path / "folder"
    HOSTILE[kind](bad)
    good.write_text("{}")
    new.mkdir()
    argv = [*COMMANDS[command](str(bad), str(good), str(new)), "--json"]
    status = run(build(argv[0]), argv)
    said = capsys.readouterr().out
    assert status in (2, 3), said
    assert '"codes": ["' in said or "codes" in said


def test_a_pipe_named_as_a_receipt_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "receipt.json")
    argv = [sys.executable, "-m", "rapha.console", "receipt", "verify", str(tmp_path / "receipt.json")]
    assert subprocess.run(argv, capture_output=True, timeout=20, check=False).returncode == 2


@pytest.mark.parametrize("url", ["http://[::1", "file:///etc/passwd", "rpc", "", "http://127.0.0.1:port", "http://\x00"])
def test_an_rpc_address_that_is_none_is_no_bug(tmp_path: Path, capsys: pytest.CaptureFixture[str], url: str) -> None:
    (tmp_path / "receipt.json").write_bytes(receipt())
    write_public(tmp_path / "keys" / "receipt.pem", KEY.public_key())
    argv = ["receipt", "verify", str(tmp_path / "receipt.json"), "--rpc", url, "--json"]
    assert run(build("receipt"), argv) in (2, 4), capsys.readouterr().out


@pytest.mark.parametrize("seq", [-1000, -1, 10**9])
def test_H04_an_entry_with_an_odd_number_breaks_the_chain_and_not_the_verifier(tmp_path: Path, seq: int) -> None:
    folder = tmp_path / "ledger"
    ledger = Ledger.create(folder, Ed25519PrivateKey.generate(), "test")
    for n in range(4):
        ledger.append("mark", {"n": n})
    lines = (folder / written.ENTRIES).read_bytes().splitlines(keepends=True)
    entry = read_entry(lines[2])
    lines[2] = Entry.make(seq, entry.prev, entry.at, entry.kind, entry.body).line()
    (folder / written.ENTRIES).write_bytes(b"".join(lines))
    assert not verify(folder).ok


@pytest.mark.parametrize("name", [written.ENTRIES, written.HEAD, written.GENESIS, written.CHECKPOINTS])
def test_H04_a_pipe_in_a_ledger_is_a_missing_file(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "ledger"
    Ledger.create(folder, Ed25519PrivateKey.generate(), "test").append("mark", {})
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert verify(folder).kind == "missing"
