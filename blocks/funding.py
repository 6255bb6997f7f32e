"""What an AI team does before it sends a job: put the money for it into the vault, under the terms that the hospital expects."""

import time
from dataclasses import dataclass

from eth_utils.address import to_checksum_address

from blocks.chain import Chain, Reverted
from policies.escrow import node_id, owner_id
from rapha.errors import PeerError


@dataclass(frozen=True, slots=True)
class Terms:
    """node and owner: names as in the declaration; price in smallest units; deadline in seconds; payees in the vault's order
    (hospital, node owner, onboarder, protocol); attestors of whom `threshold` must sign.
    """

    node: str
    owner: str
    price: int
    max_records: int
    deadline: int
    payees: tuple[str, str, str, str]
    attestors: tuple[str, ...]
    threshold: int = 1

    def call(self, token: str) -> tuple[object, ...]:
        return (
            bytes.fromhex(node_id(self.node)[2:]),
            bytes.fromhex(owner_id(self.owner)[2:]),
            to_checksum_address(token),
            self.price,
            self.max_records,
            self.deadline,
            self.threshold,
            [to_checksum_address(payee) for payee in self.payees],
            sorted((to_checksum_address(attestor) for attestor in self.attestors), key=lambda a: int(a, 16)),
        )


def fund(chain: Chain, terms: Terms, nonce: str, *, wait: float = 60.0) -> str:
    """Deposits price x max_records from the chain's account and returns the escrow's id (0x, 64 hex) once a block holds it.

    `nonce` (0x and 64 hex digits) is the AI team's own: the same nonce again finds the deposit that is there and sends nothing.
    Final it is later; the node waits for that. Raises `Reverted` or `PeerError`.
    """
    escrow = chain.escrow_id(chain.sender.address, nonce)
    if chain.escrow(escrow).status != "none":
        return escrow
    for call in (chain.approve_call(terms.price * terms.max_records), chain.deposit_call(nonce, terms.call(chain.token))):
        transact(chain, call, wait=wait)
    return escrow


def transact(chain: Chain, call: object, *, wait: float = 60.0) -> None:
    """Tries, sends and waits for one transaction to be in a block. Not for a settlement: that has its own stage."""
    chain.try_call(call)
    sent = chain.sign(call)
    chain.send(sent)
    until = time.monotonic() + wait
    while (mined := chain.mined(sent)) is None:
        if time.monotonic() > until:
            raise PeerError("chain-not-mined", "the transaction is in no block yet", peer="chain")
        time.sleep(0.05)
    if not mined:
        raise Reverted("in its block")
