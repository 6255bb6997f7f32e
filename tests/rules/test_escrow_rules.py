"""The escrow gate and the attestor's rules: one fact changed, one code."""

from dataclasses import replace
from typing import Any

import pytest

from policies.escrow import (
    CHECKS,
    DEVELOPMENT_ACCOUNTS,
    POLYGON,
    POLYGON_USDC,
    Asked,
    EscrowEvidence,
    EscrowLimits,
    Held,
    escrow_gate,
    node_id,
    owner_id,
)
from policies.gate import explain
from policies.required import REQUIRED_CHECKS
from policies.settlement import WINDOW, Claim, Deposit, refusals

NOW = 1_800_000_000
NODE, OWNER, OTHER = node_id("st-anna"), owner_id("acme"), "0x" + "ee" * 32
VAULT, TOKEN = "0x" + "aa" * 20, "0x" + "bb" * 20
PAYEES = tuple("0x" + f"{n:040x}" for n in range(1, 5))
ATTESTOR = "0x" + "cc" * 20
LIMITS = EscrowLimits(payees=PAYEES, attestors=(ATTESTOR,))
ASKED = Asked(
    escrow="0x" + "dd" * 32,
    chain_id=31337,
    vault=VAULT,
    token=TOKEN,
    node=NODE,
    owner=OWNER,
    price=50_000,
    max_records=40,
    max_seconds=600,
    deadline=NOW + 86400,
)
HELD = Held(
    status="open",
    node=NODE,
    owner=OWNER,
    token=TOKEN,
    price=50_000,
    max_records=40,
    deadline=NOW + 10 * 86400,
    threshold=1,
    payees=PAYEES,
    attestors=(ATTESTOR,),
)
GOOD = EscrowEvidence(
    job="sha256:" + "11" * 32,
    attempt=1,
    nonce="ab" * 32,
    at=NOW,
    previous="sha256:" + "22" * 32,
    mode="development",
    asked=ASKED,
    held=HELD,
    node=NODE,
    site_chain=31337,
    site_vault=VAULT,
    site_token=TOKEN,
    seen_chain=31337,
    vault_code="sha256:" + "33" * 32,
    final=100,
    newest=102,
    claimed_by="",
    limits=LIMITS,
)
PRODUCTION_LIMITS = replace(LIMITS, vault_code=GOOD.vault_code)
PRODUCTION = replace(
    GOOD,
    mode="production",
    site_chain=POLYGON,
    seen_chain=POLYGON,
    site_token=POLYGON_USDC,
    asked=replace(ASKED, chain_id=POLYGON, token=POLYGON_USDC),
    held=replace(HELD, token=POLYGON_USDC),
    limits=PRODUCTION_LIMITS,
)


def judged(evidence: EscrowEvidence) -> tuple[str, ...]:
    return escrow_gate(evidence.limits).judge(evidence).codes


def asked(**changed: Any) -> EscrowEvidence:
    return replace(GOOD, asked=replace(ASKED, **changed))


def held(**changed: Any) -> EscrowEvidence:
    return replace(GOOD, held=replace(HELD, **changed))


def limits(**changed: Any) -> EscrowEvidence:
    return replace(GOOD, limits=replace(LIMITS, **changed))


def production(**changed: Any) -> EscrowEvidence:
    return replace(PRODUCTION, **changed)


ONE_FACT = [
    (held(status="none"), "escrow-missing"),
    (held(status="settled"), "escrow-closed"),
    (held(status="refunded"), "escrow-closed"),
    (held(status="odd"), "escrow-closed"),
    (asked(chain_id=137), "escrow-other-chain"),
    (replace(GOOD, seen_chain=1), "escrow-chain-lies"),
    (replace(GOOD, site_chain=1, seen_chain=1, asked=replace(ASKED, chain_id=1)), "escrow-chain-not-allowed"),
    (production(site_chain=31337, seen_chain=31337, asked=replace(PRODUCTION.asked, chain_id=31337)), "escrow-chain-not-allowed"),
    (asked(vault="0x" + "ab" * 20), "escrow-other-vault"),
    (replace(GOOD, vault_code=""), "escrow-no-vault"),
    (production(vault_code="sha256:" + "44" * 32), "escrow-no-vault"),
    (production(limits=LIMITS), "escrow-no-vault"),
    (asked(token="0x" + "ba" * 20), "escrow-other-token"),
    (held(token="0x" + "ba" * 20), "escrow-other-token"),
    (
        production(site_token=TOKEN, asked=replace(PRODUCTION.asked, token=TOKEN), held=replace(HELD, token=TOKEN)),
        "escrow-token-not-allowed",
    ),
    (asked(node=OTHER), "escrow-other-node"),
    (held(node=OTHER), "escrow-other-node"),
    (held(owner=OTHER), "escrow-other-owner"),
    (asked(owner=OTHER), "escrow-other-owner"),
    (asked(price=49_999), "escrow-price-differs"),
    (asked(max_records=41), "escrow-underfunded"),
    (held(max_records=39), "escrow-underfunded"),
    (
        replace(GOOD, asked=replace(ASKED, price=10**12, max_records=10**5), held=replace(HELD, price=10**12, max_records=10**5)),
        "escrow-too-large",
    ),
    (asked(max_records=9), "escrow-cohort-too-small"),
    (limits(min_records=0), "escrow-cohort-too-small"),
    (held(deadline=NOW + 86400 - 1), "escrow-deadline-short"),
    (asked(max_seconds=7 * 86400 + 2 * 86400 + 86400), "escrow-deadline-short"),
    (held(payees=PAYEES[::-1]), "escrow-payees-differ"),
    (limits(payees=()), "escrow-payees-differ"),
    (held(attestors=("0x" + "cd" * 20,)), "escrow-attestors-differ"),
    (held(threshold=2), "escrow-attestors-differ"),
    (limits(attestors=()), "escrow-attestors-differ"),
    (limits(threshold=0), "escrow-attestors-differ"),
    (
        production(
            held=replace(PRODUCTION.held, attestors=DEVELOPMENT_ACCOUNTS[3:4]),
            limits=replace(PRODUCTION_LIMITS, attestors=DEVELOPMENT_ACCOUNTS[3:4]),
        ),
        "escrow-development-account",
    ),
    (replace(GOOD, newest=101), "escrow-not-final"),
    (replace(GOOD, final=-1), "escrow-not-final"),
    (limits(confirmations=0), "escrow-not-final"),
    (replace(GOOD, claimed_by="sha256:" + "99" * 32), "escrow-in-use"),
]


def test_good_evidence_clears_in_both_modes() -> None:
    assert judged(GOOD) == () == judged(PRODUCTION)
    assert escrow_gate(LIMITS).judge(GOOD).cleared


@pytest.mark.parametrize(("evidence", "code"), ONE_FACT)
def test_one_changed_fact_is_refused_with_its_own_code(evidence: EscrowEvidence, code: str) -> None:
    assert judged(evidence) == (code,)


def test_every_code_is_tested_required_and_explained() -> None:
    names = {check.name for check in CHECKS}
    assert {code for _, code in ONE_FACT} == names == REQUIRED_CHECKS["escrow"]
    assert all(reason["wrong"] and reason["todo"] for reason in explain(escrow_gate(LIMITS), names))


def test_a_mode_that_nobody_knows_clears_nothing() -> None:
    assert "escrow-chain-not-allowed" in judged(replace(GOOD, mode="demo"))  # type: ignore[arg-type]


def test_numbers_of_another_site_are_refused() -> None:
    assert escrow_gate(replace(LIMITS, margin=1)).judge(GOOD).codes == ("limits-differ",)


def test_limits_come_from_json_in_any_case() -> None:
    site = EscrowLimits(**{"payees": [p.upper().replace("0X", "0x") for p in PAYEES], "attestors": [ATTESTOR.upper()]})
    assert site.payees == PAYEES
    assert site.attestors == (ATTESTOR.lower(),)


CLAIM = Claim(
    mode="development",
    attempt=1,
    chain_id=31337,
    vault=VAULT,
    escrow=ASKED.escrow,
    job=GOOD.job,
    node=NODE,
    records=40,
    receipt="sha256:" + "55" * 32,
)
DEPOSIT = Deposit(status="open", node=NODE, price=50_000, max_records=40, deadline=NOW + 9999, attestors=(ATTESTOR,))


def asks(claim: Claim = CLAIM, deposit: Deposit = DEPOSIT, **changed: Any) -> tuple[str, ...]:
    base: dict[str, Any] = {
        "chain_id": 31337,
        "vault": VAULT,
        "signer": ATTESTOR,
        "now": NOW,
        "expiry": NOW + 3600,
        "earlier": {},
    }
    return refusals(claim, deposit, **{**base, **changed})


def test_the_attestor_signs_for_a_good_claim_and_again_for_the_same() -> None:
    assert asks() == ()
    assert asks(earlier={CLAIM.job: CLAIM.receipt, CLAIM.escrow: CLAIM.job}) == ()


@pytest.mark.parametrize(
    ("codes", "code"),
    [
        (asks(replace(CLAIM, chain_id=137)), "attest-other-chain"),
        (asks(replace(CLAIM, vault=TOKEN)), "attest-other-vault"),
        (asks(replace(CLAIM, chain_id=137), chain_id=137), "attest-development-receipt"),
        (asks(deposit=replace(DEPOSIT, status="settled")), "attest-escrow-closed"),
        (asks(deposit=replace(DEPOSIT, status="none")), "attest-escrow-closed"),
        (asks(replace(CLAIM, node=OTHER)), "attest-other-node"),
        (asks(replace(CLAIM, records=0)), "attest-no-records"),
        (asks(replace(CLAIM, records=41)), "attest-over-cap"),
        (asks(signer=TOKEN), "attest-not-appointed"),
        (asks(now=NOW + 9999, expiry=NOW + 9999), "attest-too-late"),
        (asks(expiry=NOW), "attest-expiry"),
        (asks(expiry=NOW + 10_000), "attest-expiry"),
        (asks(deposit=replace(DEPOSIT, deadline=NOW + 10**6), expiry=NOW + WINDOW + 1), "attest-expiry"),
        (asks(earlier={CLAIM.job: "sha256:" + "56" * 32}), "attest-other-receipt"),
        (asks(earlier={CLAIM.escrow: "sha256:" + "12" * 32}), "attest-other-job"),
    ],
)
def test_the_attestor_refuses_one_changed_fact(codes: tuple[str, ...], code: str) -> None:
    assert code in codes
    assert set(codes) <= {code, "attest-expiry"}
