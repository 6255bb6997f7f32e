"""Verifying a DCAP quote against collateral that the node holds, with the dcap-qvl library: bytes in, facts out.

The collateral is a file (PCS documents, each signed by Intel); it is never fetched here and never taken from the attester.
The time is given, never the host's. Sizes are bounded before anything is parsed. A library's answer that is not a whole set
of claims is a fault, as is any disagreement between its reading of the quote and ours.
"""

import hashlib
import json
import re
from typing import Any

import dcap_qvl
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from policies.attestation_evidence import QuoteFacts, TcbFacts
from policies.attestation_limits import INTEL_ROOT, AttestationLimits
from policies.chain import read_chain, root_digest
from policies.quote import QuoteBody, QuoteFormatError, certificate_chain, read_quote
from rapha.canonical import digest

MAX_COLLATERAL = 512 * 1024
BUNDLE = {
    "pck_crl_issuer_chain",
    "root_ca_crl",
    "pck_crl",
    "tcb_info_issuer_chain",
    "tcb_info",
    "tcb_info_signature",
    "qe_identity_issuer_chain",
    "qe_identity",
    "qe_identity_signature",
}
_HEX = re.compile("([0-9a-f]{2})*")

# Parts of the library's messages, first match wins; a message that is not here is `quote-unverified`.
_FAULTS = (
    ("debug", "quote-debug"),
    ("revoked", "quote-revoked"),
    ("no matching tcb level", "quote-tcb-level"),
    ("tcb eval data number", "collateral-stale"),
    ("tcb status", "quote-status"),
    ("qe status", "quote-status"),
    ("unknownrevocationstatus", "quote-crl"),
    ("crlexpired", "collateral-stale"),
    ("crl", "quote-crl"),
    ("signature is invalid for tcb_info", "collateral-signature"),
    ("signature is invalid for qe_identity", "collateral-signature"),
    ("isv enclave report signature", "quote-signature"),
    ("qe_report", "quote-qe-report"),
    ("qe report hash", "quote-qe-report"),
    ("qe mrsigner", "quote-qe-identity"),
    ("qe identity", "quote-qe-identity"),
    ("qe isvsvn", "quote-qe-identity"),
    ("qe ", "quote-qe-identity"),
    ("fmspc mismatch", "quote-platform"),
    ("pceid", "quote-platform"),
    ("expired", "collateral-stale"),
    ("in the future", "collateral-stale"),
    ("not allowed by policy", "quote-flags"),
    ("not in accepted types", "quote-flags"),
    ("certificate chain", "quote-chain"),
    ("certificate", "quote-chain"),
    ("unsupported quote version", "quote-version-unknown"),
    ("invalid tee type", "quote-version-unknown"),
    ("decode quote", "quote-malformed"),
    ("unsupported", "quote-malformed"),
)


def verify_quote(quote: bytes, collateral: bytes, root: bytes | None, at: int, limits: AttestationLimits) -> QuoteFacts:
    """Facts about `quote` under the root certificate `root` (DER; None: Intel's, built in) at the time `at` (seconds).

    What does not verify comes back with `fault` set to one of `QUOTE_FAULTS`, never as an exception.
    """
    anchor = INTEL_ROOT if root is None else digest(root)
    try:
        body = read_quote(quote) if quote else None
    except QuoteFormatError as error:
        return _facts(str(error), anchor, quote, None, None)
    if body is None:
        return _facts("quote-missing", anchor, quote, None, None)
    canonical = quote[: body.length]
    fault, claims = _verified(canonical, collateral, root, at, limits)
    tcb = None if fault else _tcb(claims)
    if not fault and tcb is None:
        fault = "quote-unverified"
    elif not fault and not _agree(claims, body):
        fault = "quote-parse-differs"
    return _facts(fault, anchor, quote, body, tcb)


def _facts(fault: str, anchor: str, quote: bytes, body: QuoteBody | None, tcb: TcbFacts | None) -> QuoteFacts:
    rest = quote[body.length :] if body else b""
    return QuoteFacts(
        fault=fault,
        root=anchor,
        digest=digest(quote[: body.length] if body else quote),
        given=len(quote),
        padding="none" if not rest else "other" if any(rest) else "zero",
        body=body,
        tcb=tcb,
    )


def _verified(
    quote: bytes, collateral: bytes, root: bytes | None, at: int, limits: AttestationLimits
) -> tuple[str, dict[str, Any]]:
    if not collateral:
        return "collateral-missing", {}
    if len(collateral) > MAX_COLLATERAL:
        return "collateral-too-large", {}
    try:
        document = read_bundle(collateral)
        parsed = dcap_qvl.QuoteCollateralV3.from_json(collateral.decode())
    except ValueError:
        return "collateral-malformed", {}
    if fault := _chains_fault(quote, document, INTEL_ROOT if root is None else digest(root)):
        return fault, {}
    try:
        claims = dcap_qvl.QuoteVerifier(root).verify_with_policy(quote, parsed, at, _policy(at, limits))
        value: dict[str, Any] = json.loads(claims.to_json())
    except ValueError as error:
        return _fault(str(error)), {}
    return "", value


def read_bundle(raw: bytes) -> dict[str, str]:
    """The fields of a collateral bundle, each in its one form: known names, text, lower-case hex. Raises `ValueError`."""
    document = json.loads(raw, object_pairs_hook=_once)
    if not isinstance(document, dict) or set(document) != BUNDLE or not all(isinstance(v, str) for v in document.values()):
        raise ValueError("not a bundle")
    if not all(_HEX.fullmatch(document[name]) for name in BUNDLE if name.endswith(("_crl", "_signature"))):
        raise ValueError("not hex")
    return document


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys occur once: two readers must not take two values from one bundle."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _chains_fault(quote: bytes, bundle: dict[str, str], root: str) -> str:
    """Every chain ends in the pinned root, each in its one form, and nothing in the quote's own chain is revoked."""
    try:
        chain = read_chain(certificate_chain(quote))
    except ValueError:
        return "quote-chain"
    if root_digest(chain) != root:
        return "quote-chain"
    try:
        others = [read_chain(text.encode()) for name, text in bundle.items() if name.endswith("_chain")]
    except ValueError:
        return "collateral-malformed"
    if any(root_digest(other) != root for other in others):
        return "collateral-root"
    return _revocation_fault(chain, bundle)


def _revocation_fault(chain: tuple[x509.Certificate, ...], bundle: dict[str, str]) -> str:
    """The library answers a revoked certificate and a broken chain alike; this tells them apart beforehand."""
    for issued, issuer, name in zip(chain, chain[1:], ("pck_crl", "root_ca_crl"), strict=False):
        try:
            found = x509.load_der_x509_crl(bytes.fromhex(bundle[name]))
            ours = found.is_signature_valid(issuer.public_key())  # type: ignore[arg-type]
        except UnsupportedAlgorithm:
            return "quote-chain"
        except (ValueError, TypeError, x509.InvalidVersion):
            return "quote-crl"
        if not ours:
            return "quote-crl"
        if found.get_revoked_certificate_by_serial_number(issued.serial_number) is not None:
            return "quote-revoked"
    return ""


def _policy(at: int, limits: AttestationLimits) -> Any:
    """The library's strict policy, and only the exceptions that the site names."""
    policy = dcap_qvl.QuotePolicy.strict(at)
    for exception in limits.tcb_exceptions:
        policy = policy.allow_status(exception.status)
    return (
        policy.min_tcb_eval_data_number(limits.min_tcb_eval_data_number)
        .accepted_sgx_types(list(limits.sgx_types))
        .allow_dynamic_platform(limits.allow_dynamic_platform)
        .allow_cached_keys(limits.allow_cached_keys)
        .allow_smt(limits.allow_smt)
    )


def _fault(message: str) -> str:
    low = message.lower()
    return next((code for part, code in _FAULTS if part in low), "quote-unverified")


def _tcb(claims: dict[str, Any]) -> TcbFacts | None:
    """The platform's facts from the library's claims; None when one is not there."""
    try:
        pck, level = claims["platform"]["pck"], claims["qe"]["tcb_level"]
        return TcbFacts(
            status=claims["tcb"]["status"],
            advisories=tuple(claims["tcb"]["advisory_ids"]),
            number=claims["tcb"]["eval_data_number"],
            qe_status=level["tcbStatus"],
            qe_advisories=tuple(level["advisoryIDs"]),
            qe_number=claims["qe"]["tcb_eval_data_number"],
            ppid=ppid_digest(bytes(pck["ppid"])),
            fmspc=bytes(pck["fmspc"]).hex().upper(),
            sgx_type=pck["sgx_type"],
            dynamic_platform=pck["dynamic_platform"],
            cached_keys=pck["cached_keys"],
            smt=pck["smt_enabled"],
            issued_at=max(claims["latest_issue_date"], claims["qe_iden_latest_issue_date"]),
            expires_at=min(claims["earliest_expiration_date"], claims["qe_iden_earliest_expiration_date"]),
        )
    except (KeyError, TypeError, ValueError):
        return None


def ppid_digest(ppid: bytes) -> str:
    """How this project names a platform's PPID: by digest, since the value itself identifies a machine to others."""
    return "sha256:" + hashlib.sha256(b"rapha ppid v1\n" + ppid).hexdigest()


def platform_of(quote: bytes) -> tuple[str, str]:
    """(PPID digest, FMSPC) that a quote's PCK certificate states, unverified: for enrolment only. Raises `ValueError`."""
    parsed = dcap_qvl.parse_quote(quote[: read_quote(quote).length])
    return ppid_digest(parsed.pck_extension().ppid), parsed.fmspc()


def _agree(claims: dict[str, Any], body: QuoteBody) -> bool:
    """Whether the library read the same report as `policies.quote`."""
    kind, report = next(iter(claims["report"].items()))
    if body.tee == "sgx":
        ours: tuple[object, ...] = (body.measurement, body.signer, body.isv_svn, body.attributes, body.report_data)
        theirs = tuple(report.get(name) for name in ("mr_enclave", "mr_signer", "isv_svn", "attributes", "report_data"))
        return kind == "SgxEnclave" and ours == theirs
    report = report.get("base", report)
    ours = (body.measurement, *body.runtime, body.attributes, body.report_data)
    names = ("mr_td", "rt_mr0", "rt_mr1", "rt_mr2", "rt_mr3", "td_attributes", "report_data")
    return kind.startswith("TD") and ours == tuple(report.get(name) for name in names)
