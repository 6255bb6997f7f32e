"""The train gate: the sandbox was closed, ended by itself within its limits, and nothing of it is left."""

from dataclasses import dataclass, field
from typing import ClassVar

from policies.gate import Evidence, Gate, check, limits_json

MECHANISMS = ("cgroup-v2", "cgroup-v1", "rlimits")
BUCKETS = (60, 300, 900, 3600, 4 * 3600, 12 * 3600, 24 * 3600)


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxLimits:
    """seconds: of wall clock; memory_bytes: resident, tmpfs included; processes: threads too; output_bytes, output_files: of
    /out; scratch_bytes: of /tmp; shared_bytes: of /dev/shm."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    seconds: int = 3600
    memory_bytes: int = 4 << 30
    processes: int = 512
    output_bytes: int = 512 << 20
    output_files: int = 16
    scratch_bytes: int = 256 << 20
    shared_bytes: int = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainLimits:
    """A site's numbers. mechanisms: which ways of holding memory and processes down are good enough here."""

    sandbox: SandboxLimits = field(default_factory=SandboxLimits)
    mechanisms: tuple[str, ...] = MECHANISMS


@dataclass(frozen=True, slots=True, kw_only=True)
class IsolationFacts:
    """Measured by the launcher before the trainer ran. open: what the probe could do inside and must not; links: of its network
    namespace; user: the user id that the kernel sees, and whether it is another than the launcher's; workload, launcher,
    weights: digests of the bytes that were put inside."""

    netns: int
    host_netns: int
    pidns: int
    links: tuple[str, ...]
    open: tuple[str, ...]
    probed: int
    user: int
    user_dropped: bool
    mechanism: str
    registered: bool
    workload: str
    launcher: str
    weights: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainEvidence(Evidence):
    """exit: "completed" and nothing else passes; left: processes found in the sandbox's process namespace; bucket: upper bound of
    the duration in seconds, rounded up (C16); cut: codes of what broke the cut; wanted_*: digests from earlier gates; outputs:
    digest of the list of files copied out; odd: codes of what could not be copied."""

    exit: str
    reason: str
    left: int
    bucket: int
    isolation: IsolationFacts
    cut: tuple[str, ...]
    cut_after: str
    wanted_workload: str
    wanted_launcher: str
    wanted_weights: str
    handed: int
    unique: int
    cap: int
    commitment: str
    reader_destroyed: bool
    outputs: str
    output_files: int
    output_bytes: int
    odd: tuple[str, ...]
    limits: TrainLimits


def bucket(seconds: float) -> int:
    """The smallest of `BUCKETS` that holds `seconds`; the last for more."""
    return next((bound for bound in BUCKETS if seconds <= bound), BUCKETS[-1])


@check(
    "train-not-completed",
    "job",
    "The trainer did not end by itself with success.",
    "Try the workload outside first; mind the limits.",
)
def completed(e: TrainEvidence) -> object:
    return e.exit == "completed" and e.reason == ""


@check("train-not-dead", "node", "A process of the sandbox was still alive.", "Kill it; outputs stay in quarantine.")
def dead(e: TrainEvidence) -> object:
    return type(e.left) is int and e.left == 0 and e.isolation.pidns > 0


@check("train-not-isolated", "node", "The sandbox was not closed.", "Run `rapha doctor`: it names what the probe could do.")
def isolated(e: TrainEvidence) -> object:
    facts = e.isolation
    own = facts.netns > 0 and facts.host_netns > 0 and facts.netns != facts.host_netns
    return own and facts.links == ("lo:down",) and facts.open == () and facts.probed > 0


@check(
    "train-not-held",
    "node",
    "The keeper did not know of the sandbox before it ran.",
    "Start the launcher with the keeper's socket.",
)
def registered(e: TrainEvidence) -> object:
    return e.isolation.registered is True


@check(
    "train-limits-unheld",
    "node",
    "The way memory and processes are limited is not one this site accepts.",
    "Give the node a cgroup.",
)
def limited(e: TrainEvidence) -> object:
    return e.isolation.mechanism in MECHANISMS and e.isolation.mechanism in e.limits.mechanisms


@check("train-cut-broken", "node", "The line was not cut all the time.", "Find what brought it up; outputs stay in quarantine.")
def cut_held(e: TrainEvidence) -> object:
    return e.cut == () and e.cut_after in {"unreachable", "timeout"}


@check("train-other-workload", "node", "What ran is not what the gates judged.", "Retry; look who changed the files.")
def same_bytes(e: TrainEvidence) -> object:
    ran = (e.isolation.workload, e.isolation.launcher, e.isolation.weights)
    return ran == (e.wanted_workload, e.wanted_launcher, e.wanted_weights) and len(e.wanted_workload) == 71 == len(
        e.wanted_launcher
    )


@check("train-too-many-records", "job", "More records were asked for than the job may have.", "Ask for fewer, or fund more.")
def within_cap(e: TrainEvidence) -> object:
    return 0 < e.unique <= e.cap and e.unique <= e.handed


@check("train-reader-holds", "node", "The reader did not let go of its key.", "Restart the reader; outputs stay in quarantine.")
def reader_let_go(e: TrainEvidence) -> object:
    return e.reader_destroyed is True and e.commitment.startswith("sha256:") and len(e.commitment) == 71


@check(
    "train-odd-output",
    "job",
    "What the trainer wrote is not plain files within the limits.",
    "Write weights.safetensors and metrics.json only.",
)
def plain_output(e: TrainEvidence) -> object:
    sandbox = e.limits.sandbox
    few = 0 < e.output_files <= sandbox.output_files and 0 < e.output_bytes <= sandbox.output_bytes
    return e.odd == () and few and e.outputs.startswith("sha256:")


def train_gate(limits: TrainLimits) -> Gate[TrainEvidence]:
    """The gate "train" by this site's numbers."""
    checks = (
        completed,
        dead,
        isolated,
        registered,
        limited,
        cut_held,
        same_bytes,
        within_cap,
        reader_let_go,
        plain_output,
    )
    return Gate("train", checks, ttl=24 * 3600, site=limits_json(limits))
