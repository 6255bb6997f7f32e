"""The vault, the same scenario on our chain and on anvil; and the committed bytecode against its sources."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from blocks.chain import ARTIFACTS, Reverted, artifact
from blocks.funding import fund, transact
from policies.settlement import split
from tests.fixtures import chain as money
from tests.fixtures.chain import HOUSE, PAYEES, Town, address, job, signed

town = money.town


def settle(town: Town, arguments: tuple, role: str = "node") -> None:
    chain = town.chain(role)
    transact(chain, chain.settle_call(*arguments))


def test_deposit_settle_withdraw(town: Town) -> None:
    before = {who: (town.chain().credit(who), town.balance(who)) for who in (*PAYEES, address("ai-team"))}
    escrow = town.fund(price=1_000_007, max_records=11)
    held = town.chain().escrow(escrow)
    assert (held.status, held.deposit, held.payees) == ("open", 11_000_077, PAYEES)
    settle(town, signed(town, escrow, job("a"), 3, price=1_000_007))
    paid = split(3_000_021)
    assert sum(paid) == 3_000_021
    for who, part in zip(PAYEES, paid, strict=True):
        assert town.chain().credit(who) == before[who][0] + part
    rest = 11_000_077 - 3_000_021
    assert town.chain().credit(address("ai-team")) == before[address("ai-team")][0] + rest
    transact(town.chain("hospital"), town.chain("hospital").withdraw_call())
    assert town.balance(address("hospital")) == before[address("hospital")][1] + before[PAYEES[0]][0] + paid[0]
    assert town.chain().credit(address("hospital")) == 0
    held = town.chain().escrow(escrow)
    assert (held.status, held.records, held.job) == ("settled", 3, job("a"))


def test_the_vault_always_holds_what_it_owes(town: Town) -> None:
    escrow = town.fund()
    settle(town, signed(town, escrow, job("b"), 7))
    refunded = town.fund(deadline=town.now() + 100)
    town.later(200)
    transact(town.chain("node"), town.chain("node").refund_call(refunded))
    everyone = {*PAYEES, address("ai-team")}
    held = town.balance(town.vault)
    assert held == town.owed() == sum(town.chain().credit(who) for who in everyone) + town.open_deposits()


def test_funding_twice_with_one_nonce_pays_once(town: Town) -> None:
    chain, terms, nonce = town.chain("ai-team"), town.terms(), "0x" + "77" * 32
    before = town.balance(address("ai-team"))
    first, second = fund(chain, terms, nonce), fund(chain, terms, nonce)
    assert first == second
    assert before - town.balance(address("ai-team")) == 2_000_000
    town.opened.append(first)
    with pytest.raises(Reverted) as caught:
        transact(chain, chain.deposit_call(nonce, terms.call(chain.token)))
    assert caught.value.error == "EscrowExists"


@pytest.mark.parametrize(
    "changed",
    [
        {"price": 0},
        {"max_records": 0},
        {"deadline": 1},
        {"deadline": 2**40},
        {"payees": ("0x" + "00" * 20, *PAYEES[1:])},
        {"attestors": ()},
        {"threshold": 0},
        {"threshold": 2},
        {"attestors": (address("attestor"), address("attestor"))},
        {"attestors": ("0x" + "00" * 20,)},
        {"attestors": tuple("0x" + f"{n:040x}" for n in range(1, 18))},
    ],
)
def test_terms_that_could_never_pay_are_refused_at_deposit(town: Town, changed: dict) -> None:
    chain, terms = town.chain("ai-team"), town.terms(**changed)
    with pytest.raises(Reverted) as caught:
        transact(chain, chain.deposit_call("0x" + "12" * 32, terms.call(chain.token)))
    assert caught.value.error == "BadTerms"


def test_two_of_three_attestors(town: Town) -> None:
    three = tuple(address(role) for role in ("attestor", "attestor-2", "attestor-3"))
    escrow = town.fund(attestors=three, threshold=2)
    refused = {
        "BelowThreshold": signed(town, escrow, job("c"), 5, "attestor"),
        "NotAttestor": signed(town, escrow, job("c"), 5, "attestor", "node"),
    }
    twice = signed(town, escrow, job("c"), 5, "attestor")
    refused["SignersUnordered"] = (*twice[:5], twice[5] * 2)
    for code, arguments in refused.items():
        with pytest.raises(Reverted) as caught:
            settle(town, arguments)
        assert caught.value.error == code
    settle(town, signed(town, escrow, job("c"), 5, "attestor-3", "attestor-2"))
    assert town.chain().escrow(escrow).status == "settled"


def test_the_committed_bytecode_is_that_of_the_sources(tmp_path: Path) -> None:
    folder = tmp_path / "contracts"
    shutil.copytree(HOUSE / "infra" / "contracts", folder, ignore=shutil.ignore_patterns("node_modules", "artifacts"))
    install = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]
    subprocess.run(install, cwd=folder, check=True, capture_output=True, timeout=90)
    subprocess.run(["node", "compile.js", str(tmp_path / "made")], cwd=folder, check=True, capture_output=True, timeout=60)
    made = {path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()}
    assert made == {path.name: path.read_bytes() for path in ARTIFACTS.iterdir()}
    assert json.loads(made["RaphaVault.json"])["evmVersion"] == "cancun"


def test_nobody_may_change_what_a_deposit_fixed() -> None:
    """I14, I06: the whole of what can be called to write; no owner, no pause, no setter, no upgrade."""
    writing = {
        e["name"] for e in artifact("RaphaVault")["abi"] if e["type"] == "function" and e["stateMutability"] == "nonpayable"
    }
    assert writing == {"deposit", "settle", "refund", "withdraw"}
