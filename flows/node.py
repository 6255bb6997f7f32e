"""A node as its flows see it: settings, the site's numbers, the gates, and the blocks, each made once."""

import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from blocks.attester import Attester
from blocks.attestor import Attestors
from blocks.chain import Chain
from blocks.keeper import Keeper
from blocks.lastseen import LastSeenFile
from blocks.launcher import Launcher
from blocks.ledger import Ledger
from blocks.opa import OpaServer, PolicyEngine, RegoEngine, read_documents
from blocks.orchestrator import Orchestrator
from blocks.reader import Reader
from blocks.register import Register
from blocks.register_rows import Lease
from blocks.settings import READER_ALONE, Settings, load
from flows.limits import SiteLimits, gates, read_limits
from policies.gate import Gate
from policies.platform import read_platform
from rapha.signing import load_private, load_trusted
from tasks.attempt import Attempt
from tasks.scanning.scan import hospital_wheels
from tasks.training.attest import Site


@dataclass(frozen=True)
class Node:
    """Everything that a run needs and that outlives one. Opening it talks to no peer."""

    settings: Settings
    limits: SiteLimits

    @classmethod
    def open(cls, environment: Mapping[str, str] = os.environ) -> "Node":
        """Raises `ConfigurationError`, one code for each thing that is missing or wrong."""
        settings = load(environment, without=(READER_ALONE,))
        return cls(settings, read_limits(settings))

    @property
    def state(self) -> Path:
        return self.settings.path("RAPHA_STATE_DIR")

    @property
    def node_id(self) -> str:
        return self.settings.text("RAPHA_NODE_ID")

    @cached_property
    def gates(self) -> dict[str, Gate[Any]]:
        return gates(self.limits)

    @cached_property
    def ledger(self) -> Ledger:
        return Ledger(self.state / "ledger", self.key("ledger"))

    @cached_property
    def register(self) -> Register:
        return Register.at(self.state / "register.sqlite")

    @cached_property
    def chain(self) -> Chain:
        return Chain(
            self.settings.text("RAPHA_CHAIN_RPC_URL"),
            self.settings.chain_id,
            self.settings.text("RAPHA_VAULT_ADDRESS"),
            self.settings.text("RAPHA_TOKEN_ADDRESS"),
            account=self.settings.path("RAPHA_KEYS_DIR") / "settlement.key",
            confirmations=self.limits.escrow.confirmations,
        )

    @cached_property
    def attestors(self) -> Attestors:
        urls = self.settings.text("RAPHA_ATTESTOR_URL").split(",")
        return Attestors(*urls, threshold=self.limits.escrow.threshold)

    @cached_property
    def orchestrator(self) -> Orchestrator:
        return Orchestrator(self.settings.text("RAPHA_ORCHESTRATOR_API_BASE"), self.settings.text("RAPHA_ORCHESTRATOR_TOKEN"))

    @cached_property
    def engine(self) -> PolicyEngine:
        """The hospital's OPA server where one is configured, else Rego in this process; the same documents."""
        documents = read_documents(self.settings.path("RAPHA_OPA_POLICY_PATH"))
        url = self.settings.optional("RAPHA_OPA_URL")
        return OpaServer(url, documents, token=self.settings.optional("RAPHA_OPA_TOKEN")) if url else RegoEngine(documents)

    @cached_property
    def attester(self) -> Attester:
        return Attester(self.settings.path("RAPHA_ATTESTER_SOCKET"))

    def attested_site(self) -> Site:
        """What the attestation gates judge by.

        Its clock is the chain's last final block, carried on by a monotonic clock: neither the attester nor a host clock that
        was set back says what time it is.
        """
        root = self.settings.optional("RAPHA_DCAP_ROOT_PATH")
        return Site(
            limits=self.limits.attestation,
            platform=read_platform(self.settings.path("RAPHA_PLATFORM_PATH").read_bytes()),
            collateral=self.settings.path("RAPHA_COLLATERAL_PATH").read_bytes(),
            root=Path(root).read_bytes() if root else None,
            last_seen=LastSeenFile(self.state / "last-seen.json"),
            trusted_time=carried_clock(self.chain.final().at),
        )

    def known_wheels(self) -> list[dict[str, str]]:
        """The hospital's own rows for the table of known wheels."""
        path = self.settings.optional("RAPHA_KNOWN_WHEELS_PATH")
        return hospital_wheels(Path(path) if path else None)

    def keeper(self) -> Keeper:
        """A new connection to the keeper."""
        return Keeper(self.settings.path("RAPHA_KEEPER_SOCKET"), peer="keeper")

    def reader(self) -> Reader:
        """A new connection to the reader: what it holds for us ends with it."""
        return Reader(self.settings.path("RAPHA_READER_SOCKET"))

    def launcher(self) -> Launcher:
        """A new connection to the launcher: the sandbox ends with it."""
        return Launcher(self.settings.path("RAPHA_LAUNCHER_SOCKET"), peer="launcher")

    @property
    def worker(self) -> str:
        return f"{socket.gethostname()}:{os.getpid()}"

    def key(self, name: str) -> Ed25519PrivateKey:
        """One of the node's own keys: "ledger" or "receipt"."""
        return load_private(self.settings.path("RAPHA_KEYS_DIR") / f"{name}.key")

    def trusted(self, area: str) -> dict[str, list[Ed25519PublicKey]]:
        """role -> keys: areas "ai-teams" (by owner), "manifest", "workload"."""
        return load_trusted(self.settings.path("RAPHA_TRUST_DIR") / area)

    def attempt(self, lease: Lease) -> Attempt:
        """The attempt that a lease is for, its folder made."""
        folder = self.state / "attempts" / lease.job.removeprefix("sha256:") / str(lease.number)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return Attempt(
            job=lease.job, number=lease.number, nonce=lease.nonce, mode=self.settings.mode, folder=folder, ledger=self.ledger
        )


def carried_clock(at: int) -> Callable[[], int]:
    """Seconds since the epoch: `at` now, then as the machine's monotonic clock goes."""
    began = time.monotonic()
    return lambda: at + int(time.monotonic() - began)
