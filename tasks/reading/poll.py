"""Poll: ask one archive for what is new or changed, and write it into the register.

The watermark moves only after everything that the archive listed is on disk, so a poll that dies is made again whole. Several
pollers at once do no harm: a study is one row, and the watermark never moves back.
"""

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from blocks.pacs import value_of
from blocks.reading import ReadingRegister
from policies.polling import FoundSeries, FoundStudy, PollSettings, Window, is_own, keys_of, poll_window, split
from rapha.errors import PeerError, Refusal

STUDY, SERIES, INSTANCE, MODALITY, SERIES_COUNT = "0020000D", "0020000E", "00080018", "00080060", "00201209"
MODALITIES, STUDY_DATE, PATIENT, ACCESSION, STUDY_COUNT = "00080061", "00080020", "00100020", "00080050", "00201208"
TOO_MANY = frozenset({"dimse-too-many", "pacs-too-many"})
Answer = dict[str, Any]


class Listing(Protocol):
    """What a poll needs of an archive: `blocks.archive.Archive`."""

    def find_studies(self, keys: Mapping[str, str]) -> list[Answer]: ...

    def find_series(self, study: str) -> list[Answer]: ...

    def find_instances(self, study: str) -> list[Answer]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PollOutcome:
    """Counts, and the rows that are new or changed. questions: study queries that were asked."""

    new: int
    changed: int
    known: int
    own: int
    questions: int
    rows: tuple[int, ...]


def poll(register: ReadingRegister, archive: Listing, settings: PollSettings, now: int) -> PollOutcome:
    """One poll of one archive. now: seconds since the epoch.

    Raises `Refusal` window-too-dense (what could be listed is registered, the watermark stays), clock-behind-watermark;
    `PeerError` of the archive or register, and poll-answer-odd for a study or series without a UID.
    """
    mark = register.watermark(settings.pacs)
    window = poll_window(None if mark is None else mark.at, now, settings)
    questions, refusals, seen = 0, list[Refusal](), set[str]()
    outcomes = defaultdict[str, list[int]](list)
    windows = [window]
    while windows:
        asked = windows.pop()
        questions += 1
        answers, cut = _asked(archive, asked, settings.most)
        for study in answers:
            _register(register, archive, settings, study, now, seen, outcomes)
        if cut:
            windows += _halves(asked, settings, refusals)
    if refusals:
        raise refusals[0]
    register.set_watermark(settings.pacs, now + settings.offset, now=now)
    return _outcome(outcomes, questions)


def look_up(archive: Listing, settings: PollSettings, study_uid: str) -> FoundStudy | None:
    """One study as a poll would register it; None where the archive does not have it, or holds nothing but what we wrote.

    Raises `PeerError` of the archive, and poll-answer-odd.
    """
    answers = [one for one in archive.find_studies({"StudyInstanceUID": study_uid}) if value_of(one, STUDY) == study_uid]
    if not answers:
        return None
    listed = _series(archive, study_uid)
    series = tuple(one for one in listed if not is_own(one.series_uid, settings.own_roots))
    return None if listed and not series else _study(answers[0], study_uid, series)


def _asked(archive: Listing, window: Window, most: int) -> tuple[list[Answer], bool]:
    """The answers, and whether there may be more than the archive tells."""
    try:
        answers = archive.find_studies(keys_of(window))
    except PeerError as error:
        if TOO_MANY.isdisjoint(error.codes):
            raise
        return [], True
    return answers, len(answers) >= most


def _halves(window: Window, settings: PollSettings, refusals: list[Refusal]) -> tuple[Window, ...]:
    """Its two halves; none where it is the smallest, which is remembered: the other windows are listed all the same."""
    try:
        return split(window, settings.smallest)
    except Refusal as refusal:
        refusals.append(refusal)
        return ()


def _register(
    register: ReadingRegister,
    archive: Listing,
    settings: PollSettings,
    answer: Answer,
    now: int,
    seen: set[str],
    outcomes: dict[str, list[int]],
) -> None:
    study = _needed(answer, STUDY)
    if study in seen:
        return  # a window that was cut off is asked again in halves
    seen.add(study)
    listed = _series(archive, study)
    series = tuple(one for one in listed if not is_own(one.series_uid, settings.own_roots))
    if listed and not series:
        outcomes["own-report"].append(0)
        return
    found = register.found(settings.pacs, _study(answer, study, series), now, settings.priority)
    outcomes[found.outcome].append(found.row)


def _study(answer: Answer, study: str, series: tuple[FoundSeries, ...]) -> FoundStudy:
    count = value_of(answer, STUDY_COUNT)
    modalities = answer.get(MODALITIES, {}).get("Value") or [one.modality for one in series]
    return FoundStudy(
        study_uid=study,
        series=series,
        modalities=tuple(sorted({str(one) for one in modalities if one})),
        study_date=value_of(answer, STUDY_DATE),
        instances=int(count) if count.isdecimal() else None,
        details={"patient": value_of(answer, PATIENT), "accession": value_of(answer, ACCESSION)},
    )


def _series(archive: Listing, study: str) -> tuple[FoundSeries, ...]:
    """The series with the number of their instances; where an archive does not count them, they are listed and counted here."""
    answers = archive.find_series(study)
    counts = [value_of(answer, SERIES_COUNT) for answer in answers]
    if all(count.isdecimal() for count in counts):
        pairs = zip(answers, counts, strict=True)
        return tuple(
            FoundSeries(series_uid=_needed(a, SERIES), modality=value_of(a, MODALITY), instances=int(count)) for a, count in pairs
        )
    held = defaultdict[str, set[str]](set)
    for answer in archive.find_instances(study):
        held[_needed(answer, SERIES)].add(_needed(answer, INSTANCE))
    return tuple(_counted(_needed(a, SERIES), value_of(a, MODALITY), held[_needed(a, SERIES)]) for a in answers)


def _counted(series: str, modality: str, instances: set[str]) -> FoundSeries:
    contents = hashlib.sha256("\n".join(sorted(instances)).encode()).hexdigest()
    return FoundSeries(series_uid=series, modality=modality, instances=len(instances), contents=contents)


def _needed(answer: Answer, tag: str) -> str:
    value = value_of(answer, tag)
    if not value:
        raise PeerError("poll-answer-odd", "the archive lists something without its UID", peer="pacs")
    return value


def _outcome(outcomes: Mapping[str, list[int]], questions: int) -> PollOutcome:
    return PollOutcome(
        new=len(outcomes.get("new", [])),
        changed=len(outcomes.get("changed", [])),
        known=len(outcomes.get("known", [])),
        own=len(outcomes.get("own-report", [])),
        questions=questions,
        rows=tuple(sorted([*outcomes.get("new", []), *outcomes.get("changed", [])])),
    )
