"""`rapha receipt verify --rpc` against a vault on a real chain."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cyclopts
import pytest
from eth_utils.crypto import keccak

import rapha.console.receipt
from blocks.funding import transact
from rapha.anchor import ESCROW_OF, check_anchor
from rapha.canonical import digest
from rapha.console.app import run
from rapha.errors import PeerError, Refusal
from rapha.receipt import verify_receipt
from rapha.signing import write_public
from tests.fixtures.chain import RECEIPT_KEY, Town, front, job, receipt, signed


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    with front(tmp_path_factory.mktemp("chain")) as made:
        yield made


def settled(town: Town, name: str, *, records: int = 5, paid_for: int | None = None, other: bool = False) -> bytes:
    """A receipt, and a settlement on it, or on one like it."""
    escrow = town.fund()
    raw = receipt(town, escrow, job(name), records)
    anchored = digest(b"another receipt") if other else digest(raw)
    arguments = signed(town, escrow, job(name), paid_for or records, receipt=anchored)
    transact(town.chain("node"), town.chain("node").settle_call(*arguments))
    return raw


def code(town: Town, raw: bytes) -> str:
    with pytest.raises(Refusal) as caught:
        check_anchor(verify_receipt(raw, RECEIPT_KEY.public_key()), town.url)
    return caught.value.codes[0]


def test_a_settled_receipt_is_seen_settled(town: Town, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "receipt.json").write_bytes(settled(town, "good"))
    write_public(tmp_path / "keys" / "receipt.pem", RECEIPT_KEY.public_key())
    app = cyclopts.App()
    rapha.console.receipt.register(app)
    assert run(app, ["receipt", "verify", str(tmp_path / "receipt.json"), "--rpc", town.url, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["anchor"]["state"], said["anchor"]["records"]) == ("settled", 5)


def test_a_receipt_that_nobody_paid_on_refuses(town: Town) -> None:
    assert code(town, receipt(town, town.fund(), job("open"), 5)) == "anchor-not-settled"
    assert code(town, receipt(town, "0x" + "7" * 64, job("nowhere"), 5)) == "anchor-not-settled"


def test_a_settlement_on_another_receipt_or_other_records_refuses(town: Town) -> None:
    assert code(town, settled(town, "twin", other=True)) == "anchor-other-receipt"
    assert code(town, settled(town, "less", records=6, paid_for=4)) == "anchor-other-records"


def test_another_chain_and_an_address_without_a_vault_refuse(town: Town) -> None:
    raw = receipt(town, "0x" + "7" * 64, job("x"), 5)
    statement = verify_receipt(raw, RECEIPT_KEY.public_key())
    predicate = statement.predicate.model_copy(update={"escrow": statement.predicate.escrow.model_copy(update={"chain_id": 137})})
    with pytest.raises(Refusal) as caught:
        check_anchor(replace(statement, predicate=predicate), town.url)
    assert caught.value.codes == ("anchor-other-chain",)
    empty = replace(town, vault="0x" + "9" * 40)
    assert code(town, receipt(empty, "0x" + "7" * 64, job("x"), 5)) == "anchor-no-vault"


def test_a_chain_that_is_gone_is_the_peers_failure(town: Town) -> None:
    statement = verify_receipt(receipt(town, "0x" + "7" * 64, job("x"), 5), RECEIPT_KEY.public_key())
    with pytest.raises(PeerError):
        check_anchor(statement, "http://127.0.0.1:9")


def test_the_selector_is_that_of_the_vaults_getter() -> None:
    assert "0x" + keccak(text="escrowOf(bytes32)")[:4].hex() == ESCROW_OF
