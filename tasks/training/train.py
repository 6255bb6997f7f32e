"""Stage 10, Train: the door is opened, the sandbox runs, and every proof of how it ran is gathered while it can be."""

import contextlib
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from blocks.keeper import Keeper
from blocks.launcher import Collected, Exit, Launcher, SandboxSpec
from policies.gate import Evidence, Gate
from policies.train import IsolationFacts, SandboxLimits, TrainEvidence, TrainLimits, bucket, train_gate
from rapha.errors import Refusal
from tasks.attempt import Attempt
from tasks.gate import Cleared, open_door, require

WORKERS = 2
OUTPUTS = "outputs"


class Counted(Protocol):
    """Records so far: replies handed over, different records among them, records in all."""

    @property
    def handed(self) -> int: ...
    @property
    def unique(self) -> int: ...
    @property
    def total(self) -> int: ...


class Finished(Protocol):
    """The reader's last word: counts, commitment to the handed records, and that its key is gone."""

    @property
    def handed(self) -> int: ...
    @property
    def unique(self) -> int: ...
    @property
    def commitment(self) -> str: ...
    @property
    def salt(self) -> str: ...
    @property
    def destroyed(self) -> bool: ...


class Reading(Protocol):
    """What this stage asks of `blocks.reader.Reader`. `attach` closes the descriptors that it is given."""

    def attach(self, fds: list[int]) -> object: ...
    def counts(self) -> Counted: ...
    def finish(self) -> Finished: ...


def train(
    previous: Cleared[Evidence],
    attempt: Attempt,
    gates: Mapping[str, Gate[Any]],
    reader: Reading,
    launcher: Launcher,
    keeper: Keeper,
    spec: SandboxSpec,
    limits: TrainLimits,
    cap: int,
    on_progress: Callable[[int, int], None],
    *,
    seconds: int | None = None,
    workers: int = WORKERS,
) -> Cleared[TrainEvidence]:
    """Runs the workload on the reader's records; its files end in `attempt.folder/outputs`.

    cap: unique records that the job may be handed; seconds: the run's longest that the declaration names, by which escrow and
    manifest were judged (the site's own limit holds too); on_progress(handed, total) about once a second. Never retried. Raises
    `Refusal` from the door, launcher, keeper or gate; `PeerError` when one of them died: the sandbox ends with the connection.
    """
    open_door("train", gates, attempt, previous)
    wanted = _judged(attempt)
    attempt.record("train-started", workload=wanted["workload"], launcher=wanted["launcher"])
    with _lines(workers) as (ours, theirs):
        reader.attach(ours())
        isolation = launcher.launch(attempt.job, attempt.number, spec, _bounded(limits.sandbox, seconds), theirs)
    ended = _followed(attempt, reader, launcher, keeper, on_progress)
    proof = launcher.proof()
    after = keeper.prove(attempt.job, attempt.number)
    handed = reader.finish()
    # The salt opens the commitment for an auditor; it stays in the hospital, beside the attempt, and is in no receipt.
    attempt.keep("commitment", "handed-records", {"commitment": handed.commitment, "salt": handed.salt})
    copied = _collected(launcher, ended, attempt.folder / OUTPUTS)
    evidence = TrainEvidence(
        **attempt.facts(previous.subject),
        exit=ended.exit,
        reason=ended.reason,
        left=proof.left if proof.ended else -1,
        bucket=bucket(ended.seconds),
        isolation=isolation,
        cut=_cut_codes(after.broken, after.held, isolation, proof.pidns),
        cut_after=after.after,
        wanted_workload=wanted["workload"],
        wanted_launcher=wanted["launcher"],
        wanted_weights=wanted["weights"],
        handed=handed.handed,
        unique=handed.unique,
        cap=cap,
        commitment=handed.commitment,
        reader_destroyed=handed.destroyed,
        outputs=copied.digest,
        output_files=copied.files,
        output_bytes=copied.size,
        odd=copied.codes,
        limits=limits,
    )
    return require(train_gate(limits), evidence, attempt)


def _bounded(site: SandboxLimits, seconds: int | None) -> SandboxLimits:
    """A job has the time that it declared, and never more than the site gives to any."""
    return site if seconds is None else replace(site, seconds=min(site.seconds, seconds))


@contextlib.contextmanager
def _lines(workers: int) -> Iterator[tuple[Callable[[], list[int]], list[int]]]:
    """One socket pair a worker. The reader's ends go with the call that hands them over; the trainer's are closed here."""
    pairs = [socket.socketpair() for _ in range(workers)]
    try:
        yield (lambda: [pair[0].detach() for pair in pairs]), [pair[1].fileno() for pair in pairs]
    finally:
        for pair in pairs:
            for end in pair:
                end.close()


def _followed(
    attempt: Attempt, reader: Reading, launcher: Launcher, keeper: Keeper, on_progress: Callable[[int, int], None]
) -> Exit:
    """Waits for the end, a second at a time, telling how many records went; a broken cut ends the run at once."""
    while True:
        now = launcher.wait(1.0)
        counts = reader.counts()
        on_progress(counts.handed, counts.total)
        if now.state != "running":
            return now
        if keeper.watch(attempt.job, attempt.number):
            launcher.kill()


def _judged(attempt: Attempt) -> dict[str, str]:
    """Digests of what the workload gate judged, from the evidence that the door has just hashed again."""
    try:
        kept = json.loads((attempt.folder / "evidence" / "workload.json").read_bytes())
        workload = kept["folder"] if kept["kind"] == "oci" else kept["workload"]
        return {"workload": str(workload), "launcher": str(kept["launcher"]), "weights": str(kept["weights"]["declared"])}
    except (OSError, ValueError, KeyError, TypeError):
        raise Refusal(["train-no-judged-workload"], "the workload gate's evidence cannot be read", gate="train") from None


def _collected(launcher: Launcher, ended: Exit, folder: Path) -> Collected:
    """Nothing is copied out of a run that did not complete (E26)."""
    if ended.exit != "completed":
        return Collected(0, 0, "", ())
    if os.path.lexists(folder):
        raise Refusal(["train-outputs-exist"], "this attempt has outputs already", gate="train")
    return launcher.collect(folder)


def _cut_codes(broken: tuple[str, ...], held: bool, isolation: IsolationFacts, pidns: int) -> tuple[str, ...]:
    odd = [] if held else ["cut-not-held"]
    odd += [] if isolation.pidns == pidns else ["sandbox-other"]
    return tuple(sorted({*broken, *odd}))
