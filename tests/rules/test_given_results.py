"""Results that a person hands over: what a listed model declares becomes findings on the right image, and nothing else does."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.applicability import SLIDE
from policies.given_results import Given, read_given
from policies.model import Code, FindingKind, Model
from rapha.errors import Refusal
from tests.fixtures.studies import MODEL, facts

TUMOR = FindingKind(
    kind="tumor-detection",
    code=Code(value="108369006", scheme="SCT", meaning="Neoplasm"),
    category=Code(value="49755003", scheme="SCT", meaning="Morphologically Altered Structure"),
    shapes=("point", "polygon"),
    critical_from=0.9,
)
PLATFORM = replace(
    MODEL,
    name="the-platform",
    version="1.0",
    findings=replace(MODEL.findings, kinds=(TUMOR,)),
    inputs=replace(MODEL.inputs, modalities=("SM",), sop_classes=(SLIDE,)),
)
# As the contract's example has it, but for the algorithm's name.
EXAMPLE: dict[str, Any] = {
    "algorithm_name": "the-platform-v1.0",
    "findings": [{"finding_type": "tumor_detection", "confidence": 0.95, "coordinates": [(100, 200), (150, 250)]}],
}
LESION = {"finding_type": "lesion", "confidence": 0.5, "coordinates": [[10, 20], [12, 20]], "shape": "circle"}
ON_CT = {"algorithm_name": "lesion-radiology", "findings": [LESION]}


def slide() -> list[Any]:
    """Two levels of one slide, and its label."""
    plain = {"sop_class": SLIDE, "modality": "SM", "flavour": "VOLUME", "rows": 1000, "columns": 1000}
    finest = facts(0, **plain, levels=2)
    return [finest, facts(1, **{**plain, "rows": 250, "columns": 250}, base=0), facts(2, **{**plain, "flavour": "LABEL"})]


def read(results: Any, instances: list[Any], models: tuple[Model, ...] = (MODEL, PLATFORM)) -> Given:
    return read_given(results, models, instances, [f"1.2.{one.index}" for one in instances])


def refused(results: Any, instances: list[Any]) -> str:
    with pytest.raises(Refusal) as no:
        read(results, instances)
    assert len(no.value.codes) == 1
    return no.value.codes[0]


def test_the_contracts_example_is_a_rectangle_on_the_slides_finest_level() -> None:
    found = read(EXAMPLE, slide())
    assert (found.model, found.read, found.critical) == (1, frozenset({0}), 1)
    (one,) = found.findings
    assert (one.index, one.frame, one.kind, one.shape) == (0, 1, "tumor-detection", "polygon")
    assert one.points == ((100, 200), (150, 200), (150, 250), (100, 250))


@pytest.mark.parametrize("name", ["lesion-radiology", f"lesion-radiology-{MODEL.version}", f"lesion-radiology-v{MODEL.version}"])
def test_an_algorithm_is_named_with_or_without_its_version(name: str) -> None:
    found = read({**ON_CT, "algorithm_name": name}, [facts(0)])
    assert (found.model, found.critical) == (0, 0)
    assert read({**ON_CT, "algorithm_version": MODEL.version}, [facts(0)]).model == 0
    assert refused({**ON_CT, "algorithm_name": name, "algorithm_version": "9"}, [facts(0)]) == "analysis-algorithm-unknown"


def test_what_was_read_is_what_is_named_or_what_has_findings() -> None:
    slices = [facts(0), facts(1), facts(2)]
    on = {**LESION, "sop_instance_uid": "1.2.1"}
    assert read({**ON_CT, "findings": [on]}, slices).read == {1}
    assert read({**ON_CT, "findings": [on], "instances": ["1.2.0", "1.2.1"]}, slices).read == {0, 1}
    assert read({**ON_CT, "findings": [], "instances": ["1.2.0", "1.2.2"]}, slices).read == {0, 2}
    assert read({**ON_CT, "findings": []}, [facts(0)]).read == {0}
    assert refused({**ON_CT, "findings": []}, slices) == "analysis-nothing-read"
    assert refused(ON_CT, slices) == "analysis-image-missing"


@pytest.mark.parametrize("changes", [{"same": False}, {"fault": "pixels-missing"}, {"own": True}, {"modality": "MR"}])
def test_an_image_that_the_model_would_not_be_shown_has_no_findings(changes: dict[str, Any]) -> None:
    on = {**ON_CT, "findings": [{**LESION, "sop_instance_uid": "1.2.0"}]}
    assert refused(on, [facts(0, **changes), facts(1)]) == "analysis-image-unknown"


def test_a_finding_on_an_image_of_several_frames_names_its_frame() -> None:
    assert refused(ON_CT, [facts(0, frames=3)]) == "analysis-image-missing"
    assert read({**ON_CT, "findings": [{**LESION, "frame": 3}]}, [facts(0, frames=3)]).findings[0].frame == 3
    assert refused({**ON_CT, "findings": [{**LESION, "frame": 4}]}, [facts(0, frames=3)]) == "findings-frame"


def test_a_measurement_has_the_unit_that_the_model_declares() -> None:
    with_one = {**LESION, "measurements": [{"name": "diameter", "value": 4.5}]}
    (found,) = read({**ON_CT, "findings": [with_one]}, [facts(0)]).findings
    assert [(one.name, one.value) for one in found.measurements] == [("diameter", 4.5)]
    for wrong, code in (
        ({"name": "volume", "value": 4.5}, "findings-measurement"),
        ({"name": "diameter", "value": -1}, "findings-measurement"),
        ({"name": "diameter", "value": 4.5, "unit": "cm"}, "analysis-malformed"),
    ):
        assert refused({**ON_CT, "findings": [{**LESION, "measurements": [wrong]}]}, [facts(0)]) == code


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["findings", "x", "finding_type"]), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([*LESION, *ON_CT, "instances", "sop_instance_uid", "frame", "measurements", "note"]), JUNK)
def test_whatever_stands_in_a_field_it_is_findings_or_one_code(field: str, value: Any) -> None:
    changed = {**ON_CT, field: value} if field in (*ON_CT, "instances") else {**ON_CT, "findings": [{**LESION, field: value}]}
    try:
        found = read(changed, [facts(0)])
    except Refusal as no:
        assert all(code.startswith(("analysis-", "findings-")) for code in no.codes)
        return
    assert found.read == {0}
    assert all(math.isfinite(number) for one in found.findings for point in one.points for number in point)
