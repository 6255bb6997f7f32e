"""Whatever bytes come, the readers answer with facts or their own error, and the verifier with a fault."""

from hypothesis import given, settings
from hypothesis import strategies as st

from blocks.attester import read_pcrs
from blocks.dcap import verify_quote
from infra.attester.software import attest_bytes
from policies.attestation_evidence import QUOTE_FAULTS
from policies.attestation_limits import AttestationLimits
from policies.chain import read_chain
from policies.quote import QuoteFormatError, read_quote
from policies.tpm import TpmFormatError, read_attest, verify_signature
from tests.fixtures.attestation import SAMPLES

QUOTE = (SAMPLES / "sgx_quote").read_bytes()
COLLATERAL = (SAMPLES / "sgx_quote_collateral.json").read_bytes()
HEADS = st.sampled_from([b"", QUOTE[:48], QUOTE[:436], QUOTE[:1014], QUOTE[:1100], QUOTE])


@settings(max_examples=200, deadline=None)
@given(head=HEADS, tail=st.binary(max_size=700), cut=st.integers(0, 4600))
def test_any_bytes_as_a_quote(head: bytes, tail: bytes, cut: int) -> None:
    for raw in (head + tail, QUOTE[:cut]):
        try:
            assert read_quote(raw).length <= len(raw)
        except QuoteFormatError as error:
            assert str(error) in QUOTE_FAULTS
        assert verify_quote(raw, COLLATERAL, None, 1_750_809_600, AttestationLimits()).fault in QUOTE_FAULTS


@settings(max_examples=200, deadline=None)
@given(raw=st.binary(max_size=400), at=st.integers(0, 4000), more=st.binary(max_size=20))
def test_any_bytes_as_collateral(raw: bytes, at: int, more: bytes) -> None:
    for collateral in (raw, COLLATERAL[:at] + more + COLLATERAL[at:]):
        assert verify_quote(QUOTE, collateral, None, 1_750_809_600, AttestationLimits()).fault in QUOTE_FAULTS


@settings(max_examples=300, deadline=None)
@given(raw=st.binary(max_size=200), at=st.integers(0, 140), more=st.binary(max_size=8))
def test_any_bytes_as_a_tpm_quote(raw: bytes, at: int, more: bytes) -> None:
    whole = attest_bytes(signer=b"s" * 34, extra=b"e" * 32, pcrs={0: bytes(32)}, clock=1)
    for candidate in (raw, b"\xffTCG\x80\x18" + raw, whole[:at] + more + whole[at:], whole[:at]):
        try:
            read_attest(candidate)
        except TpmFormatError as error:
            assert str(error).startswith("tpm-")
        try:
            assert verify_signature(candidate, raw, "no key") is False
        except TpmFormatError as error:
            assert str(error).startswith("tpm-")


@settings(max_examples=100, deadline=None)
@given(raw=st.binary(max_size=300))
def test_any_bytes_as_a_chain(raw: bytes) -> None:
    try:
        read_chain(raw)
    except ValueError:
        return
    raise AssertionError("random bytes are no chain")


@given(values=st.dictionaries(st.text(max_size=3), st.one_of(st.text(max_size=64), st.integers(), st.none()), max_size=4))
def test_any_object_as_pcr_values(values: dict[str, object]) -> None:
    try:
        assert all(len(value) == 32 for value in read_pcrs(values).values())
    except ValueError:
        return
