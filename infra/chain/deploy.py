"""First start of a development chain: MockUSDC and the vault, money for the AI team, and the description that others read."""

import json
from pathlib import Path
from typing import Any

from eth_account.signers.local import LocalAccount
from eth_utils.address import to_checksum_address
from web3 import HTTPProvider, Web3

from blocks.chain import artifact
from infra.chain.accounts import CHAIN_ID, ROLES, account
from rapha.canonical import digest

DESCRIPTION = "chain.json"
ALLOWANCE_FOR_AI_TEAM = 1_000_000 * 10**6


def deploy(rpc_url: str, folder: Path) -> dict[str, Any]:
    """Deploys unless `folder/chain.json` says it is done; the description. Works on any chain with the development accounts."""
    path = folder / DESCRIPTION
    if path.exists():
        known: dict[str, Any] = json.loads(path.read_text())
        return known
    web3 = Web3(HTTPProvider(rpc_url, request_kwargs={"timeout": 30}))
    deployer = account("deployer")
    token = _create(web3, deployer, "MockUSDC")
    vault = _create(web3, deployer, "RaphaVault")
    mint = web3.eth.contract(address=to_checksum_address(token), abi=artifact("MockUSDC")["abi"]).functions.mint
    send(web3, deployer, mint(account("ai-team").address, ALLOWANCE_FOR_AI_TEAM))
    description = {
        "chain_id": CHAIN_ID,
        "token": token,
        "vault": vault,
        "vault_code": digest(bytes(web3.eth.get_code(to_checksum_address(vault)))),
        "accounts": {role: account(role).address for role in ROLES},
    }
    write_keys(folder)
    describe(folder, description)
    return description


def describe(folder: Path, description: dict[str, Any]) -> None:
    """Writes `folder/chain.json`: {chain_id, vault, token, vault_code, accounts: {role: address}, rpc_url}."""
    _write(folder / DESCRIPTION, json.dumps(description, indent=1) + "\n", 0o644)


def send(web3: Web3, sender: LocalAccount, call: Any) -> Any:
    """Signs, sends and waits for a contract call or constructor; its receipt, or RuntimeError when it reverted."""
    fee = web3.eth.gas_price
    transaction = call.build_transaction(
        {
            "from": sender.address,
            "nonce": web3.eth.get_transaction_count(sender.address),
            "gas": 5_000_000,
            "maxFeePerGas": 2 * fee,
            "maxPriorityFeePerGas": min(10**9, fee),
            "chainId": CHAIN_ID,
        }
    )
    sent = web3.eth.send_raw_transaction(sender.sign_transaction(transaction).raw_transaction)
    receipt = web3.eth.wait_for_transaction_receipt(sent, timeout=30, poll_latency=0.05)
    if receipt["status"] != 1:
        raise RuntimeError(f"transaction {sent.hex()} reverted")
    return receipt


def write_keys(folder: Path) -> None:
    """`folder/keys/<role>.key`: 64 hex digits, mode 0600."""
    (folder / "keys").mkdir(parents=True, exist_ok=True)
    for role in ROLES:
        _write(folder / "keys" / f"{role}.key", bytes(account(role).key).hex() + "\n", 0o600)


def _create(web3: Web3, deployer: LocalAccount, name: str) -> str:
    made = artifact(name)
    receipt = send(web3, deployer, web3.eth.contract(abi=made["abi"], bytecode=made["bytecode"]).constructor())
    return str(receipt["contractAddress"])


def _write(path: Path, text: str, mode: int) -> None:
    temporary = path.with_name(path.name + ".new")
    temporary.touch(mode=mode)
    temporary.write_text(text)
    temporary.replace(path)
