"""The arrival and completeness gates: one changed fact, one code; and the equation as a property of sets."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.completeness import (
    ARRIVAL_GATE,
    COMPLETENESS_GATE,
    ArrivalEvidence,
    CompletenessEvidence,
    arrival_facts,
    completeness_facts,
    content_digest,
)
from policies.required import REQUIRED_CHECKS

D = [f"sha256:{i:064x}" for i in range(9)]
FACTS: dict[str, Any] = {"job": D[0], "attempt": 1, "nonce": "ab" * 32, "at": 1, "previous": D[1], "mode": "development"}
RECEIVED = {"a": D[2], "b": D[3], "c": D[4]}
ARRIVED = ArrivalEvidence(**FACTS, **arrival_facts(RECEIVED, RECEIVED, RECEIVED, 0))
READ = {"a": D[2], "b": D[3]}
COMPLETE = CompletenessEvidence(
    **FACTS,
    **completeness_facts(RECEIVED, READ, {"c": (D[4], "modality")}, READ),
    arrived_set=content_digest(RECEIVED),
    report=D[5],
    validated=True,
    proof="commitment",
)
EMPTY = CompletenessEvidence(
    **FACTS,
    **completeness_facts(RECEIVED, {}, {name: (sha, "modality") for name, sha in RECEIVED.items()}, {}),
    arrived_set=content_digest(RECEIVED),
    report="",
    validated=False,
    proof="",
)


def test_a_whole_study_clears_both() -> None:
    assert ARRIVAL_GATE.judge(ARRIVED).codes == ()
    assert COMPLETENESS_GATE.judge(COMPLETE).codes == ()
    assert COMPLETENESS_GATE.judge(EMPTY).codes == ()


def test_the_required_checks_are_the_gates() -> None:
    for gate in (ARRIVAL_GATE, COMPLETENESS_GATE):
        assert {c.name for c in gate.checks} == REQUIRED_CHECKS[gate.name]


ARRIVALS: dict[str, dict[str, str | int]] = {
    "arrival-nothing": arrival_facts([], [], {}, 0),
    "arrival-set-changed": arrival_facts(["a", "b"], RECEIVED, RECEIVED, 0),
    "arrival-missing": arrival_facts(RECEIVED, RECEIVED, {"a": D[2]}, 0),
    "arrival-extra": arrival_facts(["a"], ["a"], {"a": D[2], "z": D[3]}, 0),
    "arrival-conflict": arrival_facts(RECEIVED, RECEIVED, RECEIVED, 1),
    "arrival-unsealed": arrival_facts(RECEIVED, RECEIVED, {**RECEIVED, "a": ""}, 0),
}


@pytest.mark.parametrize("code", sorted(ARRIVALS))
def test_what_did_not_arrive_refuses(code: str) -> None:
    found = ARRIVAL_GATE.judge(ArrivalEvidence(**FACTS, **ARRIVALS[code])).codes
    assert code in found
    assert set(found) <= {code, "arrival-extra"}  # the equality of the sets says it as well


BROKEN: dict[str, list[CompletenessEvidence]] = {
    "completeness-unexplained": [replace(COMPLETE, unexplained=1), replace(COMPLETE, reasonless=1)],
    "completeness-overlap": [replace(COMPLETE, both=1), replace(COMPLETE, strange=1), replace(COMPLETE, analysed=1)],
    "completeness-content": [
        replace(COMPLETE, reanalysed=1),
        replace(COMPLETE, conflicts=1),
        replace(COMPLETE, arrived_set=content_digest({**RECEIVED, "c": D[8]})),
    ],
    "completeness-references": [
        replace(COMPLETE, unreferenced=1),
        replace(COMPLETE, overreferenced=1),
        replace(COMPLETE, referenced_set=D[7]),
    ],
    "completeness-no-report": [replace(COMPLETE, report=""), replace(COMPLETE, validated=False), replace(EMPTY, report=D[5])],
    "completeness-unproven": [replace(COMPLETE, proof=""), replace(EMPTY, proof="read-back")],
}


@pytest.mark.parametrize(("code", "evidence"), [(code, one) for code, several in BROKEN.items() for one in several])
def test_what_is_not_accounted_for_refuses(code: str, evidence: CompletenessEvidence) -> None:
    assert COMPLETENESS_GATE.judge(evidence).codes == (code,)


NAMES = st.sets(st.sampled_from("abcdef"))
CONTENTS = st.dictionaries(st.sampled_from("abc"), st.sampled_from(D[2:4]))


@st.composite
def accounts(draw: st.DrawFn) -> list[dict[str, str]]:
    """arrived, received, analysed, left out, referenced, each name -> content: the equation holds, but for what is drawn anew."""
    came = draw(CONTENTS)
    read = {name: sha for name, sha in came.items() if draw(st.booleans())}
    whole = [came, came, read, {name: sha for name, sha in came.items() if name not in read}, read]
    return [draw(CONTENTS) if draw(st.integers(0, 7)) == 0 else one for one in whole]


@given(accounts(), st.integers(0, 4).map(lambda n: n == 4))
def test_only_the_equation_clears(sets: list[dict[str, str]], conflict: bool) -> None:
    arrived, came, read, left, named = sets
    facts = completeness_facts(came, read, {name: (sha, "modality") for name, sha in left.items()}, named, int(conflict))
    facts["arrived_set"] = content_digest(arrived)
    whole: dict[str, Any] = {"report": D[5], "validated": True, "proof": "read-back"}
    none: dict[str, Any] = {"report": "", "validated": False, "proof": ""}
    cleared = COMPLETENESS_GATE.judge(CompletenessEvidence(**FACTS, **facts, **(whole if read else none))).codes == ()
    pairs = [set(one.items()) for one in sets]
    apart = not set(read) & set(left)
    equal = pairs[0] == pairs[1] == pairs[2] | pairs[3] and pairs[4] == pairs[2]
    assert cleared is (bool(came) and apart and equal and not conflict)


@given(NAMES, NAMES, NAMES)
def test_only_equal_sets_arrived(before: set[str], after: set[str], came: set[str]) -> None:
    facts = arrival_facts(before, after, {name: D[2] for name in came}, 0)
    assert (ARRIVAL_GATE.judge(ArrivalEvidence(**FACTS, **facts)).codes == ()) is (before == after == came != set())
