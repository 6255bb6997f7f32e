"""The instances of a scope by C-FIND, level by level: the hierarchical search, which every archive offers (PS3.4 C.4.1.3.1.1)."""

from collections.abc import Mapping

from blocks.dimse.association import associated, contexts
from blocks.dimse.services import FIND, Answer, answers
from blocks.endpoint import Endpoint
from blocks.pacs import value_of
from rapha.errors import PeerError

STUDY = {"StudyInstanceUID": "0020000D", "StudyDate": "00080020", "PatientID": "00100020"}
SERIES = {"SeriesInstanceUID": "0020000E", "Modality": "00080060", "BodyPartExamined": "00180015"}
IMAGE = {"SOPInstanceUID": "00080018", "SOPClassUID": "00080016"}


def find_instances(endpoint: Endpoint, filters: Mapping[str, str], *, most: int = 1_000_000) -> list[Answer]:
    """Every instance that matches, in DICOM JSON, with the attributes of all three levels; on one association.

    filters: StudyDate, Modality and BodyPartExamined -> value. A series whose answer does not show what was asked for is not
    asked about further: an archive that does not tell a series' body part has none of that body part. Raises `PeerError`
    pacs-list-odd for an answer without its UID, pacs-too-many beyond `most`, and every code of C-FIND.
    """
    if unknown := set(filters) - {"StudyDate", "Modality", "BodyPartExamined"}:
        raise PeerError("dimse-key-unknown", f"{len(unknown)} keys of a query have no level here", peer="pacs")
    asked = {keyword: value for keyword, value in filters.items() if keyword in STUDY}
    if "Modality" in filters:
        asked["ModalitiesInStudy"] = filters["Modality"]
    below = {keyword: value for keyword, value in filters.items() if keyword in SERIES}
    found: list[Answer] = []
    with associated(endpoint, contexts([FIND])) as association:
        for study in answers(association, "STUDY", {**dict.fromkeys(STUDY, ""), **asked}):
            above = {"StudyInstanceUID": _uid(study, STUDY["StudyInstanceUID"])}
            for series in answers(association, "SERIES", {**above, **dict.fromkeys(SERIES, ""), **below}):
                if any(value_of(series, SERIES[keyword]) != value for keyword, value in below.items()):
                    continue
                whose = {**above, "SeriesInstanceUID": _uid(series, SERIES["SeriesInstanceUID"])}
                for image in answers(association, "IMAGE", {**whose, **dict.fromkeys(IMAGE, "")}):
                    _uid(image, IMAGE["SOPInstanceUID"])
                    found.append({**_only(study, STUDY), **_only(series, SERIES), **_only(image, IMAGE)})
                    if len(found) > most:
                        raise PeerError("pacs-too-many", f"the archive lists more than {most} instances", peer="pacs")
    return found


def _uid(answer: Answer, tag: str) -> str:
    uid = value_of(answer, tag)
    if not uid:
        raise PeerError("pacs-list-odd", "the archive answers without the unique key of the level", peer="pacs")
    return uid


def _only(answer: Answer, level: Mapping[str, str]) -> Answer:
    return {tag: answer[tag] for tag in level.values() if tag in answer}
