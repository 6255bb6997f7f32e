"""Counts over the reading register: how many studies wait and where, how long, what became of them. No identifier, no row."""

from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import exists, func, select

from blocks.reading_outages import paused
from blocks.reading_rows import LetterRow, NoticeRow, StudyRow
from blocks.reading_shelf import Shelf, study_of

OWED = ("scheduled", "in-progress")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Seconds, where it is not counts. stages, priorities: of what is owed (waits or is worked on).

    waiting: scheduled, those to be tried again later among them; oldest_waiting_seconds: since it was queued, None when nothing
    waits; processed, failed: studies that are done, and given up on; average_seconds: from queued to done, 0.0 when none is.
    """

    studies: dict[str, int]
    stages: dict[str, int]
    priorities: dict[str, int]
    waiting: int
    to_be_tried_again: int
    oldest_waiting_seconds: int | None
    processed: int
    failed: int
    average_seconds: float
    dead_letters: int
    notices: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Tallies(Shelf):
    """The counting part of the register."""

    def tally(self, now: int) -> Tally:
        """All counts, of one moment. now: seconds since the epoch."""
        owed = StudyRow.state.in_(OWED)
        with self._session() as session:

            def grouped(column: Any, *which: Any) -> dict[str, int]:
                return {
                    str(name): count
                    for name, count in session.execute(select(column, func.count()).where(*which).group_by(column))
                }

            states = grouped(StudyRow.state)
            oldest = session.scalar(select(func.min(StudyRow.queued_at)).where(StudyRow.state == "scheduled"))
            took = session.scalar(select(func.avg(StudyRow.updated_at - StudyRow.queued_at)).where(StudyRow.state == "completed"))
            given_up = exists().where(LetterRow.study == StudyRow.id, LetterRow.opening == StudyRow.opening)
            lost = select(func.count()).select_from(StudyRow).where(StudyRow.state == "canceled", given_up)
            again = select(func.count()).select_from(StudyRow).where(StudyRow.state == "scheduled", StudyRow.tries > 0)
            letters = select(func.count()).select_from(LetterRow).where(LetterRow.resolved_at.is_(None))
            return Tally(
                studies=states,
                stages=grouped(StudyRow.stage, owed),
                priorities=grouped(StudyRow.priority, owed),
                waiting=states.get("scheduled", 0),
                to_be_tried_again=session.scalar(again) or 0,
                oldest_waiting_seconds=None if oldest is None else max(0, now - oldest),
                processed=states.get("completed", 0),
                failed=session.scalar(lost) or 0,
                average_seconds=float(took or 0),
                dead_letters=session.scalar(letters) or 0,
                notices=grouped(NoticeRow.state),
            )

    def unclaimed_seconds(self, now: int) -> int:
        """For how long the first study that is due has been left lying, while nobody works on any; 0 where somebody does."""
        with self._session() as session:
            held = select(StudyRow.id).where(StudyRow.state == "in-progress", StudyRow.lease_until > now).limit(1)
            if session.scalars(held).first() is not None:
                return 0
            due = (StudyRow.state == "scheduled", StudyRow.next_at <= now, StudyRow.pacs.not_in(paused(now)))
            first = session.scalar(select(func.min(StudyRow.next_at)).where(*due))
            return 0 if first is None else now - first

    def content_at(self, row: int) -> int:
        """When this study's present content was first seen, in seconds since the epoch. `Refusal` study-unknown."""
        with self._session() as session:
            return study_of(session, row).content_at
