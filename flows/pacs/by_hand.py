"""A report of results that a person hands over: built by the study reader from the study's headers, checked, stored, proven."""

import dataclasses
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from blocks.audit import Act, Study, audited
from blocks.receiver import Receiver
from blocks.study import BuiltReport, SealedFile, StudyReader
from blocks.witnessed import WitnessedArchive, inward, outward
from flows.clinic import Clinic
from flows.course import SR_NAME
from flows.pacs.sealed import SealedStudy
from flows.proving import read_back, uncommitted
from policies.audit_message import SopClass
from policies.findings import Finding
from policies.given_results import Given, read_given
from policies.model import Model
from policies.uid import derived_uid
from rapha.errors import Refusal
from tasks.attempt import Attempt
from tasks.reading.prove import Requests


@dataclass(frozen=True, slots=True)
class _Result:
    """One model's part of a report, as `blocks.study.ReadBy` has it."""

    model: Model
    digest: str
    read: frozenset[int]
    findings: tuple[Finding, ...]


def report_by_hand(
    clinic: Clinic, archive: WitnessedArchive, sealed: SealedStudy, row: int, results: Mapping[str, Any], attempt: Attempt
) -> dict[str, Any]:
    """Raises `Refusal` analysis-…, findings-…, report-…, analyse-other-content; `PeerError` of archive, reader and register."""
    with ExitStack() as held:
        reader, receiver = held.enter_context(clinic.study()), clinic.receiver()
        if receiver is not None:
            held.enter_context(receiver)
        work = _Work(clinic, archive, sealed, reader, receiver)
        given, built = work.build(results, row)
        held.callback(built.path.unlink, missing_ok=True)
        clinic.register.own_series(row, built.series_uid)
        proof = work.store(built, attempt, row)
    digest = clinic.models[given.model].digest
    attempt.record("report-by-hand", row=row, report=built.sha256, model=digest, findings=len(given.findings), proof=proof)
    return {
        "status": "stored",
        "proof": proof,
        "sop_instance_uid": built.sop_uid,
        "series_instance_uid": built.series_uid,
        "sop_class_uid": built.sop_class,
        "sha256": built.sha256,
        "findings": len(given.findings),
        "critical": given.critical,
        "referenced": len(built.referenced),
    }


@dataclass(frozen=True)
class _Work:
    clinic: Clinic
    archive: WitnessedArchive
    sealed: SealedStudy
    reader: StudyReader
    receiver: Receiver | None

    def build(self, results: Mapping[str, Any], row: int) -> tuple[Given, BuiltReport]:
        """The report, sealed, having passed all of its checks."""
        order = sorted(self.sealed.files)
        stores, packages = self.archive.capabilities.stores, self.clinic.models
        with self._told("access", Act(person=self.archive.person, action="C", studies=(Study(self.sealed.study),))):
            opened = self.reader.open([SealedFile(self.sealed.files[uid].path, self.sealed.files[uid].sha256) for uid in order])
            if [one.sop_uid for one in opened] != order:
                raise Refusal(["instance-named-otherwise"], "an instance and the archive name it differently", gate="analysis")
            given = read_given(results, [one.model for one in packages], [one.facts for one in opened], order)
            package = packages[given.model]
            built = self.reader.report(
                [_Result(package.model, package.digest, given.read, given.findings)],
                at=self.clinic.register.content_at(row),
                device=self.clinic.node_id,
                three_d=not stores or SR_NAME in stores,
            )
            if codes := self.reader.check(built):
                built.path.unlink(missing_ok=True)
                raise Refusal(sorted(codes), "the report does not pass its checks", gate="report")
        return given, built

    def store(self, built: BuiltReport, attempt: Attempt, row: int) -> str:
        """Sends it and has the archive prove that it holds it: "commitment" or "read-back"."""
        name, person = self.archive.endpoint.name, self.archive.person
        what = Study(self.sealed.study, sop_classes=(SopClass(built.sop_class, 1, (built.sop_uid,)),))
        with self._told("store", outward(self.archive.endpoint, person, what)):
            outcome = self.reader.store(name, built.path)
        plain, study = self.archive.plain, self.sealed.study

        def requests(uid: str) -> Requests:
            return Requests(derived_uid("transaction", [uid, attempt.nonce]))

        why = uncommitted(plain, self.receiver, [built], requests) if outcome == "stored" else {built.sop_uid: ""}
        if not why:
            return "commitment"
        with self._told("transfer", inward(self.archive.endpoint, person, what)):
            read_back(plain, self.reader, self.receiver, study, [built], attempt, row=row, why=why)
        return "read-back"

    def _told(self, kind: str, act: Act) -> Any:
        return audited(self.archive.trail, kind, dataclasses.replace(act, patient=self.sealed.patient))
