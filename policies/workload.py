"""The workload gate: what is judged before anything of a job's code may be started.

What must hold: 1 the bytes are those that the declaration names; 2 the signature document is the one that it names, and says
the same workload, kind and entry point; 3 it is signed in the role workload-signer by an identity on the site's own list; 4
the scan ran to its end and found nothing, and what was unpacked is what was scanned; 5 base weights, if any, are the declared
ones in an inert format; 6 the hospital's launcher is the one that the site pinned.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from policies.gate import Check, Evidence, Gate, Reason, check, check_each, limits_json
from policies.scan import REASONS, ScanLimits
from rapha.canonical import is_digest

ROLE = "workload-signer"
MAX_SIGNATURE = 64 * 1024
_SIGN = "Sign the workload again with `rapha job sign` and declare the new digest."

SIGNATURE_FAULTS = {
    "workload-signature-missing": Reason("job", "The workload's signature document is missing or is not signed.", _SIGN),
    "workload-signature-malformed": Reason("job", "The workload's signature document is not strict JSON of the one form.", _SIGN),
    "workload-signature-untrusted": Reason("job", "A signature is by a key that this node does not trust in its role.", _SIGN),
    "workload-signature-invalid": Reason("job", "A signature does not fit the workload's signature document.", _SIGN),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadLimits:
    """The site's part. The defaults allow nothing: identities (key ids of workload signers) and the launcher must be named.

    launcher: digest of the script at RAPHA_TRAINER_COMMAND; max_weights: bytes of base weights.
    """

    identities: Sequence[str] = ()
    launcher: str = ""
    max_weights: int = 4 << 30
    max_files: int = 60_000
    max_bytes: int = 4 << 30
    max_file_bytes: int = 2 << 30
    ratio: int = 64

    def scan(self) -> ScanLimits:
        return ScanLimits(
            max_files=self.max_files, max_bytes=self.max_bytes, max_file_bytes=self.max_file_bytes, ratio=self.ratio
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SignatureFacts:
    """The signature document. found: digest of its bytes; fault: the code with which it was refused, or empty; the rest is
    what it says, and the key id that signed in the role workload-signer."""

    declared: str
    found: str
    fault: str = ""
    workload: str = ""
    kind: str = ""
    entry_point: str = ""
    signer: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsFacts:
    """Base weights. declared "" when the job brings none; tensors -1 when the file is not inert safetensors."""

    declared: str = ""
    found: str = ""
    size: int = 0
    tensors: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanFacts:
    """The scan's result as counts. tree: digest of the paths and digests that were judged; unpacked: the same, read again from
    disk after it was made read-only; wheels: digest of the table of known wheels; network: findings of network code."""

    files: int
    own: int
    known: int
    size: int
    tree: str
    unpacked: str
    wheels: str
    network: int
    counts: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadEvidence(Evidence):
    """workload: the declared digest; found: of the fetched bytes (source) or of the platform manifest inside (oci).

    entry_point is the declared one, which the scan found among the workload's own files. launcher: digest of the hospital's
    script. folder: `blocks.launcher.tree_digest` of the unpacked folder, for whoever mounts it.
    """

    workload: str
    found: str
    kind: str
    entry_point: str
    signature: SignatureFacts
    weights: WeightsFacts
    scan: ScanFacts
    folder: str
    launcher: str
    limits: WorkloadLimits = field(default_factory=WorkloadLimits)


@check(
    "workload-digest", "job", "The fetched workload is not the one declared.", "Declare the digest of the bytes that you serve."
)
def digest_matches(e: WorkloadEvidence) -> bool:
    return is_digest(e.workload) and e.found == e.workload


@check("workload-kind", "job", "The workload's kind is not known.", "Use source or oci.")
def kind_known(e: WorkloadEvidence) -> bool:
    return e.kind in {"source", "oci"}


@check("workload-signature-digest", "job", "The signature document is not the one declared.", _SIGN)
def signature_matches(e: WorkloadEvidence) -> bool:
    return is_digest(e.signature.declared) and e.signature.found == e.signature.declared


@check_each("workload-signature", SIGNATURE_FAULTS)
def signature_holds(e: WorkloadEvidence) -> tuple[str, ...]:
    return (e.signature.fault,) if e.signature.fault else ()


@check("workload-signature-other-subject", "job", "The signature is over another workload, kind or entry point.", _SIGN)
def signature_subject(e: WorkloadEvidence) -> bool:
    said = (e.signature.workload, e.signature.kind, e.signature.entry_point)
    return said == (e.workload, e.kind, e.entry_point)


@check("workload-identity", "job", "The signer is not an identity that this site has named.", "Have a named identity sign it.")
def identity_named(e: WorkloadEvidence) -> bool:
    named = tuple(e.limits.identities)
    return (
        len(named) > 0
        and all(is_digest(name) for name in named)
        and is_digest(e.signature.signer)
        and e.signature.signer in named
    )


@check(
    "workload-identities-unset", "node", "The site names no workload identity, or a wildcard.", "Name key ids in the site policy."
)
def identities_set(e: WorkloadEvidence) -> bool:
    return len(e.limits.identities) > 0 and all(is_digest(name) for name in e.limits.identities)


@check_each("workload-scan", REASONS)
def scan_clean(e: WorkloadEvidence) -> tuple[str, ...]:
    return tuple(code for code, _ in e.scan.counts)


@check("workload-scan-empty", "job", "The scan judged nothing: an empty result is no result.", "Ship at least one Python file.")
def scan_counted(e: WorkloadEvidence) -> bool:
    return e.scan.own > 0 and e.scan.files == e.scan.own + e.scan.known and is_digest(e.scan.wheels)


@check(
    "workload-unpacked-differs", "node", "The folder that would be mounted is not what was scanned.", "Look for who writes there."
)
def unpacked_same(e: WorkloadEvidence) -> bool:
    return is_digest(e.scan.tree) and e.scan.unpacked == e.scan.tree and is_digest(e.folder)


@check(
    "base-weights-digest", "job", "The base weights are not the declared ones.", "Declare the digest of the file that you serve."
)
def weights_match(e: WorkloadEvidence) -> bool:
    return e.weights.found == e.weights.declared and (e.weights.declared == "" or is_digest(e.weights.declared))


@check(
    "base-weights-format", "job", "The base weights are not inert safetensors.", "Convert them to safetensors without metadata."
)
def weights_inert(e: WorkloadEvidence) -> bool:
    return e.weights.declared == "" or (e.weights.tensors > 0 and 0 < e.weights.size <= e.limits.max_weights)


@check(
    "launcher-not-pinned",
    "node",
    "The hospital's launcher is not the one that the site policy pins.",
    "Check the script, then pin it.",
)
def launcher_pinned(e: WorkloadEvidence) -> bool:
    return is_digest(e.limits.launcher) and e.launcher == e.limits.launcher


CHECKS: tuple[Check[WorkloadEvidence], ...] = (
    digest_matches,
    kind_known,
    signature_matches,
    signature_holds,
    signature_subject,
    identity_named,
    identities_set,
    scan_clean,
    scan_counted,
    unpacked_same,
    weights_match,
    weights_inert,
    launcher_pinned,
)


def workload_gate(limits: WorkloadLimits) -> Gate[WorkloadEvidence]:
    """The gate of a site: its verdict names these numbers in its policy digest."""
    return Gate("workload", CHECKS, site=limits_json(limits))
