"""Dead letters of studies, and how a study comes back into the queue."""

from collections.abc import Sequence

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from blocks.reading_outages import no_outage
from blocks.reading_outbox import write_notices
from blocks.reading_rows import LONGEST_PAUSE, STAGES, InstanceRow, LetterRow, Notice, ReadingLetter, StudyLease, StudyRow
from blocks.reading_shelf import Shelf, held, study_of
from policies.priority import known_priority, turn
from rapha.errors import Refusal


class Letters(Shelf):
    """The dead letters' part of the register."""

    def dead_letters(self) -> list[ReadingLetter]:
        """The letters that nobody has resolved, oldest first."""
        with self._session() as session:
            rows = session.scalars(select(LetterRow).where(LetterRow.resolved_at.is_(None)).order_by(LetterRow.id))
            return [_letter_of(row) for row in rows.all()]

    def dead_letter(self, letter: int) -> ReadingLetter:
        """One open letter. `Refusal` dead-letter-unknown."""
        with self._session() as session:
            return _letter_of(_open_letter(session, letter))

    def give_back(self, lease: StudyLease, codes: Sequence[str], now: int, again_at: int) -> str:
        """What failed was not the study: into the queue again, at the stage where it was, and no try is counted. Its state."""
        with self._session() as session:
            row = held(session, lease, now, cancelled_too=True)
            return _back(session, row, " ".join(codes)[:2000], now, again_at)

    def replay(self, letter: int, now: int) -> int:
        """Schedules the study again, at the stage where it failed; its row. What arrived in two contents is fetched anew."""
        with self._session() as session:
            found = _open_letter(session, letter)
            row = study_of(session, found.study)
            found.resolved_at, found.resolution = now, "replayed"
            row.tries, row.codes, row.updated_at = 0, "", now
            no_outage(row)
            if row.stage == STAGES[0]:
                twice = (InstanceRow.study == row.id, InstanceRow.opening == row.opening, InstanceRow.conflict)
                session.execute(update(InstanceRow).where(*twice).values(conflict=False, sha256=""))
            put_back(row, now)
            return row.id

    def read_again(self, row: int, now: int) -> int:
        """A person wants a study that is over read once more, whole: a new opening from now on; its order.

        `Refusal` study-unknown, study-not-over where it waits or is worked on: it will be read anyway.
        """
        with self._session() as session:
            found = study_of(session, row)
            if found.state not in ("completed", "canceled"):
                raise Refusal(["study-not-over"], "the study is owed, and will be read")
            found.content_at = found.updated_at = now
            open_again(session, found, now, resolution="read-again")
            return found.opening

    def discard(self, letter: int, why: str, now: int) -> int:
        """Gives the study up for good, for a reason that is kept sealed; its row. `Refusal` reason-missing."""
        if not why.strip():
            raise Refusal(["reason-missing"], "a dead letter is discarded for a reason")
        with self._session() as session:
            found = _open_letter(session, letter)
            found.resolved_at, found.resolution = now, "discarded"
            found.why_sealed = self._columns.seal(why, "letters", "why", found.id, found.study)
            return found.study


def _back(session: Session, row: StudyRow, codes: str, now: int, again_at: int) -> str:
    row.codes, row.updated_at = codes, now
    no_lease(row)
    if row.cancel_asked:
        row.state, row.cancel_asked = "canceled", False
    elif row.changed:
        open_again(session, row, now)
    else:
        put_back(row, min(again_at, now + LONGEST_PAUSE))
    return row.state


def dead(session: Session, row: StudyRow, now: int, letters_to: str = "") -> None:
    """Gives up on a study, with a letter, and where somebody is to be told of letters, with a notice."""
    row.state = "canceled"
    session.add(
        LetterRow(
            study=row.id, opening=row.opening, attempt=row.attempt, stage=row.stage, codes=row.codes, at=now, why_sealed=b""
        )
    )
    if letters_to:
        facts: dict[str, str | int] = {"study": row.id, "stage": row.stage, "codes": row.codes}
        told = Notice(kind="dead-letter", recipient_group=letters_to, template="dead-letter", facts=facts)
        write_notices(session, row, [told], now, anew=True)


def put_back(row: StudyRow, next_at: int) -> None:
    """Into the queue, in its old place."""
    row.state, row.next_at = "scheduled", next_at


def open_again(session: Session, row: StudyRow, now: int, *, resolution: str = "changed") -> None:
    """The study's content changed, or a person wants it: all of it anew, in a new opening. An old letter is answered by that."""
    letters = update(LetterRow).where(LetterRow.study == row.id, LetterRow.resolved_at.is_(None))
    session.execute(letters.values(resolved_at=now, resolution=resolution))
    due = max(now, row.next_at) if row.changed else now  # what changed while it was worked on may be coming still
    row.opening, row.stage, row.tries, row.codes, row.changed = row.opening + 1, STAGES[0], 0, "", False
    row.unsettled = 0
    row.cancel_asked, row.queued_at, row.turn = False, now, turn(known_priority(row.priority), now)
    no_outage(row)
    session.execute(delete(InstanceRow).where(InstanceRow.study == row.id, InstanceRow.opening == row.opening))
    put_back(row, due)


def no_lease(row: StudyRow) -> None:
    """The lease is over: its token is worth nothing from now on."""
    row.lease_owner, row.lease_token, row.lease_until = "", "", 0


def _open_letter(session: Session, letter: int) -> LetterRow:
    row = session.get(LetterRow, letter, with_for_update=True)
    if row is None or row.resolved_at is not None:
        raise Refusal(["dead-letter-unknown"], "no open dead letter has this number")
    return row


def _letter_of(row: LetterRow) -> ReadingLetter:
    return ReadingLetter(
        id=row.id, row=row.study, attempt=row.attempt, stage=row.stage, codes=tuple(row.codes.split()), at=row.at
    )
