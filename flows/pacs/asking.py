"""A person's question, asked level by level and held: what an archive answers beyond it is a failed peer, and nothing is shown.

A study is asked for by what is its own (PS3.4 C.4.1.3.1.1); where keys of its series or instances are given, one of them must be
within those. Every exchange is in the audit trail where the archive is witnessed.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

from pydicom.datadict import tag_for_keyword

from blocks.archive import INSTANCE, MODALITY, SERIES, SOP_CLASS, STUDY, Archive
from blocks.dimse import services
from blocks.pacs import Answer, value_of
from blocks.witnessed import WitnessedArchive
from policies.question import MODALITIES, Question, is_unknown, matches, outside, shown, widened
from rapha.errors import PeerError, Refusal

Level = Literal["study", "series", "instance"]
UNIQUE: Mapping[Level, str] = {"study": STUDY, "series": SERIES, "instance": INSTANCE}
FIELDS = (STUDY, SERIES, INSTANCE, SOP_CLASS, "00100020", MODALITY, "00080020", "00180015")


def ask(archive: Archive, question: Question, level: Level = "study", limit: int | None = None) -> list[Answer]:
    """The first `limit` studies, series or instances within the question, with the attributes of the levels above them.

    Raises `Refusal(query-broad)` where only a relational archive could bound it and this one is asked by DIMSE; `PeerError`
    pacs-answer-outside, pacs-list-odd, and of the archive.
    """
    found: dict[str, Answer] = {}
    for answer in _within(archive, question, level, limit):
        if limit is not None and len(found) >= limit:
            break
        found.setdefault(_uid(answer, UNIQUE[level]), answer)
    return list(found.values())


def _within(archive: Archive, question: Question, level: Level, limit: int | None) -> Iterator[Answer]:
    if not question.bound_at_study:
        yield from _relational(archive, question)
        return
    for study in _studies(archive, question, level, limit):
        if not _has_modality(archive, study, question.study.get(MODALITIES, "")):
            continue
        below = _below(archive, study, question, level) if level != "study" or _is_deep(question) else iter([study])
        yield from below if level != "study" else ([study] if next(below, None) is not None else [])


def _studies(archive: Archive, question: Question, level: Level, limit: int | None) -> list[Answer]:
    """Held to the keys of a study, but for the modalities in it."""
    keys = {name: value for name, value in question.study.items() if name != MODALITIES}
    if archive.endpoint.port:
        return _held(archive.find_studies(question.study), keys)
    asked = _given(question.study)
    if limit is None or level != "study" or _is_deep(question) or question.study.get(MODALITIES):
        return _held_web(archive.find_studies(asked), keys)  # which of them are within is seen below them
    with _told(archive, "STUDY", question.study):
        return _held_web(archive.web().list_studies(asked, (MODALITIES, *question.study), limit=limit), keys)


def _relational(archive: Archive, question: Question) -> Iterator[Answer]:
    """Without a key of patient or study: QIDO-RS can be asked so, a hierarchical search cannot."""
    if archive.endpoint.port:
        said = "over DIMSE a query starts at the study (PS3.4 C.4.1.3.1.1): name a key of the patient or study too"
        raise Refusal(["query-broad"], said, gate="pacs", side="job")
    with _told(archive, "IMAGE", question.keys):
        found = archive.web().list_instances(_given(question.keys), (*FIELDS, *question.keys))
    yield from _held_web(found, question.keys)


def _below(archive: Archive, study: Answer, question: Question, level: Level) -> Iterator[Answer]:
    """What is within the keys of series and instances, below one study."""
    uid = {"StudyInstanceUID": _uid(study, STUDY)}
    if not archive.endpoint.port:
        keys = {**question.series, **question.image}
        with _told(archive, "IMAGE", {**uid, **keys}, uid["StudyInstanceUID"]):
            listed = archive.web().list_instances({**uid, **_given(keys)}, (*FIELDS, *keys))
        yield from ({**study, **one} for one in _held_web(listed, {**uid, **keys}))
        return
    for series in _found(archive, "SERIES", uid, {"SeriesInstanceUID": "", "Modality": "", **question.series}):
        if level == "instance" or question.image:
            whose = {**uid, "SeriesInstanceUID": _uid(series, SERIES)}
            for image in _found(archive, "IMAGE", whose, {"SOPInstanceUID": "", "SOPClassUID": "", **question.image}):
                yield {**study, **series, **image}
        else:
            yield {**study, **series}


def _found(archive: Archive, level: str, above: Mapping[str, str], keys: Mapping[str, str]) -> list[Answer]:
    """above: the unique keys of the levels above, held to where the archive gives them back."""
    asked = {**above, **keys}
    with _told(archive, level, asked, above["StudyInstanceUID"]):
        found = services.find(archive.endpoint, level, asked)
    return _held([{**answer, **_left_out(answer, above)} for answer in found], asked)


def _left_out(answer: Answer, above: Mapping[str, str]) -> Answer:
    missing = {name: uid for name, uid in above.items() if not shown(answer, name)}
    return {f"{tag_for_keyword(name):08X}": {"vr": "UI", "Value": [uid]} for name, uid in missing.items()}


def _given(keys: Mapping[str, str]) -> dict[str, str]:
    """What QIDO-RS is asked to match, a list of UIDs with commas (PS3.18 section 8.3.4.1): what is to be returned is a field."""
    return {name: value.replace("\\", ",") for name, value in keys.items() if value}


def _is_deep(question: Question) -> bool:
    return bool(question.series or question.image)


def _has_modality(archive: Archive, study: Answer, wanted: str) -> bool:
    """ModalitiesInStudy is an optional key (PS3.4 table C.6-5): where the archive leaves it out, its series say."""
    listed = shown(study, MODALITIES)
    if not wanted or listed:
        return matches(MODALITIES, wanted, listed)
    return matches(MODALITIES, wanted, [value_of(one, MODALITY) for one in archive.find_series(_uid(study, STUDY))])


def _held(found: Iterable[Answer], keys: Mapping[str, str]) -> list[Answer]:
    answers = [answer for answer in found if not is_unknown(answer, keys)]
    for wrong in (outside(answer, keys) for answer in answers):
        if wrong:
            said = f"the archive answers beyond the question: not by {wrong}, as it was asked"
            raise PeerError("pacs-answer-outside", said, peer="pacs")
    return answers


def _held_web(found: Iterable[Answer], keys: Mapping[str, str]) -> list[Answer]:
    """The same of what was asked with a wildcard for each blank; what only the wildcard let in is left out."""
    return [answer for answer in _held(found, widened(keys)) if not outside(answer, keys)]


def _uid(answer: Answer, tag: str) -> str:
    if not (uid := value_of(answer, tag)):
        raise PeerError("pacs-list-odd", "the archive lists something without its UID", peer="pacs")
    return uid


def _told(archive: Archive, level: str, keys: Mapping[str, str], study: str = "") -> AbstractContextManager[object]:
    return archive.query(level, keys, study) if isinstance(archive, WitnessedArchive) else nullcontext()
