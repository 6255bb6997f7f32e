"""The chain on which the vault stands: what a node reads of an escrow, and the transactions that it sends.

Nothing here decides. What is read for a decision is read at a final block: on a development chain `confirmations` blocks under
the newest; on a real one also not above the block that the node tags `finalized` (Polygon's milestones, PIP-11). Every failure of
the other side is a `PeerError`; a revert is a `Reverted` with the contract's own error.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import requests
from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_utils.abi import function_abi_to_4byte_selector
from eth_utils.address import to_checksum_address
from web3 import HTTPProvider, Web3
from web3.exceptions import ContractLogicError, TransactionNotFound, Web3Exception, Web3RPCError
from web3.middleware import ExtraDataToPOAMiddleware

from rapha.canonical import digest
from rapha.errors import ConfigurationError, PeerError

Status = Literal["none", "open", "settled", "refunded"]
STATUSES: tuple[Status, ...] = ("none", "open", "settled", "refunded")
ARTIFACTS = Path(__file__).parents[1] / "infra" / "contracts" / "artifacts"
GAS = 900_000
NO_ACCOUNT = "0x" + "00" * 20


@dataclass(frozen=True, slots=True)
class Escrow:
    """A deposit as the vault holds it. Addresses are lower-case; ids are 0x and 64 hex digits; price in smallest units."""

    status: Status
    payer: str
    node: str
    owner: str
    token: str
    price: int
    max_records: int
    deadline: int
    threshold: int
    payees: tuple[str, ...]
    attestors: tuple[str, ...]
    records: int
    job: str
    receipt: str

    @property
    def deposit(self) -> int:
        return self.price * self.max_records


@dataclass(frozen=True, slots=True)
class Final:
    """The block that reads are made at: its number and time (seconds), and the newest block's number."""

    number: int
    at: int
    newest: int


@dataclass(frozen=True, slots=True)
class Transaction:
    """A signed transaction, not yet sent: the same bytes may be sent again and again and count once. fee, tip: wei a gas."""

    hash: str
    nonce: int
    raw: str
    fee: int
    tip: int

    def to_json(self) -> dict[str, Any]:
        # A fee may pass 2^53.
        return {"hash": self.hash, "nonce": self.nonce, "raw": self.raw, "fee": str(self.fee), "tip": str(self.tip)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Transaction":
        return cls(value["hash"], value["nonce"], value["raw"], int(value["fee"]), int(value["tip"]))


class Reverted(PeerError):
    """The contract said no; `error` is its custom error's name ("AlreadySettled") or the 4-byte selector."""

    def __init__(self, error: str) -> None:
        super().__init__("chain-reverted", f"the contract reverted: {error}", peer="chain")
        self.error = error


class Chain:
    """One vault on one chain, through one node's JSON-RPC. `account` (a key file or a key) is needed only to send."""

    def __init__(
        self,
        rpc_url: str,
        chain_id: int,
        vault: str,
        token: str,
        *,
        account: Path | LocalAccount | None = None,
        confirmations: int = 2,
        tagged: bool | None = None,
        timeout: float = 10.0,
        max_fee: int = 2_000 * 10**9,
    ) -> None:
        """`tagged`: finality also needs the `finalized` tag; by default wherever this is not a development chain."""
        self.chain_id, self.vault, self.token = chain_id, vault.lower(), token.lower()
        self.confirmations, self.max_fee = confirmations, max_fee
        self.tagged = chain_id != 31337 if tagged is None else tagged
        self._account = load_account(account) if isinstance(account, Path) else account
        provider = HTTPProvider(rpc_url, request_kwargs={"timeout": timeout}, exception_retry_configuration=None)
        self.web3 = Web3(provider)
        self.web3.middleware_onion.inject(ExtraDataToPOAMiddleware, layer=0)
        self._vault = self.web3.eth.contract(address=to_checksum_address(vault), abi=artifact("RaphaVault")["abi"])

    @property
    def sender(self) -> LocalAccount:
        if self._account is None:
            raise ConfigurationError(["chain-no-account"], "no account is configured that may send transactions")
        return self._account

    def seen_chain_id(self) -> int:
        """The chain id that the other side says it serves."""
        with _asking():
            return int(self.web3.eth.chain_id)

    def code_digest(self, block: int | None = None) -> str:
        """Digest of the vault's code after `block` (default: the newest); "" where there is none."""
        with _asking():
            code = bytes(self.web3.eth.get_code(to_checksum_address(self.vault), "latest" if block is None else block))
        return digest(code) if code else ""

    def final(self) -> Final:
        """The newest block that counts as final. Raises `PeerError` chain-too-young where there is none yet."""
        with _asking():
            newest = int(self.web3.eth.block_number)
            number = newest - self.confirmations
            if self.tagged:
                number = min(number, int(self.web3.eth.get_block("finalized")["number"]))
            if number < 0:
                raise PeerError("chain-too-young", "the chain has no final block yet", peer="chain")
            return Final(number, int(self.web3.eth.get_block(number)["timestamp"]), newest)

    def escrow(self, escrow: str, block: int | None = None) -> Escrow:
        """The deposit with this id after `block` (default: the newest)."""
        with _asking():
            raw = self._vault.functions.escrowOf(_bytes32(escrow)).call(block_identifier="latest" if block is None else block)
        return _escrow(raw)

    def credit(self, account: str, block: int | None = None) -> int:
        """What `account` may withdraw of the token."""
        with _asking():
            asked = self._vault.functions.credit(to_checksum_address(self.token), to_checksum_address(account))
            return int(asked.call(block_identifier="latest" if block is None else block))

    def settle_call(self, escrow: str, job: str, records: int, receipt: str, expiry: int, signatures: list[bytes]) -> Any:
        """The call that pays. `job` and `receipt` are digests (`sha256:…`)."""
        return self._vault.functions.settle(_bytes32(escrow), _bytes32(job), records, _bytes32(receipt), expiry, signatures)

    def refund_call(self, escrow: str) -> Any:
        return self._vault.functions.refund(_bytes32(escrow))

    def withdraw_call(self) -> Any:
        return self._vault.functions.withdraw(to_checksum_address(self.token))

    def deposit_call(self, nonce: str, terms: tuple[Any, ...]) -> Any:
        return self._vault.functions.deposit(_bytes32(nonce), terms)

    def approve_call(self, amount: int) -> Any:
        token = self.web3.eth.contract(address=to_checksum_address(self.token), abi=artifact("MockUSDC")["abi"])
        return token.functions.approve(to_checksum_address(self.vault), amount)

    def escrow_id(self, payer: str, nonce: str) -> str:
        """The id of the deposit that `payer` makes with `nonce`, before it is made."""
        with _asking():
            return "0x" + bytes(self._vault.functions.escrowId(to_checksum_address(payer), _bytes32(nonce)).call()).hex()

    def try_call(self, call: Any) -> None:
        """Runs a call without sending it; `Reverted` with the contract's error."""
        with _asking():
            call.call({"from": self.sender.address})

    def sign(self, call: Any, *, replaces: Transaction | None = None) -> Transaction:
        """A signed transaction of `call`; with `replaces` one with its nonce and an eighth more fee, which a node takes."""
        with _asking():
            tip = max(int(self.web3.eth.max_priority_fee), replaces.tip * 9 // 8 + 1 if replaces else 0)
            base = int(self.web3.eth.get_block("latest")["baseFeePerGas"])
            fee = max(2 * base + tip, replaces.fee * 9 // 8 + 1 if replaces else 0)
            if fee > self.max_fee:
                raise PeerError("chain-fee-too-high", "the chain asks a higher fee than the site allows", peer="chain")
            nonce = replaces.nonce if replaces else int(self.web3.eth.get_transaction_count(self.sender.address, "pending"))
            built = call.build_transaction(
                {
                    "from": self.sender.address,
                    "nonce": nonce,
                    "gas": GAS,
                    "maxFeePerGas": fee,
                    "maxPriorityFeePerGas": tip,
                    "chainId": self.chain_id,
                }
            )
        made = self.sender.sign_transaction(built)
        return Transaction("0x" + bytes(made.hash).hex(), nonce, "0x" + bytes(made.raw_transaction).hex(), fee, tip)

    def send(self, transaction: Transaction) -> None:
        """Hands a signed transaction to the chain. One that it has already is no error."""
        try:
            with _asking():
                self.web3.eth.send_raw_transaction(bytes.fromhex(transaction.raw[2:]))
        except _Said as error:
            said = error.said
            if "already known" in said or "already imported" in said:
                return
            if "nonce too low" in said:
                if self.mined(transaction) is not None:
                    return
                raise PeerError("chain-nonce-used", "another transaction took this one's nonce", peer="chain") from None
            raise PeerError("chain-refused", "the chain did not take the transaction", peer="chain") from None

    def mined(self, transaction: Transaction) -> bool | None:
        """None while it is in no block; whether it went well after that. Not final by itself."""
        try:
            with _asking():
                return int(self.web3.eth.get_transaction_receipt(transaction.hash)["status"]) == 1  # type: ignore[arg-type]
        except _Absent:
            return None

    def nonce(self) -> int:
        """The next nonce of the sender by mined transactions alone."""
        with _asking():
            return int(self.web3.eth.get_transaction_count(self.sender.address, "latest"))


class _Absent(PeerError):
    pass


class _Said(PeerError):
    """An error answer; `said` is the other side's text, lower-case, for comparing only."""

    def __init__(self, said: str) -> None:
        super().__init__("chain-error-answer", "the chain's node answered with an error", peer="chain")
        self.said = said


@contextmanager
def _asking() -> Iterator[None]:
    try:
        yield
    except ContractLogicError as error:
        raise Reverted(_error_name(str(error.data or ""))) from None
    except TransactionNotFound:
        raise _Absent("chain-transaction-absent", "the chain does not know the transaction", peer="chain") from None
    except Web3RPCError as error:
        raise _Said(str(error).lower()) from None
    except requests.Timeout:
        raise PeerError("chain-timeout", "the chain's node did not answer in time", peer="chain") from None
    except (requests.RequestException, ConnectionError):
        raise PeerError("chain-unreachable", "the chain's node does not answer", peer="chain") from None
    except (Web3Exception, ValueError, KeyError, TypeError, OverflowError):
        raise PeerError("chain-odd-answer", "the chain's node gave an odd answer", peer="chain") from None


@cache
def artifact(name: str) -> dict[str, Any]:
    """{"abi", "bytecode", …} of a contract as committed."""
    made: dict[str, Any] = json.loads((ARTIFACTS / f"{name}.json").read_text())
    return made


@cache
def _errors() -> dict[str, str]:
    abis = [entry for name in ("RaphaVault", "MockUSDC") for entry in artifact(name)["abi"]]
    return {"0x" + function_abi_to_4byte_selector(entry).hex(): entry["name"] for entry in abis if entry["type"] == "error"}


def _error_name(data: str) -> str:
    return _errors().get(data[:10], data[:10] if data.startswith("0x") else "without reason")


def load_account(path: Path) -> LocalAccount:
    """The account of a key file: 64 hex digits, readable by its owner only."""
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigurationError(["key-readable-by-others"], f"{path}: only its owner may read a private key; chmod 600 it")
        made: LocalAccount = Account.from_key(path.read_text().strip())
    except (OSError, ValueError) as error:
        raise ConfigurationError(["key-unreadable"], f"{path}: not a readable account key ({type(error).__name__})") from None
    return made


def _bytes32(text: str) -> bytes:
    raw = bytes.fromhex(text.removeprefix("sha256:").removeprefix("0x"))
    if len(raw) != 32:
        raise ValueError("not 32 bytes")
    return raw


def _escrow(raw: Any) -> Escrow:
    payer, status, records, job, receipt, terms = raw
    node, owner, token, price, max_records, deadline, threshold, payees, attestors = terms
    return Escrow(
        status=STATUSES[status],
        payer=payer.lower(),
        node="0x" + bytes(node).hex(),
        owner="0x" + bytes(owner).hex(),
        token=token.lower(),
        price=price,
        max_records=max_records,
        deadline=deadline,
        threshold=threshold,
        payees=tuple(payee.lower() for payee in payees),
        attestors=tuple(attestor.lower() for attestor in attestors),
        records=records,
        job="sha256:" + bytes(job).hex(),
        receipt="sha256:" + bytes(receipt).hex(),
    )
