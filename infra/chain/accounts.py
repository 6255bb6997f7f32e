"""The development chain's accounts: the well-known ones of every Ethereum test tool, so their keys are no secret at all.

The gate refuses every one of them in production (`policies.escrow.DEVELOPMENT_ACCOUNTS`).
"""

from eth_account import Account
from eth_account.signers.local import LocalAccount

CHAIN_ID = 31337
MNEMONIC = "test test test test test test test test test test test junk"
HD_PATH = "m/44'/60'/0'/0"
ROLES = (
    "deployer",
    "ai-team",
    "node",
    "attestor",
    "hospital",
    "node-owner",
    "onboarder",
    "protocol",
    "attestor-2",
    "attestor-3",
)


def account(role: str) -> LocalAccount:
    """The development account that plays `role`; KeyError-free: ValueError for a role that does not exist."""
    Account.enable_unaudited_hdwallet_features()
    made: LocalAccount = Account.from_mnemonic(MNEMONIC, account_path=f"{HD_PATH}/{ROLES.index(role)}")
    return made
