"""What a person may ask an archive, and which answers are within it. Pure.

A key bounds a question if an archive must match by it or each answer can be held to it; an archive ignores what it does not know
and answers with everything (PS3.4 C.2.2.1.3), so a question has at least one such key, and no answer beyond its keys is shown.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from fnmatch import translate
from typing import Any

from pydicom.datadict import dictionary_has_tag, dictionary_keyword, dictionary_VR, tag_for_keyword

from rapha.errors import ConfigurationError, Refusal

_BOUNDING = """PatientID PatientName PatientBirthDate StudyDate AccessionNumber StudyInstanceUID StudyID ModalitiesInStudy
SeriesInstanceUID SOPInstanceUID"""
_SERIES = """Modality SeriesInstanceUID SeriesNumber SeriesDescription SeriesDate SeriesTime BodyPartExamined ProtocolName
Laterality OperatorsName PerformingPhysicianName PerformedProcedureStepStartDate PerformedProcedureStepStartTime
NumberOfSeriesRelatedInstances"""
_IMAGE = "SOPInstanceUID SOPClassUID InstanceNumber ContentDate ContentTime AcquisitionDate AcquisitionTime"
# The question's own attributes and the archive's, which select nothing (PS3.4 C.4.1.1.3, table C.4-1; C.3.4).
_CONTROL = """SpecificCharacterSet QueryRetrieveLevel QueryRetrieveView RetrieveAETitle RetrieveURL RetrieveURI
InstanceAvailability TimezoneOffsetFromUTC StorageMediaFileSetID StorageMediaFileSetUID"""
# Required keys of the Study Root (PS3.4 tables C.6-5, C.6-3 and C.6-4): an archive matches them, but not against no value.
_REQUIRED = "StudyDate StudyTime AccessionNumber PatientName PatientID StudyID Modality SeriesNumber InstanceNumber"
BOUNDING, SERIES, IMAGE, CONTROL, REQUIRED = (
    frozenset(names.split()) for names in (_BOUNDING, _SERIES, _IMAGE, _CONTROL, _REQUIRED)
)
MODALITIES = "ModalitiesInStudy"  # an optional key: where an archive does not fill it in, its series are asked
# Characters of a value (PS3.5 table 6.2-1); where the standard has no bound that matters, ours.
LENGTHS = {"AE": 16, "CS": 16, "SH": 16, "LO": 64, "ST": 1024, "LT": 10240, "UC": 1024, "UR": 1024, "UT": 1024}
WILD = frozenset({*LENGTHS, "PN"})  # the others are matched without wildcards (PS3.4 C.2.2.2.4)
_ALONE = {"PN": "*?^= ", "DA": "*?- ", "TM": "*?- ", "DT": "*?- "}  # characters that select nothing when there is nothing else
_UID = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))*")
_TIME = re.compile(r"([01][0-9]|2[0-3])([0-5][0-9](([0-5][0-9]|60)(\.[0-9]{1,6})?)?)?")
_MOMENT = re.compile(r"[0-9]{4}([0-9]{2}([0-9]{2}([0-9]{2}([0-9]{2}([0-9]{2}(\.[0-9]{1,6})?)?)?)?)?)?([+-][0-9]{4})?")
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
Answer = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Question:
    """Keyword -> value, by the level whose attribute it is; "" has it returned and matches everything (PS3.4 C.2.2.2.3)."""

    study: Mapping[str, str]
    series: Mapping[str, str]
    image: Mapping[str, str]

    @property
    def keys(self) -> dict[str, str]:
        return {**self.study, **self.series, **self.image}

    @property
    def bound_at_study(self) -> bool:
        """Whether a search that starts at the studies is bound (PS3.4 C.4.1.3.1.1)."""
        return any(value and name in BOUNDING for name, value in self.study.items())

    def __repr__(self) -> str:
        return f"Question({', '.join(self.keys)})"  # the values are a patient's


def read_question(given: Iterable[tuple[str, object]]) -> Question:
    """The question of these keys: (keyword or eight hex digits of the tag, value).

    Raises `ConfigurationError` key-malformed (no attribute, not one that is matched as text, twice, or a value that its VR does
    not allow: PS3.5 section 6.2), key-control; `Refusal(query-broad)` where no key bounds it.
    """
    keys: dict[str, str] = {}
    for name, value in given:
        keyword = _keyword(name)
        if keyword in keys:
            raise _malformed(f"{keyword} stands twice")
        keys[keyword] = _value(keyword, value)
    if not any(value and name in BOUNDING for name, value in keys.items()):
        said = f"a query must be bound by a value that is no wildcard, of one of {', '.join(sorted(BOUNDING))}"
        raise Refusal(["query-broad"], said, gate="pacs", side="job")
    below = SERIES | IMAGE
    return Question(
        {name: value for name, value in keys.items() if name not in below},
        {name: value for name, value in keys.items() if name in SERIES},
        {name: value for name, value in keys.items() if name in IMAGE},
    )


def outside(answer: Answer, keys: Mapping[str, str]) -> str:
    """The first key that the answer is not within, or does not show; "" where it is within all of them."""
    return next((name for name, value in keys.items() if not matches(name, value, shown(answer, name))), "")


def is_unknown(answer: Answer, keys: Mapping[str, str]) -> bool:
    """Whether a required key is there without a value, which an archive takes for a match (PS3.4 C.2.2.1.2): to us it is none."""
    return any(
        value and name in REQUIRED and isinstance(answer.get(f"{_tag(name):08X}"), Mapping) and not shown(answer, name)
        for name, value in keys.items()
    )


def shown(answer: Answer, keyword: str) -> list[str]:
    """Every value of an attribute in DICOM JSON as text, a person's name group by group (PS3.18 F.2.2)."""
    attribute = answer.get(f"{_tag(keyword):08X}")
    values = attribute.get("Value") if isinstance(attribute, Mapping) else None
    found: list[str] = []
    for value in values if isinstance(values, list) else ():
        found += [str(one) for one in (value.values() if isinstance(value, Mapping) else [value]) if one not in (None, "")]
    return found


def matches(keyword: str, wanted: str, values: Iterable[str]) -> bool:
    """Whether one of the values is what was asked for: single value, list of UIDs, range or wildcard (PS3.4 C.2.2.2).

    Exact to the case, but for names of persons, for which an archive is free (C.2.2.2.1). Of a time of day or a date what the key
    leaves out is free too. Moments with a zone (DT) are left to the archive.
    """
    vr = dictionary_VR(_tag(keyword))
    if not wanted or vr == "DT":
        return True
    test = _TESTS.get(vr, _text)
    return any(test(wanted.strip(), value.strip(" \x00")) for value in values)


def widened(keys: Mapping[str, str]) -> dict[str, str]:
    """The keys as QIDO-RS is asked (`blocks.pacs.raw_query`): a blank within a value goes as a wildcard."""
    return {name: value.strip().replace(" ", "*") for name, value in keys.items()}


def _keyword(name: object) -> str:
    if not isinstance(name, str):
        raise _malformed("a key is a keyword or a tag of PS3.6")
    tag = int(name, 16) if re.fullmatch(r"[0-9A-Fa-f]{8}", name) else tag_for_keyword(name) if name else None
    keyword = dictionary_keyword(tag) if tag is not None and dictionary_has_tag(tag) else ""
    if not keyword:
        raise _malformed("give each key as KEYWORD=VALUE, with a keyword or a tag of PS3.6")
    if keyword in CONTROL or _tag(keyword) >> 16 < 0x0008:
        raise ConfigurationError(["key-control"], f"{keyword} selects nothing: a query's frame is not a key of it")
    return keyword


def _value(keyword: str, value: object) -> str:
    vr = dictionary_VR(_tag(keyword))
    if vr not in WILD and vr not in _VALID:
        raise _malformed(f"{keyword} is not matched by a text: its VR is {vr}")
    if not isinstance(value, str):
        raise _malformed(f"the value of {keyword} must be a text")
    if not value.strip(_ALONE.get(vr, "*? ")):
        return ""
    odd = any(unicodedata.category(one) in ("Cc", "Cs") for one in value)  # a control character, or what has no form in UTF-8
    if odd or ("\\" in value and vr != "UI") or not _VALID.get(vr, _short)(vr, value.strip()):
        raise _malformed(f"the value of {keyword} is not one of VR {vr} (PS3.5 section 6.2), or its range is reversed")
    return value.replace(" ", "") if vr in ("DA", "TM") else value.strip()


def _tag(keyword: str) -> int:
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise _malformed("a key is a keyword or a tag of PS3.6")
    return int(tag)


def _malformed(said: str) -> ConfigurationError:
    return ConfigurationError(["key-malformed"], said)


# -- values (PS3.5 table 6.2-1; in a query also with wildcards and ranges)


def _short(vr: str, value: str) -> bool:
    ascii_only = value.isascii() or vr not in ("AE", "UR")
    return len(value) <= LENGTHS[vr] and ascii_only and (vr != "CS" or bool(re.fullmatch(r"[A-Z0-9 _*?]+", value)))


def _person(_: str, value: str) -> bool:
    groups = value.split("=")
    return len(groups) <= 3 and all(len(group) <= 64 and group.count("^") <= 4 for group in groups)


def _uids(_: str, value: str) -> bool:
    return all(len(one) <= 64 and _UID.fullmatch(one) for one in value.split("\\"))


def _number(vr: str, value: str) -> bool:
    if vr == "IS":
        return bool(re.fullmatch(r"[+-]?[0-9]{1,11}", value)) and -(2**31) <= int(value) < 2**31
    return len(value) <= 16 and bool(_NUMBER.fullmatch(value))


def _ranged(is_one: Callable[[str], bool]) -> Callable[[str, str], bool]:
    def valid(_: str, value: str) -> bool:
        first, last = _ends(value)
        ends = [end for end in (first, last) if end]
        return all(map(is_one, ends)) and _padded(ends[0]) <= _padded(ends[-1], "9")

    return valid


def is_day(text: str) -> bool:
    """A day of the calendar, YYYYMMDD."""
    try:
        return bool(re.fullmatch(r"[0-9]{8}", text)) and bool(date(int(text[:4]), int(text[4:6]), int(text[6:])))
    except ValueError:
        return False


def _is_time(text: str) -> bool:
    return bool(_TIME.fullmatch(text))


def _moments(_: str, value: str) -> bool:
    """A hyphen may also begin a zone: each reading is tried (PS3.5 table 6.2-1, DT)."""
    cuts = [(value, "")] + [(value[:at], value[at + 1 :]) for at, one in enumerate(value) if one == "-"]
    return any(all(not end or _MOMENT.fullmatch(end) for end in cut) for cut in cuts)


_VALID: dict[str, Callable[[str, str], bool]] = {
    "PN": _person,
    "UI": _uids,
    "IS": _number,
    "DS": _number,
    "AS": lambda _, value: bool(re.fullmatch(r"[0-9]{3}[DWMY]", value)),
    "DA": _ranged(is_day),
    "TM": _ranged(_is_time),
    "DT": _moments,
}


# -- matching


def _ends(value: str) -> tuple[str, str]:
    first, dash, last = value.partition("-")
    return first.strip(), last.strip() if dash else first.strip()


def _padded(text: str, end: str = "0") -> str:
    return text.replace(".", "").ljust(14, end)


def _text(wanted: str, value: str) -> bool:
    return re.match(translate(wanted.replace("[", "[[]")), value) is not None


def _in_range(wanted: str, value: str) -> bool:
    first, last = _ends(wanted)
    return (not first or _padded(value, "9") >= _padded(first)) and (not last or _padded(value) <= _padded(last, "9"))


def _same_number(wanted: str, value: str) -> bool:
    try:
        return float(wanted) == float(value)
    except ValueError:
        return False


def _same_person(wanted: str, value: str) -> bool:
    """Whole, or component by component as far as the key goes, without regard to case and accents; in any one of its groups."""
    for group in (one for one in map(_plain, wanted.split("=")) if one.strip(_ALONE["PN"])):
        asked, there = group.split("^"), _plain(value).split("^")
        padded = there + [""] * (len(asked) - len(there))
        if _text(group, "^".join(there)) or all(not one or _text(one, other) for one, other in zip(asked, padded, strict=False)):
            return True
    return False


def _plain(name: str) -> str:
    letters = (one for one in unicodedata.normalize("NFKD", name) if not unicodedata.combining(one))
    return "".join(letters).casefold().strip().rstrip(" ^")


# Dots and colons within dates and times: as ACR-NEMA had them, and as archives may still (PS3.5 table 6.2-1, DA and TM).
_TESTS: dict[str, Callable[[str, str], bool]] = {
    "PN": _same_person,
    "DA": lambda wanted, value: is_day(old := value.replace(".", "")) and _in_range(wanted, old),
    "TM": lambda wanted, value: _is_time(old := value.replace(":", "")) and _in_range(wanted, old),
    "IS": _same_number,
    "DS": _same_number,
    "UI": lambda wanted, value: value in wanted.split("\\"),
}
