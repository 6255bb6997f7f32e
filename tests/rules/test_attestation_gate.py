"""The attestation gate's rules, pure: one fact of good evidence changed, one code."""

from dataclasses import fields, replace
from typing import Any

import pytest

from policies.attestation import attestation_gate, offline_gate, reattestation_gate
from policies.attestation_evidence import (
    AttestationEvidence,
    Binding,
    LastSeen,
    QuoteFacts,
    report_data,
    same_platform,
)
from policies.attestation_limits import INTEL_ROOT, AttestationLimits, read_limits
from policies.gate import explain, limits_json
from policies.required import REQUIRED_CHECKS
from policies.site import read_section
from rapha.canonical import canonical, digest, parse
from tests.fixtures.attestation import NOW, bench

BINDING = Binding(
    job=digest(b"j"), attempt=1, nonce="0" * 64, workload=digest(b"w"), policy=digest(b"p"),
    manifest=digest(b"m"), recipient="key", tpm_ak=digest(b"ak"),
)  # fmt: skip


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> AttestationEvidence:
    with pytest.MonkeyPatch.context() as monkeypatch:
        first = bench(tmp_path_factory.mktemp("bench"), monkeypatch).attest()
    return replace(first.evidence, first=replace(_same(first.evidence), nonce="another"))


def _same(e: AttestationEvidence) -> Any:
    found = same_platform(e)
    assert found is not None
    return found


def _put(e: AttestationEvidence, path: str, value: object) -> AttestationEvidence:
    """`e` with the field at a dotted path replaced."""
    head, _, rest = path.partition(".")
    if not rest:
        return replace(e, **{head: value})
    inner = getattr(e, head)
    name, _, deeper = rest.partition(".")
    if deeper:
        return replace(e, **{head: replace(inner, **{name: replace(getattr(inner, name), **{deeper: value})})})
    return replace(e, **{head: replace(inner, **{name: value})})


ONE_CHANGE = [
    ("quote.fault", "quote-signature", {"quote-signature"}),
    ("quote.fault", "never heard of", {"quote-odd"}),
    ("quote.tcb", None, {"quote-odd", "tcb-status", "tcb-qe-status", "collateral-old", "collateral-window", "platform-kind",
                         "platform-other", "collateral-rolled-back", "platform-changed"}),
    ("quote.body.tee", "tdx", {"quote-tee-type", "enclave-debug", "enclave-attributes", "enclave-measurement"}),
    ("quote.body.version", 5, {"quote-tee-type"}),
    ("quote.given", 1, {"quote-trailing-bytes"}),
    ("quote.root", digest(b"other"), {"root-not-pinned"}),
    ("mode", "production", {"root-development", "platform-development"}),
    ("quote.body.attributes", "07" + "00" * 15, {"enclave-debug", "enclave-attributes"}),
    ("quote.body.attributes", "05", {"enclave-attributes"}),
    ("quote.body.misc_select", 1, {"enclave-attributes"}),
    ("quote.body.signer", "00" * 32, {"enclave-signer"}),
    ("quote.body.isv_prod_id", 7, {"enclave-signer"}),
    ("quote.body.isv_svn", 0, {"enclave-signer"}),
    ("quote.body.config", "01" * 98, {"enclave-config"}),
    ("quote.body.seam", "01" * 56, {"enclave-config"}),
    ("quote.tcb.status", "OutOfDate", {"tcb-status"}),
    ("quote.tcb.status", "Revoked", {"tcb-status"}),
    ("quote.tcb.status", "", {"tcb-status"}),
    ("quote.tcb.qe_status", "OutOfDate", {"tcb-qe-status"}),
    ("quote.tcb.number", 16, {"collateral-old"}),
    ("quote.tcb.qe_number", 16, {"collateral-old"}),
    ("quote.tcb.expires_at", NOW, {"collateral-window"}),
    ("quote.tcb.issued_at", NOW + 1, {"collateral-window"}),
    ("quote.tcb.sgx_type", 1, {"platform-kind"}),
    ("quote.tcb.smt", "True", {"platform-kind"}),
    ("quote.tcb.cached_keys", "True", {"platform-kind"}),
    ("quote.tcb.dynamic_platform", "True", {"platform-kind"}),
    ("quote.tcb.ppid", digest(b"other"), {"platform-other", "platform-changed"}),
    ("quote.tcb.fmspc", "00A067110000", {"platform-other", "platform-changed"}),
    ("quote.body.report_data", "00" * 64, {"report-data-zero", "report-data-mismatch"}),
    ("report_data", "", {"report-data-mismatch", "binding-incomplete"}),
    ("binding.workload", "", {"binding-incomplete"}),
    ("binding.recipient", "another key", {"binding-incomplete"}),
    ("binding.tpm_ak", digest(b"other"), {"binding-incomplete"}),
    ("binding.attempt", 2, {"binding-incomplete"}),
    ("binding", None, {"binding-incomplete"}),
    ("tpm", None, {"tpm-missing"}),
    ("tpm.fault", "tpm-signature", {"tpm-signature"}),
    ("tpm.fault", "never heard of", {"tpm-odd"}),
    ("tpm.extra", "00" * 32, {"tpm-nonce"}),
    ("tpm.expected", "", {"tpm-nonce"}),
    ("tpm.signer", "000b" + "00" * 32, {"tpm-signer"}),
    ("tpm.ak", "", {"tpm-signer"}),
    ("tpm.selection", ((11, (0, 1)),), {"tpm-pcr-selection"}),
    ("tpm.selection", ((4, tuple(range(8))),), {"tpm-pcr-selection"}),
    ("tpm.selection", (), {"tpm-pcr-selection"}),
    ("tpm.pcrs", (), {"tpm-pcr-selection", "tpm-pcr-values"}),
    ("tpm.pcrs_hash", False, {"tpm-pcr-digest"}),
    ("tpm.safe", False, {"tpm-clock-unsafe"}),
    ("tpm.reset_count", 0, {"platform-changed"}),
    ("platform", None, {"platform-not-enrolled", "platform-expired", "platform-development", "platform-other", "tpm-signer",
                        "tpm-pcr-values", "binding-incomplete", "platform-changed"}),
    ("platform.digest", digest(b"other"), {"platform-not-enrolled", "platform-changed"}),
    ("platform.expires_at", NOW, {"platform-expired"}),
    ("asking.records", 0, {"nonce-not-fresh"}),
    ("asking.records", 2, {"nonce-not-fresh"}),
    ("asking.answered_at", NOW + 61, {"attestation-late"}),
    ("asking.answered_at", NOW - 1, {"attestation-late"}),
    ("asking.trusted_at", NOW + 301, {"clock-skew"}),
    ("asking.trusted_at", NOW - 301, {"clock-skew"}),
    ("last", LastSeen(at=NOW + 301), {"clock-set-back"}),
    ("last", LastSeen(number=18), {"collateral-rolled-back"}),
    ("last", LastSeen(reset_count=2), {"tpm-rollback"}),
    ("last", LastSeen(reset_count=1, restart_count=1), {"tpm-rollback"}),
    ("last", None, {"clock-set-back", "tpm-rollback", "collateral-rolled-back"}),
    ("first", None, {"platform-changed"}),
    ("first.platform", digest(b"other"), {"platform-changed"}),
    ("first.measurement", "00" * 32, {"platform-changed"}),
    ("first.restart_count", 9, {"platform-changed"}),
]  # fmt: skip


def test_good_evidence_clears(good: AttestationEvidence) -> None:
    assert reattestation_gate(good.limits).judge(good).codes == ()


@pytest.mark.parametrize(("path", "value", "codes"), ONE_CHANGE, ids=[f"{p}={str(v)[:24]}" for p, v, _ in ONE_CHANGE])
def test_one_fact_changed(good: AttestationEvidence, path: str, value: object, codes: set[str]) -> None:
    assert set(reattestation_gate(good.limits).judge(_put(good, path, value)).codes) == codes


def test_every_check_is_seen_to_refuse() -> None:
    """The table above reaches every check: one that can never refuse would not be one."""
    gate = reattestation_gate(AttestationLimits())
    seen = set().union(*(codes for _, _, codes in ONE_CHANGE))
    assert {c.name for c in gate.checks if not ({c.name, f"{c.name}-odd"} & seen)} == set()


def test_production_takes_intels_root_and_a_bound_key_only(good: AttestationEvidence) -> None:
    limits = replace(good.limits, root=INTEL_ROOT)
    assert good.platform is not None
    platform = replace(good.platform, mode="production", bound=True)
    real = replace(good, mode="production", limits=limits, platform=platform, quote=replace(good.quote, root=INTEL_ROOT))
    gate = reattestation_gate(limits)
    assert gate.judge(real).codes == ()
    assert gate.judge(_put(real, "platform.bound", False)).codes == ("platform-development",)
    assert gate.judge(_put(real, "platform.mode", "development")).codes == ("platform-development",)


def test_same_nonce_twice_is_not_a_second_attestation(good: AttestationEvidence) -> None:
    again = replace(good, first=_same(good))
    assert reattestation_gate(good.limits).judge(again).codes == ("platform-changed",)


def test_the_door_demands_exactly_these_checks() -> None:
    for gate in (attestation_gate(AttestationLimits()), reattestation_gate(AttestationLimits())):
        assert {c.name for c in gate.checks} == REQUIRED_CHECKS[gate.name]


def test_evidence_judged_by_other_numbers(good: AttestationEvidence) -> None:
    other = read_limits({**limits_json(good.limits), "max_clock_skew": 3600})
    assert "limits-differ" in reattestation_gate(other).judge(good).codes


def test_default_limits_let_nothing_pass(good: AttestationEvidence) -> None:
    limits = AttestationLimits(root=good.limits.root)
    codes = reattestation_gate(limits).judge(replace(good, limits=limits)).codes
    assert codes == ("enclave-measurement", "enclave-signer", "platform-not-enrolled")


def test_nothing_at_all_is_refused(good: AttestationEvidence) -> None:
    empty = QuoteFacts(fault="", root="", digest="", given=0, padding="none", body=None, tcb=None)
    evidence = replace(
        good, quote=empty, binding=None, report_data="", tpm=None, platform=None, last=None, asking=None, first=None
    )
    verdict = reattestation_gate(good.limits).judge(evidence)
    silent = {finding.check for finding in verdict.findings if finding.ok} - {"limits", "root-development"}
    assert silent <= {"tpm-nonce", "tpm-signer", "tpm-pcr-selection", "tpm-pcr-digest", "tpm-pcr-values", "tpm-clock-unsafe",
                      "tpm-rollback", "platform-changed"}  # fmt: skip
    assert {"quote-odd", "tpm-missing"} <= set(verdict.codes)


def test_offline_gate_asks_only_what_files_can_tell(good: AttestationEvidence) -> None:
    offline = replace(good, binding=None, last=None, asking=None, first=None, tpm=None, platform=None, report_data="")
    assert offline_gate(good.limits, with_report_data=False, with_tpm=False).judge(offline).cleared
    assert offline_gate(good.limits, with_report_data=True, with_tpm=False).judge(offline).codes == ("report-data-mismatch",)
    assert "tpm-missing" in offline_gate(good.limits, with_report_data=False, with_tpm=True).judge(offline).codes


def test_every_code_is_explained() -> None:
    gate = reattestation_gate(AttestationLimits())
    assert all(reason["wrong"] and reason["todo"] for reason in explain(gate, gate.reasons))


@pytest.mark.parametrize("name", [field.name for field in fields(Binding)])
def test_report_data_names_every_part(name: str) -> None:
    whole = report_data(BINDING)
    other = report_data(replace(BINDING, **{name: 2 if name == "attempt" else "other"}))
    assert len(whole) == 64 and whole[32:] == bytes(32)
    assert whole != other


def test_limits_survive_the_files_that_hold_them() -> None:
    limits = read_limits(
        {"signers": [{"mrsigner": "11" * 32, "isv_prod_id": 1, "min_isv_svn": 2}], "pcr_values": {"7": "22" * 32},
         "tcb_exceptions": [{"status": "OutOfDate", "advisories": ["INTEL-SA-00001"]}]}
    )  # fmt: skip
    document = parse(canonical(limits_json(limits)))
    assert read_limits(document) == limits == read_section(AttestationLimits, document, "attestation")
