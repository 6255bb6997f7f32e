"""What an archive may change of an object that it stores, and whether what it gives back is still ours. Pure.

PS3.4 B.2.3 lets an archive answer a C-STORE with a warning: 0xB000, attributes coerced; 0xB006, elements discarded. B.4.1.3 says
what coercion is for: to bring an object in line with the patient and the order as the archive knows them. So the list below is
closed: whose the object is, of which study and order, and the archive's own note of the change. All else, the content sequence,
evidence, references, flags, segments and pixels among it, comes back as it was sent, or it is another object.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Outcome = Literal["same", "coerced", "other", "absent"]

# Tag -> keyword, by the modules of PS3.3 that they come from.
PATIENT = {  # table C.7-1
    "00100010": "PatientName",
    "00100020": "PatientID",
    "00100021": "IssuerOfPatientID",
    "00100022": "TypeOfPatientID",
    "00100024": "IssuerOfPatientIDQualifiersSequence",
    "00100030": "PatientBirthDate",
    "00100032": "PatientBirthTime",
    "00100040": "PatientSex",
    "00101000": "OtherPatientIDs",
    "00101001": "OtherPatientNames",
    "00101002": "OtherPatientIDsSequence",
    "00102160": "EthnicGroup",
    "00104000": "PatientComments",
}
STUDY = {  # table C.7-3
    "00080020": "StudyDate",
    "00080030": "StudyTime",
    "00080050": "AccessionNumber",
    "00080051": "IssuerOfAccessionNumberSequence",
    "00080090": "ReferringPhysicianName",
    "00080096": "ReferringPhysicianIdentificationSequence",
    "0008009C": "ConsultingPhysicianName",
    "0008009D": "ConsultingPhysicianIdentificationSequence",
    "00081030": "StudyDescription",
    "00081032": "ProcedureCodeSequence",
    "00081048": "PhysiciansOfRecord",
    "00081049": "PhysiciansOfRecordIdentificationSequence",
    "00081060": "NameOfPhysiciansReadingStudy",
    "00081062": "PhysiciansReadingStudyIdentificationSequence",
    "00200010": "StudyID",
    "00321033": "RequestingService",
    "00321034": "RequestingServiceCodeSequence",
}
VISIT = {  # of table C.7-4a what is administrative: no weight, no diagnosis
    "00101010": "PatientAge",
    "00380010": "AdmissionID",
    "00380014": "IssuerOfAdmissionIDSequence",
    "00380060": "ServiceEpisodeID",
    "00380064": "IssuerOfServiceEpisodeIDSequence",
}
EQUIPMENT = {  # of table C.7-8 whose house it is
    "00080080": "InstitutionName",
    "00080081": "InstitutionAddress",
    "00080082": "InstitutionCodeSequence",
    "00081040": "InstitutionalDepartmentName",
}
COMMON = {  # of table C.12-1: the text is compared as it reads, and what was changed is noted here
    "00080005": "SpecificCharacterSet",
    "00080015": "InstanceCoercionDateTime",
    "04000561": "OriginalAttributesSequence",
}
COERCIBLE = {**PATIENT, **STUDY, **VISIT, **EQUIPMENT, **COMMON}
WHOSE = frozenset({"00100010", "00100020"})  # may be another, never nobody's


@dataclass(frozen=True, slots=True)
class Compared:
    """tags: of what the archive changed, `ggggeeee`, sorted; some only where the outcome is "coerced"."""

    outcome: Outcome
    tags: tuple[str, ...] = ()


def compare(ours: Mapping[str, str], theirs: Mapping[str, str]) -> Compared:
    """What was sent against what was given back: tag -> digest of the value, "" for an empty one."""
    changed = {tag for tag in {*ours, *theirs} if ours.get(tag) != theirs.get(tag)}
    if not changed:
        return Compared("same")
    if changed <= set(COERCIBLE) and not any(ours.get(tag) and not theirs.get(tag) for tag in WHOSE):
        return Compared("coerced", tuple(sorted(changed)))
    return Compared("other")
