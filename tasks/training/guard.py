"""Output: what the trainer wrote is read once, judged, written anew, and only then is there a release."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from policies.gate import Evidence
from policies.output import OutputEvidence, OutputLimits, output_gate
from rapha.declaration import Declaration
from tasks.attempt import Attempt
from tasks.gate import Cleared, require
from tasks.guarding.inspection import inspect
from tasks.guarding.release import prepare_release, write_release


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What the dataset's manifest lets out, at most."""

    max_bytes: int
    max_metrics: int


def guard(
    previous: Cleared[Evidence],
    attempt: Attempt,
    outputs_dir: Path,
    declaration: Declaration,
    limits: OutputLimits,
    *,
    grant: Grant,
    forbidden: Iterable[bytes] = (),
) -> Cleared[OutputEvidence]:
    """Judges the folder `outputs_dir` and, once cleared, writes `attempt.folder/release`: the two files, nothing else.

    `previous` must be the train gate's; `forbidden` are identifiers whose presence in any form refuses. Raises `Refusal`, after
    which the release folder is empty.
    """
    release = attempt.folder / "release"
    prepare_release(release)
    seen = inspect(outputs_dir, declaration, limits, forbidden)
    evidence = OutputEvidence(
        **attempt.facts(previous.subject),
        **seen.facts,
        scope="release",
        after=previous.verdict.gate,
        granted_bytes=grant.max_bytes,
        granted_metrics=grant.max_metrics,
    )
    cleared = require(output_gate(limits), evidence, attempt)
    write_release(release, seen.files)
    return cleared
