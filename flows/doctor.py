"""May this node start? Each thing that it needs, looked at one by one; what cannot be looked at is missing."""

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from blocks.channel import Channel
from blocks.pacs import DicomWeb, Timeouts
from blocks.settings import problems
from flows.finding import Finding, looked
from flows.node import Node
from rapha.errors import RaphaError, Refusal
from rapha.ledger import verify

LEAST_FREE = 5 << 30
CLOCK_SKEW = 300


def examine(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Settings first; where they are not whole, nothing that needs them is tried."""
    wrong = problems(environment)
    if wrong:
        yield from (Finding("setting", code, said) for code, said in sorted(wrong.items()))
        return
    yield Finding("settings")
    try:
        node = Node.open(environment)
    except RaphaError as error:
        yield from (Finding("site policy", code, error.message) for code in error.codes)
        return
    yield Finding("site policy")
    for name, look in _looks(node).items():
        yield looked(name, look)


def _looks(node: Node) -> dict[str, Callable[[], object]]:
    return {
        "ledger key": lambda: node.key("ledger"),
        "receipt key": lambda: node.key("receipt"),
        "settlement key": lambda: node.chain.sender,
        "trusted keys": lambda: _trusted(node),
        "ledger": lambda: _ledger(node),
        "register": lambda: node.register.open_jobs("doctor"),
        "disk": lambda: _disk(node.state),
        "policy documents": lambda: node.engine.documents,
        "archive": lambda: _archive(node),
        "orchestrator": lambda: _answers(node.settings.text("RAPHA_ORCHESTRATOR_API_BASE")),
        "chain": lambda: _chain(node),
        "clock": lambda: _clock(node),
        "attestor": lambda: _all_answer(node.settings.text("RAPHA_ATTESTOR_URL").split(",")),
        "attester": node.attester.identity,
        "keeper": lambda: _keeper(node),
        "reader": lambda: _holds(node.settings.path("RAPHA_READER_SOCKET"), "reader"),
        "launcher": lambda: _holds(node.settings.path("RAPHA_LAUNCHER_SOCKET"), "launcher"),
        "isolation": lambda: _isolation(node),
        "engine": lambda: _answers(f"{os.environ.get('PREFECT_API_URL', '')}/health"),
    }


def _trusted(node: Node) -> None:
    for area, least in (("ai-teams", 1), ("manifest", 3), ("workload", 1)):
        if len(node.trusted(area)) < least:
            raise Refusal([f"trusted-keys-{area}"], f"RAPHA_TRUST_DIR/{area} names nobody, or too few roles")


def _ledger(node: Node) -> None:
    report = verify(node.state / "ledger", node.key("ledger").public_key())
    if not report.ok:
        raise Refusal([f"ledger-{report.kind}"], f"the ledger does not verify: {report.detail}")


def _disk(folder: Path) -> None:
    if shutil.disk_usage(folder).free < LEAST_FREE:
        raise Refusal(["disk-low"], f"less than {LEAST_FREE >> 30} GiB are free at RAPHA_STATE_DIR")


def _archive(node: Node) -> None:
    """One study-level question within the outer bound, at most one answer."""
    archive = DicomWeb(node.settings.text("RAPHA_DICOMWEB_BASE_URL"), timeouts=Timeouts(connect=5.0, idle=15.0))
    archive.list_studies(node.settings.outer_query, limit=1)


def _answers(url: str) -> None:
    """Any answer of HTTP counts: what a peer says to a stranger is its own affair."""
    if not urlsplit(url).hostname:
        raise Refusal(["url-missing"], "PREFECT_API_URL is not set")
    httpx.get(url, timeout=5.0, trust_env=False)


def _all_answer(urls: list[str]) -> None:
    for url in urls:
        _answers(url)


def _chain(node: Node) -> None:
    if node.chain.seen_chain_id() != node.chain.chain_id:
        raise Refusal(["chain-wrong-id"], "the RPC serves another chain than RAPHA_CHAIN_ID")
    if not node.chain.code_digest():
        raise Refusal(["chain-no-vault"], "there is no contract at RAPHA_VAULT_ADDRESS")


def _clock(node: Node) -> None:
    if abs(node.chain.final().at - time.time()) > CLOCK_SKEW:
        raise Refusal(["clock-skew"], f"this clock and the chain's last final block are more than {CLOCK_SKEW} s apart")


def _keeper(node: Node) -> None:
    with node.keeper() as keeper:
        status = keeper.status()
    open_line = set() if status["tokens"] else {"cut-link-up", "cut-route"}  # no job holds the line: it is up, as it should be
    others = sorted(set(status["ways_out"]) - open_line)
    if status["unknown"] or others:
        raise Refusal(["keeper-ways-out"], f"ways out beside port B: {', '.join(others) or 'state unknown'}")


def _holds(socket: Path, peer: str) -> None:
    with Channel(socket, peer=peer, timeout=5.0) as channel:
        channel.call("holds", job="", attempt=0)


def _isolation(node: Node) -> None:
    """The launcher's own probe: what a sandbox of this machine can do that it must not."""
    if shutil.which("bwrap") is None:
        raise Refusal(["bubblewrap-missing"], "an administrator must run: apt-get install bubblewrap")
    with node.launcher() as launcher:
        codes, _ = launcher.probe()
    if codes:
        raise Refusal(list(codes), f"a sandbox on this machine is open: {', '.join(codes)}")
