"""The attestation gate: is this the machine, the enclave and the moment that this attempt may hand clear data to?

What must hold, in the order of the checks: the DCAP quote is genuine under the pinned root and of canonical length; the
enclave is
one that the site names, not in debug, its TCB good or excepted by name; its report data binds this attempt; a TPM quote under the
enrolled key, over the required PCRs, binds that quote; the machine is enrolled and the same in both; nothing runs backwards.
The TEE's word is never alone: a forged quote (WireTap, TEE.fail) still has to come from an enrolled machine and its TPM.
"""

from collections.abc import Collection

from policies.attestation_evidence import (
    QUOTE_FAULTS,
    TPM_FAULTS,
    AttestationEvidence,
    SamePlatform,
    report_data,
    same_platform,
)
from policies.attestation_limits import INTEL_ROOT, AttestationLimits
from policies.gate import Check, Gate, check, check_each, limits_json

Checks = tuple[Check[AttestationEvidence], ...]


@check_each("quote", QUOTE_FAULTS)
def quote_verifies(e: AttestationEvidence) -> Collection[str]:
    return () if e.quote.fault == "" and e.quote.body is not None and e.quote.tcb is not None else (e.quote.fault,)


@check("quote-tee-type", "node", "The quote is of a TEE type or version that the policy does not allow.", "Use an allowed TEE.")
def tee_type(e: AttestationEvidence) -> object:
    body = e.quote.body
    return body is not None and body.tee in e.limits.tee_types and body.version in e.limits.quote_versions


@check(
    "quote-trailing-bytes", "node", "Bytes follow the quote's end.", "Send the quote alone, or allow zero padding in the policy."
)
def canonical_length(e: AttestationEvidence) -> object:
    body = e.quote.body
    if body is None:
        return False
    over = e.quote.given - body.length
    return over == 0 or (0 < over <= e.limits.max_zero_padding and e.quote.padding == "zero")


@check("root-not-pinned", "node", "The quote was verified under another root than the policy pins.", "Use the pinned root.")
def root_pinned(e: AttestationEvidence) -> object:
    return e.quote.root == e.limits.root


@check(
    "root-development",
    "node",
    "A production node was shown a root that is not Intel's.",
    "Pin Intel's root; never a development one.",
)
def root_real(e: AttestationEvidence) -> object:
    return e.mode == "development" or e.quote.root == e.limits.root == INTEL_ROOT


@check("enclave-debug", "node", "The enclave or TD can be debugged.", "Start the production build.")
def not_debug(e: AttestationEvidence) -> object:
    body = e.quote.body
    if body is None:
        return False
    first = bytes.fromhex(body.attributes)[0]
    return first & 0x02 == 0 if body.tee == "sgx" else first == 0


@check(
    "enclave-attributes",
    "node",
    "The enclave's attributes are not those of the policy.",
    "Build it with the attributes that the policy names.",
)
def attributes(e: AttestationEvidence) -> object:
    body = e.quote.body
    if body is None or body.misc_select != 0:
        return False
    rule = e.limits.sgx_attributes if body.tee == "sgx" else e.limits.tdx_attributes
    mask, given = int(rule.mask, 16), int(body.attributes, 16)
    return len(body.attributes) == len(rule.mask) and given & mask == int(rule.value, 16) & mask


@check(
    "enclave-measurement",
    "node",
    "The enclave's measurement is not one that the policy names.",
    "Run a listed build, or list this one.",
)
def measurement(e: AttestationEvidence) -> object:
    body = e.quote.body
    if body is None or (body.tee == "tdx" and body.runtime not in e.limits.runtime):
        return False
    named = body.measurement in e.limits.measurements
    return named or (not e.limits.measurements and bool(e.limits.signers) and body.tee == "sgx")


@check(
    "enclave-signer",
    "node",
    "The enclave's signer, product or security version is not allowed.",
    "Run a build of at least the lowest version.",
)
def signer(e: AttestationEvidence) -> object:
    body = e.quote.body
    if body is None:
        return False
    if body.tee == "tdx" or not e.limits.signers:
        return bool(e.limits.measurements)
    return any(
        body.signer == s.mrsigner and body.isv_prod_id == s.isv_prod_id and body.isv_svn >= s.min_isv_svn
        for s in e.limits.signers
    )


@check(
    "enclave-config",
    "node",
    "The enclave's or TD's configuration is not one that the policy names.",
    "Start it with a listed configuration.",
)
def configuration(e: AttestationEvidence) -> object:
    body = e.quote.body
    if body is None or set(body.seam) - {"0"}:
        return False
    return set(body.config) == {"0"} or body.config in e.limits.configs


@check(
    "tcb-status",
    "node",
    "The platform's TCB status is not UpToDate and no exception names it.",
    "Update it, or name status and advisories.",
)
def tcb_status(e: AttestationEvidence) -> object:
    tcb = e.quote.tcb
    return tcb is not None and (tcb.status == "UpToDate" or e.limits.exception_for(tcb.status, tcb.advisories))


@check("tcb-qe-status", "node", "The quoting enclave is not up to date and no exception names it.", "Update the quoting enclave.")
def qe_status(e: AttestationEvidence) -> object:
    tcb = e.quote.tcb
    return tcb is not None and (tcb.qe_status == "UpToDate" or e.limits.exception_for(tcb.qe_status, tcb.qe_advisories))


@check("collateral-old", "node", "The collateral's evaluation data number is below the policy's.", "Import newer collateral.")
def collateral_number(e: AttestationEvidence) -> object:
    tcb = e.quote.tcb
    return tcb is not None and min(tcb.number, tcb.qe_number) >= e.limits.min_tcb_eval_data_number


@check(
    "collateral-window", "node", "The time is outside the collateral's validity.", "Set the clock right; import fresh collateral."
)
def collateral_window(e: AttestationEvidence) -> object:
    tcb = e.quote.tcb
    at = e.at if e.asking is None else e.asking.trusted_at
    return tcb is not None and tcb.issued_at <= at < tcb.expires_at


@check(
    "platform-kind",
    "node",
    "The platform's kind or settings are not those of the policy.",
    "Reconfigure it, or allow this in the policy.",
)
def platform_kind(e: AttestationEvidence) -> object:
    tcb, limits = e.quote.tcb, e.limits
    if tcb is None or tcb.sgx_type not in limits.sgx_types:
        return False
    flags = (
        (tcb.dynamic_platform, limits.allow_dynamic_platform),
        (tcb.cached_keys, limits.allow_cached_keys),
        (tcb.smt, limits.allow_smt),
    )
    # "Undefined": a single-package platform's certificate does not carry the flag (PCK certificate profile,
    # 1.2.840.113741.1.13.1.7).
    return all(flag == "False" or (flag == "Undefined" and tcb.sgx_type == 0) or allowed for flag, allowed in flags)


@check(
    "report-data-zero",
    "node",
    "The quote's report data is empty: it binds nothing.",
    "Have the attester bind the gate's own challenge.",
)
def report_data_there(e: AttestationEvidence) -> object:
    return e.quote.body is not None and bool(set(e.quote.body.report_data) - {"0"})


@check(
    "report-data-mismatch", "node", "The quote's report data is not the one expected.", "Ask again; a stored quote cannot pass."
)
def report_data_equal(e: AttestationEvidence) -> object:
    return e.quote.body is not None and len(e.report_data) == 128 and e.quote.body.report_data == e.report_data


@check_each("tpm", TPM_FAULTS)
def tpm_verifies(e: AttestationEvidence) -> Collection[str]:
    if e.tpm is None:
        return ("tpm-missing",)
    return (e.tpm.fault,) if e.tpm.fault else ()


@check(
    "tpm-nonce", "node", "The TPM quote is not about this DCAP quote.", "Have the attester quote the digest of the DCAP quote."
)
def tpm_nonce_equal(e: AttestationEvidence) -> object:
    return e.tpm is not None and len(e.tpm.expected) == 64 and e.tpm.extra == e.tpm.expected


@check("tpm-signer", "node", "The TPM quote names another key than the enrolled one.", "Enrol the machine's key again.")
def tpm_signer(e: AttestationEvidence) -> object:
    return e.tpm is not None and e.platform is not None and e.tpm.signer == e.platform.signer and e.tpm.ak == e.platform.ak


@check(
    "tpm-pcr-selection",
    "node",
    "The TPM quote does not cover exactly the required PCRs.",
    "Quote the PCRs that the policy names.",
)
def pcr_selection(e: AttestationEvidence) -> object:
    wanted = tuple(sorted(set(e.limits.required_pcrs)))
    return e.tpm is not None and e.tpm.selection == ((0x000B, wanted),) and tuple(i for i, _ in e.tpm.pcrs) == wanted


@check("tpm-pcr-digest", "node", "The PCR values do not hash to the quoted digest.", "Read and quote the PCRs in one step.")
def pcr_digest_equal(e: AttestationEvidence) -> object:
    return e.tpm is not None and e.tpm.pcrs_hash is True


@check(
    "tpm-pcr-values",
    "node",
    "A PCR holds another value than the enrolled one.",
    "Something in the boot changed: examine it, then enrol again.",
)
def pcr_values(e: AttestationEvidence) -> object:
    if e.tpm is None or e.platform is None or not e.tpm.pcrs:
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
    return e.tpm is not None and e.tpm.safe is True


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
    return tcb is not None and platform is not None and (tcb.ppid, tcb.fmspc) == (platform.ppid, platform.fmspc)


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
    if e.tpm is None or e.last is None:
        return False
    now, then = (e.tpm.reset_count, e.tpm.restart_count), (e.last.reset_count, e.last.restart_count)
    return now >= then and e.tpm.clock >= e.last.clock


@check(
    "collateral-rolled-back", "node", "The collateral is older than what this node has already used.", "Import newer collateral."
)
def collateral_forward(e: AttestationEvidence) -> object:
    tcb = e.quote.tcb
    return tcb is not None and e.last is not None and min(tcb.number, tcb.qe_number) >= e.last.number


@check(
    "platform-changed",
    "node",
    "The machine, the enclave or its boot is not the one attested before training.",
    "Outputs stay quarantined.",
)
def unchanged(e: AttestationEvidence) -> object:
    now = same_platform(e)
    if e.first is None or now is None or e.first.nonce == now.nonce:
        return False
    names = [name for name in SamePlatform.__dataclass_fields__ if name != "nonce"]
    return all(getattr(e.first, name) == getattr(now, name) for name in names)


QUOTE_CHECKS: Checks = (
    quote_verifies,
    tee_type,
    canonical_length,
    root_pinned,
    root_real,
    not_debug,
    attributes,
    measurement,
    signer,
    configuration,
    tcb_status,
    qe_status,
    collateral_number,
    collateral_window,
    platform_kind,
)
REPORT_CHECKS: Checks = (report_data_there, report_data_equal)
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
