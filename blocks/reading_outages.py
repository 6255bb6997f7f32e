"""What the register knows of peers that are down: since when a study meets it, and which endpoints are left alone until when.

An endpoint that is paused is claimed from by nobody. When its pause is over one study is let through; the others follow once that
one has been retrieved or stored, or a minute later one by one.
"""

import random

from sqlalchemy import Select, delete, select
from sqlalchemy.orm import Session

from blocks.reading_rows import LONGEST_PAUSE, PauseRow, StudyRow
from blocks.reading_shelf import SKEW, come
from policies.outage import PROBE_SECONDS, is_over, is_unreachable, pause

ANSWERED = ("analyse", "prove")  # these stages begin when the archive has given, or taken, what it was asked to


def met_outage(session: Session, row: StudyRow, codes: list[str], now: int) -> int | None:
    """A peer was down for this study. When it is tried again; None where that has gone on for too long."""
    row.outages += 1
    row.outage_since = now if row.outage_since is None else row.outage_since
    if is_unreachable(codes):
        _paused(session, row.pacs, now)
    return None if is_over(row.outage_since, now) else now + _pause(row.outages)


def no_outage(row: StudyRow) -> None:
    """The study got on, or failed for another reason: an outage from now on is a new one."""
    row.outages, row.outage_since = 0, None


def paused(now: int) -> Select[tuple[str]]:
    """The endpoints of which no study is claimed now."""
    return select(PauseRow.pacs).where(~come(PauseRow.until, now, LONGEST_PAUSE))


def let_through(session: Session, pacs: str, now: int) -> bool:
    """Whether a study of this endpoint may be claimed; where a pause has just ended, for this one caller alone."""
    row = session.get(PauseRow, pacs, with_for_update=True)
    if row is None:
        return True
    if now < row.until <= now + LONGEST_PAUSE + SKEW:  # beyond: a clock wrote it that has been set back since
        return False
    row.until, row.probed = now + PROBE_SECONDS, True
    return True


def answered(session: Session, pacs: str) -> None:
    """The endpoint is there."""
    session.execute(delete(PauseRow).where(PauseRow.pacs == pacs))


def _paused(session: Session, pacs: str, now: int) -> None:
    """Longer than before where this was the one that was let through; many that were in flight together are one failure."""
    row = session.get(PauseRow, pacs, with_for_update=True)
    if row is None:
        row = PauseRow(pacs=pacs, failures=0, until=0, probed=True)
        session.add(row)
    if row.probed or row.until <= now:
        row.failures, row.probed = row.failures + 1, False
        row.until = now + _pause(row.failures)


def _pause(failures: int) -> int:
    return pause(failures, random.random())  # noqa: S311  # spread, not secrecy
