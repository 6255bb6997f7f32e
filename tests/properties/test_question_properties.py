"""A person's question, property by property: what is not bound is never asked, what is beyond it is never within."""

from unicodedata import category

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.datadict import dictionary_VR, tag_for_keyword

from policies.question import BOUNDING, CONTROL, IMAGE, SERIES, matches, outside, read_question
from rapha.errors import ConfigurationError, Refusal

MANY = settings(max_examples=200, deadline=None)
NAMES = st.sampled_from(sorted(BOUNDING | SERIES | IMAGE | {"PatientSex", "StudyDescription", "NumberOfStudyRelatedInstances"}))
LONE = st.text("*? ", max_size=70)
ID = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"], exclude_characters="\\*?"), min_size=1, max_size=32)


@MANY
@given(st.dictionaries(NAMES, LONE))
def test_wildcards_alone_bound_nothing(keys: dict[str, str]) -> None:
    with pytest.raises(Refusal) as broad:
        read_question(keys.items())
    assert broad.value.codes == ("query-broad",)


@MANY
@given(st.dictionaries(st.text(max_size=12) | NAMES | st.sampled_from(sorted(CONTROL)), st.text(max_size=80) | ID))
def test_any_keys_are_a_bound_question_or_a_code(keys: dict[str, str]) -> None:
    """What stands has a key that an answer is held to; no control character, and nothing longer than its VR, is ever asked."""
    try:
        question = read_question(keys.items())
    except (ConfigurationError, Refusal) as error:
        assert error.codes[0] in ("key-malformed", "key-control", "query-broad")
        return
    asked = question.keys
    assert any(asked[name].strip("*? ") for name in BOUNDING & set(asked)) and not CONTROL & set(asked)
    assert not any(category(one) in ("Cc", "Cs") for value in asked.values() for one in value)
    assert outside({}, {name: value for name, value in asked.items() if value and dictionary_VR(tag_for_keyword(name)) != "DT"})


@MANY
@given(ID, ID)
def test_an_identifier_matches_itself_alone(wanted: str, other: str) -> None:
    assert matches("PatientID", wanted, [wanted])
    assert matches("PatientID", wanted, [other]) is (wanted.strip() == other.strip())
    assert matches("PatientID", f"{wanted}*", [wanted + other]) and matches("PatientID", f"*{other}", [wanted + other])


@MANY
@given(st.dates(), st.dates(), st.dates())
def test_a_range_of_days_holds_both_its_ends_and_nothing_beyond(one: object, two: object, day: object) -> None:
    first, last, at = (f"{moment:%Y%m%d}".rjust(8, "0") for moment in (one, two, day))
    if first > last:
        with pytest.raises(ConfigurationError):
            read_question([("StudyDate", f"{first}-{last}")])
        first, last = last, first
    key = read_question([("StudyDate", f"{first}-{last}")]).study["StudyDate"]
    assert matches("StudyDate", key, [at]) is (first <= at <= last)
    assert matches("StudyDate", key, [first]) and matches("StudyDate", key, [last])
    assert matches("StudyDate", f"{first}-", [at]) is (at >= first) and matches("StudyDate", f"-{last}", [at]) is (at <= last)
