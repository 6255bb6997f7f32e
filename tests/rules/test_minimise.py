"""Minimisation and pseudonyms, against the standard's own list of what identifies."""

import json
import re
from pathlib import Path

import pytest
from pydicom.datadict import dictionary_VR, keyword_for_tag

from policies.attributes import ALLOWED
from policies.minimise import IDENTIFIERS, canonical_identifier, minimise, minimise_counted, project_key, pseudonym
from rapha.errors import ConfigurationError, Refusal

KEY = project_key(bytes(range(32)), "project-a")
ORACLE = (
    Path(__file__).resolve().parents[2].parent / "shared" / "samples" / "standard" / "confidentiality_profile_attributes.json"
)
ROWS = json.loads(ORACLE.read_text())
ANNEX_E = {row["id"].upper() for row in ROWS}
PLAIN = sorted(tag for tag in ANNEX_E if re.fullmatch(r"[0-9A-F]{8}", tag))  # the others are ranges of groups


def test_the_oracle_is_whole():
    assert len(ROWS) == 621 and len(PLAIN) == 617
    assert {"00100010", "00100020", "0020000D", "00080050", "00081030"} <= set(ANNEX_E)


def test_nothing_that_the_basic_profile_acts_on_is_allowed_in_clear():
    assert not set(ALLOWED) & set(ANNEX_E)


@pytest.mark.parametrize("tag", PLAIN)
def test_each_attribute_of_annex_e_is_dropped_or_replaced(tag):
    vr = dictionary_VR(tag) if keyword_for_tag(tag) else "LO"
    planted = [{"00080100": {"vr": "SH", "Value": ["PLANTED-8"]}}] if vr == "SQ" else ["1.2.826.0.1.3680043.10.543.1"]
    kept = minimise({tag: {"vr": vr, "Value": planted}}, KEY)
    assert set(kept) <= set(IDENTIFIERS)
    assert "PLANTED" not in json.dumps(kept) and "3680043" not in json.dumps(kept)


@pytest.mark.parametrize("tag", ["60003000", "60004000", "60020022", "50003000", "7FE00010", "00420011", "FFFAFFFA"])
def test_overlays_curves_documents_and_pixels_are_dropped(tag):
    for attribute in ({"vr": "OB", "InlineBinary": "UExBTlRFRA=="}, {"vr": "OB", "BulkDataURI": "http://a/studies/1.2.3"}):
        assert minimise({tag: attribute}, KEY) == {}


def test_the_table_has_the_standards_keywords_and_vrs():
    for tag, rule in ALLOWED.items():
        assert (rule.keyword, rule.vr) == (keyword_for_tag(tag), dictionary_VR(tag)), tag
        assert rule.vr in {"CS", "UI", "DS", "IS", "US", "SS", "UL"}
        assert bool(rule.terms) is not (rule.low < rule.high)


@pytest.mark.parametrize(
    ("tag", "attribute", "reason"),
    [
        ("00180015", {"vr": "CS", "Value": ["SMITH JOHN"]}, "term"),
        ("00080060", {"vr": "CS", "Value": ["chest"]}, "term"),
        ("00080016", {"vr": "UI", "Value": ["1.2.826.0.1.3680043.10.1"]}, "term"),
        ("00080008", {"vr": "CS", "Value": ["ORIGINAL", "PRIMARY", "MRN12345678"]}, "term"),
        ("00200013", {"vr": "IS", "Value": [12345678]}, "range"),
        ("00200013", {"vr": "IS", "Value": [100_000]}, "range"),
        ("00280004", {"vr": "CS", "Value": []}, "malformed"),
        ("00100020", {"vr": "LO", "Value": ["HX12345678", "HX12345679"]}, "identifier"),
        ("00280030", {"vr": "DS", "Value": ["0.5 12345678"]}, "range"),
        ("00280030", {"vr": "DS", "Value": [True, True]}, "range"),
        ("00280030", {"vr": "DS", "Value": [float("nan"), 1.0]}, "range"),
        ("00280030", {"vr": "DS", "Value": [1.0, 1.0, 1.0]}, "malformed"),
        ("00280010", {"vr": "US", "Value": [64.5]}, "range"),
        ("00280010", {"vr": "LO", "Value": [64]}, "malformed"),
        ("00280010", {"vr": "US", "BulkDataURI": "http://a/12345678"}, "malformed"),
        ("00280010", {"vr": "US", "Value": [{"Alphabetic": "Smith"}]}, "range"),
        ("00091001", {"vr": "LO", "Value": ["MRN12345678"]}, "private"),
        ("00081111", {"vr": "SQ", "Value": [{}]}, "sequence"),
        ("00100020", {"vr": "LO", "Value": [""]}, "identifier"),
        ("0020000D", {"vr": "UI", "Value": ["Smith^John"]}, "identifier"),
        ("00100010", {"vr": "PN", "Value": [{"Alphabetic": "Smith^John"}]}, "not-allowed"),
    ],
)
def test_what_does_not_fit_is_dropped_and_counted(tag, attribute, reason):
    found = minimise_counted({tag: attribute}, KEY)
    assert found.metadata == {} and found.dropped == {reason: 1}


def test_numbers_keep_six_significant_digits():
    kept = minimise({"00280030": {"vr": "DS", "Value": ["0.123456789", 1.5]}, "00200032": {"vr": "DS", "Value": [-12.0]}}, KEY)
    assert kept["00280030"]["Value"] == [0.123457, 1.5]
    assert kept["00200032"]["Value"] == [-12]


@pytest.mark.parametrize("odd", [[], "text", {"PatientID": {"vr": "LO"}}, {"0010002": {}}, {"00100020": "x"}])
def test_what_is_not_dicom_json_refuses(odd):
    with pytest.raises(Refusal) as caught:
        minimise(odd, KEY)
    assert caught.value.codes == ("dicom-json-malformed",)


def test_one_tag_in_two_cases_refuses():
    with pytest.raises(Refusal):
        minimise({"0020000d": {"vr": "UI", "Value": ["1.2"]}, "0020000D": {"vr": "UI", "Value": ["1.3"]}}, KEY)


@pytest.mark.parametrize("kind", ["patient", "accession"])
@pytest.mark.parametrize(
    "other", ["ab123456", " AB123456 ", "00AB123456", "A B 1 2 3 4 5 6", "AB123456^^^HOSP", "ＡＢ１２３４５６", "AB123456\x00"]
)
def test_ways_of_writing_one_number_are_one_pseudonym(kind, other):
    assert pseudonym(KEY, kind, other) == pseudonym(KEY, kind, "AB123456")


def test_other_numbers_stay_others():
    numbers = ["0", "1", "10", "100", "AB1", "A-B1", "AB10", "AB1A"]
    assert len({pseudonym(KEY, "patient", number) for number in numbers}) == len(numbers)
    assert len({pseudonym(KEY, kind, "1234") for kind in ("patient", "accession", "study", "record")}) == 4


@pytest.mark.parametrize("empty", ["", "  ", "\x00", "^^^HOSP", "　"])
def test_an_empty_identifier_has_no_pseudonym(empty):
    with pytest.raises(Refusal) as caught:
        pseudonym(KEY, "patient", empty)
    assert caught.value.codes == ("identifier-empty",)


def test_zeros_alone_are_a_number():
    assert canonical_identifier("patient", "0000") == "0"


def test_an_unknown_kind_refuses():
    with pytest.raises(Refusal):
        pseudonym(KEY, "name", "x")  # type: ignore[arg-type]


@pytest.mark.parametrize("key", [b"", bytes(16), bytes(32), b"\x01" * 32, b"0123" * 8, bytes(33)])
def test_a_key_that_is_absent_short_or_a_pattern_refuses(key):
    with pytest.raises(ConfigurationError):
        project_key(key, "p")


def test_a_project_must_be_named():
    with pytest.raises(ConfigurationError):
        project_key(bytes(range(32)), "")
