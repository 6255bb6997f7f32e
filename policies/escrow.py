"""The escrow gate: may this job run, as far as its money goes? Judges what the vault says at a final block.

The deposit's id is public, so it must name this node and this job's owner itself; its payees and attestors are those that the
hospital expects, because the vault takes them from the depositor.
"""

import hashlib
from dataclasses import dataclass
from typing import Literal

from policies.gate import Evidence, Gate, check, limits_json
from rapha.canonical import MAX_INTEGER

POLYGON = 137
# Circle's own USDC on Polygon PoS; the bridged USDC.e is another token.
POLYGON_USDC = "0x3c499c542cef5e3811e1192ce70d8cc03d5c3359"
DEVELOPMENT_CHAINS = (31337, 1337)
# The accounts of "test test ... junk": every test tool knows their keys.
DEVELOPMENT_ACCOUNTS = (
    "0xf39fd6e51aad88f6f4ce6ab8827279cfffb92266",
    "0x70997970c51812dc3a010c7d01b50e0d17dc79c8",
    "0x3c44cdddb6a900fa2b585dd299e03d12fa4293bc",
    "0x90f79bf6eb2c4f870365e785982e1f101e93b906",
    "0x15d34aaf54267db7d7c367839aaf71a00a2c6a65",
    "0x9965507d1a55bcc2695c58ba16fb37d819b0a4dc",
    "0x976ea74026e726554db657fa54763abd0c3a0aa9",
    "0x14dc79964da2c08b23698b3d3cc7ca32193d9955",
    "0x23618e81e3f5cdf7f54c3d65f7fbc0abf5b21e8f",
    "0xa0ee7a142d267c1f36714e4a8f75612f20a79720",
)


def node_id(name: str) -> str:
    """The node's name as the vault holds it: 0x and 64 hex digits."""
    return "0x" + hashlib.sha256(b"rapha node v1\n" + name.encode()).hexdigest()


def owner_id(name: str) -> str:
    """A job owner's name as the vault holds it."""
    return "0x" + hashlib.sha256(b"rapha owner v1\n" + name.encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class EscrowLimits:
    """A site's numbers. `payees` are hospital, node owner, onboarder, protocol. Empty payees or attestors clear nothing.

    min_records: smallest cohort that a job may pay for; margin: seconds between a run's longest end and the escrow's deadline,
    for sealing and settling; confirmations: blocks above the one that was read; vault_code: digest of the vault's code, "" for
    any (in development only).
    """

    payees: tuple[str, ...] = ()
    attestors: tuple[str, ...] = ()
    threshold: int = 1
    min_records: int = 10
    margin: int = 3600
    confirmations: int = 2
    vault_code: str = ""

    def __post_init__(self) -> None:
        # A site's policy is JSON: lists, and addresses in either case.
        object.__setattr__(self, "payees", tuple(str(payee).lower() for payee in self.payees))
        object.__setattr__(self, "attestors", tuple(sorted(str(attestor).lower() for attestor in self.attestors)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the declaration says, addresses in lower case, and the ids of its node and owner."""

    escrow: str
    chain_id: int
    vault: str
    token: str
    node: str
    owner: str
    price: int
    max_records: int
    max_seconds: int
    deadline: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What the vault holds under that id at the final block."""

    status: Literal["none", "open", "settled", "refunded"]
    node: str
    owner: str
    token: str
    price: int
    max_records: int
    deadline: int
    threshold: int
    payees: tuple[str, ...]
    attestors: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EscrowEvidence(Evidence):
    """node: this node's id; site_chain, site_vault, site_token: what this node is configured for; seen_chain: what the RPC says
    it is; final, newest: block numbers; claimed_by: the other job that this node runs on the same escrow, or "".
    """

    asked: Asked
    held: Held
    node: str
    site_chain: int
    site_vault: str
    site_token: str
    seen_chain: int
    vault_code: str
    final: int
    newest: int
    claimed_by: str
    limits: EscrowLimits


@check(
    "escrow-missing",
    "job",
    "The vault holds no deposit under this id.",
    "Fund the escrow that the declaration names, then send the job.",
)
def exists(e: EscrowEvidence) -> bool:
    return e.held.status != "none"


@check("escrow-closed", "job", "The deposit was settled or refunded already.", "Fund a new escrow and declare the job with it.")
def is_open(e: EscrowEvidence) -> bool:
    return e.held.status in ("none", "open")


@check(
    "escrow-other-chain",
    "job",
    "The declaration names another chain than this node's.",
    "Declare the chain that the node publishes.",
)
def same_chain(e: EscrowEvidence) -> bool:
    return e.asked.chain_id == e.site_chain


@check("escrow-chain-lies", "node", "The RPC address serves another chain than configured.", "Correct RAPHA_CHAIN_RPC_URL.")
def chain_is_what_it_says(e: EscrowEvidence) -> bool:
    return e.seen_chain == e.site_chain


@check(
    "escrow-chain-not-allowed",
    "node",
    "This mode does not settle on this chain.",
    "Production settles on Polygon (137), development on a development chain.",
)
def allowed_chain(e: EscrowEvidence) -> bool:
    if e.mode == "production":
        return e.site_chain == POLYGON
    return e.mode == "development" and e.site_chain in DEVELOPMENT_CHAINS


@check(
    "escrow-other-vault",
    "job",
    "The declaration names another vault than this node's.",
    "Deposit in the vault that the node publishes.",
)
def same_vault(e: EscrowEvidence) -> bool:
    return e.asked.vault == e.site_vault


@check(
    "escrow-no-vault",
    "node",
    "There is no contract, or another one, at the vault's address.",
    "Correct the vault's address or its code digest.",
)
def vault_is_there(e: EscrowEvidence) -> bool:
    if e.limits.vault_code == "":
        return e.mode == "development" and e.vault_code != ""
    return e.vault_code == e.limits.vault_code


@check(
    "escrow-other-token",
    "job",
    "Declaration, deposit and node do not name one token.",
    "Deposit the token that the node publishes.",
)
def same_token(e: EscrowEvidence) -> bool:
    return e.asked.token == e.site_token and (e.held.status == "none" or e.held.token == e.site_token)


@check(
    "escrow-token-not-allowed", "node", "Production settles in native USDC alone.", "Set the token to Circle's USDC on Polygon."
)
def allowed_token(e: EscrowEvidence) -> bool:
    return e.mode == "development" or e.site_token == POLYGON_USDC


@check("escrow-other-node", "job", "The deposit or the declaration is for another node.", "Deposit for this node's name.")
def same_node(e: EscrowEvidence) -> bool:
    return e.asked.node == e.node and (e.held.status == "none" or e.held.node == e.node)


@check(
    "escrow-other-owner",
    "job",
    "The deposit belongs to another team's jobs.",
    "Deposit under the owner that the declaration names.",
)
def same_owner(e: EscrowEvidence) -> bool:
    return e.held.status == "none" or e.held.owner == e.asked.owner


@check(
    "escrow-price-differs", "job", "The price in the deposit is not the declared one.", "Declare the price that was deposited."
)
def same_price(e: EscrowEvidence) -> bool:
    return e.held.status == "none" or e.held.price == e.asked.price > 0


@check(
    "escrow-underfunded",
    "job",
    "The deposit does not cover the declared records.",
    "Deposit price times records, or declare fewer records.",
)
def covers(e: EscrowEvidence) -> bool:
    if e.held.status == "none":
        return True
    return (
        0 < e.asked.max_records <= e.held.max_records and e.asked.price * e.asked.max_records <= e.held.price * e.held.max_records
    )


@check("escrow-too-large", "job", "The deposit is beyond 2^53 units of the token.", "Declare fewer records or a lower price.")
def countable(e: EscrowEvidence) -> bool:
    """Signed JSON holds whole numbers up to 2^53: a larger sum could be paid but not recorded."""
    return e.held.price * e.held.max_records <= MAX_INTEGER


@check("escrow-cohort-too-small", "job", "The job pays for fewer records than a cohort may have.", "Ask for a larger cohort.")
def large_enough(e: EscrowEvidence) -> bool:
    return e.asked.max_records >= e.limits.min_records > 0


@check(
    "escrow-deadline-short",
    "job",
    "The deposit could be refunded before the job can be settled.",
    "Deposit with a deadline after the job's own and after its longest run and the site's margin.",
)
def deadline_late_enough(e: EscrowEvidence) -> bool:
    last = e.at + e.asked.max_seconds + e.limits.margin
    return e.held.status == "none" or (e.held.deadline >= last and e.held.deadline >= e.asked.deadline)


@check(
    "escrow-payees-differ",
    "job",
    "The deposit would pay others than this site's payees.",
    "Deposit with the payees that the node publishes.",
)
def same_payees(e: EscrowEvidence) -> bool:
    return e.held.status == "none" or (len(e.limits.payees) == 4 and e.held.payees == e.limits.payees)


@check(
    "escrow-attestors-differ",
    "job",
    "The deposit trusts other attestors than this site's.",
    "Deposit with the attestors and the threshold that the node publishes.",
)
def same_attestors(e: EscrowEvidence) -> bool:
    if e.held.status == "none":
        return True
    wanted = e.limits.attestors
    return 0 < e.limits.threshold <= len(wanted) and (e.held.attestors, e.held.threshold) == (wanted, e.limits.threshold)


@check(
    "escrow-development-account",
    "node",
    "A payee or attestor is an account whose key everybody knows.",
    "Set the site's own accounts.",
)
def no_known_keys(e: EscrowEvidence) -> bool:
    named = {*e.limits.payees, *e.limits.attestors, *e.held.payees, *e.held.attestors}
    return e.mode == "development" or not named & set(DEVELOPMENT_ACCOUNTS)


@check("escrow-not-final", "node", "The block that was read is not deep enough.", "Wait, or correct the number of confirmations.")
def deep_enough(e: EscrowEvidence) -> bool:
    return e.final >= 0 and e.newest - e.final >= e.limits.confirmations >= 1


@check("escrow-in-use", "job", "Another job of this node runs on the same deposit.", "Fund one escrow for each job.")
def unclaimed(e: EscrowEvidence) -> bool:
    return e.claimed_by == ""


CHECKS = (
    exists,
    is_open,
    same_chain,
    chain_is_what_it_says,
    allowed_chain,
    same_vault,
    vault_is_there,
    same_token,
    allowed_token,
    same_node,
    same_owner,
    same_price,
    covers,
    countable,
    large_enough,
    deadline_late_enough,
    same_payees,
    same_attestors,
    no_known_keys,
    deep_enough,
    unclaimed,
)


def escrow_gate(limits: EscrowLimits) -> Gate[EscrowEvidence]:
    """The gate by this site's numbers."""
    return Gate("escrow", CHECKS, ttl=8 * 86400, site=limits_json(limits))
