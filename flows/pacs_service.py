"""`PACSService`: the reading service from Python, for a person or a script on the hospital's side.

    with PACSService(config_path="/etc/rapha/profile.yaml") as service:
        for study in service.query_studies(patient_id="12345678"):
            service.retrieve_study(study["study_instance_uid"], priority="high")

Polling, reading, telling and auditing are the flows' affair and go on without this object. The profile is the file; keys, sockets
and folders come from the environment, as for every process of the node. Every access is in the audit trail before it happens.
"""

import logging
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from blocks.audit import Act, AuditTrail, audited, open_audit_trail
from blocks.profile import Profile, load_profile
from blocks.reading import ReadingRegister, open_reading_register
from blocks.witnessed import WitnessedArchive
from flows.clinic import Clinic
from flows.pacs.by_hand import report_by_hand
from flows.pacs.endpoints import chosen, witnessed
from flows.pacs.finder import Finder, Places
from flows.pacs.retriever import Retriever, patient_of
from flows.pacs.saving import check_uid
from flows.pacs.sealed import SealedStudy, fetch
from flows.pacs.storer import Storer
from flows.person import person
from flows.polled import poll_settings
from flows.reading_health import overall, reading_components
from flows.requesting import WANTED, request
from policies.polling import PollSettings
from policies.priority import known_priority
from policies.question import is_day
from rapha.canonical import digest_of
from rapha.errors import ConfigurationError, RaphaError, Refusal
from tasks.attempt import Attempt

log = logging.getLogger("rapha.pacs")


class PACSService:
    """One person's session. `pacs` of its methods: an endpoint of the profile by name; there is no failover between them."""

    def __init__(
        self, config_path: str | Path, debug: bool = False, *, environment: Mapping[str, str] = os.environ, pacs: str = "primary"
    ) -> None:
        """config_path: the profile. debug: what is done is logged, as codes, counts and times; identifiers are not."""
        self._environment = {**environment, "RAPHA_PROFILE_PATH": str(config_path)}
        self._debug, self._pacs, self._open = debug, pacs, False
        self._person, self._places, self._stack = person(), Places(), ExitStack()
        self._sealed: dict[tuple[str, str], SealedStudy] = {}

    def __enter__(self) -> Self:
        """Raises `ConfigurationError` profile-…, audit-…, missing-…, not-built."""
        self._profile: Profile = load_profile(Path(self._environment["RAPHA_PROFILE_PATH"]), self._environment)
        self._trail: AuditTrail = open_audit_trail(self._environment)
        self._open = True
        if self._debug:
            logging.getLogger("rapha").setLevel(logging.DEBUG)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Removes what was fetched sealed and closes what was opened."""
        self._open = False
        for one in self._sealed.values():
            one.drop()
        self._sealed = {}
        self._stack.close()

    # -- below it

    @property
    def finder(self) -> Finder:
        """Queries of the session's archive."""
        return Finder(self._archive(), self._places)

    @property
    def retriever(self) -> Retriever:
        """Retrievals in clear, into folders that the caller names."""
        return Retriever(self._archive(), self._places, environment=self._environment)

    @cached_property
    def storer(self) -> Storer:
        """Stores reports and images that the caller has made."""
        return Storer(self._archive(), environment=self._environment)

    # -- the service

    def query_studies(
        self,
        patient_id: str | None = None,
        study_date_range: tuple[str, str] | None = None,
        modality: str | None = None,
        *,
        pacs: str | None = None,
    ) -> list[dict[str, Any]]:
        """The studies that match, as `Finder.find_studies` shows them.

        study_date_range: first and last day, YYYYMMDD, either of them "" for open; modality: of any of its series, which are
        asked where the archive does not say it of the study. Raises `Refusal(query-broad)`, `ConfigurationError` date-malformed,
        key-malformed, pacs-unknown; `PeerError` of the archive, pacs-answer-outside where it answers beyond the question.
        """
        keys = {"PatientID": patient_id or "", "ModalitiesInStudy": modality or "", "StudyDate": _range(study_date_range)}
        keys = {name: value for name, value in keys.items() if value}
        began = time.monotonic()
        found = Finder(self._archive(pacs), self._places).find_studies(keys)
        log.debug("query_studies: %d answers, %d ms", len(found), _since(began))
        return found

    def retrieve_study(self, study_instance_uid: str, priority: str = WANTED, *, pacs: str | None = None) -> dict[str, Any]:
        """Fetches the study whole, sealed, and puts it into the register, to be read at `priority`.

        The sealed files are kept until the session ends; for DICOM in clear name a folder (`retriever.retrieve_study`). Answers
        `status` retrieved, `instances`, `bytes`, `method`, `pacs`, and of the register `row`, `outcome`, `priority`, `state`.
        Raises `Refusal` study-not-found, arrival-conflict; `ConfigurationError` priority-unknown; `PeerError` archive-incomplete
        and of the peers.
        """
        level, study = known_priority(priority), check_uid(study_instance_uid)
        archive, began = self._archive(pacs), time.monotonic()
        name = archive.endpoint.name
        asked = request(self._register, archive, self._settings(name), study, level)
        sealed = self._fetched(archive, study, asked.study.row)
        log.debug("retrieve_study: row %d, %d instances, %d ms", asked.study.row, len(sealed.files), _since(began))
        return {
            "status": "retrieved",
            "study_instance_uid": study,
            "pacs": name,
            "method": sealed.method,
            "instances": len(sealed.files),
            "bytes": sealed.size,
            "row": asked.study.row,
            "outcome": asked.outcome,
            "priority": asked.study.priority,
            "state": asked.study.state,
        }

    def store_analysis_results(
        self, study_instance_uid: str, analysis_results: Mapping[str, Any], *, pacs: str | None = None
    ) -> dict[str, Any]:
        """A structured report of these results (their form is in `policies.given_results`), checked, stored, proven stored.

        Answers `status` stored, `proof`, `sop_instance_uid`, `series_instance_uid`, `sop_class_uid`, `findings`, `critical`,
        `referenced`, `row`. The same results again are the same report. Nobody is told of a critical finding by this: it was a
        person who had it. Raises `Refusal` analysis-…, findings-…, report-…, study-not-found; `PeerError` of the peers.
        """
        study, archive = check_uid(study_instance_uid), self._archive(pacs)
        name, began = archive.endpoint.name, time.monotonic()
        row = self._row(archive, study)
        sealed = self._fetched(archive, study, row)
        done = report_by_hand(self._clinic, archive, sealed, row, analysis_results, self._attempt(row))
        log.debug("store_analysis_results: row %d, %d findings, %d ms", row, done["findings"], _since(began))
        return {**done, "study_instance_uid": study, "pacs": name, "row": row}

    def health_check(self) -> dict[str, Any]:
        """`overall_status`, and `components`: each "healthy", or the code of what is wrong.

        The three engines are what query, retrieval and storage each need; the rest is the reading service's, part by part.
        """
        self._opened()
        found = reading_components(self._environment, self._profile)
        parts = {name.replace(" ", "_"): code or "healthy" for name, code in found.items()}
        return {"overall_status": overall(found.values()), "components": {**self._engines(parts), **parts}}

    def get_statistics(self) -> dict[str, Any]:
        """Counts of the reading register: `workflow`, `queue`, `notifications`, `dead_letters`."""
        self._opened()
        tally = self._register.tally(int(time.time()))
        return {
            "workflow": {
                "studies_processed": tally.processed,
                "studies_failed": tally.failed,
                "avg_processing_time_seconds": tally.average_seconds,
                "studies_waiting": tally.waiting,
                "studies_in_progress": tally.studies.get("in-progress", 0),
            },
            "queue": {
                "by_stage": tally.stages,
                "by_priority": tally.priorities,
                "oldest_waiting_seconds": tally.oldest_waiting_seconds,
            },
            "notifications": tally.notices,
            "dead_letters": tally.dead_letters,
        }

    def get_audit_statistics(self) -> dict[str, Any]:
        """Counts of the whole audit trail, `phi_access_count` among them; the look itself is in the trail."""
        self._opened()
        with audited(self._trail, "audit-log", Act(person=self._person, subject=self._trail.uri)):
            return self._trail.statistics()

    # -- inside

    def _opened(self) -> None:
        if not self._open:
            raise Refusal(["service-not-open"], "use the service in a `with` block")

    def _archive(self, name: str | None = None) -> WitnessedArchive:
        """Raises `Refusal(not-built)` where a choice between endpoints is asked for, `ConfigurationError(pacs-unknown)`."""
        self._opened()
        return witnessed(chosen(self._profile, name or self._pacs), self._state, self._trail, self._person)

    @property
    def _state(self) -> Path:
        return Path(self._environment.get("RAPHA_STATE_DIR", "").strip() or self._trail.folder.parent)

    @cached_property
    def _register(self) -> ReadingRegister:
        register = open_reading_register(self._environment)
        self._stack.callback(register.close)
        return register

    @cached_property
    def _clinic(self) -> Clinic:
        """The node's other processes; only what fetches and stores needs them."""
        return Clinic.open(self._environment)

    def _settings(self, pacs: str) -> PollSettings:
        return poll_settings(self._profile, pacs)

    def _row(self, archive: WitnessedArchive, study: str) -> int:
        known = self._register.row_of(archive.endpoint.name, study)
        if known is not None:
            return known
        return request(self._register, archive, self._settings(archive.endpoint.name), study, WANTED).study.row

    def _fetched(self, archive: WitnessedArchive, study: str, row: int) -> SealedStudy:
        """The study, sealed; once in a session."""
        key = (archive.endpoint.name, study)
        if key not in self._sealed:
            patient, receiver = patient_of(archive, study), self._clinic.receiver()
            with ExitStack() as held:
                reader = held.enter_context(self._clinic.study())
                if receiver is not None:
                    held.enter_context(receiver)
                self._sealed[key] = fetch(archive, study, patient, reader, receiver, self._attempt(row), self._clinic.kept)
        return self._sealed[key]

    def _attempt(self, row: int) -> Attempt:
        """What is done by hand has a name in the ledger too: of the node, the row and that it was by hand."""
        clinic, nonce = self._clinic, secrets.token_hex(32)
        folder = clinic.state / "reading" / str(row) / "by-hand"
        job = digest_of({"rapha reading by hand": clinic.node_id, "row": row})
        return Attempt(job=job, number=1, nonce=nonce, mode=clinic.profile.mode, folder=folder, ledger=clinic.ledger)

    def _engines(self, parts: Mapping[str, str]) -> dict[str, str]:
        """The first thing that is wrong with what each of the three needs at the session's endpoint."""
        pacs = f"pacs_{self._pacs}"
        try:
            by_move = self._archive().plain.method == "C-MOVE"
        except RaphaError as error:
            return dict.fromkeys(("query_engine", "retrieval_engine", "storage_engine"), error.codes[0])
        needs = {
            "query_engine": (pacs, "audit_trail"),
            "retrieval_engine": (pacs, "audit_trail", "study_reader", *(("receiver",) if by_move else ())),
            "storage_engine": (pacs, "audit_trail", "study_reader"),
        }
        return {
            name: _first([parts.get(part, f"no-{part.replace('_', '-')}") for part in wanted]) for name, wanted in needs.items()
        }


def _first(states: Sequence[str]) -> str:
    return next((state for state in states if state != "healthy"), "healthy")


def _since(began: float) -> int:
    return round(1000 * (time.monotonic() - began))


def _range(days: tuple[str, str] | None) -> str:
    """A range of days as a query has it (PS3.4 C.2.2.2.5). Raises `ConfigurationError(date-malformed)`."""
    if days is None:
        return ""
    if not isinstance(days, tuple | list) or len(days) != 2 or any(day != "" and not _is_day(day) for day in days):
        raise ConfigurationError(["date-malformed"], 'a range of days is (YYYYMMDD, YYYYMMDD), either of them "" for open')
    first, last = days
    if first and last and first > last:
        raise ConfigurationError(["date-malformed"], "the range's first day lies after its last")
    return "" if not first and not last else first if first == last else f"{first}-{last}"


def _is_day(day: object) -> bool:
    return isinstance(day, str) and is_day(day)
