"""The attestation gate: is this the machine, the enclave and the moment that this attempt may hand clear data to?

What must hold, in the order of the checks: the DCAP quote is genuine under the pinned root and of canonical length; the
enclave is one that the site names, not in debug, its TCB good or excepted by name; its report data binds this attempt; a TPM
quote under the enrolled key, over the required PCRs, binds that quote; the machine is enrolled and the same in both; nothing
runs backwards. The TEE's word is never alone: a forged quote (WireTap, TEE.fail) still has to come from an enrolled machine
and its TPM.
"""

from policies.attestation_evidence import AttestationEvidence, SamePlatform, report_data, same_platform
from policies.attestation_limits import AttestationLimits
from policies.attestation_machine import TPM_CHECKS, tpm_unread
from policies.attestation_quote import QUOTE_CHECKS, REPORT_CHECKS, Checks, unverified
from policies.gate import Gate, check, limits_json


@check(
    "binding-incomplete",
    "node",
    "The report data does not bind this attempt and the enrolled TPM key.",
    "Report this code to the project.",
)
def binding_whole(e: AttestationEvidence) -> object:
    b = e.binding
    if b is None or e.platform is None or e.asking is None:
        return False
    bound = (b.job, b.attempt, b.nonce, b.tpm_ak) == (e.job, e.attempt, e.asking.nonce, e.platform.ak)
    return bound and all((b.workload, b.policy, b.manifest, b.recipient)) and e.report_data == report_data(b).hex()


@check("nonce-not-fresh", "node", "The gate's nonce is not in the ledger exactly once.", "Start a new attempt.")
def nonce_once(e: AttestationEvidence) -> object:
    return e.asking is not None and e.asking.records == 1 and len(e.asking.nonce) == 64 and e.asking.nonce != e.nonce


@check("attestation-late", "node", "The evidence took too long to come.", "Check the attester's load.")
def in_time(e: AttestationEvidence) -> object:
    return e.asking is not None and 0 <= e.asking.answered_at - e.asking.asked_at <= e.limits.max_answer_seconds


@check("clock-skew", "node", "This host's clock differs from the trusted time.", "Set the host's clock from a trusted source.")
def clock_true(e: AttestationEvidence) -> object:
    return e.asking is not None and abs(e.asking.trusted_at - e.at) <= e.limits.max_clock_skew


@check(
    "clock-set-back", "node", "Time runs behind what this node has already seen.", "Set the host's clock from a trusted source."
)
def clock_forward(e: AttestationEvidence) -> object:
    if e.asking is None or e.last is None:
        return False
    return min(e.at, e.asking.trusted_at) + e.limits.max_clock_skew >= e.last.at


@check(
    "tpm-rollback",
    "node",
    "The TPM's counters run behind what this machine has shown before.",
    "Examine the TPM; enrol again only if it was cleared.",
)
def tpm_forward(e: AttestationEvidence) -> object:
    if e.tpm is None or tpm_unread(e):
        return True
    if e.last is None:
        return False
    now, then = (e.tpm.reset_count, e.tpm.restart_count), (e.last.reset_count, e.last.restart_count)
    return now >= then and e.tpm.clock >= e.last.clock


@check(
    "collateral-rolled-back", "node", "The collateral is older than what this node has already used.", "Import newer collateral."
)
def collateral_forward(e: AttestationEvidence) -> object:
    tcb = e.quote.tcb
    if tcb is None:
        return unverified(e)
    return e.last is not None and min(tcb.number, tcb.qe_number) >= e.last.number


@check(
    "platform-changed",
    "node",
    "The machine, the enclave or its boot is not the one attested before training.",
    "Outputs stay quarantined.",
)
def unchanged(e: AttestationEvidence) -> object:
    now = same_platform(e)
    if now is None:
        return unverified(e) or tpm_unread(e)
    if e.first is None or e.first.nonce == now.nonce:
        return False
    names = [name for name in SamePlatform.__dataclass_fields__ if name != "nonce"]
    return all(getattr(e.first, name) == getattr(now, name) for name in names)


ONLINE_CHECKS: Checks = (
    binding_whole,
    nonce_once,
    in_time,
    clock_true,
    clock_forward,
    tpm_forward,
    collateral_forward,
)


def attestation_gate(limits: AttestationLimits) -> Gate[AttestationEvidence]:
    """Before any data is asked for."""
    checks = (*QUOTE_CHECKS, *REPORT_CHECKS, *TPM_CHECKS, *ONLINE_CHECKS)
    return Gate("attestation", checks, ttl=limits.ttl, site=limits_json(limits))


def reattestation_gate(limits: AttestationLimits) -> Gate[AttestationEvidence]:
    """Before anything is sealed: all of it again, on the same machine since the same boot."""
    checks = (*QUOTE_CHECKS, *REPORT_CHECKS, *TPM_CHECKS, *ONLINE_CHECKS, unchanged)
    return Gate("reattestation", checks, ttl=limits.ttl, site=limits_json(limits))


def offline_gate(limits: AttestationLimits, *, with_report_data: bool, with_tpm: bool) -> Gate[AttestationEvidence]:
    """What can be decided from files alone: no ledger, no counters seen before."""
    checks = (*QUOTE_CHECKS, *(REPORT_CHECKS if with_report_data else ()), *(TPM_CHECKS if with_tpm else ()))
    return Gate("attestation", checks, ttl=limits.ttl, site=limits_json(limits))
