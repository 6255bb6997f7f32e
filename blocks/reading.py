"""The reading register: which studies are owed, to which stage they came, and what is known of each instance.

States follow the Unified Procedure Step (PS3.4 CC.1.1), in one row a study and archive:

    scheduled    waiting for `claim`: new, re-opened, given back by the reaper, or to be tried again at a time
    in-progress  one worker holds a lease; `stage` is where it is
    completed    every stage done; its notices were written in the same transaction
    canceled     by a person, or dead: given up on with a dead letter, which `replay` takes up at the failed stage

A changed study is re-opened: its `order` counts on and it starts at `retrieve`; one that changes while worked on, when that ends.
A lease is a worker's, until a time, with a token that is new at each claim: who lost it can write nothing more.
"""

import secrets
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from blocks.database import RowConflict, locked
from blocks.reading_letters import Letters, dead, no_lease, open_again, put_back
from blocks.reading_outages import ANSWERED, answered, let_through, met_outage, no_outage, paused
from blocks.reading_outbox import Outbox, write_notices
from blocks.reading_polls import Polls
from blocks.reading_quiet import Settling, due, quiet_of
from blocks.reading_reports import OwnReports
from blocks.reading_rows import (
    LONGEST_LEASE,
    LONGEST_PAUSE,
    STAGES,
    ExpectedInstance,
    Found,
    InstanceState,
    LetterRow,
    LostStudy,
    Notice,
    NoticeRow,
    OwnReport,
    OwnSeriesRow,
    QueuedStudy,
    ReadingLetter,
    StudyLease,
    StudyRow,
    Watermark,
)
from blocks.reading_shelf import SKEW, come, held, study_of
from blocks.reading_tallies import Tallies, Tally
from blocks.sealed_columns import column_key
from policies.polling import FoundSeries, FoundStudy, listing
from policies.priority import known_priority, turn
from rapha.errors import ConfigurationError, Refusal
from rapha.files import made_folder

__all__ = [
    "ExpectedInstance", "Found", "FoundSeries", "FoundStudy", "InstanceState", "LostStudy", "Notice", "OwnReport", "QueuedStudy",
    "ReadingLetter", "ReadingRegister", "StudyLease", "Tally", "Watermark", "open_reading_register",
]  # fmt: skip
MAX_TRIES = 5
UNSTORED_TRIES = 3  # a critical finding waits for its report's archive for some minutes, not for a day of outage


class ReadingRegister(Settling, OwnReports, Outbox, Letters, Tallies, Polls):
    """The register behind one database URL. Every failure of the database is a `PeerError`; a rule's no is a `Refusal`."""

    @classmethod
    def at(cls, path: Path, key: bytes) -> "ReadingRegister":
        """The register in a SQLite file."""
        made_folder(path.parent, "state-dir-unusable")
        return cls(f"sqlite:///{path.absolute()}", key)

    # -- polling

    def found(self, pacs: str, study: FoundStudy, now: int, priority: str = "medium", quiet: int = 0) -> Found:
        """Writes a found study down: new, changed (re-opened, or to be), known, own-report (only this node's series).

        quiet: seconds that what is new or changed waits for more of it to come, unless it is urgent.
        """
        level = known_priority(priority)
        try:
            return self._found(pacs, study, now, level, quiet)
        except RowConflict:  # another poller wrote the same study meanwhile
            return self._found(pacs, study, now, level, quiet)

    def _found(self, pacs: str, study: FoundStudy, now: int, priority: str, quiet: int) -> Found:
        name = self._columns.name("study", study.study_uid)
        with self._session() as session:
            wanted = select(StudyRow).where(StudyRow.pacs == pacs, StudyRow.name == name).with_for_update()
            row = session.scalars(wanted).first()
            own = {s.series_uid for s in study.series if session.get(OwnSeriesRow, self._columns.name("series", s.series_uid))}
            foreign = [s for s in study.series if s.series_uid not in own]
            if own and not foreign:
                if row is not None:
                    self._listed(row, study, now)
                return Found(row=row.id if row else 0, outcome="own-report")
            print_ = self._columns.name("fingerprint", listing(foreign, study.instances))
            if row is None:
                number = self._new(session, pacs, name, study, print_, priority, now, quiet_of(priority, quiet))
                return Found(row=number, outcome="new")
            self._listed(row, study, now)
            if row.fingerprint == print_:
                return Found(row=row.id, outcome="known")
            row.fingerprint, row.content_at, row.updated_at = print_, now, now
            if study.details:  # a patient may have been corrected with it
                row.details_sealed = self._columns.seal(self._details(study), "studies", "details", row.id, name)
            self._changed(session, row, now, quiet)
            return Found(row=row.id, outcome="changed")

    def _new(
        self, session: Any, pacs: str, name: str, study: FoundStudy, print_: str, priority: str, now: int, quiet: int = 0
    ) -> int:
        row = StudyRow(
            pacs=pacs,
            name=name,
            uid_sealed=b"",
            details_sealed=b"",
            fingerprint=print_,
            state="scheduled",
            stage=STAGES[0],
            priority=priority,
            turn=turn(known_priority(priority), now),
            next_at=now + quiet,
            queued_at=now,
            registered_at=now,
            content_at=now,
            updated_at=now,
        )
        self._listed(row, study, now)
        session.add(row)
        session.flush()  # its number is part of what the columns are bound to
        row.uid_sealed = self._columns.seal(study.study_uid, "studies", "uid", row.id, name)
        row.details_sealed = self._columns.seal(self._details(study), "studies", "details", row.id, name)
        return int(row.id)

    def _listed(self, row: StudyRow, study: FoundStudy, now: int) -> None:
        """What the archive counted before it listed what is below: what came between the two is another count next time."""
        row.counts, row.listed_at = self._print_of(study.counts), now

    def _changed(self, session: Any, row: StudyRow, now: int, quiet: int) -> None:
        if row.state == "in-progress":
            row.changed, row.next_at = True, now + quiet_of(row.priority, quiet)
        elif row.state == "scheduled" and row.stage == STAGES[0]:
            row.next_at = due(row, now, quiet)  # nothing was fetched yet: it is all still to come
        else:
            open_again(session, row, now)
            row.next_at = due(row, now, quiet)

    # -- work

    def claim(
        self, worker: str, now: int, seconds: int, *, row: int | None = None, but: Collection[int] = ()
    ) -> StudyLease | None:
        """The study whose turn is next (or `row`, whenever its next try is), under a lease; or None. Never one to two workers.

        but: rows that are not to be given. Studies of an endpoint that is paused are passed over, `row` is not.
        """
        with self._session() as session:
            owed = (StudyRow.state == "scheduled", StudyRow.id.not_in(but))
            wanted = select(StudyRow).where(*owed).order_by(StudyRow.turn, StudyRow.id).limit(1)
            due = (come(StudyRow.next_at, now, LONGEST_PAUSE), StudyRow.pacs.not_in(paused(now)))
            mine = wanted.where(*due) if row is None else wanted.where(StudyRow.id == row)
            found = session.scalars(locked(mine)).first()
            if found is None or (row is None and not let_through(session, found.pacs, now)):
                return None
            found.state, found.lease_owner, found.lease_token = "in-progress", worker[:128], secrets.token_hex(16)
            found.lease_until, found.updated_at, found.attempt = now + seconds, now, found.attempt + 1
            return self._lease(found)

    def renew(self, lease: StudyLease, now: int, seconds: int) -> StudyLease:
        """The lease, longer. `Refusal` lease-lost, or study-canceled."""
        with self._session() as session:
            row = held(session, lease, now)
            row.lease_until, row.updated_at = now + seconds, now
            return self._lease(row)

    def enter(self, lease: StudyLease, stage: str, now: int, *, notices: Sequence[Notice] = ()) -> StudyLease:
        """Writes down which stage begins, and what must be told from now on. `Refusal` stage-…, lease-lost."""
        if stage not in STAGES:
            raise Refusal(["stage-unknown"], "a study has no such stage")
        with self._session() as session:
            row = held(session, lease, now)
            if STAGES.index(stage) < list(STAGES).index(row.stage):  # type: ignore[arg-type]
                raise Refusal(["stage-backwards"], "a study goes back only by being opened again")
            if row.stage != stage:
                no_outage(row)
            if stage in ANSWERED:
                answered(session, row.pacs)
            row.stage, row.updated_at = stage, now
            write_notices(session, row, notices, now)
            return self._lease(row)

    def finish(self, lease: StudyLease, now: int, *, notices: Sequence[Notice] = ()) -> str:
        """Every stage is done: completed, or scheduled again where the study changed meanwhile. The notices go with it."""
        with self._session() as session:
            row = held(session, lease, now, cancelled_too=True)
            write_notices(session, row, notices, now)
            row.state, row.codes, row.tries, row.updated_at, row.cancel_asked = "completed", "", 0, now, False
            no_lease(row)
            no_outage(row)
            if row.changed:
                open_again(session, row, now)
            return row.state

    def fail(
        self,
        lease: StudyLease,
        codes: Sequence[str],
        now: int,
        *,
        retry_at: int | None = None,
        letters_to: str = "",
        unstored: Sequence[Notice] = (),
    ) -> str:
        """The stage failed: tried again from there at `retry_at`, MAX_TRIES in all, or a dead letter. Its state from now on.

        retry_at: an hour ahead at most (`LONGEST_PAUSE`); letters_to: the group of recipients that a dead letter is told to, ""
        for nobody; unstored: what is told where it has failed UNSTORED_TRIES times, or is given up on.
        """
        with self._session() as session:
            row = held(session, lease, now, cancelled_too=True)
            no_outage(row)
            row.tries += 1
            return _ended(session, row, " ".join(codes)[:2000], now, retry_at, letters_to, unstored)

    def set_aside(
        self, lease: StudyLease, codes: Sequence[str], now: int, *, letters_to: str = "", unstored: Sequence[Notice] = ()
    ) -> str:
        """The stage failed because a peer is down for everybody (`policies.outage`): tried again after a pause, as often as it
        takes, and not counted; a dead letter after OUTAGE_SECONDS of that. Its state from now on. unstored: as for `fail`."""
        try:
            return self._set_aside(lease, codes, now, letters_to, unstored)
        except RowConflict:  # another study met the same outage first, at the same moment
            return self._set_aside(lease, codes, now, letters_to, unstored)

    def _set_aside(self, lease: StudyLease, codes: Sequence[str], now: int, letters_to: str, unstored: Sequence[Notice]) -> str:
        with self._session() as session:
            row = held(session, lease, now, cancelled_too=True)
            retry_at = met_outage(session, row, list(codes), now)
            return _ended(session, row, " ".join(codes)[:2000], now, retry_at, letters_to, unstored)

    def cancel(self, row: int, now: int) -> str:
        """Stops a study: at once where it waits, at its worker's next word where it is worked on. `Refusal` study-over."""
        with self._session() as session:
            found = study_of(session, row)
            if found.state not in ("scheduled", "in-progress"):
                raise Refusal(["study-over"], "the study is not owed any more")
            found.cancel_asked, found.updated_at = True, now
            if found.state == "scheduled":
                found.state, found.cancel_asked = "canceled", False
            return found.state

    def reap(self, now: int, *, letters_to: str = "") -> list[LostStudy]:
        """Takes back the leases that ran out. What was lost too often becomes a dead letter. letters_to: as for `fail`.

        A lease of a clock that has been set back since lasts from now on as long as it did: whoever holds it renews it by then.
        """
        with self._session() as session:
            ahead = select(StudyRow).where(StudyRow.state == "in-progress", StudyRow.lease_until > now + LONGEST_LEASE + SKEW)
            for row in session.scalars(locked(ahead)).all():
                row.lease_until = now + max(1, min(LONGEST_LEASE, row.lease_until - row.updated_at))
                row.updated_at = now
            lost = select(StudyRow).where(StudyRow.state == "in-progress", StudyRow.lease_until <= now).order_by(StudyRow.id)
            out = []
            for row in session.scalars(locked(lost)).all():
                row.tries += 1
                state = _ended(session, row, "lease-expired", now, now, letters_to)
                out.append(LostStudy(row=row.id, attempt=row.attempt, stage=row.stage, state=state))
            return out

    # -- the queue

    def queue(self, limit: int = 100) -> list[QueuedStudy]:
        """What waits or is worked on, in the order of its turn."""
        with self._session() as session:
            owed = select(StudyRow).where(StudyRow.state.in_(("scheduled", "in-progress")))
            return [_queued(row) for row in session.scalars(owed.order_by(StudyRow.turn, StudyRow.id).limit(limit)).all()]

    def study(self, row: int) -> QueuedStudy:
        """One row. `Refusal` study-unknown."""
        with self._session() as session:
            return _queued(study_of(session, row))

    def row_of(self, pacs: str, study_uid: str) -> int | None:
        """The row of a study of this PACS, or None."""
        with self._session() as session:
            name = self._columns.name("study", study_uid)
            return session.scalar(select(StudyRow.id).where(StudyRow.pacs == pacs, StudyRow.name == name))

    def set_priority(self, row: int, priority: str) -> QueuedStudy:
        """Moves a waiting study up or down; it keeps the time it has waited. `Refusal` study-not-queued, `ConfigurationError`
        priority-unknown.

        One that is urgent from now on and only waits for more of it to come is due at once.
        """
        level = known_priority(priority)
        with self._session() as session:
            found = study_of(session, row)
            if found.state != "scheduled":
                raise Refusal(["study-not-queued"], "the study does not wait")
            found.priority, found.turn = level, turn(level, found.queued_at)
            if level == "urgent" and not found.tries and not found.outages:
                found.next_at = min(found.next_at, found.queued_at)
            return _queued(found)

    def counts(self) -> dict[str, Any]:
        """Studies by state and by stage, open dead letters, notices by state."""
        with self._session() as session:
            states = session.execute(select(StudyRow.state, func.count()).group_by(StudyRow.state)).all()
            owed = select(StudyRow.stage, func.count()).where(StudyRow.state.in_(("scheduled", "in-progress")))
            letters = select(func.count()).select_from(LetterRow).where(LetterRow.resolved_at.is_(None))
            told = session.execute(select(NoticeRow.state, func.count()).group_by(NoticeRow.state)).all()
            return {
                "studies": {state: count for state, count in states},
                "stages": {stage: count for stage, count in session.execute(owed.group_by(StudyRow.stage)).all()},
                "dead_letters": session.scalar(letters) or 0,
                "notices": {state: count for state, count in told},
            }


def open_reading_register(environment: Mapping[str, str]) -> ReadingRegister:
    """The register that the settings name: RAPHA_REGISTER_URL, else RAPHA_STATE_DIR/reading.sqlite.

    Its key is RAPHA_REGISTER_KEY_BASE64. Raises `ConfigurationError` missing-register-key-base64, missing-state-dir,
    bad-register-key, or as `ReadingRegister` does.
    """
    url, folder = (environment.get(name, "").strip() for name in ("RAPHA_REGISTER_URL", "RAPHA_STATE_DIR"))
    text = environment.get("RAPHA_REGISTER_KEY_BASE64", "").strip()
    missing = ([] if text else ["register-key-base64"]) + ([] if url or folder else ["state-dir"])
    if missing:
        raise ConfigurationError([f"missing-{name}" for name in missing], "the reading register's settings are incomplete")
    key = column_key(text)
    return ReadingRegister(url, key) if url else ReadingRegister.at(Path(folder) / "reading.sqlite", key)


def _ended(
    session: Any, row: StudyRow, codes: str, now: int, retry_at: int | None, letters_to: str, unstored: Sequence[Notice] = ()
) -> str:
    """A try ended badly. Returns "dead" for a row that is canceled with a dead letter."""
    row.codes, row.updated_at = codes, now
    no_lease(row)
    if row.cancel_asked:
        row.state, row.cancel_asked = "canceled", False
    elif row.changed:
        open_again(session, row, now)
    elif retry_at is None or row.tries >= MAX_TRIES:
        dead(session, row, now, letters_to)
        write_notices(session, row, unstored, now)
        return "dead"
    else:
        write_notices(session, row, unstored if row.tries + row.outages >= UNSTORED_TRIES else (), now)
        put_back(row, min(retry_at, now + LONGEST_PAUSE))
    return row.state


def _queued(row: StudyRow) -> QueuedStudy:
    return QueuedStudy(
        row=row.id,
        pacs=row.pacs,
        state=row.state,
        stage=row.stage,
        priority=row.priority,
        attempt=row.attempt,
        order=row.opening,
        codes=tuple(row.codes.split()),
        queued_at=row.queued_at,
        next_at=row.next_at,
    )
