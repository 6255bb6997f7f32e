"""A person's question: which keys bound it, which values are of their VR, which answers are within it."""

from typing import Any

import pytest

from policies.question import BOUNDING, CONTROL, is_unknown, matches, outside, read_question, shown, widened
from rapha.errors import ConfigurationError, RaphaError, Refusal


def code(*keys: str) -> str:
    """Of the refusal; "" where the question stands."""
    try:
        read_question((name, value) for name, _, value in (key.partition("=") for key in keys))
    except RaphaError as error:
        (found,) = error.codes
        return found
    return ""


@pytest.mark.parametrize(
    "key",
    [
        "PatientID=",
        "PatientID=*",
        "PatientID=?*",
        "PatientName==",
        "PatientName=^^*",
        "StudyDate=-",
        "StudyInstanceUID=*",
        "NumberOfStudyRelatedInstances=5",
        "BodyPartExamined=ZZZ",
        "Modality=CT",
        "PatientSex=F",
        "StudyTime=10",
    ],
)
def test_a_key_that_bounds_nothing_is_a_broad_question(key: str) -> None:
    assert code(key) == "query-broad"
    assert code(key, "PatientID=4711" if not key.startswith("PatientID") else "StudyDate=20260101") == ""


@pytest.mark.parametrize("name", sorted(CONTROL))
def test_the_questions_own_attributes_are_no_keys(name: str) -> None:
    assert code(f"{name}=X", "PatientID=4711") == "key-control"


@pytest.mark.parametrize(
    "key",
    [
        "=x",
        "Nonsense=1",
        "00100021X=1",
        "FFFFFFFF=1",
        "PixelData=1",
        "Rows=abc",
        "ReferencedStudySequence=1",
        f"PatientID={'a' * 65}",
        f"PatientID={'a' * 66000}",
        f"StudyID={'a' * 17}",
        "PatientID=a\\b",
        "PatientID=a\tb",
        "PatientID=\udce9",
        f"PatientName={'a' * 65}",
        "PatientName=a=b=c=d",
        "PatientName=a^b^c^d^e^f",
        "ModalitiesInStudy=ct",
        "StudyDate=20260230",
        "StudyDate=2026",
        "StudyDate=20260131-20260101",
        "StudyDate=20260101-20260131-",
        "StudyTime=2400",
        "StudyTime=11-10",
        "StudyInstanceUID=1.02.3",
        "StudyInstanceUID=1.2.*",
        f"StudyInstanceUID=1.{'2' * 63}",
        "SeriesNumber=2147483648",
        "SeriesNumber=one",
        "PatientAge=9Y",
        "AcquisitionDateTime=now",
    ],
)
def test_what_no_archive_can_match_is_wrong_usage(key: str) -> None:
    assert code(key, "AccessionNumber=A1") == "key-malformed"


@pytest.mark.parametrize(
    "key",
    [
        "00100020=1CT1",
        f"PatientID={'a' * 64}",
        "PatientName=M\u00fcller^J*=\u5c71\u7530",
        "StudyDate=20240229",
        "StudyDate=20260101-",
        "StudyDate=-20260131",
        "StudyInstanceUID=1.2.3\\1.2.0",
        "ModalitiesInStudy=C?",
        "SeriesInstanceUID=1.2",
    ],
)
def test_a_question_that_is_bound_stands(key: str) -> None:
    assert code(key) == ""


def test_a_key_stands_once_whatever_it_is_called() -> None:
    assert code("00100020=1", "PatientID=1") == "key-malformed"


def test_only_texts_are_values() -> None:
    for value in (None, 1, b"1", ["1"]):
        with pytest.raises(ConfigurationError):
            read_question([("PatientID", value)])


def test_keys_are_asked_at_their_own_level() -> None:
    question = read_question(
        [("00100020", "1"), ("Modality", "CT"), ("SOPClassUID", "1.2"), ("StudyDate", "20260101 - 20260131")]
    )
    assert question.study == {"PatientID": "1", "StudyDate": "20260101-20260131"}
    assert (question.series, question.image) == ({"Modality": "CT"}, {"SOPClassUID": "1.2"})
    assert question.bound_at_study and not read_question([("SOPInstanceUID", "1.2"), ("PatientSex", "F")]).bound_at_study
    assert "1" not in repr(question)


def test_no_message_quotes_a_value() -> None:
    for key in (f"PatientID={'NEEDLE' * 20}", "StudyDate=NEEDLE", "NEEDLE=NEEDLE"):
        with pytest.raises((ConfigurationError, Refusal)) as wrong:
            read_question([tuple(key.split("="))])
        assert "NEEDLE" not in wrong.value.message


@pytest.mark.parametrize(
    ("keyword", "wanted", "value", "within"),
    [
        ("PatientID", "4711", "4711", True),
        ("PatientID", "4711", "4711 ", True),
        ("PatientID", "abc", "ABC", False),
        ("PatientID", "47*", "4711", True),
        ("PatientID", "47?", "4711", False),
        ("PatientID", "4[7]", "47", False),
        ("PatientID", "4[7]", "4[7]", True),
        ("PatientName", "doe^john", "DOE^JOHN", True),
        ("PatientName", "M\u00fcller", "MULLER^ANNA", True),
        ("PatientName", "DOE", "ROE^JOHN", False),
        ("PatientName", "DOE^JIM", "DOE^JOHN", False),
        ("PatientName", "D*N", "DOE^JOHN", True),
        ("PatientName", "^JOHN", "DOE^JOHN", True),
        ("PatientName", "^JOHN", "JOHN^DOE", False),
        ("PatientName", "Yamada^Taro", "\u5c71\u7530^\u592a\u90ce", False),
        ("StudyDate", "20260101", "20260101", True),
        ("StudyDate", "20260101-20260131", "20260201", False),
        ("StudyDate", "20260101-", "20251231", False),
        ("StudyDate", "-20260131", "20260131", True),
        ("StudyTime", "1015", "101559.9", True),
        ("StudyTime", "1015-1016", "101700", False),
        ("StudyInstanceUID", "1.2\\1.3", "1.3", True),
        ("StudyInstanceUID", "1.2\\1.3", "1.23", False),
        ("SeriesNumber", "1", "01", True),
        ("SeriesNumber", "1", "10", False),
        ("ModalitiesInStudy", "C?", "CT", True),
    ],
)
def test_an_answer_is_held_to_the_key(keyword: str, wanted: str, value: str, within: bool) -> None:
    assert matches(keyword, wanted, [value]) is within
    assert matches(keyword, wanted, ["QQ^X" if keyword == "PatientName" else "9", value]) is within  # one of several is enough
    assert not matches(keyword, wanted, [])


def test_an_answer_that_does_not_show_a_key_is_outside() -> None:
    answer: dict[str, Any] = {
        "00100020": {"vr": "LO", "Value": ["4711"]},
        "00100010": {"vr": "PN", "Value": [{"Alphabetic": "Yamada^Taro", "Ideographic": "\u5c71\u7530^\u592a\u90ce"}]},
        "00080061": {"vr": "CS", "Value": ["CT", "SR"]},
        "00080020": {"vr": "DA"},
    }
    assert outside(answer, {"PatientID": "4711", "PatientName": "yamada", "ModalitiesInStudy": "SR", "StudyDate": ""}) == ""
    assert outside(answer, {"PatientID": "4711", "PatientBirthDate": "19700101"}) == "PatientBirthDate"
    assert outside(answer, {"StudyDate": "20260101"}) == "StudyDate"
    assert outside({"00100020": "4711"}, {"PatientID": "4711"}) == "PatientID"
    assert shown(answer, "PatientName") == ["Yamada^Taro", "\u5c71\u7530^\u592a\u90ce"]


def test_a_required_key_without_a_value_is_a_match_to_an_archive_and_none_to_us() -> None:
    empty: dict[str, Any] = {"00080050": {"vr": "SH"}, "00100030": {"vr": "DA"}, "00100020": {"vr": "LO", "Value": [""]}}
    assert is_unknown(empty, {"AccessionNumber": "A1"}) and is_unknown(empty, {"PatientID": "4711"})
    assert not is_unknown(empty, {"AccessionNumber": ""}) and not is_unknown(empty, {"StudyID": "1"})
    assert not is_unknown(empty, {"PatientBirthDate": "19700101"})  # an optional key: an archive may not know it at all


def test_a_blank_of_a_web_question_is_a_wildcard_and_no_more() -> None:
    assert widened({"PatientName": "DOE JOHN "}) == {"PatientName": "DOE*JOHN"}


def test_every_bounding_key_is_held() -> None:
    assert [name for name in BOUNDING if matches(name, "1.2" if name.endswith("UID") else "20260101", ["9.9"])] == []
