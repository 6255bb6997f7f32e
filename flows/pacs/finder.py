"""The finder: C-FIND or QIDO-RS, as the endpoint has it; what it finds, by plain names. Identifiers go to its caller alone."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydicom.datadict import tag_for_keyword

from blocks.archive import INSTANCE, MODALITY, SERIES, SOP_CLASS, Archive
from blocks.pacs import Answer, value_of
from flows.pacs.asking import ask
from flows.pacs.saving import check_uid
from policies.question import read_question
from rapha.errors import ConfigurationError

# Name in an answer -> keyword; `modalities` is a list, the counts are numbers or None.
FIELDS = {
    "study_instance_uid": "StudyInstanceUID",
    "study_date": "StudyDate",
    "study_time": "StudyTime",
    "modalities": "ModalitiesInStudy",
    "patient_id": "PatientID",
    "accession_number": "AccessionNumber",
    "number_of_series": "NumberOfStudyRelatedSeries",
    "number_of_instances": "NumberOfStudyRelatedInstances",
}
_NAMES = {name: f"{tag_for_keyword(keyword):08X}" for name, keyword in FIELDS.items()}


@dataclass
class Places:
    """To which study a series belongs, and to which series an instance, as the archive was seen to list them."""

    series: dict[str, str] = field(default_factory=dict, repr=False)
    instances: dict[str, str] = field(default_factory=dict, repr=False)

    def study_of(self, series: str, named: str | None) -> str:
        """Raises `ConfigurationError(study-unnamed)` where nobody said it: a query starts at the study (PS3.4 C.4.1.2.2)."""
        study = named or self.series.get(check_uid(series))
        if study is None:
            raise ConfigurationError(["study-unnamed"], "find the study's series first, or give study_instance_uid")
        return check_uid(study)

    def series_of(self, instance: str, named: str | None) -> str:
        """Raises `ConfigurationError(series-unnamed)`."""
        series = named or self.instances.get(check_uid(instance))
        if series is None:
            raise ConfigurationError(["series-unnamed"], "find the series' instances first, or give series_instance_uid")
        return check_uid(series)


class Finder:
    """Queries of one archive. archive: witnessed, so that each question is in the audit trail before it is asked."""

    def __init__(self, archive: Archive, places: Places | None = None) -> None:
        self._archive, self.places = archive, places or Places()

    def find_studies(self, query_params: Mapping[str, str]) -> list[dict[str, Any]]:
        """Studies that match. query_params: keyword of PS3.6 -> value, ranges and wildcards as PS3.4 C.2.2.2 has them.

        Raises `ConfigurationError` key-malformed, key-control; `Refusal(query-broad)` where no value bounds it; `PeerError`
        pacs-answer-outside where an answer is not within the keys, and of the archive.
        """
        question = read_question(query_params.items())
        return [study_row(answer) for answer in ask(self._archive, question)]

    def find_series(self, study_uid: str) -> list[dict[str, Any]]:
        """The series of a study: `series_instance_uid`, `modality`. Raises `PeerError` of the archive."""
        study = check_uid(study_uid)
        found = []
        for answer in self._archive.find_series(study):
            series = value_of(answer, SERIES)
            self.places.series[series] = study
            found.append({"study_instance_uid": study, "series_instance_uid": series, "modality": value_of(answer, MODALITY)})
        return found

    def find_instances(self, series_uid: str, *, study_instance_uid: str | None = None) -> list[dict[str, Any]]:
        """The instances of a series: `sop_instance_uid`, `sop_class_uid`. Its study is known by `find_series`, or named.

        Raises `ConfigurationError(study-unnamed)`, `PeerError` of the archive.
        """
        study = self.places.study_of(series_uid, study_instance_uid)
        found = []
        for answer in self._archive.find_instances(study, check_uid(series_uid)):
            instance = value_of(answer, INSTANCE)
            self.places.series[series_uid], self.places.instances[instance] = study, series_uid
            named = {"study_instance_uid": study, "series_instance_uid": series_uid}
            found.append({**named, "sop_instance_uid": instance, "sop_class_uid": value_of(answer, SOP_CLASS)})
        return found


def study_row(answer: Answer) -> dict[str, Any]:
    """A study as it is shown."""
    row: dict[str, Any] = {name: value_of(answer, tag) for name, tag in _NAMES.items()}
    listed = answer.get(_NAMES["modalities"], {}).get("Value") or []
    row["modalities"] = [str(one) for one in listed]
    for name in ("number_of_series", "number_of_instances"):
        row[name] = int(row[name]) if row[name].isdecimal() else None
    return row
