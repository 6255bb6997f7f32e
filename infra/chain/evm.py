"""A py-evm chain that is the same again after a restart: every block is a line in a journal, replayed at the start.

A journal line is {"at": seconds, "raw": the transaction in hex, or null for an empty block}: one block for each line. Nothing in
a block depends on the moment of its replay (time stamps come from the journal, prevrandao from the block's number).
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from eth.vm.message import Message
from eth_tester import EthereumTester, PyEVMBackend

from infra.chain.accounts import CHAIN_ID, HD_PATH, MNEMONIC, ROLES
from rapha.canonical import canonical, parse
from rapha.errors import ConfigurationError

GENESIS_AT = 1_700_000_000
GAS_LIMIT = 30_000_000


class Backend(PyEVMBackend):  # type: ignore[misc]
    """PyEVMBackend with our chain id, a set time for each block, and revert data that is not lost in a message."""

    def __init__(self) -> None:
        genesis = PyEVMBackend.generate_genesis_params({"timestamp": GENESIS_AT, "gas_limit": GAS_LIMIT})
        state = PyEVMBackend.generate_genesis_state(mnemonic=MNEMONIC, hd_path=HD_PATH, num_accounts=len(ROLES))
        super().__init__(genesis_parameters=genesis, genesis_state=dict(state), mnemonic=MNEMONIC, hd_path=HD_PATH)
        self.chain.chain_id = CHAIN_ID

    @property
    def head(self) -> Any:
        return self.chain.get_canonical_head()

    def set_time(self, at: int) -> None:
        """The time of the block that comes next; not before its parent's."""
        self.chain.header = self.chain.header.copy(timestamp=max(at, self.head.timestamp + 1))

    def mine_blocks(self, num_blocks: int = 1, coinbase: bytes = bytes(20)) -> tuple[bytes, ...]:
        return tuple(self._mine(coinbase) for _ in range(num_blocks))

    def _mine(self, coinbase: bytes) -> bytes:
        number = self.head.block_number + 1
        seal = hashlib.sha256(b"block %d" % number).digest()
        made: bytes = self.chain.mine_block(coinbase=coinbase, mix_hash=seal, blob_gas_used=0).hash
        return made

    def run(self, transaction: dict[str, Any], block: int | str) -> tuple[bool, bytes]:
        """(went well, output or revert data) of a call on the state after `block`, which stays as it is."""
        header = self.head if block == "latest" else self.chain.get_canonical_block_header_by_number(block)
        with self.chain.get_vm(header).in_costless_state() as state:
            message = Message(
                gas=GAS_LIMIT,
                to=transaction["to"],
                sender=transaction["from"],
                value=transaction["value"],
                data=transaction["data"],
                code=state.get_code(transaction["to"]),
            )
            context = state.get_transaction_context_class()(gas_price=0, origin=transaction["from"])
            computation = state.computation_class.apply_message(state, message, context)
        return not computation.is_error, bytes(computation.output)


class Evm:
    """The chain and its journal. Not for several threads at once: the front holds a lock."""

    def __init__(self, journal: Path, clock: Callable[[], float] = time.time) -> None:
        self.journal, self._clock, self.offset = journal, clock, 0
        self.backend = Backend()
        self.tester = EthereumTester(self.backend, auto_mine_transactions=True)
        for line in self._lines():
            self._apply(line)
        self.offset = max(0, self.backend.head.timestamp - int(clock()))

    @property
    def now(self) -> int:
        return int(self._clock()) + self.offset

    def send(self, raw: bytes) -> str:
        """Runs and mines one signed transaction; its hash. The journal has it before anyone is told."""
        line = {"at": self._next_time(), "raw": raw.hex()}
        sent = self._apply(line)
        self._keep(line)
        return sent

    def mine(self) -> None:
        """One empty block."""
        line = {"at": self._next_time(), "raw": None}
        self._apply(line)
        self._keep(line)

    def _next_time(self) -> int:
        return max(self.now, int(self.backend.head.timestamp) + 1)

    def _apply(self, line: dict[str, Any]) -> str:
        self.backend.set_time(line["at"])
        if line["raw"] is None:
            self.tester.mine_block()
            return ""
        sent = ""
        try:
            sent = str(self.tester.send_raw_transaction("0x" + line["raw"]))
        finally:
            if not sent:  # refused: the block that was begun for it is forgotten
                self.backend.chain.header = self.backend.chain.create_header_from_parent(self.backend.head)
        return sent

    def _lines(self) -> Iterator[dict[str, Any]]:
        if not self.journal.exists():
            return
        raw = self.journal.read_bytes()
        whole, _, torn = raw.rpartition(b"\n")
        if torn:  # a line that a crash cut short: its sender was never answered
            os.truncate(self.journal, len(raw) - len(torn))
        for line in whole.splitlines():
            value = parse(line, what="chain journal")
            if not isinstance(value, dict) or set(value) != {"at", "raw"}:
                raise ConfigurationError(["chain-journal"], "the chain's journal holds an odd line")
            yield value

    def _keep(self, line: dict[str, Any]) -> None:
        with self.journal.open("ab", buffering=0) as stream:
            stream.write(canonical(line) + b"\n")
            os.fsync(stream.fileno())
