"""Escrow and settle as stages, with the attestor as the process it is: waiting, claiming, resuming, SIGKILL, reorganisation."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from blocks.attestor import Attestors
from blocks.chain import Chain
from blocks.funding import transact
from blocks.ledger import Ledger
from policies.settlement import split
from rapha.anchor import check_anchor
from rapha.canonical import digest
from rapha.errors import PeerError, Refusal
from rapha.receipt import verify_receipt
from rapha.signing import write_private
from tasks.attempt import Attempt
from tasks.training.escrow import claimant, escrow, release
from tasks.training.settle import Patience, refund, settle
from tests.fixtures import chain as money
from tests.fixtures.chain import HOUSE, NODE, PAYEES, Town, address, attempt, attestor, before, declaration, job, receipt

town, anvil_town = money.town, money.anvil_town
QUICK = Patience(wait=60, poll=0.02, stall=0.3)
ONE_LOOK = Patience(wait=0, poll=0.02, stall=60)


@pytest.fixture(scope="module")
def signer(anvil_town: Town, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with attestor(anvil_town, tmp_path_factory.mktemp("attestor")) as url:
        yield url


def sealed(town: Town, made: Attempt, escrow_id: str, records: int = 7, **changed: Any) -> Path:
    """A receipt on the attempt's disk."""
    made.folder.mkdir(parents=True, exist_ok=True)
    path = made.folder / "receipt.json"
    path.write_bytes(receipt(town, escrow_id, made.job, records, number=made.number, **changed))
    return path


def kinds(made: Attempt) -> list[str]:
    return [entry.kind for entry in made.ledger.entries()]


def credits(town: Town) -> list[int]:
    return [town.chain().credit(who) for who in (*PAYEES, address("ai-team"))]


def gained(town: Town, had: list[int]) -> list[int]:
    return [now - old for now, old in zip(credits(town), had, strict=True)]


def mining(town: Town) -> threading.Event:
    """Mines empty blocks on anvil until the event is set; our own chain does so by itself."""
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(0.1):
            town.mine(1)

    if town.kind == "anvil":
        threading.Thread(target=work, daemon=True).start()
    return stop


def settled(town: Town, made: Attempt, path: Path, url: str, **more: Any) -> Any:
    stop = mining(town)
    try:
        return settle(made, path, Attestors(url), town.chain("node", **more), QUICK)
    finally:
        stop.set()


def test_the_whole_way_of_the_money(town: Town, tmp_path: Path) -> None:
    with attestor(town, tmp_path / "attestor") as url:
        deposit = town.fund()
        town.mine(3)
        made = attempt(tmp_path, job(f"whole {town.kind}"))
        cleared = escrow(before(made), made, declaration(town, deposit), town.chain(), town.limits(), NODE)
        assert cleared.verdict.cleared
        had, path = credits(town), sealed(town, made, deposit)
        done = settled(town, made, path, url)
        assert (done.amount, done.rest, done.credits) == (350_000, 1_650_000, split(350_000))
        assert gained(town, had) == [*split(350_000), 1_650_000]
        assert kinds(made) == ["escrow-claimed", "verdict", "settle-sent", "settled"]
        again = settled(town, made, path, "http://127.0.0.1:1")  # needs no attestor any more
        assert dataclasses.replace(again, block=done.block) == done
        assert kinds(made).count("settled") == kinds(made).count("settle-sent") == 1
        statement = verify_receipt(path.read_bytes(), money.RECEIPT_KEY.public_key(), job=made.job)
        assert check_anchor(statement, town.url).records == 7
        other = verify_receipt(receipt(town, deposit, made.job, 8), money.RECEIPT_KEY.public_key())
        with pytest.raises(Refusal) as caught:
            check_anchor(other, town.url)
        assert caught.value.codes == ("anchor-other-receipt",)


def test_two_jobs_on_one_deposit_and_letting_go(anvil_town: Town, tmp_path: Path) -> None:
    town = anvil_town
    deposit = town.fund()
    town.mine(3)
    ledger = Ledger.create(tmp_path / "ledger", Ed25519PrivateKey.generate(), "test")
    first, second = (attempt(tmp_path / name, job(f"claim {name}"), ledger=ledger) for name in ("1", "2"))

    def judge(made: Attempt) -> Any:
        return escrow(before(made), made, declaration(town, deposit), town.chain(), town.limits(), NODE)

    judge(first)
    with pytest.raises(Refusal) as caught:
        judge(second)
    assert caught.value.codes == ("escrow-in-use",)
    judge(dataclasses.replace(first, number=2))  # the same job, tried again
    release(second, deposit)
    assert claimant(first, deposit) == first.job
    release(first, deposit)
    judge(second)
    assert claimant(first, deposit) == second.job


def test_a_refused_job_claims_nothing(anvil_town: Town, tmp_path: Path) -> None:
    deposit = anvil_town.fund()
    anvil_town.mine(3)
    made = attempt(tmp_path, job("refused"))
    with pytest.raises(Refusal):
        escrow(
            before(made), made, declaration(anvil_town, deposit, max_records=41), anvil_town.chain(), anvil_town.limits(), NODE
        )
    assert claimant(made, deposit) == ""


def test_a_tagged_chain_waits_for_its_own_finality_too(anvil_town: Town, tmp_path: Path) -> None:
    town, made = anvil_town, attempt(tmp_path, job("tagged"))
    deposit, chain = town.fund(), town.chain(tagged=True)
    town.mine(3)
    with pytest.raises(PeerError) as caught:
        escrow(before(made), made, declaration(town, deposit), chain, town.limits(), NODE)
    assert caught.value.codes == ("escrow-not-final",)
    town.mine(70)
    assert escrow(before(made), made, declaration(town, deposit), chain, town.limits(), NODE).verdict.cleared


def test_a_dead_or_slow_chain_is_a_peer_error(anvil_town: Town, tmp_path: Path) -> None:
    made = attempt(tmp_path, job("dead"))
    dead = Chain("http://127.0.0.1:9", 31337, anvil_town.vault, anvil_town.token)
    with pytest.raises(PeerError) as caught:
        escrow(before(made), made, declaration(anvil_town, "0x" + "00" * 32), dead, anvil_town.limits(), NODE)
    assert caught.value.codes == ("chain-unreachable",)
    os.kill(anvil_town.process.pid, signal.SIGSTOP)
    try:
        with pytest.raises(PeerError) as caught:
            anvil_town.chain(timeout=0.3).final()
    finally:
        os.kill(anvil_town.process.pid, signal.SIGCONT)
    assert caught.value.codes == ("chain-timeout",)


CHILD = """
import os, signal, sys
sys.path.insert(0, {house!r})
from pathlib import Path
from blocks.attestor import Attestors
from blocks.chain import Chain
from blocks.ledger import Ledger
from rapha.signing import load_private
from tasks.attempt import Attempt
from tasks.training.settle import Patience, settle
point = {point!r}
def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
def after(old):
    def run(*a, **k):
        value = old(*a, **k)
        die()
        return value
    return run
if point == "kept": Attempt.keep = after(Attempt.keep)
if point == "recorded": Chain.send = die
if point == "sent": Chain.send = after(Chain.send)
if point == "settled":
    old = Attempt.record
    Attempt.record = lambda self, kind, **body: die() if kind == "settled" else old(self, kind, **body)
ledger = Ledger(Path({ledger!r}), load_private(Path({key!r})))
made = Attempt(job={job!r}, number=1, nonce="ab" * 32, mode="development", folder=Path({folder!r}), ledger=ledger)
chain = Chain({url!r}, 31337, {vault!r}, {token!r}, account=Path({account!r}))
settle(made, Path({receipt!r}), Attestors({attestor!r}), chain, Patience(wait=20, poll=0.02, stall=5))
"""


@pytest.mark.parametrize("point", ["kept", "recorded", "sent", "settled"])
def test_I15_SIGKILL_around_the_transaction_pays_exactly_once(anvil_town: Town, signer: str, tmp_path: Path, point: str) -> None:
    town = anvil_town
    key = tmp_path / "ledger.pem"
    ledger = Ledger.create(tmp_path / "ledger", write_private(key), "test")
    made = attempt(tmp_path, job(f"kill {point} {town.kind}"), ledger=ledger)
    deposit = town.fund()
    town.mine(3)
    had, path = credits(town), sealed(town, made, deposit)
    account = money.write_key(tmp_path / "node.key", "node")
    nonce = town.chain("node").nonce()
    stop = mining(town)
    try:
        child = CHILD.format(
            house=str(HOUSE),
            point=point,
            ledger=str(tmp_path / "ledger"),
            key=str(key),
            job=made.job,
            folder=str(made.folder),
            url=town.url,
            vault=town.vault,
            token=town.token,
            account=str(account),
            receipt=str(path),
            attestor=signer,
        )
        run = subprocess.run([sys.executable, "-c", child], timeout=60, check=False)
        assert run.returncode == -signal.SIGKILL
        done = settle(made, path, Attestors(signer), town.chain("node"), QUICK)
    finally:
        stop.set()
    assert gained(town, had) == [*split(350_000), 1_650_000]
    assert kinds(made).count("settle-sent") == kinds(made).count("settled") == 1
    assert town.chain("node").nonce() == nonce + 1
    assert done.transaction in {entry.body.get("transaction") for entry in ledger.entries() if entry.kind == "settle-sent"}


def test_I15_two_orchestrators_settle_one_receipt_at_once(anvil_town: Town, signer: str, tmp_path: Path) -> None:
    town = anvil_town
    deposit = town.fund()
    town.mine(3)
    had = credits(town)
    both = [attempt(tmp_path / str(n), job("both")) for n in (1, 2)]
    paths = [sealed(town, made, deposit) for made in both]
    stop = mining(town)
    try:
        with ThreadPoolExecutor() as pool:
            roles = ("node", "attestor-2")
            jobs = [
                pool.submit(settle, made, path, Attestors(signer), town.chain(role), QUICK)
                for made, path, role in zip(both, paths, roles, strict=True)
            ]
            done = [one.result() for one in jobs]
    finally:
        stop.set()
    assert {(one.amount, one.receipt) for one in done} == {(350_000, digest(paths[0].read_bytes()))}
    assert gained(town, had) == [*split(350_000), 1_650_000]


def test_H09_a_settlement_seen_once_and_reorganised_away_is_sent_again(anvil_town: Town, signer: str, tmp_path: Path) -> None:
    town = anvil_town
    deposit = town.fund()
    town.mine(3)
    made = attempt(tmp_path, job("H09"))
    path = sealed(town, made, deposit)
    snapshot = town.rpc("evm_snapshot")
    with pytest.raises(PeerError) as caught:
        settle(made, path, Attestors(signer), town.chain("node"), Patience(wait=0, poll=0.05, stall=60))
    assert caught.value.codes == ("settle-not-final",)
    assert town.chain().escrow(deposit).status == "settled"  # in a block, but not final: not recorded
    assert "settled" not in kinds(made)
    assert town.rpc("evm_revert", snapshot)
    assert town.chain().escrow(deposit).status == "open"
    done = settled(town, made, path, signer)
    assert town.chain().escrow(deposit).status == "settled"
    assert kinds(made).count("settled") == 1
    assert done.amount == 350_000


def test_I19_a_stalled_settlement_is_raised_under_one_nonce_and_bounded(anvil_town: Town, signer: str, tmp_path: Path) -> None:
    town = anvil_town
    deposit = town.fund()
    town.mine(3)
    had, made = credits(town), attempt(tmp_path, job("I19"))
    path, chain = sealed(town, made, deposit), town.chain("node")
    nonce = chain.nonce()
    town.rpc("evm_setAutomine", False)
    try:
        for _ in range(20):
            with pytest.raises(PeerError) as caught:
                settle(made, path, Attestors(signer), chain, Patience(wait=1, poll=0.05, stall=0.3))
            assert caught.value.codes == ("settle-not-final",)
            if kinds(made).count("settle-sent") >= 2:
                break
    finally:
        town.rpc("evm_setAutomine", True)
    sent = [entry.body for entry in made.ledger.entries() if entry.kind == "settle-sent"]
    assert 2 <= len(sent) <= 8
    assert {body["nonce"] for body in sent} == {nonce}
    assert len({body["transaction"] for body in sent}) == len(sent)
    settled(town, made, path, signer)
    assert gained(town, had) == [*split(350_000), 1_650_000]
    assert chain.nonce() == nonce + 1


def test_I19_a_fee_beyond_the_sites_bound_waits_and_a_taken_nonce_is_replaced(
    anvil_town: Town, signer: str, tmp_path: Path
) -> None:
    town = anvil_town
    deposit = town.fund()
    town.mine(3)
    had, made = credits(town), attempt(tmp_path, job("I19 b"))
    path = sealed(town, made, deposit)
    with pytest.raises(PeerError) as caught:
        settled(town, made, path, signer, max_fee=1)
    assert caught.value.codes == ("chain-fee-too-high",)
    assert "settle-sent" not in kinds(made)
    # Kept and recorded, then never sent, and the nonce goes to another transaction of this account.
    chain = town.chain("node", max_fee=10**13)
    chain.send = lambda transaction: (_ for _ in ()).throw(PeerError("chain-unreachable", "gone"))  # type: ignore[method-assign]
    with pytest.raises(PeerError):
        settle(made, path, Attestors(signer), chain, QUICK)
    transact(town.chain("node"), town.chain("node").approve_call(0))
    settled(town, made, path, signer)
    assert gained(town, had) == [*split(350_000), 1_650_000]


def test_the_attestor_signs_one_receipt_a_job_and_only_what_verifies(anvil_town: Town, tmp_path: Path) -> None:
    town = anvil_town
    deposit, second = town.fund(), town.fund()
    town.mine(3)
    one = receipt(town, deposit, job("one"), 7)
    expiry = town.now() + 3600
    folder = tmp_path / "attestor"

    def ask(url: str, raw: bytes) -> tuple[str, ...]:
        try:
            Attestors(url).attest(raw, expiry=expiry, accept=lambda one: True)
        except Refusal as refusal:
            return refusal.codes
        return ()

    with attestor(town, folder) as url:
        assert ask(url, one[:-2] + b" }\n") == ("attest-receipt-refused",)
        assert ask(url, one.replace(b'"sig":"', b'"sig":"A', 1)) == ("attest-receipt-refused",)
        assert ask(url, b"{}") == ("attest-receipt-refused",)
        assert ask(url, receipt(town, deposit, job("one"), 41)) == ("attest-over-cap",)
        assert ask(url, receipt(town, deposit, job("one"), 7, node="other")) == ("attest-other-node",)
        assert ask(url, receipt(town, "0x" + "00" * 32, job("one"), 7))[0] == "attest-escrow-closed"
        assert ask(url, one) == () == ask(url, one)
    with attestor(town, folder) as url:  # it remembers over a restart by SIGKILL
        assert ask(url, receipt(town, deposit, job("one"), 8)) == ("attest-other-receipt",)
        assert ask(url, receipt(town, second, job("one"), 7)) == ("attest-other-receipt",)
        assert ask(url, receipt(town, deposit, job("two"), 7)) == ("attest-other-job",)
        assert ask(url, one) == ()
        assert requests.post(f"{url}/attest", data=one, timeout=10).status_code == 400
        os.kill(town.process.pid, signal.SIGSTOP)
        timer = threading.Timer(0.5, os.kill, (town.process.pid, signal.SIGCONT))
        timer.start()
        assert ask(url, one) == ()
        timer.join()


def test_I06_two_of_three_attestors_pay_while_one_lies_or_is_dead(anvil_town: Town, signer: str, tmp_path: Path) -> None:
    town = anvil_town
    three = tuple(address(role) for role in ("attestor", "attestor-2", "attestor-3"))
    deposit = town.fund(attestors=three, threshold=2)
    town.mine(3)
    had, made = credits(town), attempt(tmp_path, job("two of three"))
    path, dead = sealed(town, made, deposit), "http://127.0.0.1:9"

    def pay(*urls: str) -> Any:
        return settle(made, path, Attestors(*urls, threshold=2), town.chain("node"), QUICK)

    with attestor(town, tmp_path / "2", "attestor-2") as second, attestor(town, tmp_path / "x", "onboarder") as stranger:
        for others, error, code in (
            ((signer, dead), PeerError, "attestor-unreachable"),
            ((signer, signer), PeerError, "attestor-too-few"),
            ((signer, stranger), Refusal, "attest-not-appointed"),
            ((signer, stranger, dead), PeerError, "attestor-unreachable"),
            ((signer, town.url), PeerError, "attestor-odd-answer"),
        ):
            with pytest.raises(error) as caught:
                pay(*others)
            assert caught.value.codes == (code,)
        assert "settle-sent" not in kinds(made)
        stop = mining(town)
        try:
            pay(dead, stranger, second, signer)
        finally:
            stop.set()
    assert gained(town, had) == [*split(350_000), 1_650_000]


def test_a_receipt_of_another_job_attempt_or_count_is_not_settled(anvil_town: Town, signer: str, tmp_path: Path) -> None:
    town = anvil_town
    deposit = town.fund()
    town.mine(3)
    made = attempt(tmp_path, job("odd"))

    def codes(raw: bytes) -> tuple[str, ...]:
        path = tmp_path / "receipt.json"
        path.write_bytes(raw)
        with pytest.raises(Refusal) as caught:
            settled(town, made, path, signer)
        return caught.value.codes

    assert codes(b"{}") == ("receipt-odd",)
    assert codes(b"not json") == ("json-malformed",)
    assert codes(receipt(town, deposit, job("other"), 7)) == ("receipt-other-job",)
    assert codes(receipt(town, deposit, made.job, 7, number=2)) == ("receipt-other-job",)
    assert codes(receipt(town, deposit, made.job, 41)) == ("attest-over-cap",)
    place = {"chain_id": 31337, "vault": town.vault, "id": deposit}
    assert codes(receipt(town, deposit, made.job, 7, escrow={**place, "chain_id": 137})) == ("receipt-other-vault",)
    assert codes(receipt(town, deposit, made.job, 7, escrow={**place, "vault": town.token})) == ("receipt-other-vault",)
    elsewhere = Chain(town.url, 1337, town.vault, town.token, account=money.account("node"))
    path = sealed(town, made, deposit, escrow={**place, "chain_id": 1337})
    with pytest.raises(PeerError) as caught:  # H09: a chain that is not the one that it is taken for
        settle(made, path, Attestors(signer), elsewhere, QUICK)
    assert caught.value.codes == ("chain-other",)
    assert "settle-sent" not in kinds(made)


def test_I13_a_refused_job_is_refunded_whole_after_the_deadline_and_only_then(
    anvil_town: Town, signer: str, tmp_path: Path
) -> None:
    town = anvil_town
    now = town.now()
    deposit = town.fund(deadline=now + 400)
    town.mine(3)
    made = attempt(tmp_path, job("I13"), clock=town.now)
    with pytest.raises(Refusal) as caught:
        refund(made, deposit, town.chain("node"), ONE_LOOK)
    assert caught.value.codes == ("refund-too-early",)
    town.later(500)
    path, had = sealed(town, made, deposit), credits(town)
    with pytest.raises(Refusal) as caught:
        settled(town, made, path, signer)
    assert caught.value.codes == ("settle-too-late",)
    stop = mining(town)
    try:
        assert refund(made, deposit, town.chain("node"), QUICK) == 2_000_000
        assert refund(made, deposit, town.chain("node"), QUICK) == 2_000_000
    finally:
        stop.set()
    assert gained(town, had) == [0, 0, 0, 0, 2_000_000]
    assert kinds(made).count("refunded") == kinds(made).count("refund-sent") == 1
    with pytest.raises(Refusal) as caught:
        settled(town, made, path, signer)
    assert caught.value.codes == ("settle-refunded",)
