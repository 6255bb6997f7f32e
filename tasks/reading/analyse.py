"""Stage analyse: each model that reads something of the study runs in the sandbox; what it says is held to what it saw."""

import contextlib
import secrets
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from blocks.launcher import Collected, Exit, Launcher, SandboxSpec
from blocks.models import ENTRY_POINT, ModelPackage
from blocks.study import Counts, Handed
from policies.analysis import RunFacts, run_codes
from policies.applicability import Applicability, InstanceFacts, applicability
from policies.findings import MAX_FINDINGS_FILE, Finding, Findings, ImageShape, is_critical, read_findings
from policies.model import Model
from policies.train import MECHANISMS, SandboxLimits
from rapha.canonical import digest, digest_of
from rapha.errors import PeerError, Refusal

OUTPUT = "findings.json"
WORKERS = 1
Progress = Callable[[str, int, int], None]


class Reading(Protocol):
    """What this stage asks of `blocks.study.StudyReader`, on which the study is open. `attach` closes the descriptors."""

    def attach(self, fds: Sequence[int], indexes: Sequence[int]) -> None: ...
    def counts(self) -> Counts: ...
    def detach(self) -> dict[int, Handed]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AnalyseLimits:
    """script: the hospital's launch script and its digest; sandbox: what a model may use (its own seconds hold if fewer)."""

    script: Path
    script_digest: str
    sandbox: SandboxLimits = field(
        default_factory=lambda: SandboxLimits(seconds=1800, output_bytes=MAX_FINDINGS_FILE, output_files=1)
    )
    mechanisms: tuple[str, ...] = MECHANISMS


@dataclass(frozen=True, slots=True)
class ModelResult:
    """One model's run. read: indexes that it analysed; left_out: index -> its reason; seconds: of the run; critical: how many of
    its findings its declaration calls critical."""

    model: Model
    digest: str
    read: frozenset[int]
    left_out: Mapping[int, str]
    findings: tuple[Finding, ...]
    seconds: int
    critical: int


@dataclass(frozen=True, slots=True)
class Analysis:
    """analysed: indexes that at least one model analysed; left_out: every other index -> reason; results: a model each."""

    analysed: frozenset[int]
    left_out: Mapping[int, str]
    results: tuple[ModelResult, ...]

    @property
    def findings(self) -> int:
        return sum(len(result.findings) for result in self.results)

    @property
    def critical(self) -> int:
        return sum(result.critical for result in self.results)


def analyse(
    study: Reading,
    instances: Sequence[InstanceFacts],
    launcher_socket: Path,
    models: Sequence[ModelPackage],
    limits: AnalyseLimits,
    progress: Progress,
) -> Analysis:
    """Runs every applicable model on the instances of the open study; one sandbox each, one after the other.

    progress(model's name, instances handed over, instances in all) about once a second. Raises `Refusal` analyse-…, findings-…,
    study-…; `PeerError` when launcher or study reader died. Nothing of what a model wrote is in them but codes of ours.
    """
    if changed := [one.index for one in instances if not one.same]:
        raise Refusal(["analyse-other-content"], f"{len(changed)} instances are not those that arrived", gate="analyse")
    plan = applicability(instances, [package.model for package in models])
    by_index = {one.index: one for one in instances}
    results = []
    for place, indexes in plan.reading:
        shown = [by_index[index] for index in indexes]
        results.append(_run(study, shown, launcher_socket, models[place], limits, progress))
    return _together(plan, results)


def _together(plan: Applicability, results: Sequence[ModelResult]) -> Analysis:
    analysed = frozenset[int]().union(*(result.read for result in results))
    left_out = dict(plan.left_out)
    for result in results:
        left_out |= {index: reason for index, reason in result.left_out.items() if index not in analysed}
    return Analysis(analysed, left_out, tuple(results))


def _run(
    study: Reading,
    shown: Sequence[InstanceFacts],
    launcher_socket: Path,
    package: ModelPackage,
    limits: AnalyseLimits,
    progress: Progress,
) -> ModelResult:
    folder = Path(tempfile.mkdtemp(prefix="rapha-analyse-"))
    try:
        with Launcher(launcher_socket, peer="launcher") as launcher:
            ended, raw = _sandboxed(study, shown, launcher, package, limits, progress, folder)
        handed = study.detach()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    images = [ImageShape(one.frames, one.rows, one.columns) for one in shown]
    found = read_findings(raw, package.model, package.digest, images)
    _check_seen(found, shown, handed)
    return _result(found, shown, package, ended.seconds)


def _sandboxed(
    study: Reading,
    shown: Sequence[InstanceFacts],
    launcher: Launcher,
    package: ModelPackage,
    limits: AnalyseLimits,
    progress: Progress,
    folder: Path,
) -> tuple[Exit, bytes]:
    """(how it ended, findings.json), once everything in the sandbox is proven dead."""
    spec = _spec(package, limits, folder)
    sandbox = replace(limits.sandbox, seconds=min(limits.sandbox.seconds, package.model.seconds))
    with _lines(WORKERS) as (ours, theirs):
        study.attach(ours(), [one.index for one in shown])
        isolation = launcher.launch(digest_of({"run": secrets.token_hex(16)}), 1, spec, sandbox, theirs)
    ended = _followed(study, launcher, package.model.name, progress)
    proof = launcher.proof()
    copied = launcher.collect(folder / "out") if ended.exit == "completed" else Collected(0, 0, "", ())
    facts = RunFacts(
        exit=ended.exit,
        reason=ended.reason,
        left=proof.left if proof.ended else -1,
        isolation=isolation,
        pidns=proof.pidns,
        files=tuple(sorted(path.name for path in (folder / "out").iterdir())) if ended.exit == "completed" else (),
        odd=copied.codes,
        wanted_workload=spec.workload_digest,
        wanted_launcher=limits.script_digest,
        wanted_weights=package.model.weights,
        mechanisms=limits.mechanisms,
    )
    if codes := run_codes(facts):
        raise Refusal(codes, gate="analyse")
    return ended, _output(folder / "out" / OUTPUT)


def _spec(package: ModelPackage, limits: AnalyseLimits, folder: Path) -> SandboxSpec:
    source = folder / "model.tar"
    source.write_bytes(package.source)
    return SandboxSpec(
        kind="source",
        workload=source,
        workload_digest=digest(package.source),
        entry_point=ENTRY_POINT,
        launcher=limits.script,
        launcher_digest=limits.script_digest,
        weights=package.weights,
        weights_digest=package.model.weights,
        environment=(("RAPHA_SEED", "0"), ("RAPHA_BATCH_SIZE", "1")),
    )


@contextlib.contextmanager
def _lines(workers: int) -> Iterator[tuple[Callable[[], list[int]], list[int]]]:
    """Socket pairs: the reader's ends go with the call that hands them over, the sandbox's are closed here."""
    pairs = [socket.socketpair() for _ in range(workers)]
    try:
        yield (lambda: [pair[0].detach() for pair in pairs]), [pair[1].fileno() for pair in pairs]
    finally:
        for pair in pairs:
            for end in pair:
                end.close()


def _followed(study: Reading, launcher: Launcher, name: str, progress: Progress) -> Exit:
    while True:
        now = launcher.wait(1.0)
        counts = study.counts()
        progress(name, counts.unique, counts.total)
        if now.state != "running":
            return now


def _output(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(MAX_FINDINGS_FILE + 1)
    except OSError:
        raise PeerError("launcher-no-output", "what the launcher collected cannot be read", peer="launcher") from None


def _check_seen(found: Findings, shown: Sequence[InstanceFacts], handed: Mapping[int, Handed]) -> None:
    """What a model says that it analysed, it was given, every frame of it; what it calls undecodable did not decode."""
    for record, one in enumerate(shown):
        was = handed.get(one.index, Handed(0, False))
        if record in found.analysed and (was.frames != one.frames or was.failed):
            raise Refusal(["analyse-unread"], "a model calls an instance analysed that it did not read whole", gate="analyse")
        if found.left_out.get(record) == "undecodable" and not was.failed:
            raise Refusal(["analyse-not-undecodable"], "a model calls an instance undecodable that decoded", gate="analyse")


def _result(found: Findings, shown: Sequence[InstanceFacts], package: ModelPackage, seconds: int) -> ModelResult:
    """The same in the study's own indexes."""
    findings = tuple(replace(one, index=shown[one.index].index) for one in found.findings)
    return ModelResult(
        model=package.model,
        digest=package.digest,
        read=frozenset(shown[record].index for record in found.analysed),
        left_out={shown[record].index: reason for record, reason in found.left_out.items()},
        findings=findings,
        seconds=seconds,
        critical=sum(is_critical(package.model, one) for one in findings),
    )
