"""The manifest gate: for each rule, one job, one manifest or one query that differs in one thing."""

import dataclasses
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from infra.hospital.paper import OUTER_QUERY, site_limits
from policies.manifest import ManifestLimits, read_manifest
from policies.manifest_gate import CHECKS, manifest_gate
from policies.required import REQUIRED_CHECKS
from rapha.canonical import canonical
from rapha.errors import Refusal
from rapha.signing import MANIFEST_TYPE, sign
from tests.fixtures.manifest import KEYS, NOW, declaration, document, evidence, records, sign_manifest

GATE = manifest_gate(site_limits())
DAY = 86400


def codes(**changes):
    made = evidence(**changes)
    return manifest_gate(made.limits).judge(made).codes


def signed(**changes):
    return sign_manifest(document(**changes), KEYS)


def test_what_is_in_order_clears():
    verdict = GATE.judge(evidence())
    assert verdict.cleared and verdict.ran - {"limits"} == REQUIRED_CHECKS["manifest"]


def test_every_check_is_required_and_every_code_is_explained():
    assert {check.name for check in CHECKS} == REQUIRED_CHECKS["manifest"]
    assert all(reason.wrong.endswith(".") and reason.todo.endswith(".") for reason in GATE.reasons.values())


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"dataset__modalities": ["CT"]}, "job-beyond-manifest"),
        ({"dataset__modalities": ["DX", "CT"]}, "job-beyond-manifest"),
        ({"dataset__body_parts": ["HAND"]}, "job-beyond-manifest"),
        ({"dataset__date_from": "20231231"}, "job-beyond-manifest"),
        ({"dataset__date_to": "20250101"}, "job-beyond-manifest"),
        ({"dataset__cohort": "another"}, "cohort-differs"),
        ({"dataset__project": "another"}, "project-not-allowed"),
        ({"budget__max_records": 7}, "job-too-few-records"),
        ({"budget__max_records": 10_001}, "job-too-many-records"),
        ({"run__max_seconds": 7 * DAY}, None),
        ({"outputs__tensors": [{"name": "w", "shape": [1 << 24, 2], "dtype": "F32"}]}, "job-output-too-large"),
        (
            {"outputs__metrics": [{"name": f"m{n}", "minimum": 0.0, "maximum": 1.0, "digits": 2} for n in range(9)]},
            "job-too-many-metrics",
        ),
    ],
)
def test_a_job_that_differs_in_one_field(changes, code):
    assert codes(job=declaration(**changes)) == ((code,) if code else ())


def test_a_purpose_that_neither_manifest_nor_site_knows():
    assert codes(job=declaration(dataset__purpose="marketing")) == ("purpose-not-allowed", "purpose-unknown-here")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"scope__modalities": ["CT", "DX"]}, "manifest-beyond-outer"),
        ({"scope__body_parts": ["CHEST", "HAND"]}, "manifest-beyond-outer"),
        ({"scope__date_from": "20231231"}, "manifest-beyond-outer"),
        ({"scope__date_to": "20250101"}, "manifest-beyond-outer"),
        ({"projects": ["chest-lesion", "another"]}, "manifest-several-projects"),
        ({"consent__basis": "none"}, "consent-basis-not-allowed"),
        ({"consent__opt_outs_applied_at": NOW - 32 * DAY}, "opt-outs-stale"),
        ({"consent__opt_outs_applied_at": NOW - 1}, "opt-outs-stale"),
        ({"agreement_id": "another"}, "agreement-unknown"),
        ({"issued_at": NOW + 1}, "manifest-not-yet-valid"),
        ({"expires_at": NOW + 119}, "manifest-expired"),
        ({"expires_at": NOW - 1}, "manifest-expired"),
        ({"record_set__count": 41}, "records-count-differs"),
        ({"record_set__patients": 11}, "records-count-differs"),
        ({"record_set__root": "sha256:" + "0" * 64}, "records-root-differs"),
        ({"limits__min_patients": 11}, "cohort-too-small"),
        ({"limits__max_records": 39}, "job-too-many-records"),
        ({"limits__max_output_bytes": 100}, "job-output-too-large"),
        ({"limits__max_metrics": 3}, "job-too-many-metrics"),
    ],
)
def test_a_manifest_that_differs_in_one_field(changes, code):
    assert codes(raw=signed(**changes)) == (code,)


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({"Modality": "CT"}, "manifest-beyond-outer"),
        ({"BodyPartExamined": "HAND"}, "manifest-beyond-outer"),
        ({"StudyDate": "20240102-20241231"}, "manifest-beyond-outer"),
        ({"StudyDate": "20240101-20241230"}, "manifest-beyond-outer"),
        ({"InstitutionName": "here"}, "outer-query-unknown-key"),
    ],
)
def test_an_environment_that_differs_in_one_key(query, code):
    assert codes(query={**OUTER_QUERY, **query}) == (code,)


@pytest.mark.parametrize("query", [{}, {"Modality": "DX"}, {"BodyPartExamined": "*"}, {"StudyDate": "", "Modality": "*"}])
def test_D01_an_environment_that_bounds_nothing_refuses(query):
    assert "outer-query-broad" in codes(query=query)


@pytest.mark.parametrize("name", ["agreements", "consent_bases", "purposes"])
def test_a_site_that_named_nothing_allows_nothing(name):
    limits = dataclasses.replace(site_limits(), **{name: ()})
    assert len(codes(limits=limits)) == 1


def test_the_sites_defaults_allow_no_manifest():
    assert set(codes(limits=ManifestLimits())) == {"agreement-unknown", "consent-basis-not-allowed", "purpose-unknown-here"}


def test_evidence_with_other_numbers_than_the_sites_refuses():
    odd = evidence(limits=dataclasses.replace(site_limits(), min_patients=1))
    assert GATE.judge(odd).codes == ("limits-differ",)


@pytest.mark.parametrize("missing", ["caldicott", "custodian", "dpo"])
def test_each_approver_must_sign(missing):
    raw = sign_manifest(document(), {role: key for role, key in KEYS.items() if role != missing})
    assert codes(raw=raw) == ("manifest-approvals",)


def test_a_key_that_is_trusted_in_another_role_refuses():
    raw = sign_manifest(document(), {**KEYS, "dpo": KEYS["custodian"]})
    assert codes(raw=raw) == ("manifest-approvals", "signature-untrusted")


def test_one_key_in_two_roles_refuses_even_when_it_is_trusted_in_both():
    both = tuple(sorted((role, "sha256:" + "1" * 64) for role in KEYS))
    assert codes(signed=both) == ("manifest-approvers-one-key",)


def test_a_strangers_signature_refuses():
    stranger = sign(json.loads(signed()), MANIFEST_TYPE, Ed25519PrivateKey.generate(), "dpo")
    assert "signature-untrusted" in codes(raw=canonical(stranger))


def test_a_manifest_that_was_changed_after_signing_refuses():
    raw = json.loads(signed())
    raw["limits"]["max_records"] += 1
    assert "signature-invalid" in codes(raw=canonical(raw))


def test_an_unsigned_manifest_refuses():
    assert codes(raw=canonical({**document(), "signatures": []})) == ("manifest-approvals", "signature-missing")


@pytest.mark.parametrize(
    "field",
    [
        f.name
        for f in dataclasses.fields(evidence())
        if f.name not in ("limits", "nonce", "mode", "attempt", "job", "previous", "at")
    ],
)
def test_odd_evidence_is_a_refusal_not_a_crash(field):
    verdict = GATE.judge(evidence(**{field: None}))
    unused = {"manifest_id", "seen_manifest", "burned_in_checked"}
    assert verdict.cleared is (field in unused)


@pytest.mark.parametrize(
    "seen,other,code", [(2, "", "manifest-version-older"), (1, "sha256:" + "2" * 64, "manifest-version-reused")]
)
def test_versions_only_rise(seen, other, code):
    assert codes(seen_version=seen, seen_manifest=other) == (code,)


def test_the_same_manifest_may_be_used_again():
    assert codes(seen_version=1, seen_manifest=evidence().manifest) == ()


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"extra": 1}, "manifest-unknown-field"),
        ({"scope__extra": 1}, "manifest-unknown-field"),
        ({"version": 2}, "manifest-bad-value"),
        ({"version": True}, "manifest-bad-value"),
        ({"version_number": "1"}, "manifest-bad-value"),
        ({"burned_in_checked": 1}, "manifest-bad-value"),
        ({"scope__date_from": "20240230"}, "manifest-bad-value"),
        ({"scope__date_from": "20250101"}, "manifest-bad-value"),
        ({"scope__modalities": []}, "manifest-bad-value"),
        ({"cohort": "../other"}, "manifest-bad-value"),
        ({"record_set__root": "sha256:00"}, "manifest-bad-value"),
        ({"limits__min_patients": 0}, "manifest-bad-value"),
        ({"issued_at": 1.5}, "manifest-bad-value"),
    ],
)
def test_the_reader_is_strict(changes, code):
    with pytest.raises(Refusal) as caught:
        read_manifest(canonical(document(**changes)))
    assert caught.value.codes == (code,)


@pytest.mark.parametrize("raw", [b"[]", b"", b"{", b'{"version":1,"version":1}', b'{"a":NaN}', b"\xff"])
def test_what_is_no_manifest_refuses(raw):
    with pytest.raises(Refusal):
        read_manifest(raw)


def test_a_missing_field_refuses():
    made = document()
    del made["consent"]
    with pytest.raises(Refusal) as caught:
        read_manifest(canonical(made))
    assert caught.value.codes == ("manifest-missing-field",)


@pytest.mark.parametrize("patients", [1, 7])
def test_D14_a_cohort_of_seven_refuses(patients):
    few = records(patients, each=9)
    made = document(
        record_set__root=evidence(found=few).records_root,
        record_set__count=len(few),
        record_set__patients=patients,
        limits__min_patients=1,
    )
    assert codes(raw=sign_manifest(made, KEYS), found=few) == ("cohort-too-small",)


def test_D14_no_site_can_lower_the_bound_under_eight():
    few = records(7, each=9)
    made = document(
        record_set__root=evidence(found=few).records_root, record_set__count=63, record_set__patients=7, limits__min_patients=1
    )
    limits = dataclasses.replace(site_limits(), min_patients=1, min_records=1)
    assert codes(raw=sign_manifest(made, KEYS), found=few, limits=limits) == ("cohort-too-small",)
