"""The instances of a study's present opening: which were expected, received, analysed or not applicable, and referenced."""

import json
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from blocks.reading_rows import ExpectedInstance, InstanceRow, InstanceState, OwnSeriesRow, StudyLease, StudyRow
from blocks.reading_shelf import Shelf, held, owed_studies, study_of
from policies.polling import FoundStudy
from rapha.errors import Refusal

_NOT_RECEIVED: dict[str, Any] = {
    "sha256": "",
    "conflict": False,
    "analysed": False,
    "reason": "",
    "opened_sha256": "",
    "referenced": False,
    "referenced_sha256": "",
}


class InstanceSets(Shelf):
    """The instances' part of the register. Each write needs the lease: `Refusal` lease-lost, study-canceled."""

    def expect(self, lease: StudyLease, instances: Sequence[ExpectedInstance], phase: Literal["before", "after"]) -> None:
        """What the archive lists around the retrieval; takes the place of what that phase listed before."""
        with self._session() as session:
            row = held(session, lease)
            mine = (InstanceRow.study == row.id, InstanceRow.opening == row.opening)
            session.execute(update(InstanceRow).where(*mine).values(**{phase: False}))
            for one in instances:
                found = self._instance(session, row, one.sop_uid)
                found.sop_class = one.sop_class
                found.series_sealed = self._columns.seal(one.series_uid, "instances", "series", row.id, row.opening, found.name)
                setattr(found, phase, True)

    def received(self, lease: StudyLease, instances: Sequence[tuple[str, str]]) -> None:
        """(SOP Instance UID, `sha256:…`) of all that one retrieval brought; one UID with two contents is kept as a conflict.

        Takes the place of what an earlier retrieval brought, and ends what was said of that: the archive may have corrected an
        instance under its UID meanwhile, and what was analysed before is then not what is here. `Refusal` digest-missing.
        """
        with self._session() as session:
            row = held(session, lease)
            mine = (InstanceRow.study == row.id, InstanceRow.opening == row.opening)
            session.execute(update(InstanceRow).where(*mine).values(**_NOT_RECEIVED))
            for uid, sha256 in instances:
                if not sha256:
                    raise Refusal(["digest-missing"], "what was received has a digest")
                found = self._instance(session, row, uid)
                found.conflict = found.conflict or found.sha256 not in ("", sha256)
                found.sha256 = found.sha256 or sha256

    def analysed(self, lease: StudyLease, instances: Sequence[tuple[str, str]]) -> None:
        """What a model has read: (SOP Instance UID, `sha256:…` of what was opened for it). `Refusal` instance-not-received."""
        with self._session() as session:
            row = held(session, lease)
            for found, (_, sha256) in zip(self._there(session, row, [uid for uid, _ in instances]), instances, strict=True):
                found.analysed, found.reason, found.opened_sha256 = True, "", sha256

    def not_applicable(self, lease: StudyLease, uid: str, sha256: str, reason: str) -> None:
        """What no model reads, `sha256:…` of what was opened, and the code of why. `Refusal` reason-missing,
        instance-not-received."""
        if not reason.strip():
            raise Refusal(["reason-missing"], "an instance is not applicable for a reason")
        with self._session() as session:
            row = held(session, lease)
            for found in self._there(session, row, [uid]):
                found.analysed, found.reason, found.opened_sha256 = False, reason[:128], sha256

    def referenced(self, lease: StudyLease, instances: Sequence[tuple[str, str]]) -> None:
        """What the report refers to: (SOP Instance UID, `sha256:…` of the file that it was built on); takes the place of what
        an earlier one did. `Refusal` instance-not-received."""
        with self._session() as session:
            row = held(session, lease)
            mine = (InstanceRow.study == row.id, InstanceRow.opening == row.opening)
            session.execute(update(InstanceRow).where(*mine).values(referenced=False, referenced_sha256=""))
            for found, (_, sha256) in zip(self._there(session, row, [uid for uid, _ in instances]), instances, strict=True):
                found.referenced, found.referenced_sha256 = True, sha256

    def own_series(self, study: StudyLease | int, series_uid: str) -> None:
        """A series that this node is about to write into the archive: polls will not take it for a change.

        study: the lease under which it is written; its row, where a person has it written.
        """
        with self._session() as session:
            row = study_of(session, study) if isinstance(study, int) else held(session, study)
            session.merge(OwnSeriesRow(name=self._columns.name("series", series_uid), study=row.id))

    def own_among(self, series_uids: Iterable[str]) -> frozenset[str]:
        """Those of these series that this node itself wrote, or is about to."""
        with self._session() as session:
            return frozenset(uid for uid in series_uids if session.get(OwnSeriesRow, self._columns.name("series", uid)))

    def owed_among(self, uids: Iterable[str]) -> frozenset[str]:
        """Those of these SOP Instance UIDs that a study which is owed expects, or has received."""
        names = {self._columns.name("instance", uid): uid for uid in uids}
        found: set[str] = set()
        with self._session() as session:
            for study, opening in session.execute(owed_studies()).all():
                mine = (InstanceRow.study == study, InstanceRow.opening == opening, InstanceRow.name.in_(names))
                found |= set(session.scalars(select(InstanceRow.name).where(*mine)))
        return frozenset(names[name] for name in found)

    def owed(self, row: int, order: int) -> bool:
        """Whether this opening of a study is still to be brought to its end: it waits, is worked on, or may be replayed.

        A row that the register does not know might be: nothing of it is given up.
        """
        with self._session() as session:
            known = session.get(StudyRow, row) is not None
            return not known or (row, order) in session.execute(owed_studies().where(StudyRow.id == row)).all()

    def instances(self, row: int) -> list[InstanceState]:
        """Every instance of the present opening, by name."""
        with self._session() as session:
            study = study_of(session, row)
            wanted = select(InstanceRow).where(InstanceRow.study == study.id, InstanceRow.opening == study.opening)
            return [self._state(one) for one in session.scalars(wanted.order_by(InstanceRow.name)).all()]

    def details(self, row: int) -> dict[str, str]:
        """What a poll kept sealed of the study: identifiers for later stages. `Refusal` study-unknown."""
        with self._session() as session:
            found = study_of(session, row)
            known: dict[str, str] = json.loads(
                self._columns.open(found.details_sealed, "studies", "details", found.id, found.name)
            )
            return known

    def identity(self, row: int) -> dict[str, str]:
        """Which study a row is, in clear: study_uid and what a poll kept of it. For a person on the hospital's side."""
        with self._session() as session:
            uid = self._study_uid(study_of(session, row))
        return {"study_uid": uid, **self.details(row)}

    @staticmethod
    def _details(study: FoundStudy) -> str:
        return json.dumps({**study.details, "study_date": study.study_date, "modalities": " ".join(study.modalities)})

    def _instance(self, session: Session, row: StudyRow, uid: str) -> InstanceRow:
        name = self._columns.name("instance", uid)
        found = session.get(InstanceRow, (row.id, row.opening, name))
        if found is None:
            place = (row.id, row.opening, name)
            found = InstanceRow(
                study=row.id,
                opening=row.opening,
                name=name,
                uid_sealed=self._columns.seal(uid, "instances", "uid", *place),
                series_sealed=self._columns.seal("", "instances", "series", *place),
                sop_class="",
                sha256="",
                conflict=False,
            )
            session.add(found)
        return found

    def _there(self, session: Session, row: StudyRow, uids: Sequence[str]) -> list[InstanceRow]:
        found = [session.get(InstanceRow, (row.id, row.opening, self._columns.name("instance", uid))) for uid in uids]
        there = [one for one in found if one is not None and one.sha256]
        if len(there) != len(found):
            raise Refusal(["instance-not-received"], "an instance was named that was not received")
        return there

    def _state(self, one: InstanceRow) -> InstanceState:
        place = (one.study, one.opening, one.name)
        return InstanceState(
            name=one.name,
            sop_uid=self._columns.open(one.uid_sealed, "instances", "uid", *place),
            sop_class=one.sop_class,
            series_uid=self._columns.open(one.series_sealed, "instances", "series", *place),
            before=one.before,
            after=one.after,
            sha256=one.sha256,
            conflict=one.conflict,
            analysed=one.analysed,
            reason=one.reason,
            opened_sha256=one.opened_sha256,
            referenced=one.referenced,
            referenced_sha256=one.referenced_sha256,
        )
