"""The outbox of notices: written with the state change they speak of, delivered after it, acknowledged by a person, escalated."""

import json
import random
from collections.abc import Sequence

from sqlalchemy import case, or_, select
from sqlalchemy.orm import Session

from blocks.database import locked
from blocks.reading_rows import LONGEST_WAIT, DueNotice, Notice, NoticeRow, StudyRow
from blocks.reading_shelf import Shelf, come
from rapha.errors import Refusal

MAX_SENDS = 150  # with pauses up to an hour these last for four days (RFC 5321 section 4.5.4.1)
CRITICAL_FIRST = case((NoticeRow.kind == "critical", 0), else_=1)


class Outbox(Shelf):
    """The notices' part of the register. States: waiting, sent, dead (no channel took it), acknowledged."""

    def due_notices(self, now: int, *, limit: int = 50, hold: int = 120) -> list[DueNotice]:
        """What is to be sent, critical first, for this caller alone: for `hold` seconds nobody else is given it."""
        with self._session() as session:
            due = select(NoticeRow).where(NoticeRow.state == "waiting", come(NoticeRow.next_at, now, LONGEST_WAIT))
            rows = session.scalars(locked(due.order_by(CRITICAL_FIRST, NoticeRow.id).limit(limit))).all()
            for row in rows:
                row.next_at = now + hold
            return [_due(row) for row in rows]

    def owes_notice(self, now: int) -> bool:
        """Whether anything is to be sent or escalated now."""
        with self._session() as session:
            due = select(NoticeRow.id).where(NoticeRow.state == "waiting", come(NoticeRow.next_at, now, LONGEST_WAIT))
            is_due = session.scalars(due.limit(1)).first() is not None
        return is_due or bool(self.escalations(now))

    def notice_sent(self, notice: int, now: int, *, escalate_at: int | None = None, level: int | None = None) -> None:
        """A channel took it. escalate_at: when the next person is told unless somebody acknowledges.

        level: which one was told; a sender that was overtaken by an escalation says nothing of the level that is now due.
        """
        with self._session() as session:
            row = _notice(session, notice)
            if row.state != "acknowledged" and level in (None, row.level):
                row.state, row.sent_at, row.code, row.escalate_at = "sent", now, "", escalate_at

    def notice_failed(self, notice: int, code: str, now: int, *, level: int | None = None, last: bool = False) -> str:
        """It was not taken: again after an exponential wait with jitter (5 s to 1 h), dead after MAX_SENDS. Its state.

        last: dead at once. level: as for `notice_sent`.
        """
        with self._session() as session:
            row = _notice(session, notice)
            if row.state == "waiting" and level in (None, row.level):
                row.tries, row.code = row.tries + 1, code[:128]
                pause = min(3600, 5 * 2 ** min(row.tries, 12)) * random.uniform(0.5, 1.0)  # noqa: S311  # spread, not secrecy
                row.next_at = now + int(pause)
                row.state = "dead" if last or row.tries >= MAX_SENDS else "waiting"
            return row.state

    def notice_held_up(self, notice: int, code: str, now: int, *, wait: int = 60) -> None:
        """The channel itself is down: again after `wait` seconds, and not counted against the notice."""
        with self._session() as session:
            row = _notice(session, notice)
            if row.state == "waiting":
                row.code, row.next_at = code[:128], now + wait

    def send_again(self, notice: int, now: int) -> bool:
        """A notice that no channel took is due once more; False for one that is not dead."""
        with self._session() as session:
            row = _notice(session, notice)
            if row.state != "dead":
                return False
            row.state, row.tries, row.next_at = "waiting", 0, now
            return True

    def acknowledge(self, notice: int, person: str, now: int) -> bool:
        """A person has it; whether this was the first word of it. `Refusal` notice-unknown, person-missing, notice-not-sent."""
        if not person.strip():
            raise Refusal(["person-missing"], "a notice is acknowledged by a person")
        with self._session() as session:
            row = _notice(session, notice)
            if row.state == "acknowledged":
                return False
            if row.sent_at is None and row.state != "dead":
                raise Refusal(["notice-not-sent"], "the notice was not sent yet")
            row.state, row.acknowledged_at, row.acknowledged_by, row.escalate_at = "acknowledged", now, person[:128], None
            return True

    def escalations(self, now: int) -> list[DueNotice]:
        """Critical notices that nobody acknowledged in time, and those that no channel took."""
        with self._session() as session:
            late = (NoticeRow.state == "sent") & come(NoticeRow.escalate_at, now, LONGEST_WAIT)
            wanted = select(NoticeRow).where(NoticeRow.kind == "critical", or_(late, NoticeRow.state == "dead"))
            return [_due(row) for row in session.scalars(wanted.order_by(NoticeRow.id)).all()]

    def escalate(self, notice: int, level: int, now: int, *, at: int | None = None) -> bool:
        """To be sent to the next person, `at` once or then. level: as it was seen; False where somebody escalated or acknowledged
        meanwhile."""
        with self._session() as session:
            row = _notice(session, notice)
            if row.level != level or row.state not in ("sent", "dead"):
                return False
            row.level, row.state, row.tries, row.escalate_at = level + 1, "waiting", 0, None
            row.next_at = now if at is None else at
            return True

    def open_notices(self, limit: int = 100) -> list[DueNotice]:
        """What is still owed, critical first: not sent yet, taken by no channel, or critical and not acknowledged."""
        with self._session() as session:
            unheard = (NoticeRow.kind == "critical") & (NoticeRow.state != "acknowledged")
            wanted = select(NoticeRow).where(or_(NoticeRow.state.in_(("waiting", "dead")), unheard))
            return [_due(row) for row in session.scalars(wanted.order_by(CRITICAL_FIRST, NoticeRow.id).limit(limit)).all()]

    def notices(self, row: int | None = None) -> list[DueNotice]:
        """Every notice (of one study), oldest first."""
        with self._session() as session:
            wanted = select(NoticeRow).order_by(NoticeRow.id)
            mine = wanted if row is None else wanted.where(NoticeRow.study == row)
            return [_due(one) for one in session.scalars(mine).all()]


def write_notices(session: Session, row: StudyRow, notices: Sequence[Notice], now: int, *, anew: bool = False) -> None:
    """Inside the caller's transaction. One kind, group and template is told once in each opening, however often repeated.

    anew: one that was told already is told again, as what it says now.
    """
    for one in notices:
        same = select(NoticeRow).where(
            NoticeRow.study == row.id,
            NoticeRow.opening == row.opening,
            NoticeRow.kind == one.kind,
            NoticeRow.recipient_group == one.recipient_group,
            NoticeRow.template == one.template,
        )
        known = session.scalars(same.with_for_update()).first()
        if known is not None and anew:
            known.facts, known.state, known.level, known.tries = json.dumps(one.facts, sort_keys=True), "waiting", 0, 0
            known.created_at = known.next_at = now
            known.code, known.sent_at, known.acknowledged_at, known.acknowledged_by = "", None, None, ""
        if known is None:
            session.add(
                NoticeRow(
                    study=row.id,
                    opening=row.opening,
                    kind=one.kind,
                    recipient_group=one.recipient_group,
                    template=one.template,
                    facts=json.dumps(one.facts, sort_keys=True),
                    created_at=now,
                    next_at=now,
                )
            )
            session.flush()


def _notice(session: Session, notice: int) -> NoticeRow:
    row = session.get(NoticeRow, notice, with_for_update=True)
    if row is None:
        raise Refusal(["notice-unknown"], "no notice has this number")
    return row


def _due(row: NoticeRow) -> DueNotice:
    return DueNotice(
        id=row.id,
        row=row.study,
        kind=row.kind,
        recipient_group=row.recipient_group,
        template=row.template,
        facts=json.loads(row.facts),
        state=row.state,
        level=row.level,
        tries=row.tries,
        created_at=row.created_at,
        code=row.code,
        sent_at=row.sent_at,
        escalate_at=row.escalate_at,
        acknowledged_at=row.acknowledged_at,
        acknowledged_by=row.acknowledged_by,
    )
