"""What a model may write: whatever it is, it is findings of its declaration or a refusal by code, and never anything else."""

import math
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from policies.applicability import STORAGE, InstanceFacts, applicability
from policies.findings import Findings, read_findings, to_json
from policies.model import read_model
from rapha.errors import Refusal
from tests.fixtures.studies import DIGEST, IMAGES, MODEL, SLIDES, declaration, document, facts, finding, written

NUMBERS = st.one_of(st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False))
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
RIGHT = st.builds(
    lambda x, y, r, c, d: finding(
        confidence=c,
        points=[[x, y], [x + r if x + r <= 200 else x - r, y]],
        measurements=[{"name": "diameter", "value": d, "unit": "mm"}],
    ),
    st.floats(0, 200),
    st.floats(0, 100),
    st.floats(1, 90),
    st.floats(0, 1),
    st.floats(0, 1000),
)


def outcome(raw: bytes) -> Findings | tuple[str, ...]:
    """Findings, or the codes of the refusal. Anything else that is raised is the test's failure."""
    try:
        return read_findings(raw, MODEL, DIGEST, IMAGES)
    except Refusal as refusal:
        return refusal.codes


def believable(found: Findings) -> bool:
    inside = all(0 <= x <= 200 and 0 <= y <= 100 for one in found.findings for x, y in one.points)
    finite = all(math.isfinite(n) for one in found.findings for point in one.points for n in point)
    whole = found.analysed | set(found.left_out) == {0, 1} and not found.analysed & set(found.left_out)
    return inside and finite and whole and all(one.index in found.analysed for one in found.findings)


@given(st.binary(max_size=400))
def test_any_bytes_are_findings_or_a_code(raw: bytes) -> None:
    found = outcome(raw)
    assert isinstance(found, tuple) and all(code.startswith(("findings-", "json-")) for code in found)


@given(JSON)
def test_any_json_is_findings_or_a_code(value: Any) -> None:
    assert isinstance(outcome(written(value)), tuple)


@given(st.sampled_from(sorted(finding())), JSON)
def test_any_value_in_any_field_of_a_finding(name: str, value: Any) -> None:
    found = outcome(written(document(findings=[finding(**{name: value})])))
    assert isinstance(found, tuple) or believable(found)


@given(st.sampled_from(sorted(document())), JSON)
def test_any_value_in_any_field_of_the_file(name: str, value: Any) -> None:
    found = outcome(written(document(**{name: value})))
    assert isinstance(found, tuple) or believable(found)


@given(st.lists(RIGHT, max_size=20))
def test_what_is_right_is_read_and_written_again_as_it_was(findings: list[dict[str, Any]]) -> None:
    found = read_findings(written(document(findings=findings)), MODEL, DIGEST, IMAGES)
    assert believable(found)
    again = [to_json(MODEL, one) for one in found.findings]
    assert read_findings(written(document(findings=again)), MODEL, DIGEST, IMAGES) == found


@given(st.integers(0, 400), st.integers(0, 255))
def test_one_changed_byte_never_makes_a_bug(place: int, byte: int) -> None:
    raw = bytearray(written(document()))
    raw[place % len(raw)] = byte
    found = outcome(bytes(raw))
    assert isinstance(found, tuple) or believable(found)


UIDS = st.one_of(
    st.sampled_from(sorted({*MODEL.inputs.sop_classes, *SLIDES.inputs.sop_classes})),
    st.from_regex(r"\A1\.2\.840\.10008\.5\.1\.4\.1\.1\.[0-9]{1,3}(\.[0-9]{1,2})?\Z"),
    st.just(STORAGE),
)
INSTANCE = st.builds(
    lambda uid, modality, flavour, fault, own: {
        "sop_class": uid, "modality": modality, "flavour": flavour, "fault": fault, "own": own,
    },
    UIDS,
    st.sampled_from(["CT", "DX", "CR", "SM", "SR", "MR", "", "KO"]),
    st.sampled_from(["VOLUME", "LABEL", "", "AXIAL", "OVERVIEW", "THUMBNAIL"]),
    st.sampled_from(["", "", "undecodable", "transfer-syntax"]),
    st.booleans(),
)  # fmt: skip


@given(st.lists(INSTANCE, max_size=30))
def test_every_instance_has_exactly_one_answer(changes: list[dict[str, Any]]) -> None:
    instances: list[InstanceFacts] = [facts(index, **changed) for index, changed in enumerate(changes)]
    found = applicability(instances, [MODEL, SLIDES])
    read = {index for _, indexes in found.reading for index in indexes}
    assert read | set(found.left_out) == set(range(len(instances))) and not read & set(found.left_out)
    assert all(found.left_out.values())
    assert not [
        i
        for i in read
        if instances[i].own or instances[i].fault or (instances[i].flavour == "LABEL" and instances[i].modality == "SM")
    ]


@settings(max_examples=60)
@given(st.sampled_from(sorted(declaration())), JSON)
def test_any_value_in_any_field_of_a_declaration(name: str, value: Any) -> None:
    changed = {**declaration(), name: value}
    try:
        assert read_model(written(changed)).name
    except Refusal as refusal:
        assert all(code.startswith(("model-", "json-")) for code in refusal.codes)
