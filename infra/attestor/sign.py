"""The attestor's decision: verify the receipt by the outsider's command, hold it against the chain, then sign."""

import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from eth_account import Account
from eth_account.signers.local import LocalAccount

from blocks.chain import Chain, Escrow
from infra.attestor.journal import Journal
from policies.settlement import Claim, Deposit, read_claim, refusals, statement_of, typed_data
from rapha.canonical import digest, parse
from rapha.errors import PeerError, Refusal

VERIFY_SECONDS = 60


class Attestor:
    """Signs with one account for one vault. `command` verifies a receipt: it gets the file's path and `--json` appended."""

    def __init__(
        self,
        account: LocalAccount,
        chain: Chain,
        journal: Journal,
        command: Sequence[str],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.account, self.chain, self.journal, self.command, self.clock = account, chain, journal, tuple(command), clock

    def attest(self, receipt: bytes, expiry: int) -> dict[str, Any]:
        """The signed claim as JSON, or `Refusal` with each code why not."""
        statement = self._verified(receipt)
        claim = read_claim(statement, digest(receipt))
        held = self._held(claim)
        codes = refusals(
            claim,
            _deposit(held),
            chain_id=self.chain.chain_id,
            vault=self.chain.vault,
            signer=self.account.address.lower(),
            now=int(self.clock()),
            expiry=expiry,
            earlier=self.journal.signed,
        )
        if codes:
            raise Refusal(codes, gate="attestor")
        self.journal.add(claim.job, claim.escrow, claim.receipt)
        return self._signed(claim, held.price, expiry)

    def _verified(self, receipt: bytes) -> object:
        with tempfile.TemporaryDirectory(prefix="attestor-") as folder:
            path = Path(folder) / "receipt.json"
            path.write_bytes(receipt)
            try:
                run = subprocess.run(
                    [*self.command, str(path), "--json"], capture_output=True, timeout=VERIFY_SECONDS, check=False
                )
            except (OSError, subprocess.TimeoutExpired):
                raise PeerError("attestor-verifier", "the receipt's verifier did not run", peer="attestor") from None
        return _statement(run.returncode, run.stdout, receipt)

    def _held(self, claim: Claim) -> Escrow:
        if self.chain.seen_chain_id() != self.chain.chain_id:
            raise PeerError("attestor-other-chain", "the chain's node serves another chain", peer="chain")
        return self.chain.escrow(claim.escrow, self.chain.final().number)

    def _signed(self, claim: Claim, price: int, expiry: int) -> dict[str, Any]:
        made = Account.sign_typed_data(self.account.key, full_message=typed_data(claim, price, expiry))
        return {
            "escrow": claim.escrow,
            "job": claim.job,
            "records": claim.records,
            "receipt": claim.receipt,
            "expiry": expiry,
            "signer": self.account.address.lower(),
            "signature": "0x" + bytes(made.signature).hex(),
        }


def _statement(status: int, output: bytes, receipt: bytes) -> object:
    """The statement that the verifier vouches for; it must be the one inside the very bytes that are signed for."""
    try:
        verdict = parse(output, what="verifier's answer")
    except Refusal:
        verdict = None
    if status != 0 or not isinstance(verdict, dict) or verdict.get("verdict") != "cleared":
        raise Refusal(["attest-receipt-refused"], "the receipt does not verify", gate="attestor")
    statement = verdict.get("statement")
    if json.dumps(statement, sort_keys=True) != json.dumps(statement_of(receipt), sort_keys=True):
        raise Refusal(["attest-other-statement"], "the verifier speaks of another statement", gate="attestor")
    return statement


def _deposit(held: Escrow) -> Deposit:
    return Deposit(
        status=held.status,
        node=held.node,
        price=held.price,
        max_records=held.max_records,
        deadline=held.deadline,
        attestors=held.attestors,
    )
