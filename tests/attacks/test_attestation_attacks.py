"""Attacks on attestation: each changes one thing of evidence that passes, and must be refused with the code of that thing."""

import datetime as dt
import hashlib
import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from blocks.attester import Attester, Bundle
from blocks.dcap import MAX_COLLATERAL, verify_quote
from infra.attester.software import SoftwareTpm, attest_bytes, sign_attest
from infra.attester.synthetic import Enclave, Machine, Tcb
from policies.attestation_evidence import LastSeen
from policies.attestation_limits import INTEL_ROOT, read_limits
from policies.quote import MAX_QUOTE, read_quote, tpm_nonce
from rapha.canonical import digest
from rapha.errors import ConfigurationError, PeerError, Refusal
from tests.fixtures.attestation import MOMENT, NOW, PCRS, SAMPLES, Bench, bench, enrolled

REAL_AT = 1_750_809_600
SGX_LIMITS = {
    "measurements": ["33d8736db756ed4997e04ba358d27833188f1932ff7b1d156904d3f560452fbb"],
    "tcb_exceptions": [{"status": "ConfigurationAndSWHardeningNeeded", "advisories": ["INTEL-SA-00289", "INTEL-SA-00615"]}],
}


WIDE = read_limits(
    {**SGX_LIMITS, "sgx_types": [0, 1], "allow_smt": True, "allow_cached_keys": True, "allow_dynamic_platform": True}
)


@pytest.fixture
def b(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return bench(tmp_path, monkeypatch)


def flip(raw: bytes, at: int, bit: int = 1) -> bytes:
    return raw[:at] + bytes([raw[at] ^ bit]) + raw[at + 1 :]


def sample(name: str) -> tuple[bytes, bytes]:
    return (SAMPLES / name).read_bytes(), (SAMPLES / f"{name}_collateral.json").read_bytes()


# G01 offsets in a version 3 quote: header 0, report 48, signature 436, key 500, QE report 564, its signature 948, data 1014
QUOTE_BITS = {
    "report": (48 + 64, "quote-signature"),
    "report data": (48 + 320, "quote-signature"),
    "cpu svn": (48, "quote-signature"),
    "signature": (436 + 5, "quote-signature"),
    "attestation key": (500 + 40, "quote-qe-report"),
    "QE report": (564 + 70, "quote-qe-report"),
    "QE signature": (948 + 3, "quote-qe-report"),
    "QE authentication data": (1014 + 4, "quote-qe-report"),
}


@pytest.mark.parametrize("part", QUOTE_BITS)
def test_G01_one_bit_of_the_quote(b: Bench, part: str) -> None:
    at, code = QUOTE_BITS[part]
    b.prover.quote = lambda quote: flip(quote, at)
    assert code in b.codes()


@pytest.mark.parametrize("part", QUOTE_BITS)
def test_G01_one_bit_of_the_real_quote(part: str) -> None:
    quote, collateral = sample("sgx_quote")
    at, code = QUOTE_BITS[part]
    assert verify_quote(flip(quote, at), collateral, None, REAL_AT, read_limits(SGX_LIMITS)).fault == code


@pytest.mark.parametrize("name", ["sgx_quote", "tdx_quote"])
def test_G01_any_one_bit_of_a_real_quote(name: str) -> None:
    """Every third byte, one bit each in turn: nothing that a quote holds is free to vary, its own copy of the root included."""
    quote, collateral = sample(name)
    quote = quote[: read_quote(quote).length]
    assert verify_quote(quote, collateral, None, REAL_AT, WIDE).fault == ""
    flipped = {at: flip(quote, at, 1 << at % 8) for at in range(0, len(quote), 3)}
    assert [at for at, bad in flipped.items() if not verify_quote(bad, collateral, None, REAL_AT, WIDE).fault] == []


def test_G01_any_one_bit_of_real_collateral() -> None:
    quote, collateral = sample("sgx_quote")
    flipped = {at: flip(collateral, at, 1 << at % 8) for at in range(0, len(collateral), 7)}
    assert [at for at, bad in flipped.items() if not verify_quote(quote, bad, None, REAL_AT, WIDE).fault] == []


def test_G01_one_bit_of_the_certificate_chain(b: Bench) -> None:
    b.prover.quote = lambda quote: flip(quote, quote.index(b"-----BEGIN") + 400)
    assert b.codes() == ("quote-chain",)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("tcb_info", "collateral-signature"),
        ("qe_identity", "collateral-signature"),
        ("tcb_info_signature", "collateral-signature"),
        ("qe_identity_signature", "collateral-signature"),
    ],
)
def test_G01_collateral_changed(b: Bench, name: str, code: str) -> None:
    document = json.loads(b.site.collateral)
    if name.endswith("signature"):
        document[name] = flip(bytes.fromhex(document[name]), 40).hex()
    else:
        document[name] = document[name].replace('"issueDate":"2026', '"issueDate":"2025')
    b.change(collateral=json.dumps(document).encode())
    assert b.codes() == (code,)


def test_G02_forged_quoting_enclave(b: Bench) -> None:
    b.prover.machine = b.machine.with_quoting_enclave(signer=hashlib.sha256(b"mine").digest())
    assert b.codes() == ("quote-qe-identity",)


def test_G02_old_quoting_enclave(b: Bench) -> None:
    b.prover.machine = b.machine.with_quoting_enclave(svn=0)
    assert b.codes()[0].startswith("quote-")
    b.prover.machine = b.machine.with_quoting_enclave(svn=3)  # at a level that is OutOfDate
    assert b.codes() == ("quote-status",)


def test_G03_debug_enclave(b: Bench) -> None:
    b.prover.enclave = Enclave(flags=0x07)
    assert set(b.codes()) == {"enclave-attributes", "enclave-debug", "quote-debug"}


@pytest.mark.parametrize("flags", [0x04, 0x15, 0x25, 0x01])
def test_G03_other_attributes(b: Bench, flags: int) -> None:
    b.prover.enclave = Enclave(flags=flags)
    assert b.codes() == ("enclave-attributes",)


@pytest.mark.parametrize("status", ["OutOfDate", "ConfigurationNeeded", "SWHardeningNeeded", "OutOfDateConfigurationNeeded"])
def test_G04_status_not_named(b: Bench, status: str) -> None:
    b.judge_by(Tcb(status=status, advisories=("SYN-SA-00007",)))
    assert b.codes() == ("quote-status",)


def test_G04_named_status_needs_every_advisory(b: Bench) -> None:
    b.judge_by(Tcb(status="SWHardeningNeeded", advisories=("SYN-SA-00007", "SYN-SA-00008")))
    b.limit(tcb_exceptions=[{"status": "SWHardeningNeeded", "advisories": ["SYN-SA-00007"]}])
    assert b.codes() == ("tcb-status",)


def test_G04_named_status_and_advisories_pass(b: Bench) -> None:
    b.judge_by(Tcb(status="SWHardeningNeeded", advisories=("SYN-SA-00007",)))
    b.limit(tcb_exceptions=[{"status": "SWHardeningNeeded", "advisories": ["SYN-SA-00007"]}])
    assert b.attest().verdict.cleared


def test_G04_exception_for_the_platform_does_not_excuse_the_quoting_enclave(b: Bench) -> None:
    b.judge_by(Tcb(status="SWHardeningNeeded", advisories=("SYN-SA-00007",), qe_status="OutOfDate"))
    b.limit(tcb_exceptions=[{"status": "SWHardeningNeeded", "advisories": ["SYN-SA-00007"]}])
    assert set(b.codes()) & {"tcb-qe-status", "quote-status"}


def test_G04_revoked_cannot_be_named() -> None:
    with pytest.raises(ConfigurationError):
        read_limits({"tcb_exceptions": [{"status": "Revoked", "advisories": []}]})


def test_G04_revoked(b: Bench) -> None:
    b.judge_by(Tcb(status="Revoked"))
    assert b.codes() == ("quote-revoked",)


def test_G04_real_sample_under_strict_policy() -> None:
    quote, collateral = sample("sgx_quote")
    strict = read_limits({"measurements": SGX_LIMITS["measurements"]})
    assert verify_quote(quote, collateral, None, REAL_AT, strict).fault == "quote-status"


@pytest.mark.parametrize("tcb", [Tcb(issued=-dt.timedelta(days=40)), Tcb(issued=dt.timedelta(days=1))])
def test_G05_collateral_expired_or_not_yet_valid(b: Bench, tcb: Tcb) -> None:
    b.judge_by(tcb)
    assert b.codes() == ("collateral-stale",)


def test_G05_collateral_older_than_the_policy(b: Bench) -> None:
    b.limit(min_tcb_eval_data_number=18)
    assert b.codes() == ("collateral-stale",)


def test_G05_collateral_rolled_back(b: Bench) -> None:
    b.judge_by(Tcb(number=19))
    b.attest()
    b.judge_by(Tcb(number=18))
    assert b.codes() == ("collateral-rolled-back",)


def test_G06_host_clock_set_back(b: Bench) -> None:
    b.site.last_seen.write(b.site.platform.digest, LastSeen(at=NOW + 3600))
    assert b.codes() == ("clock-set-back",)


def test_G06_host_clock_differs_from_trusted_time(b: Bench) -> None:
    b.change(trusted_time=lambda: NOW + 3600)
    assert b.codes() == ("clock-skew",)


def test_G06_time_is_not_the_attesters(b: Bench) -> None:
    """The evidence has no field for a time: an expired bundle stays expired whatever the attester sends."""
    assert {f for f in Bundle.__dataclass_fields__} == {"quote", "attest", "signature", "pcrs", "ak_pem"}
    b.change(trusted_time=lambda: NOW + 90 * 86400)
    assert {"clock-skew", "platform-expired"} <= set(b.codes())


@pytest.mark.parametrize("name", ["pck_crl", "root_ca_crl"])
@pytest.mark.parametrize("how", ["empty", "absent", "other", "flipped"])
def test_G07_revocation_list(b: Bench, name: str, how: str) -> None:
    document = json.loads(b.site.collateral)
    if how == "absent":
        del document[name]
    elif how == "empty":
        document[name] = ""
    elif how == "other":
        document[name] = json.loads(Machine.create(MOMENT).collateral(MOMENT))[name]
    else:
        document[name] = flip(bytes.fromhex(document[name]), -10 % (len(document[name]) // 2)).hex()
    b.change(collateral=json.dumps(document).encode())
    assert b.codes() == ("collateral-malformed" if how == "absent" else "quote-crl",)


@pytest.mark.parametrize("tcb", [Tcb(revoke_pck=True), Tcb(revoke_intermediate=True)])
def test_G07_revoked_certificate(b: Bench, tcb: Tcb) -> None:
    b.judge_by(tcb)
    assert b.codes() == ("quote-revoked",)


def test_G08_report_data_zero(b: Bench) -> None:
    b.prover.report_data = lambda _: bytes(64)
    assert b.codes() == ("report-data-mismatch", "report-data-zero")


@pytest.mark.parametrize("at", [0, 31, 32, 63])
def test_G08_report_data_differs_in_one_bit(b: Bench, at: int) -> None:
    b.prover.report_data = lambda given: flip(given, at)
    assert b.codes() == ("report-data-mismatch",)


def test_G09_replayed_evidence(b: Bench) -> None:
    kept: list[Bundle] = []
    b.prover.bundle = lambda made: (kept.append(made), made)[1]
    b.attest()
    b.prover.bundle = lambda made: kept[0]
    assert b.codes() == ("report-data-mismatch",)


def test_G09_nonce_is_written_before_it_is_asked(b: Bench) -> None:
    seen: list[str] = []

    def asked(report_data: bytes) -> bytes:
        seen.extend(entry.kind for entry in b.attempt.ledger.entries())
        return report_data

    b.prover.report_data = asked
    b.attest()
    assert seen[-1] == "attestation-nonce"


def test_G09_nonce_of_an_earlier_attempt(b: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.training.attest.secrets.token_hex", lambda _: "11" * 32)
    b.attest()
    assert b.codes() == ("nonce-not-fresh",)


def test_G10_quote_relayed_from_another_machine(b: Bench) -> None:
    b.prover.machine = Machine.create(MOMENT, under=b.machine)
    assert b.codes() == ("platform-other",)


def test_G11_other_measurement(b: Bench) -> None:
    b.prover.enclave = Enclave(measurement=bytes(31) + b"\1")
    assert b.codes() == ("enclave-measurement",)


@pytest.mark.parametrize(
    ("enclave", "code"),
    [
        (Enclave(signer=bytes(32)), "enclave-signer"),
        (Enclave(isv_prod_id=2), "enclave-signer"),
        (Enclave(isv_svn=1), "enclave-signer"),
        (Enclave(config_id=b"\1" * 64), "enclave-config"),
        (Enclave(misc_select=1), "enclave-attributes"),
    ],
)
def test_G11_other_identity(b: Bench, enclave: Enclave, code: str) -> None:
    b.prover.enclave = enclave
    assert b.codes() == (code,)


def test_G12_signer_alone_with_an_old_version(b: Bench) -> None:
    b.limit(measurements=[])
    assert b.attest().verdict.cleared
    b.prover.enclave = Enclave(isv_svn=1)
    assert b.codes() == ("enclave-signer",)


def test_G12_signer_without_a_version_is_no_policy() -> None:
    with pytest.raises(ConfigurationError):
        read_limits({"signers": [{"mrsigner": "00" * 32, "isv_prod_id": 0}]})


def test_G12_policy_that_names_no_enclave(b: Bench) -> None:
    b.limit(measurements=[], signers=[])
    assert b.codes() == ("enclave-measurement", "enclave-signer")


@pytest.mark.parametrize("tail", [b"\0", b"x", b"\0" * 64])
def test_G13_trailing_bytes(b: Bench, tail: bytes) -> None:
    b.prover.quote = lambda quote: quote + tail
    assert b.codes() == ("quote-trailing-bytes",)


def test_G13_slack_inside_the_signature_data(b: Bench) -> None:
    def slack(quote: bytes) -> bytes:
        (size,) = struct.unpack_from("<I", quote, 432)
        return quote[:432] + struct.pack("<I", size + 4) + quote[436:] + b"abcd"

    b.prover.quote = slack
    assert b.codes() == ("quote-malformed",)


def test_G13_padding_that_is_allowed_must_be_zero_and_keeps_the_digest(b: Bench) -> None:
    b.limit(max_zero_padding=8)
    b.prover.quote = lambda quote: quote + bytes(8)
    cleared = b.attest()
    assert cleared.evidence.quote.given == (cleared.evidence.quote.body.length if cleared.evidence.quote.body else 0) + 8
    b.prover.quote = lambda quote: quote + bytes(7) + b"x"
    assert b.codes() == ("quote-trailing-bytes",)


@pytest.mark.parametrize(("at", "value"), [(0, b"\4\0"), (0, b"\5\0"), (4, b"\x81\0\0\0"), (0, b"\2\0")])
def test_G14_version_or_tee_confused(b: Bench, at: int, value: bytes) -> None:
    b.prover.quote = lambda quote: quote[:at] + value + quote[at + len(value) :]
    assert b.codes()[0] in ("quote-version-unknown", "quote-malformed", "quote-signature", "quote-tee-type")


def test_G14_collateral_of_another_tee() -> None:
    quote, _ = sample("sgx_quote")
    _, other = sample("tdx_quote")
    assert verify_quote(quote, other, None, REAL_AT, read_limits(SGX_LIMITS)).fault == "quote-crl"


def test_G14_outdated_tdx_sample() -> None:
    quote, collateral = sample("tdx_quote_outdated")
    open_limits = read_limits({"sgx_types": [0, 1], "allow_smt": True, "allow_cached_keys": True, "allow_dynamic_platform": True})
    assert verify_quote(quote, collateral, None, 1_772_323_200, open_limits).fault == "quote-tcb-level"


def test_G15_key_from_the_evidence(b: Bench, tmp_path: Path) -> None:
    b.prover.tpm = SoftwareTpm(tmp_path / "other tpm")
    assert set(b.codes()) == {"tpm-signature", "tpm-signer"}


def test_G15_other_key_beside_a_good_quote(b: Bench, tmp_path: Path) -> None:
    other = SoftwareTpm(tmp_path / "other tpm")
    b.prover.bundle = lambda made: replace(made, ak_pem=other.ak_pem)
    assert b.codes() == ("tpm-signer",)


def _resigned(b: Bench, **what: object) -> None:
    """A quote by the enrolled key in which one field is wrong."""

    def bundle(made: Bundle) -> Bundle:
        clock = what.get("clock", NOW * 1000)
        fields = {
            "signer": b.prover.tpm.qualified_name,
            "extra": tpm_nonce(made.quote),
            "pcrs": made.pcrs,
            "clock": clock,
            **what,
        }
        attest = attest_bytes(**fields)  # type: ignore[arg-type]
        return replace(made, attest=attest, signature=sign_attest(b.prover.tpm.key, attest))

    b.prover.bundle = bundle


def test_G16_control(b: Bench) -> None:
    _resigned(b)
    assert b.attest().verdict.cleared


@pytest.mark.parametrize(
    ("what", "code"),
    [
        ({"magic": b"\xffTCH"}, "tpm-magic"),
        ({"kind": 0x8017}, "tpm-type"),
        ({"safe": False}, "tpm-clock-unsafe"),
        ({"clock": 2**64 - 1}, "tpm-malformed"),
        ({"signer": b"\0\x0b" + bytes(32)}, "tpm-signer"),
    ],
)
def test_G16_structure(b: Bench, what: dict[str, object], code: str) -> None:
    _resigned(b, **what)
    assert b.codes() == (code,)


def test_G16_one_bit(b: Bench) -> None:
    b.prover.bundle = lambda made: replace(made, attest=flip(made.attest, -1 % len(made.attest)))
    assert set(b.codes()) == {"tpm-signature", "tpm-pcr-digest"}
    b.prover.bundle = lambda made: replace(made, signature=flip(made.signature, 20))
    assert b.codes() == ("tpm-signature",)


def test_G16_fewer_or_other_pcrs(b: Bench) -> None:
    b.prover.pcrs = PCRS[:-1]
    assert b.codes() == ("tpm-pcr-selection",)
    b.prover.pcrs = (*PCRS, 16)
    assert "tpm-pcr-selection" in b.codes()


def test_G16_pcr_value_changed(b: Bench) -> None:
    b.prover.bundle = lambda made: replace(made, pcrs={**made.pcrs, 7: bytes(32)})
    assert b.codes() == ("tpm-pcr-digest", "tpm-pcr-values")


def test_G16_pcr_differs_from_enrolment_or_policy(b: Bench) -> None:
    b.limit(pcr_values={"3": "00" * 32})
    assert b.codes() == ("tpm-pcr-values",)
    b.limit(pcr_values={})
    b.prover.tpm.pcrs[3] = bytes(32)
    assert b.codes() == ("tpm-pcr-values",)


def test_G16_counters_run_back(b: Bench) -> None:
    b.site.last_seen.write(b.site.platform.digest, LastSeen(reset_count=9))
    assert b.codes() == ("tpm-rollback",)


def test_G16_clock_runs_back(b: Bench) -> None:
    b.site.last_seen.write(b.site.platform.digest, LastSeen(clock=1 << 50))
    assert b.codes() == ("tpm-rollback",)


def test_G16_damaged_memory_of_counters_is_not_a_first_time(b: Bench) -> None:
    b.site.last_seen.path.write_text(json.dumps({b.site.platform.digest: {"clock": 1}}))
    assert b.codes() == ("last-seen-unreadable",)


@pytest.mark.parametrize("nonce", [lambda n: n[:31], lambda n: n + b"\0", lambda n: flip(n, 31), lambda n: b""])
def test_G17_nonce_compared_whole(b: Bench, nonce: object) -> None:
    b.prover.nonce = nonce  # type: ignore[assignment]
    assert b.codes() == ("tpm-nonce",)


def test_G18_quote_and_tpm_from_two_machines(b: Bench) -> None:
    """A genuine DCAP quote over this challenge, and this TPM's quote over another DCAP quote."""
    stray = b.machine.quote(b"y" * 64)
    b.prover.nonce = lambda _: tpm_nonce(stray)
    assert b.codes() == ("tpm-nonce",)


def test_G18_report_data_for_another_tpm(b: Bench, tmp_path: Path) -> None:
    """The relay's own enrolment record, listed too, cannot be swapped in: the report data names the other key."""
    other = SoftwareTpm(tmp_path / "other tpm")
    theirs = enrolled(b.machine, other)
    b.limit(platforms=[b.site.platform.digest, theirs.digest])
    mine = b.prover.report_data
    b.prover.report_data = mine
    b.attest()
    b.change(platform=theirs)
    assert "tpm-signature" in b.codes()


@pytest.mark.parametrize("collateral", [b"", b"{}", b"null", b"\xff", b"[]"])
def test_G19_verifier_that_cannot_answer(b: Bench, collateral: bytes) -> None:
    b.change(collateral=collateral)
    assert b.codes()[0] in ("collateral-missing", "collateral-malformed")


def test_G19_verifier_that_prints_nothing(b: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent:
        def __init__(self, root: object) -> None: ...

        def verify_with_policy(self, *_: object) -> object:
            return type("Claims", (), {"to_json": lambda self: "{}"})()

    monkeypatch.setattr("blocks.dcap.dcap_qvl.QuoteVerifier", Silent)
    assert b.codes() == ("quote-unverified",)


def test_G19_attester_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(PeerError):
        Attester(tmp_path / "nobody").evidence(bytes(64))


def test_G20_machine_that_is_not_listed(b: Bench) -> None:
    b.limit(platforms=[])
    assert b.codes() == ("platform-not-enrolled",)


def test_G20_enrolment_expired(b: Bench) -> None:
    past = b.site.platform.model_copy(update={"expires_at": NOW})
    b.change(platform=past)
    b.limit(platforms=[past.digest])
    assert b.codes() == ("platform-expired",)


def test_G21_revoked_while_training(b: Bench) -> None:
    first = b.attest()
    b.judge_by(Tcb(revoke_pck=True))
    with pytest.raises(Refusal) as refused:
        b.reattest(first)
    assert refused.value.codes == ("quote-revoked",) and refused.value.gate == "reattestation"


def test_G21_rebooted_while_training(b: Bench) -> None:
    first = b.attest()
    b.prover.tpm.resets += 1
    with pytest.raises(Refusal) as refused:
        b.reattest(first)
    assert refused.value.codes == ("platform-changed",)


def test_G21_same_machine_passes(b: Bench) -> None:
    first = b.attest()
    assert b.reattest(first).verdict.gate == "reattestation"


def test_G22_platform_generation(b: Bench) -> None:
    b.limit(sgx_types=[2])
    assert b.codes() == ("quote-flags",)


def test_G23_huge_quote(b: Bench) -> None:
    b.prover.quote = lambda quote: quote + bytes(MAX_QUOTE)
    assert b.codes() == ("quote-too-large",)


def test_G23_huge_collateral(b: Bench) -> None:
    b.change(collateral=b" " * (MAX_COLLATERAL + 1))
    assert b.codes() == ("collateral-too-large",)


def test_G23_huge_tpm_evidence(b: Bench) -> None:
    b.prover.bundle = lambda made: replace(made, attest=made.attest + bytes(4096))
    assert b.codes() == ("tpm-too-large",)


def test_G23_slow_evidence(b: Bench) -> None:
    times = iter(range(NOW, NOW + 10_000, 61))
    slow = replace(b.attempt, clock=lambda: next(times))
    b.attempt = slow
    assert "attestation-late" in b.codes()


def test_G24_development_root_in_production(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(bench(tmp_path, monkeypatch, mode="production").codes()) == {"platform-development", "root-development"}


def test_G24_other_root_than_the_pinned(b: Bench) -> None:
    b.limit(root=INTEL_ROOT)
    assert b.codes() == ("root-not-pinned",)


def test_G24_made_up_quote_under_intels_root(b: Bench) -> None:
    b.change(root=None)
    assert set(b.codes()) == {"quote-chain", "root-not-pinned"}


def test_G25_collateral_signed_by_nobody_we_trust(b: Bench) -> None:
    b.change(collateral=Machine.create(MOMENT).collateral(MOMENT))
    assert b.codes() == ("collateral-root",)


def test_real_samples_agree_with_our_reader() -> None:
    for name in ("sgx_quote", "tdx_quote"):
        quote, collateral = sample(name)
        facts = verify_quote(quote, collateral, None, REAL_AT, WIDE)
        assert facts.fault == "" and facts.digest == digest(quote[: read_quote(quote).length])
