"""The attestation gate's checks on the TPM quote and the enrolled machine: the enrolled key, the required PCRs, the same CPU."""

from collections.abc import Collection

from policies.attestation_evidence import TPM_FAULTS, AttestationEvidence
from policies.attestation_quote import Checks, unverified
from policies.gate import check, check_each
from policies.tpm import ALG_SHA256


def tpm_unread(e: AttestationEvidence) -> bool:
    """Whether the check "tpm" already refuses for want of a structure to read: the others then have nothing to say."""
    return e.tpm is None or (e.tpm.fault in TPM_FAULTS and e.tpm.signer == "")


@check_each("tpm", TPM_FAULTS)
def tpm_verifies(e: AttestationEvidence) -> Collection[str]:
    if e.tpm is None:
        return ("tpm-missing",)
    return (e.tpm.fault,) if e.tpm.fault else ()


@check(
    "tpm-nonce", "node", "The TPM quote is not about this DCAP quote.", "Have the attester quote the digest of the DCAP quote."
)
def tpm_nonce_equal(e: AttestationEvidence) -> object:
    if e.tpm is None or tpm_unread(e) or (e.quote.body is None and unverified(e)):
        return True
    return len(e.tpm.expected) == 64 and e.tpm.extra == e.tpm.expected


@check("tpm-signer", "node", "The TPM quote names another key than the enrolled one.", "Enrol the machine's key again.")
def tpm_signer(e: AttestationEvidence) -> object:
    if e.tpm is None or tpm_unread(e):
        return True
    return e.platform is not None and e.tpm.signer == e.platform.signer and e.tpm.ak == e.platform.ak


@check(
    "tpm-pcr-selection",
    "node",
    "The TPM quote does not cover exactly the required PCRs.",
    "Quote the PCRs that the policy names.",
)
def pcr_selection(e: AttestationEvidence) -> object:
    wanted = tuple(sorted(set(e.limits.required_pcrs)))
    if e.tpm is None or tpm_unread(e):
        return True
    return e.tpm.selection == ((ALG_SHA256, wanted),) and tuple(i for i, _ in e.tpm.pcrs) == wanted


@check("tpm-pcr-digest", "node", "The PCR values do not hash to the quoted digest.", "Read and quote the PCRs in one step.")
def pcr_digest_equal(e: AttestationEvidence) -> object:
    if e.tpm is None or tpm_unread(e):
        return True
    return e.tpm.pcrs_hash is True


@check(
    "tpm-pcr-values",
    "node",
    "A PCR holds another value than the enrolled one.",
    "Something in the boot changed: examine it, then enrol again.",
)
def pcr_values(e: AttestationEvidence) -> object:
    if e.tpm is None or tpm_unread(e):
        return True
    if e.platform is None or not e.tpm.pcrs:
        return False
    enrolled, named = dict(e.platform.pcrs), e.limits.pcr_values
    return all(enrolled.get(index) == value and named.get(str(index), value) == value for index, value in e.tpm.pcrs)


@check(
    "tpm-clock-unsafe",
    "node",
    "The TPM's clock may have run before (safe = 0).",
    "Shut the machine down in order, or set the TPM's clock.",
)
def clock_safe(e: AttestationEvidence) -> object:
    if e.tpm is None or tpm_unread(e):
        return True
    return e.tpm.safe is True


@check(
    "platform-not-enrolled",
    "node",
    "This machine's enrolment record is not one that the policy lists.",
    "Enrol it: rapha node enrol.",
)
def enrolled(e: AttestationEvidence) -> object:
    return e.platform is not None and e.platform.digest in e.limits.platforms


@check("platform-expired", "node", "The machine's enrolment has expired.", "Enrol it again: rapha node enrol.")
def enrolment_current(e: AttestationEvidence) -> object:
    at = e.at if e.asking is None else e.asking.trusted_at
    return e.platform is not None and at < e.platform.expires_at


@check(
    "platform-development",
    "node",
    "A development enrolment, or a key without its EK, is used in production.",
    "Enrol the real TPM.",
)
def enrolment_real(e: AttestationEvidence) -> object:
    return e.platform is not None and (e.mode == "development" or (e.platform.mode == "production" and e.platform.bound is True))


@check("platform-other", "node", "The quote comes from another machine than the enrolled one.", "Attest on the enrolled machine.")
def same_cpu(e: AttestationEvidence) -> object:
    tcb, platform = e.quote.tcb, e.platform
    if tcb is None:
        return unverified(e)
    return platform is not None and (tcb.ppid, tcb.fmspc) == (platform.ppid, platform.fmspc)


TPM_CHECKS: Checks = (
    tpm_verifies,
    tpm_nonce_equal,
    tpm_signer,
    pcr_selection,
    pcr_digest_equal,
    pcr_values,
    clock_safe,
    enrolled,
    enrolment_current,
    enrolment_real,
    same_cpu,
)
