"""The facts that the attestation gate judges: what a quote, a TPM, an enrolment record and a clock said, parsed and never
believed.

Report data and what may not change between two attestations of one attempt are defined here too, beside the facts they are
made of.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from policies.attestation_limits import AttestationLimits
from policies.gate import Evidence, Reason
from policies.quote import QuoteBody
from rapha.canonical import canonical

_DOMAIN = b"rapha report data v1\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """What the quote's report data must name. nonce: the gate's own; recipient: the key that results are sealed to; the rest
    digests."""

    job: str
    attempt: int
    nonce: str
    workload: str
    policy: str
    manifest: str
    recipient: str
    tpm_ak: str


def report_data(binding: Binding) -> bytes:
    """The 64 bytes of report data that bind one attempt: SHA-256 of a domain and canonical JSON, then 32 zero bytes."""
    fields = {name: getattr(binding, name) for name in Binding.__dataclass_fields__}
    return hashlib.sha256(_DOMAIN + canonical(fields)).digest() + bytes(32)


@dataclass(frozen=True, slots=True, kw_only=True)
class TcbFacts:
    """What Intel's signed collateral says of the platform and its quoting enclave. Times are seconds since the epoch."""

    status: str
    advisories: tuple[str, ...]
    number: int
    qe_status: str
    qe_advisories: tuple[str, ...]
    qe_number: int
    ppid: str
    fmspc: str
    sgx_type: int
    dynamic_platform: str
    cached_keys: str
    smt: str
    issued_at: int
    expires_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QuoteFacts:
    """fault: "" when the quote verified under `root`, else why not; given: bytes received; padding: "none", "zero" or "other"."""

    fault: str
    root: str
    digest: str
    given: int
    padding: str
    body: QuoteBody | None
    tcb: TcbFacts | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmFacts:
    """fault: "" when the signature verified under the enrolled key; extra and expected: hex; pcrs: (index, hex) as given
    beside it."""

    fault: str
    ak: str
    signer: str
    extra: str
    expected: str
    selection: tuple[tuple[int, tuple[int, ...]], ...]
    pcrs: tuple[tuple[int, str], ...]
    pcrs_hash: bool
    clock: int
    reset_count: int
    restart_count: int
    safe: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformFacts:
    """From the enrolment record. digest: of the record; ak: digest of the key's TPM name; bound: tied to its EK certificate."""

    digest: str
    mode: str
    expires_at: int
    ak: str
    signer: str
    bound: bool
    ppid: str
    fmspc: str
    pcrs: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LastSeen:
    """The newest of each number that this machine ever showed, from a durable file; all 0 before the first time."""

    clock: int = 0
    reset_count: int = 0
    restart_count: int = 0
    number: int = 0
    at: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """nonce: the gate's own; records: ledger entries that hold it, of any attempt; times in seconds, `trusted_at` not the
    host's."""

    nonce: str
    records: int
    asked_at: int
    answered_at: int
    trusted_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SamePlatform:
    """What may not change between the two attestations of one attempt, and the first one's nonce."""

    nonce: str
    platform: str
    ppid: str
    fmspc: str
    measurement: str
    runtime: tuple[str, ...]
    reset_count: int
    restart_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestationEvidence(Evidence):
    """None stands for what was not there: every check that asks for it fails."""

    limits: AttestationLimits
    quote: QuoteFacts
    binding: Binding | None = None
    report_data: str = ""
    tpm: TpmFacts | None = None
    platform: PlatformFacts | None = None
    last: LastSeen | None = None
    asking: Asking | None = None
    first: SamePlatform | None = None


_AGAIN = "Collect fresh evidence and collateral; if it persists, examine the machine."
QUOTE_FAULTS: Mapping[str, Reason] = {
    code: Reason("node", wrong, todo)
    for code, wrong, todo in (
        ("quote-missing", "There is no DCAP quote.", _AGAIN),
        ("quote-too-large", "The DCAP quote is larger than any real one.", _AGAIN),
        ("quote-malformed", "The DCAP quote cannot be read, or its parts leave slack.", _AGAIN),
        ("quote-version-unknown", "The DCAP quote's version, TEE type and report do not belong together.", _AGAIN),
        ("quote-signature", "The signature over the enclave's report does not verify.", _AGAIN),
        ("quote-qe-report", "The quoting enclave's report does not verify.", _AGAIN),
        ("quote-qe-identity", "The quoting enclave is not the one that Intel names.", _AGAIN),
        ("quote-chain", "The certificate chain does not lead to the pinned root.", _AGAIN),
        ("quote-revoked", "A certificate, the platform or the quoting enclave is revoked.", "Take this machine out of service."),
        ("quote-crl", "A revocation list is missing, expired or of another issuer.", "Import fresh collateral."),
        ("quote-tcb-level", "No TCB level matches this platform.", "Update the platform's firmware and the collateral."),
        ("quote-debug", "The enclave or TD runs in debug mode.", "Start the production build."),
        ("quote-platform", "The collateral is for another platform.", "Import the collateral of this machine's FMSPC."),
        (
            "quote-status",
            "The TCB status is one that the policy does not name.",
            "Update the platform, or name status and advisories.",
        ),
        ("quote-flags", "The platform is dynamic, caches keys or has SMT on.", "Reconfigure it, or allow this in the policy."),
        ("quote-unverified", "The verifier did not accept the quote.", _AGAIN),
        ("quote-parse-differs", "Two readers of the quote disagree on what it says.", "Report this quote to the project."),
        ("collateral-missing", "There is no collateral.", "Import a collateral bundle: rapha attest collateral import."),
        ("collateral-too-large", "The collateral is larger than any real one.", "Import a collateral bundle."),
        ("collateral-malformed", "The collateral cannot be read.", "Import a collateral bundle."),
        ("collateral-root", "The collateral's certificates do not lead to the pinned root.", "Import its collateral."),
        ("collateral-signature", "The collateral's signature does not verify.", "Import a collateral bundle from Intel."),
        ("collateral-stale", "The collateral is expired, not yet valid or too old at this time.", "Import fresh collateral."),
    )
}
TPM_FAULTS: Mapping[str, Reason] = {
    code: Reason("node", wrong, "Check the attester and the TPM; enrol the machine again if its key was replaced.")
    for code, wrong in (
        ("tpm-missing", "There is no TPM quote."),
        ("tpm-too-large", "A part of the TPM's evidence is larger than any real one."),
        ("tpm-malformed", "The TPM's evidence cannot be read."),
        ("tpm-magic", "The signed structure was not made inside a TPM."),
        ("tpm-type", "The signed structure is not a quote."),
        ("tpm-signature-scheme", "The TPM's signature is not of an allowed kind."),
        ("tpm-key", "The enrolled key cannot be read."),
        ("tpm-signature", "The TPM quote is not signed by the enrolled key."),
    )
}


def same_platform(e: AttestationEvidence) -> SamePlatform | None:
    """What a second attestation of this attempt must show again; None when a part of it is missing."""
    if e.quote.body is None or e.quote.tcb is None or e.tpm is None or e.platform is None or e.asking is None:
        return None
    return SamePlatform(
        nonce=e.asking.nonce,
        platform=e.platform.digest,
        ppid=e.quote.tcb.ppid,
        fmspc=e.quote.tcb.fmspc,
        measurement=e.quote.body.measurement,
        runtime=e.quote.body.runtime,
        reset_count=e.tpm.reset_count,
        restart_count=e.tpm.restart_count,
    )
