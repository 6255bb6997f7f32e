"""Whatever a data set holds, what was planted in it does not come out; however a number is written, it is one person's."""

import json
import string

from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.datadict import DicomDictionary

from policies.attributes import ALLOWED
from policies.minimise import IDENTIFIERS, minimise, minimise_counted, project_key, pseudonym

KEY = project_key(bytes(range(32)), "project-a")
PLANTED = "HX87654321"
tags = st.one_of(
    st.sampled_from([f"{tag:08X}" for tag in DicomDictionary]),
    st.sampled_from(sorted({*ALLOWED, *IDENTIFIERS})),
    st.from_regex(r"[0-9A-F]{8}", fullmatch=True),
)
VRS = "AE AS CS DA DS DT FD IS LO LT OB OW PN SH SL SQ SS ST TM UC UI UL UN UR US UT"
vrs = st.sampled_from(VRS.split())
planted = st.sampled_from(
    [
        PLANTED,
        f"ORIGINAL {PLANTED}",
        PLANTED.lower(),
        f"1.2.840.10008.{PLANTED[2:]}",
        {"Alphabetic": PLANTED},
        int(PLANTED[2:]),
        None,
    ]
) | st.floats(allow_nan=True)
values = st.recursive(
    planted, lambda inner: st.dictionaries(tags, st.fixed_dictionaries({"vr": vrs, "Value": st.lists(inner, max_size=3)}))
)
attributes = st.one_of(
    st.fixed_dictionaries({"vr": vrs, "Value": st.lists(values, max_size=3)}),
    st.fixed_dictionaries({"vr": vrs, "InlineBinary": st.just(PLANTED)}),
    st.fixed_dictionaries({"vr": vrs, "BulkDataURI": st.just(f"http://a/{PLANTED}")}),
)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(tags, attributes, max_size=12))
def test_nothing_planted_comes_out(dataset):
    found = minimise_counted(dataset, KEY)
    text = json.dumps(found.metadata).upper()
    assert PLANTED not in text and PLANTED[2:] not in text
    assert set(found.metadata) <= {*ALLOWED, *IDENTIFIERS}
    assert len(found.metadata) + sum(found.dropped.values()) == len(dataset)


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(tags, attributes, max_size=6))
def test_minimising_twice_gives_the_same_clear_attributes(dataset):
    once = {tag: value for tag, value in minimise(dataset, KEY).items() if tag in ALLOWED}
    assert minimise(once, KEY) == once


numbers = st.text(string.ascii_uppercase + string.digits, min_size=1, max_size=16)


@settings(deadline=None)
@given(numbers, st.sampled_from(["patient", "accession"]), st.data())
def test_D07_every_way_of_writing_is_one_pseudonym(number, kind, data):
    zeros, blanks, issuer = (
        data.draw(st.sampled_from(options)) for options in (["", "0", "000"], ["", " ", "  "], ["", "^^^H", "^5^M11^H"])
    )
    spaced = blanks.join(number) if data.draw(st.booleans()) else f"{blanks}{number}{blanks}"
    written = data.draw(st.sampled_from([str.lower, str.upper, str.title]))(f"{zeros}{spaced}{issuer}")
    assert pseudonym(KEY, kind, written) == pseudonym(KEY, kind, number)


@settings(deadline=None)
@given(st.lists(st.from_regex(r"[1-9][A-Z0-9]{0,15}", fullmatch=True), unique=True, min_size=2, max_size=50))
def test_D09_other_numbers_have_other_pseudonyms_of_256_bits(many):
    names = [pseudonym(KEY, "patient", number) for number in many]
    assert len(set(names)) == len(many)
    assert all(len(name) == 64 and set(name) <= set("0123456789abcdef") for name in names)
