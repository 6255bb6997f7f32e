"""One study on its way through the stages: what one stage leaves for the next. The flow calls the stages in their order."""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, cast

from blocks.audit import Act, Audited, Patient, Study, audited
from blocks.reading import Notice, OwnReport, StudyLease
from blocks.reading_rows import STAGES, Stage
from blocks.study import BuiltObject, BuiltReport, OpenedInstance, SealedFile
from blocks.witnessed import inward, outward, sop_classes
from flows import proving
from flows.clinic import Clinic
from policies.audit_message import SopClass
from policies.completeness import Proof
from rapha.errors import PeerError, Refusal
from tasks.reading import analyse as analysing
from tasks.reading import complete as completing
from tasks.reading import keep as keeping
from tasks.reading import retrieve as retrieving
from tasks.reading.retrieve import Kept

log = logging.getLogger("rapha.reading")
SR_NAME, SEG_NAME = "Comprehensive 3D SR", "Segmentation"


class Course:
    """The stages of one lease. Each may be called again after a failed peer; `close` lets go of all that is held."""

    def __init__(self, clinic: Clinic, lease: StudyLease) -> None:
        self.clinic, self.lease = clinic, lease
        self.attempt, self.archive = clinic.attempt(lease), clinic.archive(lease.pacs)
        self.began = clinic.ledger.position()
        self.transactions = proving.Transactions(clinic.environment, self.attempt)
        self.register, self.open = clinic.register, ExitStack()
        self.study = self.open.enter_context(clinic.study())
        self.receiver = clinic.receiver()
        if self.receiver is not None:
            self.open.enter_context(self.receiver)
        self.kept: dict[str, Kept] = {}
        self.opened: tuple[OpenedInstance, ...] = ()
        self.analysis: analysing.Analysis | None = None
        self.built: BuiltReport | None = None
        self.proof: Proof = ""
        self.arrival: Any = None
        self.over = ""  # the state in which it ended, once it is through
        self.lost = False  # whether another attempt may hold the study by now
        self.note = f"{lease.row}-{lease.order}-{lease.attempt}"
        self.earlier = [
            name for name in clinic.kept.names() if study_of_note(name) == (lease.row, lease.order) and name != self.note
        ]
        self.patient = Patient(self.register.details(lease.row).get("patient", ""))

    def retrieve(self) -> None:
        self._enter("retrieve")
        with self._told("transfer", inward(self.archive.endpoint, self.clinic.person, self._about())) as told:
            self.arrival, self.kept = retrieving.retrieve(
                self.lease, self.attempt, self.register, self.archive, self.study, self.receiver
            )
            told.learned(studies=(self._about(self._received()),))
        self._keep()

    def analyse(self, progress: Callable[[str, int, int], None]) -> None:
        """Opens what was sealed, runs the models, and writes both sets into the register."""
        self._enter("analyse")
        with self._told("access", Act(person=self.clinic.person, studies=(self._about(self._received()),))):
            self._analysed(progress)

    def _analysed(self, progress: Callable[[str, int, int], None]) -> None:
        self._open()
        facts = [one.facts for one in self.opened]
        clinic = self.clinic
        self.analysis = analysing.analyse(self.study, facts, clinic.launcher, clinic.models, clinic.limits, progress)
        self._account(self.analysis)
        self._keep()

    def report(self) -> None:
        """Built, checked by all three, registered as ours before the archive can list it."""
        self._enter("report")
        if not self._found().analysed:
            self.register.referenced(self.lease, [])  # an earlier attempt, with other models, may have reported
            return
        with self._told("access", Act(person=self.clinic.person, action="C", studies=(self._about(),))) as told:
            built = self._built()
            told.learned(studies=(self._about(_classes(built, named=False)),))
        self.built = built
        self._keep()

    def _built(self, checked: Sequence[str] = ()) -> BuiltReport:
        """checked: digests of a report's objects that passed their checks already."""
        stores = self._stores()
        built = self.study.report(
            self._found().results,
            at=self.lease.content_at,
            device=self.clinic.node_id,
            three_d=not stores or SR_NAME in stores,
            segments=not stores or SEG_NAME in stores,
            earlier=self.register.earlier_reports(self.lease),
        )
        if built.digests != list(checked) and (codes := self.study.check(built)):
            raise Refusal(sorted(codes), "the report does not pass its checks", gate="report")
        opened = {one.sop_uid: one.facts.sha256 for one in self.opened}
        self.register.referenced(self.lease, [(uid, opened.get(uid, "")) for uid in sorted(built.referenced)])
        for series in sorted({one.series_uid for one in built.objects}):
            self.register.own_series(self.lease, series)
        own = OwnReport(sop_uid=built.sop_uid, sop_class=built.sop_class, series_uid=built.series_uid)
        self.register.own_report(self.lease, own)
        return built

    def store(self) -> None:
        self._enter("store")
        built = self.built
        if built is None:
            return
        with self._told("store", outward(self.archive.endpoint, self.clinic.person, self._about(_classes(built)))):
            known = [one for one in built.objects if self.study.store(self.lease.pacs, one.path) == "known"]
        if known:
            self._same(built, known)
        self.register.report_stored(self.lease, built.sop_uid)

    def prove(self) -> None:
        """Storage commitment where the archive offers it; what it does not commit to is read back and compared."""
        self._enter("prove")
        built = self.built
        if built is None:
            return
        why = proving.uncommitted(self.archive, self.receiver, built.objects, self.transactions.requests)
        left = [one for one in built.objects if one.sop_uid in why]
        if left:
            self._same(built, left, why)
        self.proof = "read-back" if left else "commitment"
        if codes := sorted({code for code in why.values() if code}):
            self.attempt.record("proof", row=self.lease.row, report=built.sha256, proof=self.proof, codes=codes)

    def complete(self) -> str:
        """The closing statement; the study is done only once it stands in the ledger. The state it ends in."""
        digest = self.built.sha256 if self.built else ""
        if self.built and self.built.segmentations:
            self.attempt.record("segmentations", row=self.lease.row, report=digest, objects=self.built.digests[:-1])
        completing.complete(self.arrival, self.lease, self.attempt, self.register, report=digest, proof=self.proof)
        if not completing.was_completed(self.attempt, self.began):
            raise Refusal(["statement-missing"], "the closing statement is not in the ledger", gate="completeness")
        self.over = self.register.finish(self.lease, int(time.time()), notices=self._notices())
        return self.over

    def close(self) -> None:
        """Closes the connections. What was kept aside is removed once the study is through; else the next attempt takes it up."""
        self.open.close()
        if self.over:
            try:
                self.clinic.kept.forget(self.note)
            except PeerError as error:  # the study is through; the next shift removes it (`flows.tidying`)
                log.warning("row %d: %s", self.lease.row, ", ".join(error.codes))

    def cut(self) -> None:
        """From another thread, once the lease is lost: the stage that runs loses its connections, and no other begins."""
        self.lost = True
        for connection in (self.study, self.receiver):
            if connection is not None:
                connection.hang_up()

    @property
    def begun(self) -> bool:
        """Whether an earlier attempt came further than to the first stage, or left something."""
        return bool(self.earlier) or self.lease.stage != STAGES[0]

    def resume(self) -> Stage:
        """The stage at which this attempt begins: where the last one ended, as far as what it left proves equal.

        The files are hashed again, the archive's list is the same, the arrival gate judges anew, the models' results are held to
        their declarations, the report comes out the same. What does not is made again from there on. The ledger has which.
        """
        newest = max(self.earlier, key=lambda name: int(name.rpartition("-")[2]), default="")
        with self._told("access", Act(person=self.clinic.person, studies=(self._about(self._received()),))):
            begins, codes = self._taken_up(newest)
        self.attempt.record("resumed", row=self.lease.row, stage=self.lease.stage, begins=begins, codes=sorted(codes))
        if begins != STAGES[0]:
            self._keep()
        for name in self.earlier:
            self.clinic.kept.forget(name, but=frozenset(str(path) for path in self._files()))
        return begins

    def _taken_up(self, note: str) -> tuple[Stage, Sequence[str]]:
        """(the stage to begin at, why it is not the one at which the last attempt ended)."""
        document, wanted = self.clinic.kept.read(note) if note else None, self.lease.stage
        if document is None:
            return "retrieve", ["kept-none"]
        left = keeping.left(document)
        if codes := self._proven(left):
            self.kept, self.opened = {}, ()
            return "retrieve", codes
        if wanted in ("retrieve", "analyse"):
            return "analyse", []
        try:
            analysis = keeping.analysis_of(left.analysis, self.clinic.models, [one.facts for one in self.opened])
        except Refusal as refusal:
            return "analyse", refusal.codes
        self.analysis = analysis
        self._account(analysis)
        return self._reported(left.report) if wanted != "report" and analysis.analysed else cast(Stage, wanted), []

    def _reported(self, report: Sequence[str]) -> Stage:
        """Builds the report again. It is the one that passed its checks, or passes them now."""
        self.built = self._built(report)
        return cast(Stage, self.lease.stage)

    def _proven(self, left: keeping.Left) -> Sequence[str]:
        """Opens what was kept and lists the archive again; codes of what is not as it was, () where all is."""
        self.kept = {one.sop_uid: one for one in left.instances}
        known = {one.sop_uid: one.sha256 for one in self.register.instances(self.lease.row) if one.sha256}
        try:
            self._open()
        except Refusal as refusal:
            return refusal.codes
        if not all(one.facts.same and known.get(one.sop_uid) == self.kept[one.sop_uid].sha256 for one in self.opened):
            return ["kept-other-content"]
        self.arrival = retrieving.still(self.lease, self.attempt, self.register, self.archive, self.kept)
        return [] if self.arrival is not None else ["kept-other-set"]

    def _open(self) -> None:
        """Opens the study's sealed files, in the order of their UIDs."""
        order = sorted(self.kept)
        self.opened = self.study.open([SealedFile(self.kept[uid].path, self.kept[uid].sha256) for uid in order])
        if [one.sop_uid for one in self.opened] != order:
            raise Refusal(["instance-named-otherwise"], "an instance and the archive name it differently", gate="analyse")

    def _account(self, analysis: analysing.Analysis) -> None:
        """Both sets into the register, each instance in the content in which it was opened."""
        opened = {one.facts.index: (one.sop_uid, one.facts.sha256) for one in self.opened}
        self.register.analysed(self.lease, [opened[index] for index in sorted(analysis.analysed)])
        for index, reason in analysis.left_out.items():
            self.register.not_applicable(self.lease, *opened[index], reason)

    def _keep(self) -> None:
        """Moves aside what a later attempt may need, and says in a sealed note what it is."""
        order = sorted(self.kept)
        report = self.built.digests if self.built else []
        document = keeping.to_document([self.kept[uid] for uid in order], self.analysis, self.clinic.models, report)
        places = self.clinic.kept.keep(self.note, document, self._files())
        self.kept = {uid: dataclasses.replace(self.kept[uid], path=path) for uid, path in zip(order, places, strict=False)}
        if self.built:
            *before, last = places[len(order) :]
            segmentations = [
                dataclasses.replace(one, path=path) for one, path in zip(self.built.segmentations, before, strict=True)
            ]
            self.built = dataclasses.replace(self.built, path=last, segmentations=tuple(segmentations))

    def _files(self) -> list[Path]:
        """The instances', in the order of their UIDs, and then ours."""
        ours = self.built.objects if self.built else ()
        return [*(self.kept[uid].path for uid in sorted(self.kept)), *(one.path for one in ours)]

    def _same(self, built: BuiltReport, objects: Sequence[BuiltObject], why: Mapping[str, str] | None = None) -> None:
        archive, lease = self.archive.plain, self.lease
        with self._told("transfer", inward(archive.endpoint, self.clinic.person, self._about(_classes(built)))):
            proving.read_back(archive, self.study, self.receiver, lease.study_uid, objects, self.attempt, row=lease.row, why=why)

    def _told(self, kind: str, act: Act) -> AbstractContextManager[Audited]:
        """The act's begin in the audit trail before it, its end after it, about this study's patient."""
        return audited(self.clinic.trail, kind, dataclasses.replace(act, patient=self.patient if self.patient.id else None))

    def _about(self, classes: Sequence[SopClass] = ()) -> Study:
        return Study(self.lease.study_uid, sop_classes=tuple(classes))

    def _received(self) -> tuple[SopClass, ...]:
        return sop_classes([one.sop_class for one in self.register.instances(self.lease.row) if one.after])

    def unstored(self) -> list[Notice]:
        """What is told of a critical finding whose report does not get into the archive; nothing before it was made."""
        found = self.analysis
        return (
            [dataclasses.replace(one, template="critical-unstored") for one in self._notices()]
            if found and found.critical
            else []
        )

    def _notices(self) -> list[Notice]:
        found = self._found()
        facts: dict[str, str | int] = {
            "study": self.lease.row,
            "findings": found.findings,
            "critical": found.critical,
            "analysed": len(found.analysed),
            "left_out": len(found.left_out),
        }
        kind = "critical" if found.critical else "result"
        return [Notice(kind=kind, recipient_group="radiology", template=kind, facts=facts)] if found.analysed else []  # type: ignore[arg-type]

    def _stores(self) -> frozenset[str]:
        return self.archive.capabilities.stores

    def _found(self) -> analysing.Analysis:
        if self.analysis is None:
            raise Refusal(["stage-order"], "a stage ran before the one that it builds on", gate="reading")
        return self.analysis

    def _enter(self, stage: str) -> None:
        """Stages go forward; a course that was tried before makes the earlier ones again without a word in the register."""
        with contextlib.suppress(_Backwards):
            self._entered(stage)

    def _entered(self, stage: str) -> None:
        try:
            self.lease = self.register.enter(self.lease, stage, int(time.time()))
        except Refusal as refusal:
            if refusal.codes == ("stage-backwards",):
                raise _Backwards from None
            raise


def _classes(built: BuiltReport, *, named: bool = True) -> list[SopClass]:
    """What the audit trail says of our objects: how many of each class, and where it may be, their names."""
    return [
        SopClass(kind, len(uids), tuple(uids) if named else ())
        for kind in sorted({one.sop_class for one in built.objects})
        if (uids := [one.sop_uid for one in built.objects if one.sop_class == kind])
    ]


def study_of_note(note: str) -> tuple[int, int] | None:
    """(row, opening) of a study's note."""
    parts = note.split("-")
    return (int(parts[0]), int(parts[1])) if len(parts) == 3 and all(part.isdecimal() for part in parts) else None


class _Backwards(Exception):
    """The register's stage is a later one already."""
