"""The query and retrieve gates: for each rule, evidence that differs in one fact and is refused with that rule's own code."""

from dataclasses import replace
from typing import Any

import pytest

from policies.burned_in import burned_in_risk
from policies.query import QueryEvidence, QueryLimits, query_gate
from policies.records import Record, read_records, records_root, write_records
from policies.required import REQUIRED_CHECKS
from policies.retrieve import RetrieveEvidence, RetrieveLimits, retrieve_gate
from policies.scope import SCOPE_REASONS, Bounds, Scope, outer_scope, scope_codes
from rapha.errors import Refusal

D = [f"sha256:{i:064x}" for i in range(9)]
FACTS: dict[str, Any] = {"job": D[0], "attempt": 1, "nonce": "ab" * 32, "at": 1, "previous": D[1], "mode": "development"}
SCOPE = Scope(modalities=("MR",), body_parts=("BRAIN",), date_from="20240101", date_to="20241231")
OUTER = Scope(modalities=("MR",), body_parts=("BRAIN",))
QUERY = QueryEvidence(
    **FACTS,
    limits=QueryLimits(),
    bounds=Bounds(outer=OUTER, manifest=SCOPE, intent=SCOPE),
    manifest_root=D[2],
    manifest_count=20,
    manifest_max_records=100,
    manifest_min_patients=8,
    records_root=D[2],
    records_count=20,
    sent=True,
    query=D[3],
    results=D[4],
    answered=23,
    outside=1,
    ignored=2,
    missing=0,
    changed=0,
    selected=20,
    patients=10,
)
RETRIEVE = RetrieveEvidence(
    **FACTS,
    limits=RetrieveLimits(),
    results=D[4],
    before=D[4],
    after=D[4],
    listed=20,
    received=20,
    missing=0,
    changed=0,
    extra=3,
    undecodable=0,
    burned_in=0,
    burned_in_checked=False,
    expected_root=D[2],
    received_root=D[2],
    bytes=1000,
    largest=100,
    sealed=True,
)


def test_whole_evidence_passes_and_every_required_check_ran() -> None:
    for gate, evidence in ((query_gate(QueryLimits()), QUERY), (retrieve_gate(RetrieveLimits()), RETRIEVE)):
        verdict = gate.judge(evidence)  # type: ignore[arg-type]
        assert verdict.codes == () and verdict.cleared
        assert verdict.ran - {"limits"} == REQUIRED_CHECKS[gate.name]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"sent": False}, "query-not-sent"),
        ({"sent": 1}, "query-not-sent"),
        ({"query": ""}, "query-not-sent"),
        ({"records_root": D[5]}, "query-records-differ"),
        ({"records_root": "", "manifest_root": ""}, "query-records-differ"),
        ({"manifest_count": 21}, "query-records-differ"),
        ({"missing": 1, "answered": 22, "selected": 19}, "query-missing"),
        ({"changed": 1}, "query-changed"),
        ({"selected": 0, "patients": 0}, "query-nothing"),
        ({"patients": 7}, "query-cohort-small"),
        ({"manifest_min_patients": 11}, "query-cohort-small"),
        ({"manifest_max_records": 19}, "query-too-many"),
        ({"answered": 24}, "query-counts-odd"),
        ({"ignored": -1, "answered": 20}, "query-counts-odd"),
        ({"bounds": Bounds(outer=Scope(), manifest=SCOPE, intent=SCOPE)}, "query-outer-broad"),
        ({"bounds": Bounds(outer=OUTER, manifest=SCOPE, intent=replace(SCOPE, modalities=("CT",)))}, "query-job-beyond-manifest"),
        ({"limits": QueryLimits(min_patients=1)}, "limits-differ"),
    ],
)
def test_one_wrong_fact_of_a_query_has_its_own_code(change: dict[str, Any], code: str) -> None:
    assert code in query_gate(QueryLimits()).judge(replace(QUERY, **change)).codes


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"before": D[5]}, "retrieve-set-changed"),
        ({"after": D[5]}, "retrieve-set-changed"),
        ({"results": "", "before": "", "after": ""}, "retrieve-set-changed"),
        ({"received": 19}, "retrieve-missing"),
        ({"missing": 1}, "retrieve-missing"),
        ({"listed": 0, "received": 0}, "retrieve-missing"),
        ({"changed": 1}, "retrieve-changed"),
        ({"received_root": D[5]}, "retrieve-root-differs"),
        ({"undecodable": 1}, "retrieve-undecodable"),
        ({"burned_in": 1}, "retrieve-burned-in"),
        ({"burned_in": 1, "burned_in_checked": "yes"}, "retrieve-burned-in"),
        ({"sealed": False}, "retrieve-not-sealed"),
        ({"sealed": 1}, "retrieve-not-sealed"),
        ({"bytes": 0}, "retrieve-too-large"),
        ({"largest": 9 << 30}, "retrieve-too-large"),
        ({"extra": -1}, "retrieve-counts-odd"),
    ],
)
def test_one_wrong_fact_of_a_retrieval_has_its_own_code(change: dict[str, Any], code: str) -> None:
    assert code in retrieve_gate(RetrieveLimits()).judge(replace(RETRIEVE, **change)).codes


@pytest.mark.parametrize(
    ("outer", "manifest", "intent", "code"),
    [
        ({"Modality": "MR"}, {}, {}, "query-outer-broad"),
        ({"PatientName": "*", "BodyPartExamined": "BRAIN"}, {}, {}, "query-outer-unknown-key"),
        ({"BodyPartExamined": "BR*"}, {}, {}, "query-outer-broad"),
        ({"StudyDate": "20250101-"}, {}, {}, "query-manifest-beyond-outer"),
        ({"Modality": "CT", "BodyPartExamined": "BRAIN"}, {}, {}, "query-manifest-beyond-outer"),
        (None, {"body_parts": ()}, {}, "query-broad"),
        (None, {"modalities": ()}, {}, "query-broad"),
        (None, {"date_from": "19000101"}, {"date_from": "19000101"}, "query-broad"),
        (None, {"date_from": "20241301"}, {}, "query-date-odd"),
        (None, {"date_from": "20250101"}, {}, "query-date-odd"),
        (None, {}, {"date_to": "20250101"}, "query-job-beyond-manifest"),
        (None, {}, {"body_parts": ("BRAIN", "CHEST")}, "query-job-beyond-manifest"),
        (None, {}, {"body_parts": ("*",)}, "query-broad"),
        (None, {}, {"date_from": "", "date_to": ""}, "query-broad"),
    ],
)
def test_each_way_out_of_bounds_has_its_own_code(
    outer: dict[str, str] | None, manifest: dict[str, Any], intent: dict[str, Any], code: str
) -> None:
    scope, unknown = outer_scope({"Modality": "MR", "BodyPartExamined": "BRAIN"} if outer is None else outer)
    bounds = Bounds(outer=scope, manifest=replace(SCOPE, **manifest), intent=replace(SCOPE, **intent), unknown_keys=unknown)
    found = scope_codes(bounds, need_date=True, need_body_part=True, max_days=7320)
    assert code in found and set(found) <= set(SCOPE_REASONS)


def test_a_narrower_job_within_bounds_is_asked_by_modality_and_body_part() -> None:
    scope = Scope(modalities=("CT", "MR"), body_parts=("BRAIN", "HEAD"), date_from="20240101", date_to="20240131")
    assert len(scope.queries()) == 4
    assert {"Modality": "CT", "BodyPartExamined": "HEAD", "StudyDate": "20240101-20240131"} in scope.queries()
    assert scope.admits("CT", "HEAD", "20240131") and not scope.admits("CT", "", "20240131")
    assert not scope.admits("CT", "HEAD", "") and not scope.admits("CT", "HEAD", "2024013")


def test_absence_of_a_word_on_burned_in_text_is_a_risk_where_machines_write_it() -> None:
    plain = {
        "annotation": "",
        "modality": "MR",
        "sop_class": "1.2.840.10008.5.1.4.1.1.4",
        "image_type": ("ORIGINAL",),
        "conversion": "",
    }
    assert not burned_in_risk(**plain)  # type: ignore[arg-type]
    for change in (
        {"annotation": "YES"},
        {"annotation": "UNKNOWN"},
        {"modality": "US"},
        {"modality": ""},
        {"sop_class": "1.2.840.10008.5.1.4.1.1.7.2"},
        {"image_type": ("DERIVED", "SECONDARY")},
        {"conversion": "SD"},
    ):
        assert burned_in_risk(**{**plain, **change})  # type: ignore[arg-type]
        if "annotation" not in change:
            assert not burned_in_risk(**{**plain, **change, "annotation": "NO"})  # type: ignore[arg-type]


RECORDS = [Record(f"{i:064x}", f"{i:064x}", D[i], i if i % 2 else None) for i in range(5)]


def test_a_records_file_has_one_form() -> None:
    raw = write_records(reversed(RECORDS))
    assert read_records(raw) == tuple(RECORDS) and records_root(read_records(raw)) == records_root(reversed(RECORDS))
    lines = raw.splitlines(keepends=True)
    for wrong, code in (
        (raw[:-1], "records-malformed"),
        (raw + lines[-1], "records-duplicate"),
        (b"".join(reversed(lines)), "records-duplicate"),
        (raw.replace(b":", b": ", 1), "records-not-canonical"),
        (raw.replace(b'"label":1', b'"label":true'), "records-malformed"),
        (raw.replace(b'"label":1', b'"label":1,"more":1'), "records-malformed"),
        (raw.replace(b"sha256:", b"sha1:", 1), "records-malformed"),
        (raw + b"\n", "records-malformed"),
    ):
        with pytest.raises(Refusal) as refused:
            read_records(wrong)
        assert refused.value.codes == (code,)
