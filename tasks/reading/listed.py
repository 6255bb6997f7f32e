"""What an archive lists of one study, as a poll and a look-up register it."""

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Protocol

from blocks.pacs import value_of
from policies.polling import FoundSeries, FoundStudy, study_counts
from rapha.errors import PeerError

STUDY, SERIES, INSTANCE, MODALITY, SERIES_COUNT = "0020000D", "0020000E", "00080018", "00080060", "00201209"
MODALITIES, STUDY_DATE, PATIENT, ACCESSION = "00080061", "00080020", "00100020", "00080050"
STUDY_SERIES, STUDY_COUNT = "00201206", "00201208"  # how many of each the study has
ODD = "poll-answer-odd"
Answer = dict[str, Any]


class Listing(Protocol):
    """What a poll needs of an archive: `blocks.archive.Archive`."""

    def find_studies(self, keys: Mapping[str, str]) -> list[Answer]: ...

    def find_series(self, study: str) -> list[Answer]: ...

    def find_instances(self, study: str) -> list[Answer]: ...


def counts_of(answer: Answer) -> str:
    """What the archive counts of the study, `policies.polling.study_counts`."""
    return study_counts(value_of(answer, STUDY_SERIES), value_of(answer, STUDY_COUNT))


def study_of(answer: Answer, study: str, series: tuple[FoundSeries, ...]) -> FoundStudy:
    """The study of an answer, with the series that are to be read."""
    return FoundStudy(
        study_uid=study,
        series=series,
        modalities=tuple(sorted({one for one in (_values(answer, MODALITIES) or [s.modality for s in series]) if one})),
        study_date=value_of(answer, STUDY_DATE),
        instances=_number(value_of(answer, STUDY_COUNT)),
        counts=counts_of(answer),
        details={"patient": value_of(answer, PATIENT), "accession": value_of(answer, ACCESSION)},
    )


def series_of(archive: Listing, study: str) -> tuple[FoundSeries, ...]:
    """The series with the number of their instances; where an archive does not count them, they are listed and counted here.

    Raises `PeerError` poll-answer-odd for a series or an instance without a UID, and of the archive.
    """
    answers = archive.find_series(study)
    counts = [_number(value_of(answer, SERIES_COUNT)) for answer in answers]
    if None not in counts:
        pairs = zip(answers, counts, strict=True)
        return tuple(FoundSeries(series_uid=_needed(a, SERIES), modality=value_of(a, MODALITY), instances=n) for a, n in pairs)
    held = defaultdict[str, set[str]](set)
    for answer in archive.find_instances(study):
        held[_needed(answer, SERIES)].add(_needed(answer, INSTANCE))
    return tuple(_counted(_needed(a, SERIES), value_of(a, MODALITY), held[_needed(a, SERIES)]) for a in answers)


def _counted(series: str, modality: str, instances: set[str]) -> FoundSeries:
    contents = hashlib.sha256("\n".join(sorted(instances)).encode()).hexdigest()
    return FoundSeries(series_uid=series, modality=modality, instances=len(instances), contents=contents)


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else None


def _values(answer: Answer, tag: str) -> list[str]:
    attribute = answer.get(tag)
    values = attribute.get("Value") if isinstance(attribute, Mapping) else None
    return [one for one in values if isinstance(one, str) and one] if isinstance(values, list) else []


def _needed(answer: Answer, tag: str) -> str:
    value = value_of(answer, tag)
    if not value:
        raise PeerError(ODD, "the archive lists something without its UID", peer="pacs")
    return value
