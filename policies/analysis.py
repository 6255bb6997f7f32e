"""What must hold of a model's run before what it wrote is read: the sandbox was closed, ended by itself, and is dead."""

from collections.abc import Sequence
from dataclasses import dataclass

from policies.train import MECHANISMS, IsolationFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """exit, reason: as the launcher says; left: processes alive in the sandbox's namespace, -1 unknown; files, odd: what it left
    in /out and codes of what could not be copied; wanted_*: digests of the package and of the hospital's launch script."""

    exit: str
    reason: str
    left: int
    isolation: IsolationFacts
    pidns: int
    files: tuple[str, ...]
    odd: tuple[str, ...]
    wanted_workload: str
    wanted_launcher: str
    wanted_weights: str
    mechanisms: Sequence[str] = MECHANISMS


def run_codes(run: RunFacts) -> tuple[str, ...]:
    """Codes of what does not hold, analyse-…; empty when the output may be read."""
    facts = run.isolation
    held = {
        f"analyse-{run.exit or 'not-ended'}": run.exit == "completed" and run.reason == "",
        f"analyse-ended-by-{run.reason}": run.reason == "",
        "analyse-not-dead": run.left == 0 and facts.pidns > 0 and facts.pidns == run.pidns,
        "analyse-not-isolated": facts.links == ("lo:down",)
        and facts.netns != facts.host_netns
        and min(facts.netns, facts.host_netns) > 0
        and facts.open == ()
        and facts.probed > 0,
        "analyse-limits-unheld": facts.mechanism in MECHANISMS and facts.mechanism in run.mechanisms,
        "analyse-other-model": (facts.workload, facts.launcher, facts.weights)
        == (run.wanted_workload, run.wanted_launcher, run.wanted_weights)
        and len(run.wanted_workload) == len(run.wanted_launcher) == len(run.wanted_weights) == 71,
        "analyse-odd-output": run.odd == () and (run.files == ("findings.json",) or run.exit != "completed"),
    }
    return tuple(sorted(code for code, ok in held.items() if ok is not True))
