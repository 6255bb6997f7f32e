"""Attacks on the money, on a real chain (anvil; the vault's scenario runs on ours too). Balances are read, not answers alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from blocks.chain import Reverted, artifact
from blocks.funding import transact
from infra.chain.deploy import send
from policies.settlement import split
from rapha.errors import PeerError, Refusal
from tasks.training.escrow import escrow as escrow_stage
from tests.fixtures import chain as money
from tests.fixtures.chain import NODE, PAYEES, Town, account, address, attempt, before, declaration, job, signed

town = money.anvil_town
HIGH_S = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


def settle(town: Town, arguments: tuple[Any, ...], role: str = "node") -> None:
    chain = town.chain(role)
    transact(chain, chain.settle_call(*arguments))


def refused(town: Town, arguments: tuple[Any, ...]) -> str:
    """The vault's error on a settlement that must not happen; the deposit is still there afterwards."""
    with pytest.raises(Reverted) as caught:
        settle(town, arguments)
    return caught.value.error


def judged(town: Town, folder: Path, escrow: str, chain: Any = None, **changed: Any) -> str:
    """The codes of the escrow stage, or "cleared"."""
    node = changed.pop("site_node", NODE)
    limits = town.limits(**changed.pop("limits", {}))
    made = attempt(folder, job(f"{folder}"))
    declared = declaration(town, escrow, **changed)
    try:
        escrow_stage(before(made), made, declared, chain or town.chain(), limits, node)
    except Refusal as refusal:
        return ",".join(refusal.codes)
    return "cleared"


@contextmanager
def vice(town: Town, name: str, on: Any, off: Any) -> Iterator[None]:
    """Switches one vice of the token on for a while."""
    town.token_call(name, *on)
    try:
        yield
    finally:
        town.token_call(name, *off)


def test_I01_a_job_without_a_right_deposit_never_starts(town: Town, tmp_path: Path) -> None:
    escrow = town.fund()
    town.mine(3)
    folder = iter(tmp_path / str(n) for n in range(20))
    assert judged(town, next(folder), escrow) == "cleared"
    assert judged(town, next(folder), "0x" + "00" * 32) == "escrow-missing"
    assert judged(town, next(folder), escrow, max_records=41) == "escrow-underfunded"
    assert judged(town, next(folder), escrow, token=address("hospital")) == "escrow-other-token"
    assert judged(town, next(folder), escrow, chain_id=137) == "escrow-other-chain"
    assert judged(town, next(folder), escrow, vault=address("hospital")) == "escrow-other-vault"
    assert judged(town, next(folder), escrow, owner="somebody-else") == "escrow-other-owner"
    assert judged(town, next(folder), escrow, site_node="other-node") == "escrow-other-node"
    assert judged(town, next(folder), escrow, limits={"min_records": 41}) == "escrow-cohort-too-small"
    assert judged(town, next(folder), escrow, limits={"payees": PAYEES[::-1]}) == "escrow-payees-differ"
    assert judged(town, next(folder), escrow, limits={"attestors": (address("hospital"),)}) == "escrow-attestors-differ"
    town.token_call("mint", address_sum("ai-team"), 2**128)
    vast = town.fund(price=2**96 - 1, max_records=2**32 - 1)
    town.mine(3)
    assert judged(town, next(folder), vast) == "escrow-price-differs,escrow-too-large"
    # A vault whose address holds no contract, and a chain that is not the configured one.
    nowhere = money.Chain(town.url, 31337, address("hospital"), town.token)
    assert "escrow-no-vault" in judged(town, next(folder), escrow, nowhere, vault=address("hospital"))
    elsewhere = money.Chain(town.url, 1337, town.vault, town.token, tagged=False)
    assert "escrow-chain-lies" in judged(town, next(folder), escrow, elsewhere, chain_id=1337)


def test_I01_a_deposit_of_a_worthless_token_is_refused(town: Town, tmp_path: Path) -> None:
    payer = town.chain("ai-team")
    made = artifact("MockUSDC")
    fake = send(
        payer.web3, account("ai-team"), payer.web3.eth.contract(**{k: made[k] for k in ("abi", "bytecode")}).constructor()
    )
    other = Town(town.kind, town.url, town.folder, town.vault, fake["contractAddress"], town.process)
    other.token_call("mint", account("ai-team").address, 10**12)
    escrow = other.fund()
    town.mine(3)
    assert judged(town, tmp_path, escrow) == "escrow-other-token"


def test_I02_a_deposit_that_is_not_final_waits_and_one_that_is_reorganised_away_is_refused(town: Town, tmp_path: Path) -> None:
    snapshot = town.rpc("evm_snapshot")
    escrow = town.fund()
    with pytest.raises(PeerError) as caught:
        judged(town, tmp_path / "1", escrow)
    assert caught.value.codes == ("escrow-not-final",)
    assert town.rpc("evm_revert", snapshot)
    town.mine(6)
    assert judged(town, tmp_path / "2", escrow) == "escrow-missing"


def test_I03_a_deposit_that_could_run_out_before_settlement_is_refused(town: Town, tmp_path: Path) -> None:
    now = town.now()
    escrow = town.fund(deadline=now + 600 + 3600 - 60)
    town.mine(3)
    made = attempt(tmp_path, job("I03"), clock=lambda: now)
    with pytest.raises(Refusal) as caught:
        escrow_stage(before(made), made, declaration(town, escrow, deadline=now + 60), town.chain(), town.limits(), NODE)
    assert caught.value.codes == ("escrow-deadline-short",)


def test_I04_only_an_attestors_signature_pays(town: Town) -> None:
    escrow = town.fund()
    good = signed(town, escrow, job("I04"), 5)
    assert refused(town, (*good[:5], [])) == "BelowThreshold"
    assert refused(town, signed(town, escrow, job("I04"), 5, "node")) == "NotAttestor"
    assert refused(town, signed(town, escrow, job("I04"), 5, "ai-team")) == "NotAttestor"
    for at, other in ((1, job("other")), (2, 6), (3, job("another receipt"))):
        changed = (*good[:at], other, *good[at + 1 :])
        assert refused(town, changed) == "NotAttestor"
    assert refused(town, (*good[:4], good[4] + 1, good[5])) == "NotAttestor"
    assert town.chain().escrow(escrow).status == "open"


def test_I05_signatures_cannot_be_replayed_bent_or_carried_over(town: Town) -> None:
    escrow, other = town.fund(), town.fund()
    good = signed(town, escrow, job("I05"), 5)
    signature = good[5][0]
    s = int.from_bytes(signature[32:64], "big")
    bent = signature[:32] + (HIGH_S - s).to_bytes(32, "big") + bytes([55 - signature[64]])
    compact = signature[:32] + (s | ((signature[64] - 27) << 255)).to_bytes(32, "big")
    assert refused(town, (*good[:5], [bent])) == "ECDSAInvalidSignatureS"
    assert refused(town, (*good[:5], [compact])) == "SignatureLength"
    assert refused(town, (*good[:5], [signature + b"\0"])) == "SignatureLength"
    assert refused(town, (*good[:5], [signature[:64] + b"\x05"])) == "ECDSAInvalidSignature"
    assert refused(town, (*good[:5], [signature, signature])) == "BelowThreshold"
    assert refused(town, signed(town, escrow, job("I05"), 5, chain_id=137)) == "NotAttestor"
    assert refused(town, signed(town, escrow, job("I05"), 5, vault=town.token)) == "NotAttestor"
    assert refused(town, signed(town, escrow, job("I05"), 5, node="0x" + "ee" * 32)) == "NotAttestor"
    assert refused(town, signed(town, escrow, job("I05"), 5, expiry=town.now() - 1)) == "SignatureExpired"
    assert refused(town, (other, *good[1:])) == "NotAttestor"
    settle(town, good)
    assert refused(town, good) == "AlreadySettled"


def test_I07_records_beyond_the_cap_or_none_at_all_pay_nothing(town: Town) -> None:
    escrow = town.fund(max_records=10)
    assert refused(town, signed(town, escrow, job("I07"), 0)) == "BadRecords"
    assert refused(town, signed(town, escrow, job("I07"), 11)) == "BadRecords"
    assert refused(town, signed(town, escrow, job("I07"), 2**32 + 1)) == "BadRecords"
    settle(town, signed(town, escrow, job("I07"), 10))
    assert town.chain().escrow(escrow).records == 10


def test_I08_the_price_is_the_deposits(town: Town) -> None:
    escrow = town.fund(price=7)
    assert refused(town, signed(town, escrow, job("I08"), 5, price=8)) == "NotAttestor"
    owed = town.chain().credit(PAYEES[0])
    settle(town, signed(town, escrow, job("I08"), 5, price=7))
    assert town.chain().credit(PAYEES[0]) - owed == split(35)[0]


@pytest.mark.parametrize(
    ("price", "cap", "records"), [(1, 1, 1), (3, 1, 1), (19, 2, 1), (999_983, 3, 3), (2**96 - 1, 2**32 - 1, 1)]
)
def test_I09_every_unit_is_credited_to_somebody(town: Town, price: int, cap: int, records: int) -> None:
    if price * cap > 10**12:
        town.token_call("mint", address_sum("ai-team"), price * cap)
    who = (*PAYEES, address("ai-team"))
    had = [town.chain().credit(one) for one in who]
    escrow = town.fund(price=price, max_records=cap)
    settle(town, signed(town, escrow, job("I09"), records, price=price))
    gained = [town.chain().credit(one) - old for one, old in zip(who, had, strict=True)]
    assert gained == [*split(price * records), price * (cap - records)]
    assert sum(gained) == price * cap


def test_I09_the_contract_splits_as_the_policy_does(town: Town) -> None:
    contract = town.chain()._vault.functions.split
    for amount in (0, 1, 2, 3, 4, 5, 19, 99, 101, 7919, 10**6 - 1, 1_000_000_007, 2**64 - 1, 2**128 - 1):
        assert tuple(contract(amount).call()) == split(amount)


def test_I10_a_blocked_payee_stops_nobody_else(town: Town) -> None:
    escrow = town.fund()
    with vice(town, "setBlacklisted", (address_sum("hospital"), True), (address_sum("hospital"), False)):
        settle(town, signed(town, escrow, job("I10"), 5))
        for role in ("node-owner", "onboarder", "protocol", "ai-team"):
            transact(town.chain(role), town.chain(role).withdraw_call())
            assert town.chain().credit(address(role)) == 0
        with pytest.raises(Reverted) as caught:
            transact(town.chain("hospital"), town.chain("hospital").withdraw_call())
        assert caught.value.error == "Blacklisted"
        assert town.chain().credit(address("hospital")) >= split(250_000)[0]
    transact(town.chain("hospital"), town.chain("hospital").withdraw_call())
    assert town.chain().credit(address("hospital")) == 0


def test_I11_a_token_that_pauses_charges_lies_or_calls_back_takes_nothing(town: Town) -> None:
    with vice(town, "setPaused", (True,), (False,)):
        assert deposit_error(town) == "Paused"
    with vice(town, "setFee", (1,), (0,)):
        assert deposit_error(town) == "BalanceDelta"
    with vice(town, "setAnswersFalse", (True,), (False,)):
        assert deposit_error(town) == "SafeERC20FailedOperation"
    escrow = town.fund()
    with vice(town, "setPaused", (True,), (False,)):
        settle(town, signed(town, escrow, job("I11"), 5))  # credits move no token
    again = town.chain("ai-team").withdraw_call()._encode_transaction_data()
    with vice(town, "setHook", (checksum(town.vault), again), (checksum("0x" + "00" * 20), b"")):
        with pytest.raises(Reverted) as caught:
            transact(town.chain("ai-team"), town.chain("ai-team").withdraw_call())
        assert caught.value.error == "ReentrancyGuardReentrantCall"
        assert deposit_error(town) == "ReentrancyGuardReentrantCall"
    for setting, on, off in (("setAnswersFalse", True, False), ("setPaused", True, False)):
        with vice(town, setting, (on,), (off,)), pytest.raises(Reverted):
            transact(town.chain("ai-team"), town.chain("ai-team").withdraw_call())
    had, credit = town.balance(address("ai-team")), town.chain().credit(address("ai-team"))
    transact(town.chain("ai-team"), town.chain("ai-team").withdraw_call())
    assert town.balance(address("ai-team")) == had + credit > had


def test_I12_a_silent_attestor_or_a_dead_node_keeps_no_money(town: Town) -> None:
    escrow = town.fund(deadline=town.now() + 500)
    stranger = town.chain("onboarder")
    with pytest.raises(Reverted) as caught:
        transact(stranger, stranger.refund_call(escrow))
    assert caught.value.error == "NotYet"
    late = signed(town, escrow, job("I12"), 5, expiry=town.now() + 10**6)
    town.later(600)
    assert refused(town, late) == "TooLate"
    had = town.chain().credit(address("ai-team"))
    transact(stranger, stranger.refund_call(escrow))
    assert town.chain().credit(address("ai-team")) == had + 2_000_000
    assert town.chain().escrow(escrow).status == "refunded"
    assert refused(town, late) == "AlreadyRefunded"
    with pytest.raises(Reverted) as caught:
        transact(stranger, stranger.refund_call(escrow))
    assert caught.value.error == "AlreadyRefunded"


def test_I14_the_payees_of_the_deposit_are_paid_whatever_the_site_says_later(town: Town, tmp_path: Path) -> None:
    escrow = town.fund()
    town.mine(3)
    newcomer = address("attestor-3")
    changed = {"limits": {"payees": (newcomer, *PAYEES[1:])}}
    assert judged(town, tmp_path, escrow, **changed) == "escrow-payees-differ"
    had = [town.chain().credit(one) for one in PAYEES]
    settle(town, signed(town, escrow, job("I14"), 5))
    assert [town.chain().credit(one) - old for one, old in zip(PAYEES, had, strict=True)] == list(split(250_000))
    assert town.chain().credit(newcomer) == 0


def test_I18_a_stranger_can_neither_take_an_id_nor_gain_by_settling(town: Town) -> None:
    chain, mallory = town.chain("ai-team"), town.chain("onboarder")
    nonce = "0x" + "18" * 32
    assert chain.escrow_id(address("ai-team"), nonce) != mallory.escrow_id(address("onboarder"), nonce)
    escrow = town.fund()
    had = town.chain().credit(address("attestor-2"))
    settle(town, signed(town, escrow, job("I18"), 5), "attestor-2")
    assert town.chain().credit(address("attestor-2")) == had


def deposit_error(town: Town) -> str:
    with pytest.raises(Reverted) as caught:
        town.fund()
    return caught.value.error


def address_sum(role: str) -> str:
    return str(account(role).address)


checksum = money.to_checksum_address
