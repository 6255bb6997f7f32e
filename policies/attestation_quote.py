"""The attestation gate's checks on the DCAP quote: genuine under the pinned root, canonical, a named enclave, TCB, binding."""

from collections.abc import Collection

from policies.attestation_evidence import QUOTE_FAULTS, AttestationEvidence
from policies.attestation_limits import INTEL_ROOT
from policies.gate import Check, check, check_each

Checks = tuple[Check[AttestationEvidence], ...]

# What could not be read or verified is refused by the check "quote", which the door demands of every verdict. The checks on its
# contents then stay silent, so that the codes name the one thing that is wrong.


def _unread(e: AttestationEvidence) -> bool:
    return e.quote.body is None and e.quote.fault in QUOTE_FAULTS


def unverified(e: AttestationEvidence) -> bool:
    """Whether the check "quote" already refuses for want of verified claims."""
    return e.quote.tcb is None and e.quote.fault in QUOTE_FAULTS


@check_each("quote", QUOTE_FAULTS)
def quote_verifies(e: AttestationEvidence) -> Collection[str]:
    return () if e.quote.fault == "" and e.quote.body is not None and e.quote.tcb is not None else (e.quote.fault,)


@check("quote-tee-type", "node", "The quote is of a TEE type or version that the policy does not allow.", "Use an allowed TEE.")
def tee_type(e: AttestationEvidence) -> object:
    body = e.quote.body
    if body is None:
        return _unread(e)
    return body.tee in e.limits.tee_types and body.version in e.limits.quote_versions


@check(
    "quote-trailing-bytes", "node", "Bytes follow the quote's end.", "Send the quote alone, or allow zero padding in the policy."
)
def canonical_length(e: AttestationEvidence) -> object:
    body = e.quote.body
    if body is None:
        return _unread(e)
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
        return _unread(e)
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
    if body is None:
        return _unread(e)
    rule = e.limits.sgx_attributes if body.tee == "sgx" else e.limits.tdx_attributes
    mask, given = int(rule.mask, 16), int(body.attributes, 16)
    return body.misc_select == 0 and len(body.attributes) == len(rule.mask) and given & mask == int(rule.value, 16) & mask


@check(
    "enclave-measurement",
    "node",
    "The enclave's measurement is not one that the policy names.",
    "Run a listed build, or list this one.",
)
def measurement(e: AttestationEvidence) -> object:
    body = e.quote.body
    if body is None:
        return _unread(e)
    if body.tee == "tdx" and body.runtime not in e.limits.runtime:
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
        return _unread(e)
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
    if body is None:
        return _unread(e)
    return not set(body.seam) - {"0"} and (set(body.config) == {"0"} or body.config in e.limits.configs)


@check(
    "tcb-status",
    "node",
    "The platform's TCB status is not UpToDate and no exception names it.",
    "Update it, or name status and advisories.",
)
def tcb_status(e: AttestationEvidence) -> object:
    tcb = e.quote.tcb
    if tcb is None:
        return unverified(e)
    return tcb.status == "UpToDate" or e.limits.exception_for(tcb.status, tcb.advisories)


@check("tcb-qe-status", "node", "The quoting enclave is not up to date and no exception names it.", "Update the quoting enclave.")
def qe_status(e: AttestationEvidence) -> object:
    tcb = e.quote.tcb
    if tcb is None:
        return unverified(e)
    return tcb.qe_status == "UpToDate" or e.limits.exception_for(tcb.qe_status, tcb.qe_advisories)


@check("collateral-old", "node", "The collateral's evaluation data number is below the policy's.", "Import newer collateral.")
def collateral_number(e: AttestationEvidence) -> object:
    tcb = e.quote.tcb
    if tcb is None:
        return unverified(e)
    return min(tcb.number, tcb.qe_number) >= e.limits.min_tcb_eval_data_number


@check(
    "collateral-window", "node", "The time is outside the collateral's validity.", "Set the clock right; import fresh collateral."
)
def collateral_window(e: AttestationEvidence) -> object:
    tcb = e.quote.tcb
    at = e.at if e.asking is None else e.asking.trusted_at
    if tcb is None:
        return unverified(e)
    return tcb.issued_at <= at < tcb.expires_at


@check(
    "platform-kind",
    "node",
    "The platform's kind or settings are not those of the policy.",
    "Reconfigure it, or allow this in the policy.",
)
def platform_kind(e: AttestationEvidence) -> object:
    tcb, limits = e.quote.tcb, e.limits
    if tcb is None:
        return unverified(e)
    if tcb.sgx_type not in limits.sgx_types:
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
    if e.quote.body is None:
        return _unread(e)
    return bool(set(e.quote.body.report_data) - {"0"})


@check(
    "report-data-mismatch", "node", "The quote's report data is not the one expected.", "Ask again; a stored quote cannot pass."
)
def report_data_equal(e: AttestationEvidence) -> object:
    if e.quote.body is None:
        return _unread(e)
    return len(e.report_data) == 128 and e.quote.body.report_data == e.report_data


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
