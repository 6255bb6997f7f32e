"""The demo's world: what is outside the node, and the node itself, each a real process; restarts from its folder."""

import contextlib
import hashlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from blocks.chain import Chain
from blocks.ledger import Ledger
from blocks.settings import Settings, load
from infra import reading, serve
from infra.demo import clinic
from infra.demo.layout import Layout, prepare, write_secret
from infra.demo.papers import (
    Ports,
    Wish,
    common_environment,
    enrol_platform,
    lay_out_dataset,
    make_job,
    site_policy,
    training_environment,
    write_node_env,
)
from infra.demo.send import submit
from infra.engine import engine_environment
from infra.netns import NodeNetwork
from infra.supervisor import Member, Supervisor
from rapha.errors import PeerError

SOCKET_PATH_LIMIT = 90  # sun_path holds 108 bytes
Say = Callable[[str], None]


def embedded_archive(up: "World") -> Member:
    """The demo's own archive, at one port of both loopbacks: the node's for the reader, ours for a person's `rapha pacs`."""
    argv = serve.python("infra.hospital", "--root", str(up.layout.root / "dicom"), "--port", str(up.ports.archive))
    argv += clinic.archive_options(up.layout, up.ports) if "read" in up.halves else []
    held = [up.open.enter_context(up.network.listen("127.0.0.1", up.ports.archive)).fileno()] if up.network else []
    argv += [word for fd in held for word in ("--fd", str(fd))]
    return Member("archive", argv, serve.base_environment(os.environ), pass_fds=held)


@dataclass
class World:
    """Everything that the demo needs to be up. Use as a context manager; `say` hears what happens.

    archive: what holds the images of `<root>/dicom` and answers the node at 127.0.0.1:`ports.archive`/dicom-web.
    """

    layout: Layout
    patients: int
    say: Say
    archive: Callable[["World"], Member] = embedded_archive
    halves: tuple[str, ...] = ("train",)
    open: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    group: Supervisor = field(init=False)
    network: NodeNetwork | None = field(init=False, default=None)
    sockets: Path = field(init=False)
    ports: Ports = field(init=False)
    environment: dict[str, str] = field(init=False)
    _settings: Settings | None = field(init=False, default=None)
    chain: dict[str, Any] = field(init=False)
    early: tuple[Member, ...] = field(init=False)
    engine: Member = field(init=False)
    near: list[Member] = field(init=False)

    def __enter__(self) -> Self:
        self.group = Supervisor(self.layout.logs)
        self.sockets = _socket_folder(self.layout.run)
        self.ports = _ports(self.layout.root / "ports.json")
        self.environment = common_environment(self.layout, self.ports)
        self.network = NodeNetwork.create() if self.trains else None
        try:
            self._begin()
            self._outside()
            self._papers()
            self._node()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends every process and the namespaces. The folder stays."""
        self.group.stop()
        self.open.close()
        if self.network is not None:
            self.network.close()

    @property
    def trains(self) -> bool:
        return "train" in self.halves

    @property
    def reads(self) -> bool:
        return "read" in self.halves

    @property
    def settings(self) -> Settings:
        """The training half's."""
        if self._settings is None:
            raise PeerError("demo-no-training", "this world has no training half")
        return self._settings

    def chain_client(self, role: str) -> Chain:
        """The chain as one of the demo's accounts sees it."""
        key = self.layout.root / "chain" / "keys" / f"{role}.key"
        return Chain(self.chain["rpc_url"], self.chain["chain_id"], self.chain["vault"], self.chain["token"], account=key)

    def job(self, wish: Wish = Wish()) -> bytes:  # noqa: B008  # frozen
        """A new declaration of the AI team's, funded and signed, its workload published."""
        accounts, orchestrator = self.chain["accounts"], self.layout.root / "orchestrator"
        chain = self.chain_client("ai-team")
        return make_job(self.layout, chain, accounts["attestor"], accounts, orchestrator, self.patients, wish)

    def send(self, declaration: bytes) -> str:
        """Posts a declaration to the webhook as the AI team does; the job's id."""
        return submit(self.settings.text("RAPHA_ORCHESTRATOR_CALLBACK_URL"), declaration, self.layout.secret("webhook"))

    @property
    def ui(self) -> str:
        return f"http://127.0.0.1:{self.ports.engine}"

    def _begin(self) -> None:
        """What needs no other: the engine, which takes longest, the chain, the orchestrator, the machine's attester."""
        self.say(f"starting: engine{', chain with the vault, orchestrator' if self.trains else ''}")
        self.engine = serve.engine_server(self.layout.root, os.environ, self.ports.engine)
        self.early = self._outsiders() if self.trains else ()
        self.group.begin(*self.early, self.engine)

    def _outsiders(self) -> tuple[Member, ...]:
        root, ports = self.layout.root, self.ports
        kind = "swtpm" if shutil.which("swtpm") and shutil.which("tpm2_quote") else "software"
        self.say(f"starting: the node's machine; TPM evidence from {kind}, DCAP evidence under a development root")
        attester = serve.python("infra.attester", "--socket", str(self.sockets / "attester.sock"), "--kind", kind)
        orchestrator = serve.python("infra.orchestrator", "--root", str(root / "orchestrator"), "--port", str(ports.orchestrator))
        token = {"RAPHA_ORCHESTRATOR_TOKEN": self.layout.secret("orchestrator")}  # not where `ps` shows it
        return (
            self._member("chain", serve.python("infra.chain", "--port", str(ports.chain), "--state", str(root / "chain"))),
            self._member("attester", [*attester, "--state", str(root / "attester")]),
            Member("orchestrator", orchestrator, {**serve.base_environment(os.environ), **token}),
        )

    def _outside(self) -> None:
        """The hospital's dataset and archive, and its mail server; the attestor, once there is a chain."""
        if self.trains:
            self.say("the hospital: made-up patients, their images, the custodian's manifest with three signatures")
            lay_out_dataset(self.layout, self.patients)
        if self.reads:
            self.environment |= clinic.papers(self.layout, self.sockets, self.ports)
            self.early += (mail := clinic.mail(self.layout, self.ports),)
            self.group.begin(mail)
        hospital = self.archive(self)
        self.group.begin(hospital)
        self.group.await_ready(*self.early)
        self.near = [hospital]
        if self.trains:
            self.chain = json.loads((self.layout.root / "chain" / "chain.json").read_bytes())
            self.near.append(attestor := self._member("attestor", self._attestor()))
            self.group.begin(attestor)

    def _attestor(self) -> list[str]:
        root, chain = self.layout.root, self.chain
        argv = serve.python("infra.attestor", "--port", str(self.ports.attestor), "--key", str(root / "chain/keys/attestor.key"))
        argv += ["--rpc", chain["rpc_url"], "--chain-id", str(chain["chain_id"]), "--vault", chain["vault"]]
        argv += ["--token", chain["token"], "--state", str(root / "attestor")]
        return [*argv, "--receipt-key", str(self.layout.keys / "receipt.pem")]

    def _papers(self) -> None:
        """Enrolment and site policy, node.env, an empty ledger."""
        root = self.layout.root
        if self.network is not None:
            platform = enrol_platform(self.layout, self.sockets)
            policy = site_policy(self.layout, self.chain, self.chain["accounts"]["attestor"], platform)
            (root / "site.json").write_text(json.dumps(policy, indent=1) + "\n")
            write_secret(self.layout.node_keys / "settlement.key", (root / "chain" / "keys" / "node.key").read_text())
            self.environment |= training_environment(self.layout, self.sockets, self.ports, self.chain, self.network)
            self._settings = load({**os.environ, **self.environment})
        write_node_env(self.layout, self.environment)
        if not (root / "ledger" / "ledger.json").exists():
            Ledger.create(root / "ledger", self.layout.signer("ledger"), "st-elsewhere")

    def _node(self) -> None:
        """Keeper, launcher and reader in the node's namespace; engine, worker, webhook and the reading service outside it."""
        everything = {**os.environ, **self.environment}
        engine = engine_environment(self.layout.root / "engine", self.ports.engine)
        if self.network is not None:
            self.say("the node: launcher, reader and keeper in a namespace with port A and port B; then worker and deployments")
            self.near += serve.guardians(self.settings, everything, self.network.popen)
            self.near.append(serve.webhook(self.settings, everything, engine))
        if self.reads:
            self.say("the reading service: receiver, study reader, launcher of models")
            self.near += reading.members(everything, serve.base_environment(os.environ), disk_floor=1 << 20)
        self.group.begin(*(member for member in self.near if member.process is None))
        self.group.await_ready(*self.near, self.engine)
        only = None if len(self.halves) > 1 else self.halves[0]
        deployment = serve.deploying(engine, everything, self.layout.logs, only)
        shift = reading.shift({**serve.base_environment(os.environ), **engine, **serve.flow_settings(everything)})
        worker = serve.flow_worker(self.layout.root, everything, self.ports.engine, self.ports.health)
        self.group.start(worker, *(shift if self.reads else ()))
        serve.deployed(deployment)

    def _member(self, name: str, argv: list[str]) -> Member:
        return Member(name, argv, serve.base_environment(os.environ))


def world(
    root: Path,
    patients: int,
    say: Say,
    archive: Callable[[World], Member] = embedded_archive,
    halves: tuple[str, ...] = ("train",),
) -> World:
    """The world of a folder, not yet started. halves: train, read, or both."""
    return World(prepare(root.absolute()), patients, say, archive, halves)


def _ports(path: Path) -> Ports:
    """Free ports, kept for the next start; new ones when any has been taken meanwhile."""
    if path.exists():
        kept = Ports(**json.loads(path.read_bytes()))
        if all(_is_free(port) for port in asdict(kept).values()):
            return kept
    names = list(Ports.__dataclass_fields__)
    with contextlib.ExitStack() as held:
        found = [held.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in names]
    ports = Ports(**dict(zip(names, found, strict=True)))
    path.write_text(json.dumps(asdict(ports)))
    return ports


def _is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def _socket_folder(run: Path) -> Path:
    """Where the UNIX sockets lie: the demo's own folder, or a short name when its path is too long for a socket."""
    if len(str(run)) <= SOCKET_PATH_LIMIT - 20:
        return run
    name = hashlib.sha256(str(run).encode()).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"rapha-{os.getuid()}-{name}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid() or folder.stat().st_mode & 0o077:
        raise PermissionError(folder)
    return folder
