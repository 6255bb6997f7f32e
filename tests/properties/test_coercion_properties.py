"""What an archive may change of an object that it stores: whose it is and of which order, and nothing of what it says.

On a real report and a real segmentation, one value at any depth changed at a time, and any number of attributes that may change.
"""

import copy
import io
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import DataElement, dcmread
from pydicom.datadict import dictionary_keyword, dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset

from blocks.archive import attribute_digests
from infra.hospital.reading_cohort import make_study
from policies.coercion import COERCIBLE, Compared, compare
from tests.peers.test_reports import REPORTS
from tests.peers.test_segmentations import THREE, made

# Retyped: patient, study, visit, institution, and the archive's own note of a change (PS3.3 C.7.1.1, C.7.2, C.7.5.1, C.12.1).
_MAY = """
PatientName PatientID IssuerOfPatientID TypeOfPatientID IssuerOfPatientIDQualifiersSequence PatientBirthDate PatientBirthTime
PatientSex OtherPatientIDs OtherPatientNames OtherPatientIDsSequence EthnicGroup PatientComments StudyDate StudyTime
AccessionNumber IssuerOfAccessionNumberSequence ReferringPhysicianName ReferringPhysicianIdentificationSequence
ConsultingPhysicianName ConsultingPhysicianIdentificationSequence StudyDescription ProcedureCodeSequence PhysiciansOfRecord
PhysiciansOfRecordIdentificationSequence NameOfPhysiciansReadingStudy PhysiciansReadingStudyIdentificationSequence StudyID
RequestingService RequestingServiceCodeSequence PatientAge AdmissionID IssuerOfAdmissionIDSequence ServiceEpisodeID
IssuerOfServiceEpisodeIDSequence InstitutionName InstitutionAddress InstitutionCodeSequence InstitutionalDepartmentName
SpecificCharacterSet InstanceCoercionDateTime OriginalAttributesSequence
"""
_NEVER = """
SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID Modality ContentDate ContentTime TimezoneOffsetFromUTC
CompletionFlag VerificationFlag PreliminaryFlag VerifyingObserverSequence ContentSequence ContentTemplateSequence
ConceptNameCodeSequence CurrentRequestedProcedureEvidenceSequence PertinentOtherEvidenceSequence ReferencedRequestSequence
PredecessorDocumentsSequence IdenticalDocumentsSequence ReferencedSeriesSequence ReferencedInstanceSequence SegmentSequence
SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence PixelData Rows Columns NumberOfFrames
ContributingEquipmentSequence PatientIdentityRemoved PatientWeight
"""
MAY, NEVER = set(_MAY.split()), _NEVER.split()
TEXT = st.text("ABCDEFGHIJ abcdefghij0123456789", min_size=1, max_size=12).map(lambda text: f"Z{text}".strip())
BY_VR: dict[str, st.SearchStrategy[Any]] = {
    "DA": st.dates().map(lambda day: f"{day:%Y%m%d}".zfill(8)),
    "TM": st.times().map(lambda time: f"{time:%H%M%S}"),
    "DT": st.dates().map(lambda day: f"{day:%Y%m%d}120000".zfill(14)),
    "AS": st.integers(1, 120).map(lambda years: f"{years:03d}Y"),
    "CS": st.sampled_from(["M", "F", "O", "ZETA"]),
    "SQ": TEXT.map(lambda text: [_item(text)]),
}
QUIET = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def _item(text: str) -> Dataset:
    item = Dataset()
    item.CodeValue = text
    return item


@cache
def files() -> tuple[bytes, ...]:
    """A report with findings, and a segmentation."""
    return REPORTS["no 3D"](), made(make_study("ct", 3, 1)[:1], THREE[0]).segmentations[0]


def file_of(dataset: Dataset) -> bytes:
    out = io.BytesIO()
    dataset.save_as(out)
    return out.getvalue()


def leaves(dataset: Dataset, top: str = "") -> Iterator[tuple[str, DataElement]]:
    """(keyword at the top, element) of every value at any depth."""
    for element in dataset:
        above = top or element.keyword
        if element.VR == "SQ":
            for item in element.value:
                yield from leaves(item, above)
        else:
            yield above, element


def spoilt(element: DataElement) -> Any:
    """Another value of its kind."""
    if isinstance(element.value, bytes):
        return bytes([element.value[0] ^ 1]) + element.value[1:]
    if element.VR == "UI":
        return f"{element.value}.1"
    if element.VR in ("US", "UL", "SS", "SL", "FL", "FD"):
        values = list(element.value) if element.VM > 1 else [element.value or 0]
        return [values[0] + 1, *values[1:]] if element.VM > 1 else values[0] + 1
    kinds = {"IS": "7777", "DS": "7.25", "DA": "19010203", "TM": "010203.5", "DT": "19010203040506", "AS": "007Y", "CS": "ZETA"}
    if element.VR == "AT":
        return 0x00100010 if element.value != 0x00100010 else 0x00100020
    return kinds.get(element.VR, "Zeta")


@st.composite
def coerced(draw: st.DrawFn) -> tuple[bytes, Dataset, set[str]]:
    """(an object as it was sent, as an archive would coerce it, what of it changed)."""
    sent = draw(st.sampled_from(files()))
    dataset, ours = dcmread(io.BytesIO(sent)), attribute_digests(sent)
    for name in draw(st.sets(st.sampled_from(sorted(MAY - {"SpecificCharacterSet"})), max_size=5)):
        setattr(dataset, name, draw(BY_VR.get(dictionary_VR(name), TEXT)))
    now = attribute_digests(file_of(dataset))
    return sent, dataset, {tag for tag in {*ours, *now} if ours.get(tag) != now.get(tag)}


@QUIET
@given(coerced())
def test_what_may_change_is_coerced_and_named_by_its_tags(given: tuple[bytes, Dataset, set[str]]) -> None:
    sent, dataset, changed = given
    found = compare(attribute_digests(sent), attribute_digests(file_of(dataset)))
    assert found == (Compared("coerced", tuple(sorted(changed))) if changed else Compared("same"))
    assert {dictionary_keyword(int(tag, 16)) for tag in changed} <= MAY


@QUIET
@given(coerced(), st.integers(0, 10_000))
def test_one_value_at_any_depth_that_may_not_change_is_another_object(given: tuple[bytes, Dataset, set[str]], at: int) -> None:
    sent, dataset, _ = given
    choice = [(top, element) for top, element in leaves(dataset) if top not in MAY]
    top, element = choice[at % len(choice)]
    element.value = spoilt(element)
    assert compare(attribute_digests(sent), attribute_digests(file_of(dataset))) == Compared("other"), (top, element.keyword)


@QUIET
@given(coerced(), st.sampled_from(NEVER), st.booleans())
def test_what_is_left_out_or_added_beside_the_list_is_another_object(
    given: tuple[bytes, Dataset, set[str]], name: str, private: bool
) -> None:
    sent, dataset, _ = given
    if private:
        dataset.private_block(0x0029, "AN ARCHIVE", create=True).add_new(1, "LO", "its own")
    elif name in dataset:
        del dataset[name]
    else:
        dataset.add(DataElement(tag_for_keyword(name) or 0, dictionary_VR(name), [] if dictionary_VR(name) == "SQ" else None))
    assert compare(attribute_digests(sent), attribute_digests(file_of(dataset))) == Compared("other")


@pytest.mark.parametrize("name", ["PatientName", "PatientID"])
@pytest.mark.parametrize("left_out", [False, True])
def test_a_report_of_nobody_is_not_ours(name: str, left_out: bool) -> None:
    for sent in files():
        dataset = dcmread(io.BytesIO(sent))
        setattr(dataset, name, None)
        if left_out:
            delattr(dataset, name)
        assert compare(attribute_digests(sent), attribute_digests(file_of(dataset))) == Compared("other")
        other = copy.deepcopy(dataset)
        setattr(other, name, "Zeta")
        assert compare(attribute_digests(sent), attribute_digests(file_of(other))).outcome == "coerced"


def test_the_list_is_the_retyped_one_and_names_each_tag_by_its_keyword() -> None:
    assert {tag: dictionary_keyword(int(tag, 16)) for tag in COERCIBLE} == COERCIBLE
    assert set(COERCIBLE.values()) == MAY and not MAY & set(NEVER)
    assert not [name for name in MAY if dictionary_VR(name) == "UI"]
