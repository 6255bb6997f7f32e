"""The retriever: a study, a series or an instance in clear, into a folder that the caller names on the hospital's side."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blocks.archive import Archive
from blocks.audit import Act, Patient, Study, audited
from blocks.pacs import value_of
from blocks.witnessed import WitnessedArchive, inward
from flows.pacs.finder import Places
from flows.pacs.saving import Saved, Wanted, check_folder, check_uid, save
from rapha.errors import Refusal

PATIENT_ID = "00100020"


class Retriever:
    """Retrievals from one archive. Each is an export in the audit trail, with its patient, before anything is sent."""

    def __init__(
        self, archive: WitnessedArchive, places: Places | None = None, *, environment: Mapping[str, str] = os.environ
    ) -> None:
        """environment: names the receiver, for archives that are retrieved from by C-MOVE."""
        self._archive, self.places, self._environment = archive, places or Places(), environment

    def retrieve_study(self, study_uid: str, destination: str | Path) -> dict[str, Any]:
        """Every instance of the study, as numbered files in the new or empty folder `destination`.

        Answers `files` (their paths), `instances`, `bytes`, `method`, `destination`. Raises `ConfigurationError` uid-malformed,
        folder-not-empty, retrieve-needs-receiver; `Refusal(study-not-found)`; `PeerError` pacs-incomplete and of the archive.
        """
        return self._retrieved(Wanted(study=study_uid), Path(destination))

    def retrieve_series(
        self, series_uid: str, destination: str | Path, *, study_instance_uid: str | None = None
    ) -> dict[str, Any]:
        """The same of a series. Its study is known from an earlier query, or named; `ConfigurationError(study-unnamed)`."""
        study = self.places.study_of(series_uid, study_instance_uid)
        return self._retrieved(Wanted(study=study, series=series_uid), Path(destination))

    def retrieve_instance(
        self,
        instance_uid: str,
        destination: str | Path,
        *,
        series_instance_uid: str | None = None,
        study_instance_uid: str | None = None,
    ) -> dict[str, Any]:
        """The same of one instance. `ConfigurationError` series-unnamed, study-unnamed."""
        series = self.places.series_of(instance_uid, series_instance_uid)
        study = self.places.study_of(series, study_instance_uid)
        return self._retrieved(Wanted(study=study, series=series, instance=check_uid(instance_uid)), Path(destination))

    def _retrieved(self, wanted: Wanted, out: Path) -> dict[str, Any]:
        check_folder(out)
        saved = exported(self._archive, wanted, out, self._environment)
        return {
            "study_instance_uid": wanted.study,
            "files": sorted(str(path) for path in out.glob("*.dcm")),
            "instances": saved.files,
            "bytes": saved.size,
            "method": saved.method,
            "destination": str(out),
        }


def exported(archive: WitnessedArchive, wanted: Wanted, out: Path, environment: Mapping[str, str]) -> Saved:
    """`save`, told as the export that it is (PS3.15 A.5.3.5): from the archive onto a disk."""
    patient = patient_of(archive, wanted.study)
    act: Act = inward(archive.endpoint, archive.person, Study(wanted.study), patient=patient)
    with audited(archive.trail, "export", act):
        return save(archive.plain, wanted, out, environment)


def patient_of(archive: Archive, study: str) -> Patient | None:
    """Whose study it is, where the archive says so. Raises `Refusal(study-not-found)`."""
    answers = [one for one in archive.find_studies({"StudyInstanceUID": study}) if value_of(one, "0020000D") == study]
    if not answers:
        raise Refusal(["study-not-found"], "the archive lists no such study", gate="pacs")
    number = value_of(answers[0], PATIENT_ID)
    return Patient(number) if number else None
