"""The JSON-RPC methods that web3's HTTPProvider asks of a chain, on `infra.chain.evm`, and their HTTP front.

Errors are in the form of Geth and anvil: a revert is code 3 with the revert data, what a node refuses to take is -32000.
"""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from eth.exceptions import PyEVMError
from eth_tester.exceptions import BlockNotFound, TransactionFailed, TransactionNotFound, ValidationError
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak
from eth_utils.exceptions import ValidationError as EthValidationError
from rlp.exceptions import RLPException  # type: ignore[import-untyped]

from infra.chain.accounts import CHAIN_ID
from infra.chain.evm import GAS_LIMIT, Evm
from rapha.canonical import Json

MAX_BODY = 1 << 20
PRIORITY_FEE = 10**9


class RpcError(Exception):
    """An answer with an error in it; `data` is hex."""

    def __init__(self, code: int, message: str, data: str | None = None) -> None:
        super().__init__(message)
        self.body = {"code": code, "message": message, **({"data": data} if data is not None else {})}


class Rpc:
    """One method a name; parameters and answers are JSON-RPC's own hex."""

    def __init__(self, evm: Evm) -> None:
        self.evm, self.tester, self.lock, self.since = evm, evm.tester, threading.Lock(), 0

    def call(self, method: str, params: list[Any]) -> Json:
        handler: Callable[..., Json] | None = getattr(self, f"do_{method}", None)
        if handler is None:
            raise RpcError(-32601, f"the method {method[:40]} does not exist")
        with self.lock:
            try:
                return handler(*params)
            except (BlockNotFound, TransactionNotFound):
                return None
            except (ValidationError, EthValidationError, TransactionFailed, PyEVMError, RLPException) as error:
                raise RpcError(-32000, _refused(error)) from None
            except (TypeError, ValueError, KeyError) as error:
                raise RpcError(-32602, f"invalid parameters ({type(error).__name__})") from None

    def tick(self, depth: int, idle: float) -> None:
        """An empty block, until `depth` of them have followed the last transaction; after that one each `idle` seconds."""
        with self.lock:
            if self.since < depth or self.evm.now - self.evm.backend.head.timestamp >= idle:
                self.evm.mine()
                self.since += 1

    def do_web3_clientVersion(self) -> str:
        return "rapha-development-chain"

    def do_net_version(self) -> str:
        return str(CHAIN_ID)

    def do_eth_chainId(self) -> str:
        return hex(CHAIN_ID)

    def do_eth_syncing(self) -> bool:
        return False

    def do_eth_accounts(self) -> list[Any]:
        return list(self.tester.get_accounts())

    def do_eth_blockNumber(self) -> str:
        return hex(self.evm.backend.head.block_number)

    def do_eth_gasPrice(self) -> str:
        return hex(self.evm.backend.head.base_fee_per_gas + PRIORITY_FEE)

    def do_eth_maxPriorityFeePerGas(self) -> str:
        return hex(PRIORITY_FEE)

    def do_eth_getBalance(self, account: str, block: str = "latest") -> str:
        return hex(self.tester.get_balance(account, self._number(block)))

    def do_eth_getTransactionCount(self, account: str, block: str = "latest") -> str:
        return hex(self.tester.get_nonce(account, self._number(block)))

    def do_eth_getCode(self, account: str, block: str = "latest") -> str:
        code: str = self.tester.get_code(to_checksum_address(account), self._number(block))
        return code

    def do_eth_getBlockByNumber(self, block: str, full: bool = False) -> Json:
        return _block(self.tester.get_block_by_number(self._number(block), full_transactions=False))

    def do_eth_getBlockByHash(self, block: str, full: bool = False) -> Json:
        return _block(self.tester.get_block_by_hash(block, full_transactions=False))

    def do_eth_getTransactionByHash(self, sent: str) -> Json:
        return _hexed(self.tester.get_transaction_by_hash(sent))

    def do_eth_getTransactionReceipt(self, sent: str) -> Json:
        return _receipt(self.tester.get_transaction_receipt(sent))

    def do_eth_getLogs(self, query: dict[str, Any]) -> Json:
        found = self.tester.get_logs(
            from_block=self._number(query.get("fromBlock", "latest")),
            to_block=self._number(query.get("toBlock", "latest")),
            address=query.get("address"),
            topics=query.get("topics"),
        )
        return _hexed(list(found))

    def do_eth_sendRawTransaction(self, raw: str) -> str:
        data = bytes.fromhex(raw.removeprefix("0x"))
        known = "0x" + keccak(data).hex()
        try:
            self.tester.get_transaction_receipt(known)
        except TransactionNotFound:
            self.since = 0
            return self.evm.send(data)
        raise RpcError(-32000, "already known")

    def do_eth_call(self, transaction: dict[str, Any], block: str = "latest") -> str:
        ok, output = self.evm.backend.run(_message(transaction), self._number(block))
        if not ok:
            raise RpcError(3, "execution reverted", "0x" + output.hex())
        return "0x" + output.hex()

    def do_eth_estimateGas(self, transaction: dict[str, Any], block: str = "latest") -> str:
        self.do_eth_call(transaction, block)
        return hex(GAS_LIMIT // 10)

    def do_evm_mine(self) -> str:
        self.evm.mine()
        return "0x0"

    def do_evm_increaseTime(self, seconds: int | str) -> str:
        self.evm.offset += int(seconds, 16) if isinstance(seconds, str) else seconds
        return hex(self.evm.offset)

    def _number(self, block: str | None) -> int | str:
        head: int = self.evm.backend.head.block_number
        if block in (None, "latest", "pending"):
            return "latest"
        if block == "earliest":
            return 0
        if block in ("safe", "finalized"):
            return max(0, head - 2)
        number = int(str(block), 16)
        if number > head:
            raise BlockNotFound(str(number))
        return number


def _message(transaction: dict[str, Any]) -> dict[str, Any]:
    def data(name: str, default: str) -> bytes:
        return bytes.fromhex(str(transaction.get(name) or default).removeprefix("0x"))

    return {
        "from": data("from", "00" * 20),
        "to": data("to", ""),
        "data": data("data" if "data" in transaction else "input", ""),
        "value": int(str(transaction.get("value", "0x0")), 16),
    }


def _refused(error: Exception) -> str:
    said = str(error).lower()
    if "nonce" in said:
        return "nonce too low" if "invalid" in said or "expected" in said or "low" in said else "nonce"
    return f"transaction refused ({type(error).__name__})"


def _hexed(value: Any) -> Json:
    """eth-tester's snake_case and numbers in JSON-RPC's camelCase and hex."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return hex(value)
    if isinstance(value, bytes):
        return "0x" + value.hex()
    if isinstance(value, list | tuple):
        return [_hexed(item) for item in value]
    if isinstance(value, dict):
        return {_camel(name): _hexed(item) for name, item in value.items()}
    return str(value)


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)


def _block(value: Any) -> Json:
    return _hexed({**value, "logs_bloom": bytes(256), "miner": value["coinbase"]})


def _receipt(value: Any) -> Json:
    receipt = dict(value)
    receipt.pop("state_root", None)
    shown: Json = _hexed({**receipt, "logs_bloom": bytes(256), "to": receipt["to"] or None})
    return shown


def server(rpc: Rpc, port: int) -> ThreadingHTTPServer:
    """The front on 127.0.0.1; port 0 takes a free one. Only POST, only JSON, no request body over MAX_BODY."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # headers and body in one segment: two would wait for a delayed acknowledgement
        timeout = 30

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            if length > MAX_BODY or self.headers.get_content_type() != "application/json":
                self.send_error(413 if length > MAX_BODY else 415)
                return
            self._answer(json.dumps(answer(rpc, self.rfile.read(length))).encode())

        def _answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            return

    made = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    made.daemon_threads = True
    return made


def answer(rpc: Rpc, body: bytes) -> Json:
    """One JSON-RPC answer, or a list of them for a batch."""
    try:
        request = json.loads(body)
    except ValueError:
        return _error(None, {"code": -32700, "message": "not JSON"})
    if isinstance(request, list):
        return [_one(rpc, item) for item in request]
    return _one(rpc, request)


def _one(rpc: Rpc, request: Any) -> Json:
    if not isinstance(request, dict) or not isinstance(request.get("method"), str):
        return _error(None, {"code": -32600, "message": "not a request"})
    params = request.get("params") or []
    if not isinstance(params, list):
        return _error(request.get("id"), {"code": -32602, "message": "parameters must be a list"})
    try:
        return {"jsonrpc": "2.0", "id": request.get("id"), "result": rpc.call(request["method"], params)}
    except RpcError as error:
        return _error(request.get("id"), error.body)


def _error(number: Any, body: dict[str, Any]) -> Json:
    return {"jsonrpc": "2.0", "id": number, "error": body}
