"""The launcher: starts the trainer's sandbox in the node's namespace and ends it. One connection is one sandbox.

Verbs: probe · launch · wait(seconds) · kill · proof · collect(destination) · holds. Closing the connection kills the sandbox
and wipes what it wrote.
"""

import hashlib
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from blocks.channel import Channel
from policies.train import IsolationFacts, SandboxLimits
from rapha.errors import PeerError


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSpec:
    """What to run. kind "source": `workload` is the tar whose SHA-256 is `workload_digest`; kind "oci": `workload` is the
    unpacked root file system whose `tree_digest` is `workload_digest`. An image with a Python of its own (`interpreter`, "" looks
    for it) is run by that; one that holds /workload alone by the hospital's, with /workload/site-packages.

    launcher: the hospital's launcher script and its digest; weights: base weights and their digest, or both empty;
    environment: RAPHA_EPOCHS, RAPHA_BATCH_SIZE, RAPHA_SEED, OMP_NUM_THREADS, decimal numbers only.
    """

    kind: str
    workload: Path
    workload_digest: str
    entry_point: str
    launcher: Path
    launcher_digest: str
    weights: Path | None = None
    weights_digest: str = ""
    environment: tuple[tuple[str, str], ...] = ()
    interpreter: str = ""

    def to_json(self) -> dict[str, Any]:
        plain = asdict(self)
        plain.update(workload=str(self.workload), launcher=str(self.launcher), weights=str(self.weights or ""))
        return {**plain, "environment": dict(self.environment)}


@dataclass(frozen=True, slots=True)
class Exit:
    """state "running" or "ended"; exit "" | "completed" | "failed" | "timeout" | "killed"; reason "" | "time" | "memory" |
    "processes" | "cut" | "asked"; seconds since the start."""

    state: str
    exit: str
    reason: str
    seconds: int


@dataclass(frozen=True, slots=True)
class Proof:
    """left: processes alive in the sandbox's process namespace; said: bytes that it wrote to stdout and stderr, thrown away."""

    left: int
    pidns: int
    ended: bool
    said: int


@dataclass(frozen=True, slots=True)
class Collected:
    """What was copied out, after the death of every process. digest: of the list of names, sizes and digests."""

    files: int
    size: int
    digest: str
    codes: tuple[str, ...]


class Launcher(Channel):
    """A connection to the launcher, for one sandbox."""

    def launch(self, job: str, attempt: int, spec: SandboxSpec, limits: SandboxLimits, fds: list[int]) -> IsolationFacts:
        """Probes and starts. `fds`: the trainer's ends of the loader sockets, which the launcher takes over (close yours)."""
        answer = self.call(
            "launch",
            fds=fds,
            timeout=120.0,
            job=job,
            attempt=attempt,
            limits=asdict(limits),
            loader_fds=len(fds),
            **spec.to_json(),
        )
        try:
            fields: dict[str, Any] = dict(answer["isolation"])
            return IsolationFacts(**{**fields, "links": tuple(fields["links"]), "open": tuple(fields["open"])})
        except (KeyError, TypeError, ValueError):
            raise PeerError(
                "launcher-odd-answer", "the launcher's answer has not the shape of a launch", peer="launcher"
            ) from None

    def probe(self) -> tuple[tuple[str, ...], str]:
        """(codes of what a sandbox could do here and must not, how limits are held), with nothing run. For `rapha doctor`."""
        answer = self.call("probe", timeout=60.0)
        return tuple(str(code) for code in answer["open"]), str(answer["mechanism"])

    def wait(self, seconds: float) -> Exit:
        """Returns after `seconds` (at most 5) or once the sandbox has ended."""
        answer = self.call("wait", seconds=min(seconds, 5.0), timeout=60.0)
        return Exit(str(answer["state"]), str(answer["exit"]), str(answer["reason"]), int(answer["seconds"]))

    def kill(self) -> None:
        """SIGKILL to everything in the sandbox; returns once it is dead."""
        self.call("kill", timeout=60.0)

    def proof(self) -> Proof:
        """Who is left. Read it after the end."""
        answer = self.call("proof", timeout=60.0)
        return Proof(int(answer["left"]), int(answer["pidns"]), answer["ended"] is True, int(answer["said"]))

    def collect(self, destination: Path) -> Collected:
        """Copies /out into a new folder of read-only files, once every process is proven dead."""
        answer = self.call("collect", destination=str(destination), timeout=600.0)
        codes = tuple(str(code) for code in answer["codes"])
        return Collected(int(answer["files"]), int(answer["size"]), str(answer["digest"]), codes)


def tree_digest(root: Path) -> str:
    """`sha256:…` over every path below `root`, sorted: its kind, permission bits, and content or link target.

    Owner and times are left out: an unpacked image has those of whoever unpacked it.
    """
    total = hashlib.sha256(b"rapha tree v1\n")
    for path in sorted(_walk(root)):
        relative = os.fsencode(path.relative_to(root))
        status = path.lstat()
        if path.is_symlink():
            kind, content = b"l", hashlib.sha256(os.fsencode(os.readlink(path))).digest()  # noqa: PTH115 - bytes wanted
        elif path.is_dir():
            kind, content = b"d", b""
        elif path.is_file():
            kind, content = b"f", _content(path)
        else:
            kind, content = b"o", b""
        total.update(b"%d:%b%b%o%b" % (len(relative), relative, kind, status.st_mode & 0o7777, content))
    return "sha256:" + total.hexdigest()


def _walk(root: Path) -> list[Path]:
    return [Path(base) / name for base, folders, files in os.walk(root) for name in (*folders, *files)]


def _content(path: Path) -> bytes:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()
