"""findings.json is believed only as far as the model's declaration and the images go: one changed fact, one code."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from policies.findings import Measurement, is_critical, read_findings, read_listed, to_json
from rapha.errors import Refusal
from tests.fixtures.studies import DIGEST, IMAGES, MODEL, document, finding, written

NAN, HUGE = float("nan"), "1" + "0" * 400


def read(value: dict[str, Any]) -> Any:
    return read_findings(written(value), MODEL, DIGEST, IMAGES)


def codes(raw: bytes) -> tuple[str, ...]:
    with pytest.raises(Refusal) as refused:
        read_findings(raw, MODEL, DIGEST, IMAGES)
    return refused.value.codes


def test_a_right_file_is_read_whole() -> None:
    found = read(document())
    assert found.analysed == {0} and found.left_out == {1: "undecodable"}
    (one,) = found.findings
    assert (one.kind, one.frame, one.points) == ("lesion", 1, ((50.0, 40.0), (60.0, 40.0)))
    assert one.measurements == (Measurement("diameter", 20.0),)


def test_no_findings_is_an_answer() -> None:
    assert read(document(findings=[])).findings == ()


def left_out(reason: object = "undecodable", **more: object) -> dict[str, object]:
    return {"index": 1, "status": "not-applicable", "reason": reason, **more}


ANALYSED = {"index": 0, "status": "analysed"}


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        (document(version=2), "findings-model"),
        (document(version=True), "findings-model"),
        (document(model={"name": MODEL.name, "version": MODEL.version, "digest": "sha256:" + "0" * 64}), "findings-model"),
        (document(model={"name": "other", "version": MODEL.version, "digest": DIGEST}), "findings-model"),
        ({**document(), "comment": "Doe^Jane"}, "findings-fields"),
        ({key: value for key, value in document().items() if key != "findings"}, "findings-fields"),
        (document(instances=[ANALYSED]), "findings-incomplete"),
        (document(instances=[]), "findings-incomplete"),
        (document(instances={}), "findings-incomplete"),
        (document(instances=[ANALYSED, ANALYSED]), "findings-incomplete"),
        (document(instances=[ANALYSED, {**ANALYSED, "index": 2}]), "findings-index"),
        (document(instances=[{**ANALYSED, "index": True}, left_out()]), "findings-index"),
        (document(instances=[{**ANALYSED, "index": 0.5}, left_out()]), "findings-index"),
        (document(instances=[ANALYSED, {"index": 1, "status": "skipped", "reason": "undecodable"}]), "findings-reason"),
        (document(instances=[ANALYSED, left_out("Doe^Jane")]), "findings-reason"),
        (document(instances=[ANALYSED, left_out("no-spacing")]), "findings-reason"),
        (document(instances=[ANALYSED, left_out(note="x")]), "findings-fields"),
        (document(instances=[ANALYSED, {"index": 1, "status": "not-applicable"}]), "findings-fields"),
        (document(findings=[finding()] * (MODEL.findings.most + 1)), "findings-count"),
        (document(findings={}), "findings-count"),
        (document(findings=["lesion"]), "findings-fields"),
        (document(findings=[finding(text="Doe^Jane")]), "findings-fields"),
        (document(findings=[finding(index=1)]), "findings-index"),
        (document(findings=[finding(index=2)]), "findings-index"),
        (document(findings=[finding(index=-1)]), "findings-index"),
        (document(findings=[finding(frame=0)]), "findings-frame"),
        (document(findings=[finding(frame=2)]), "findings-frame"),
        (document(findings=[finding(kind="nest")]), "findings-kind"),
        (document(findings=[finding(kind=["lesion"])]), "findings-kind"),
        (document(findings=[finding(confidence=1.01)]), "findings-confidence"),
        (document(findings=[finding(confidence=-0.1)]), "findings-confidence"),
        (document(findings=[finding(confidence=True)]), "findings-confidence"),
        (document(findings=[finding(confidence="0.5")]), "findings-confidence"),
        (document(findings=[finding(shape="polygon")]), "findings-shape"),
        (document(findings=[finding(shape="region")]), "findings-shape"),
        (document(findings=[finding(shape=["circle"])]), "findings-shape"),
        (document(findings=[finding(points=[[50.0, 40.0]])]), "findings-points"),
        (document(findings=[finding(points=[[50.0, 40.0], [50.0, 40.0]])]), "findings-points"),
        (document(findings=[finding(points=[[50.0, 40.0], [60.0, 40.0, 1.0]])]), "findings-points"),
        (document(findings=[finding(points="50")]), "findings-points"),
        (document(findings=[finding(points=[[50.0, 40.0], [200.5, 40.0]])]), "findings-outside"),
        (document(findings=[finding(points=[[50.0, 100.5], [60.0, 40.0]])]), "findings-outside"),
        (document(findings=[finding(points=[[-0.5, 40.0], [60.0, 40.0]])]), "findings-outside"),
        (document(findings=[finding(measurements=[{"name": "area", "value": 1, "unit": "mm2"}])]), "findings-measurement"),
        (document(findings=[finding(measurements=[{"name": "diameter", "value": 1, "unit": "cm"}])]), "findings-measurement"),
        (document(findings=[finding(measurements=[{"name": "diameter", "value": -1, "unit": "mm"}])]), "findings-measurement"),
        (document(findings=[finding(measurements=[{"name": "diameter", "value": 1, "unit": "mm"}] * 2)]), "findings-measurement"),
        (document(findings=[finding(measurements={})]), "findings-measurement"),
        (document(findings=[finding(measurements=[{"name": "diameter", "value": 1}])]), "findings-fields"),
    ],
)
def test_one_wrong_thing_is_one_code(changed: dict[str, Any], code: str) -> None:
    assert codes(written(changed)) == (code,)


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda raw: raw.replace(b"0.75", b"NaN"), "json-not-finite"),
        (lambda raw: raw.replace(b"0.75", b"1e999"), "json-not-finite"),
        (lambda raw: raw.replace(b'"frame":1', b'"frame":1,"frame":1'), "json-duplicate-key"),
        (lambda raw: raw[:-1], "json-malformed"),
        (lambda raw: raw + b" " * (8 << 20), "json-too-large"),
        (lambda raw: b"[" * 200 + b"]" * 200, "json-too-deep"),
        (lambda raw: b"\x80\x04K\x01.", "json-malformed"),
        (lambda raw: b"", "json-malformed"),
        (lambda raw: b"null", "findings-fields"),
    ],
)
def test_what_is_not_strict_json_is_refused(spoil: Callable[[bytes], bytes], code: str) -> None:
    assert codes(spoil(written(document()))) == (code,)


def test_a_refusal_quotes_nothing_of_the_file() -> None:
    with pytest.raises(Refusal) as refused:
        read({**document(), "Doe^Jane": "Doe^Jane"})
    assert "Doe" not in str(refused.value) + repr(refused.value.codes)


@pytest.mark.parametrize(("confidence", "critical"), [(0.9, True), (1.0, True), (0.8999, False), (0.0, False)])
def test_a_finding_is_critical_from_the_declared_confidence_on(confidence: float, critical: bool) -> None:
    (one,) = read(document(findings=[finding(confidence=confidence)])).findings
    assert is_critical(MODEL, one) is critical


@pytest.mark.parametrize(
    ("points", "code"),
    [
        ([[50.0, 40.0], [60.0, 40.0], [60.0, 50.0]], ""),
        ([[50.0, 40.0], [60.0, 40.0]], "findings-points"),
        ([[50.0, 40.0], [60.0, 40.0], [50.0, 40.0]], "findings-points"),
        ([[50.0, 40.0], [60.0, 40.0], [60.0, 100.5]], "findings-outside"),
        ([[50.0, 40.0], [60.0, 40.0], [60.0, float(2)]] * 400, "findings-points"),
    ],
)
def test_a_region_is_an_outline_within_the_image(points: list[list[float]], code: str) -> None:
    kinds = tuple(replace(kind, shapes=("region",)) for kind in MODEL.findings.kinds)
    model = replace(MODEL, findings=replace(MODEL.findings, kinds=kinds))
    listed = [finding(shape="region", points=points)]
    if code:
        with pytest.raises(Refusal) as refused:
            read_listed(listed, model, IMAGES)
        assert refused.value.codes == (code,)
    else:
        (one,) = read_listed(listed, model, IMAGES)
        assert to_json(model, one) == listed[0]
