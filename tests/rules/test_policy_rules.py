"""The Rego documents: one fact changed, that rule's own code and no other."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from blocks.opa import OUR_DOCUMENTS, RegoEngine
from policies.gate import explain
from policies.policy import CHECKS, HOSPITAL, OURS, REASONS, PolicyEvidence, PolicyLimits, document_codes, policy_gate
from policies.required import REQUIRED_CHECKS
from rapha.canonical import digest_of
from tests.fixtures.policy import FACTS, LIMITS, MANIFEST, WORKLOAD, D, asked, documents, intent, scope

ENGINE = RegoEngine(documents())
OTHER = "sha256:" + "ff" * 32

ONE_FIELD: dict[str, dict[str, Any]] = {
    "rego-binding": asked(workload=replace(WORKLOAD, nonce="cd" * 32)),
    "rego-dataset-cohort": asked(intent(cohort="cohort-2")),
    "rego-dataset-project": asked(intent(project="project-2")),
    "rego-dataset-modality": asked(scope(modalities=("CT", "US"))),
    "rego-dataset-body-part": asked(scope(body_parts=("ABDOMEN",))),
    "rego-dataset-dates": asked(scope(date_to="20230101")),
    "rego-dataset-manifest-expired": asked(intent(max_seconds=31 * 86400)),
    "rego-dataset-not-approved": asked(replace(MANIFEST, signed=MANIFEST.signed[:2])),
    "rego-dataset-records-differ": asked(replace(MANIFEST, records_root=OTHER)),
    "rego-dataset-too-small": asked(replace(MANIFEST, records_patients=9)),
    "rego-dataset-too-many-records": asked(intent(max_records=901)),
    "rego-purpose-not-in-manifest": asked(replace(MANIFEST, purposes=("teaching",))),
    "rego-purpose-unknown-here": asked(intent(purpose="quality-improvement")),
    "rego-consent-basis": asked(replace(MANIFEST, consent_basis="none")),
    "rego-consent-opt-outs-stale": asked(replace(MANIFEST, opt_outs_applied_at=1)),
    "rego-output-too-large": asked(intent(output_bytes=(1 << 20) + 1)),
    "rego-output-too-many-metrics": asked(intent(metrics=9)),
    "rego-network-sandbox": asked(network={"sandbox": "host", "outside": "cut"}),
    "rego-network-outside-line": asked(network={"sandbox": "none", "outside": "open"}),
    "rego-network-capable-code": asked(workload=replace(WORKLOAD, scan=replace(WORKLOAD.scan, network=1))),
    "rego-workload-digest": asked(workload=replace(WORKLOAD, found=OTHER)),
    "rego-workload-kind": asked(workload=replace(WORKLOAD, kind="docker")),
    "rego-workload-signature": asked(workload=replace(WORKLOAD, signature=replace(WORKLOAD.signature, workload=OTHER))),
    "rego-workload-signer": asked(workload=replace(WORKLOAD, signature=replace(WORKLOAD.signature, signer=OTHER))),
    "rego-workload-scan": asked(workload=replace(WORKLOAD, scan=replace(WORKLOAD.scan, counts=(("type-unknown", 1),)))),
    "rego-workload-base-weights": asked(workload=replace(WORKLOAD, weights=replace(WORKLOAD.weights, found=OTHER))),
    "rego-workload-launcher": asked(workload=replace(WORKLOAD, launcher=OTHER)),
}


def judged(facts: dict[str, Any], **changes: Any) -> tuple[str, ...]:
    decision = ENGINE.decide(facts)
    evidence = evidence_of(
        allow=decision.allow,
        hospital=decision.hospital,
        reasons=decision.reasons,
        hospital_document=decision.hospital_document,
        input_digest=digest_of(facts),
        **changes,
    )
    return policy_gate(LIMITS).judge(evidence).codes


def evidence_of(**changes: Any) -> PolicyEvidence:
    good: dict[str, Any] = {
        "engine": "regopy",
        "allow": "true",
        "hospital": "true",
        "reasons": (),
        "documents": ENGINE.documents,
        "hospital_document": OTHER,
        "expected_documents": ENGINE.documents,
        "input_digest": OTHER,
        "decision_id": OTHER,
        "bound_job": FACTS["job"],
        "bound_attempt": 1,
        "bound_nonce": FACTS["nonce"],
        "manifest": MANIFEST.subject,
        "workload": WORKLOAD.subject,
        "expires": FACTS["at"] + 3600,
        "limits": LIMITS,
    }
    return PolicyEvidence(**FACTS, **{**good, **changes})


def test_the_facts_that_the_policy_allows() -> None:
    decision = ENGINE.decide(asked())
    assert (decision.allow, decision.hospital, decision.reasons) == ("true", "true", ())
    assert judged(asked()) == ()


@pytest.mark.parametrize("code", sorted(ONE_FIELD))
def test_one_field_changed_earns_that_rules_own_code(code: str) -> None:
    assert ENGINE.decide(ONE_FIELD[code]).reasons == (code,)
    assert judged(ONE_FIELD[code]) == (code,)


def test_every_rule_has_its_case_and_its_reason() -> None:
    said = {code for path in OUR_DOCUMENTS.glob("*.rego") for code in re.findall(r'deny contains "([^"]+)"', path.read_text())}
    assert said == set(ONE_FIELD) | {"rego-input-missing"}
    assert said <= set(REASONS)
    assert all(item["wrong"] and item["todo"] for item in explain(policy_gate(LIMITS), sorted(said)))


def paths(value: Any, at: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = [at] if at else []
    if isinstance(value, dict):
        for key, item in value.items():
            found += paths(item, (*at, key))
    return found


def without(facts: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    copy = dict(facts)
    copy.pop(path[0]) if len(path) == 1 else copy.__setitem__(path[0], without(facts[path[0]], path[1:]))
    return copy


UNREAD = {  # for the record and for a hospital's own rules; ours do not read them
    ("binding", "mode"), ("manifest", "manifest"), ("workload", "scan", "tree"), ("site", "engines"), ("site", "documents"),
}  # fmt: skip


@pytest.mark.parametrize("path", [p for p in paths(asked()) if p not in UNREAD], ids=".".join)
def test_A04_any_one_path_absent_is_denied(path: tuple[str, ...]) -> None:
    decision = ENGINE.decide(without(asked(), path))
    assert decision.allow == "false" and decision.reasons


def test_A04_an_empty_input_is_denied_by_every_rule() -> None:
    decision = ENGINE.decide({})
    assert decision.allow == "false" and decision.hospital == "false"
    assert set(decision.reasons) == set(ONE_FIELD) | {"rego-input-missing"}


@pytest.mark.parametrize("name", ["purposes", "consent_bases", "workload_identities"])
@pytest.mark.parametrize("value", [(), ("*",), ("",)])
def test_A06_an_empty_or_wildcard_list_allows_nothing(name: str, value: tuple[str, ...]) -> None:
    assert ENGINE.decide(asked(limits=replace(LIMITS, **{name: value}))).allow == "false"
    assert ENGINE.decide(asked(limits=PolicyLimits())).allow == "false"


@pytest.mark.parametrize("value", ["researcher", "resear", "research-evil", ".*"])
def test_A07_names_match_whole(value: str) -> None:
    assert judged(asked(limits=replace(LIMITS, purposes=(value,)))) == ("rego-purpose-unknown-here",)


def test_A08_manifest_and_site_must_both_name_the_purpose() -> None:
    assert judged(asked(replace(MANIFEST, purposes=()))) == ("rego-purpose-not-in-manifest",)
    assert judged(asked(limits=replace(LIMITS, purposes=()))) == ("rego-purpose-unknown-here",)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"allow": "undefined"}, "policy-undefined"),
        ({"hospital": "undefined"}, "policy-undefined"),
        ({"allow": "odd"}, "policy-odd-answer"),
        ({"allow": True}, "policy-odd-answer"),
        ({"allow": "True"}, "policy-odd-answer"),
        ({"hospital": "odd"}, "policy-odd-answer"),
        ({"allow": "false"}, "policy-denied"),
        ({"hospital": "false"}, "hospital-policy-refused"),
        ({"reasons": ("rego-network-sandbox",)}, "rego-network-sandbox"),
        ({"reasons": ("free text",)}, "policy-reason-unknown"),
        ({"documents": OTHER}, "policy-documents-changed"),
        ({"documents": ""}, "policy-documents-changed"),
        ({"expected_documents": OTHER}, "policy-documents-changed"),
        ({"engine": "other"}, "policy-engine"),
        ({"bound_job": OTHER}, "policy-unbound"),
        ({"bound_attempt": 2}, "policy-unbound"),
        ({"bound_nonce": "cd" * 32}, "policy-unbound"),
        ({"decision_id": ""}, "policy-unbound"),
        ({"manifest": ""}, "policy-unbound"),
        ({"expires": FACTS["at"]}, "policy-decision-expired"),
        ({"expires": FACTS["at"] + 10**6}, "policy-decision-expired"),
        ({"mode": "production", "hospital_document": "", "hospital": "undefined"}, "hospital-policy-absent"),
    ],
)
def test_A03_A05_A09_A10_only_our_own_whole_and_exactly_true_decision_passes(change: dict[str, Any], code: str) -> None:
    mode = change.pop("mode", "development")
    evidence = replace(evidence_of(**change), mode=mode)
    assert code in policy_gate(LIMITS).judge(evidence).codes


def test_A09_a_site_that_pins_its_documents_refuses_others() -> None:
    pinned = replace(LIMITS, documents=OTHER)
    assert "policy-documents-changed" in policy_gate(pinned).judge(evidence_of(limits=pinned)).codes


def test_the_required_checks_are_the_gates_own() -> None:
    assert {check.name for check in CHECKS} == REQUIRED_CHECKS["policy"]


GOOD = "package hospital\nimport rego.v1\ndefault allow := false\nallow if { input.binding.attempt == 1 }\n"


@pytest.mark.parametrize(
    "rule",
    [
        'allow if { http.send({"method": "get", "url": input.manifest.root}).status_code == 200 }',
        'allow if { http["send"]({"method": "get", "url": "x"}) }',
        "allow if { opa.runtime().env.PATH }",
        "allow if { x := opa .runtime() }",
        'allow if { net.lookup_ip_addr("x") }',
        'allow if { trace("x") }',
        "allow if { print(input) }",
        'allow if { rego.parse_module("a", "b") }',
        "allow if { time.now_ns() > 1 }",
        'allow if { io.jwt.decode("x") }',
        "allow if true with http.send as f",
    ],
)
def test_A15_a_hospital_policy_that_reaches_out(rule: str) -> None:
    assert "policy-forbidden-builtin" in document_codes(GOOD + rule, HOSPITAL)


def test_A15_words_in_comments_and_strings_do_no_harm() -> None:
    assert (
        document_codes(GOOD + '# http.send\nallow if { input.a == "http.send" }\nallow if { input.b == `net.x` }\n', HOSPITAL)
        == ()
    )


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (GOOD.replace("package hospital", "package rapha"), "policy-package"),
        (GOOD + "\npackage rapha\n", "policy-package"),
        (GOOD.replace("package hospital", "package hospital.extra"), "policy-package"),
        (GOOD.replace("import rego.v1", ""), "policy-not-v1"),
        ("", "policy-package"),
    ],
)
def test_a_hospital_document_of_another_form(text: str, code: str) -> None:
    assert code in document_codes(text, HOSPITAL)


def test_our_own_documents_are_admitted_by_the_same_rule() -> None:
    for path in Path(OUR_DOCUMENTS).glob("*.rego"):
        assert document_codes(path.read_text(), OURS) == (), path.name


def test_the_workload_names_stay_distinct() -> None:
    assert len(set(D.values())) == len(D)
