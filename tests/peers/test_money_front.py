"""The development chain as a process: web3's own provider, its state over a SIGKILL, and what it refuses."""

import signal
from pathlib import Path

import pytest
import requests
from eth_utils.address import to_checksum_address
from web3 import HTTPProvider, Web3

from infra.chain.accounts import CHAIN_ID, ROLES, account
from infra.chain.evm import Evm
from infra.chain.rpc import Rpc
from policies.escrow import DEVELOPMENT_ACCOUNTS
from tests.fixtures.chain import address, front


def test_the_state_outlives_the_process(tmp_path: Path) -> None:
    with front(tmp_path, block_time=10) as town:
        escrow = town.fund()
        town.later(1000)
        head = town.chain().web3.eth.get_block("latest")
        town.process.send_signal(signal.SIGKILL)
    with (tmp_path / "journal.jsonl").open("ab") as journal:
        journal.write(b'{"at": 17')  # an append that the kill cut short
    with front(tmp_path, block_time=10) as again:
        assert again.vault == town.vault
        assert again.chain().web3.eth.get_block(head["number"])["hash"] == head["hash"]
        assert again.chain().escrow(escrow).status == "open"
        again.mine(1)
        assert again.now() > head["timestamp"]


def test_web3_speaks_to_it_as_to_any_node(tmp_path: Path) -> None:
    with front(tmp_path) as town:
        web3 = Web3(HTTPProvider(town.url))
        assert web3.is_connected()
        assert web3.eth.chain_id == CHAIN_ID
        who = to_checksum_address(address("protocol"))
        call = {
            "from": address("ai-team"),
            "to": who,
            "value": 5,
            "gas": 21000,
            "gasPrice": web3.eth.gas_price,
            "chainId": CHAIN_ID,
        }
        had = web3.eth.get_balance(who)
        raw = account("ai-team").sign_transaction(
            {**call, "to": who, "nonce": nonce(web3)} | {"from": account("ai-team").address}
        )
        sent = web3.eth.send_raw_transaction(raw.raw_transaction)
        assert web3.eth.wait_for_transaction_receipt(sent, timeout=10)["status"] == 1
        assert web3.eth.get_transaction(sent)["nonce"] == nonce(web3) - 1
        assert web3.eth.get_balance(who) == had + 5
        town.fund()
        logs = web3.eth.get_logs({"fromBlock": 0, "toBlock": "latest", "address": to_checksum_address(town.vault)})
        assert len(logs) == 1

        def error(body: object, kind: str = "application/json") -> object:
            answer = requests.post(town.url, json=body, headers={"Content-Type": kind}, timeout=10)
            return answer.json()["error"]["code"] if answer.status_code == 200 else answer.status_code

        def ask(method: str, *params: object) -> dict[str, object]:
            return {"jsonrpc": "2.0", "id": 1, "method": method, "params": list(params)}

        assert error(ask("debug_traceTransaction", "0x0")) == -32601
        assert error(ask("eth_getBalance")) == -32602
        assert error(ask("eth_getBalance", "0x12")) == -32000
        assert error(ask("eth_sendRawTransaction", "0x" + bytes(raw.raw_transaction).hex())) == -32000
        assert error(ask("eth_sendRawTransaction", "0x02")) == -32000
        assert error(7) == -32600
        assert error(ask("eth_chainId"), "text/plain") == 415
        batch = requests.post(town.url, json=[ask("eth_chainId"), ask("nothing")], timeout=10).json()
        assert [("error" in one) for one in batch] == [False, True]
        with pytest.raises(requests.ConnectionError):
            requests.post(town.url.replace("127.0.0.1", "127.0.0.2"), json=[], timeout=2)


def test_a_transaction_that_is_refused_leaves_no_trace(tmp_path: Path) -> None:
    evm = Evm(tmp_path / "journal.jsonl")
    evm.mine()
    before = (tmp_path / "journal.jsonl").read_bytes()
    gap = account("ai-team").sign_transaction(
        {"nonce": 7, "to": account("node").address, "value": 1, "gas": 21000, "gasPrice": 10**10, "chainId": CHAIN_ID}
    )
    with pytest.raises(Exception, match="nonce"):
        evm.send(bytes(gap.raw_transaction))
    assert (tmp_path / "journal.jsonl").read_bytes() == before
    evm.mine()
    assert Evm(tmp_path / "journal.jsonl").backend.head.hash == evm.backend.head.hash


def test_the_gate_knows_every_development_account() -> None:
    assert {address(role) for role in ROLES} == set(DEVELOPMENT_ACCOUNTS)


def nonce(web3: Web3) -> int:
    return int(web3.eth.get_transaction_count(account("ai-team").address))


def test_an_idle_chain_keeps_time_and_a_busy_one_becomes_final(tmp_path: Path) -> None:
    now = [1_800_000_000.0]
    rpc = Rpc(Evm(tmp_path / "journal.jsonl", clock=lambda: now[0]))

    def height() -> int:
        return int(str(rpc.call("eth_blockNumber", [])), 16)

    for _ in range(10):
        rpc.tick(depth=4, idle=60)
    assert height() == 4
    now[0] += 70
    for _ in range(10):
        rpc.tick(depth=4, idle=60)
    assert height() == 5
    sent = {"nonce": 0, "to": account("node").address, "value": 1, "gas": 21000, "gasPrice": 10**10, "chainId": CHAIN_ID}
    rpc.call("eth_sendRawTransaction", ["0x" + bytes(account("ai-team").sign_transaction(sent).raw_transaction).hex()])
    for _ in range(10):
        rpc.tick(depth=4, idle=60)
    assert height() == 10
