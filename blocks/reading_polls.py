"""What the register keeps of polls and sweeps: how far they came, how they went, and what need not be listed again."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from blocks.database import RowConflict
from blocks.reading_rows import BaselineRow, PollRow, StudyRow, Watermark, WatermarkRow
from blocks.reading_shelf import Shelf
from policies.polling import PollState

AT_ONCE = 500  # names in one statement


class Polls(Shelf):
    """The polling part of the register. pacs: the endpoint's name; times: seconds since the epoch."""

    def watermark(self, pacs: str) -> Watermark | None:
        """Up to where this PACS was polled; None before the first poll."""
        with self._session() as session:
            row = session.get(WatermarkRow, pacs)
            return None if row is None else Watermark(pacs=pacs, at=row.at, polled_at=row.polled_at)

    def set_watermark(self, pacs: str, at: int, *, now: int, seen: int | None = None) -> None:
        """Moves it forward; a poller that comes late moves nothing back. seen: where it was when the poll began; where somebody
        has put it back since, it stays."""
        try:
            self._set_watermark(pacs, at, now, seen)
        except RowConflict:  # another poller wrote the first one meanwhile
            self._set_watermark(pacs, at, now, seen)

    def _set_watermark(self, pacs: str, at: int, now: int, seen: int | None) -> None:
        with self._session() as session:
            row = session.get(WatermarkRow, pacs, with_for_update=True)
            if row is None:
                session.add(WatermarkRow(pacs=pacs, at=at, polled_at=now))
            else:
                row.at = row.at if seen is not None and row.at < seen else max(row.at, at)
                row.polled_at = max(row.polled_at, now)

    def put_watermark(self, pacs: str, at: int) -> None:
        """Puts it where a person says; what a clock that ran ahead wrote of later times goes with it."""
        with self._session() as session:
            row = session.get(WatermarkRow, pacs, with_for_update=True)
            if row is None:
                session.add(WatermarkRow(pacs=pacs, at=at, polled_at=at))
            else:
                row.at, row.polled_at = at, min(row.polled_at, at)

    def poll_state(self, pacs: str, now: int) -> PollState:
        """How its polls go. Who asks for the first time sets the beginning of its time."""
        try:
            return self._poll_state(pacs, now)
        except RowConflict:  # somebody else asked for the first time meanwhile
            return self._poll_state(pacs, now)

    def _poll_state(self, pacs: str, now: int) -> PollState:
        with self._session() as session:
            row = session.get(PollRow, pacs)
            if row is None:
                row = PollRow(pacs=pacs, since=now)
                session.add(row)
                session.flush()
            mark = session.get(WatermarkRow, pacs)
            return PollState(
                pacs=pacs,
                since=row.since,
                polled_at=None if mark is None else mark.polled_at,
                odd=row.odd + row.sweep_odd,
                unproven=row.unproven + row.sweep_unproven,
                swept_at=row.swept_at,
                swept_from=row.swept_from,
                sweep_next=row.sweep_next,
            )

    def polled(self, pacs: str, *, odd: int, unproven: int) -> None:
        """What the poll that came to its end says of itself; `poll_state` was asked for before."""
        with self._session() as session:
            row = session.get_one(PollRow, pacs, with_for_update=True)
            row.odd, row.unproven = odd, unproven

    def begin_sweep(self, pacs: str, again: int) -> None:
        """A sweep begins; where it comes to no end, none begins before `again`."""
        with self._session() as session:
            session.get_one(PollRow, pacs, with_for_update=True).sweep_next = again

    def swept(self, pacs: str, now: int, first: int, again: int, *, odd: int, unproven: int) -> None:
        """A sweep from `first` (on the archive's clock) came to its end; the next one is due at `again`."""
        with self._session() as session:
            row = session.get_one(PollRow, pacs, with_for_update=True)
            row.swept_at, row.sweep_next, row.sweep_odd, row.sweep_unproven = now, again, odd, unproven
            row.swept_from = first if row.swept_from is None else min(first, row.swept_from)

    def same(self, pacs: str, counts: Mapping[str, str], since: int, now: int) -> dict[str, int]:
        """Study UID -> row, of those studies whose counts are the same as when they were last listed, between the two times.

        counts: Study UID -> `policies.polling.study_counts`; "" is the same as nothing.
        """
        names = {self._columns.name("study", uid): uid for uid, count in counts.items() if count}
        with self._session() as session:
            rows = [row for some in _portions(names) for row in session.execute(_studies(pacs, some)).all()]
            fresh = [(row.id, names[row.name], row.counts) for row in rows if since <= row.listed_at <= now]
            return {uid: number for number, uid, print_ in fresh if print_ == self._print_of(counts[uid])}

    def unknown(self, pacs: str, uids: Collection[str]) -> set[str]:
        """Those of the studies that the register has no row of."""
        names = {self._columns.name("study", uid): uid for uid in uids}
        with self._session() as session:
            held = {row.name for some in _portions(names) for row in session.execute(_studies(pacs, some)).all()}
            return {uid for name, uid in names.items() if name not in held}

    def left_alone(self, pacs: str, counts: Mapping[str, str]) -> set[str]:
        """Those of the studies that were there before the first sweep, with these counts."""
        names = {self._columns.name("study", uid): uid for uid in counts}
        with self._session() as session:
            rows = _baseline(session, pacs, names)
            return {names[name] for name, print_ in rows.items() if print_ == self._print_of(counts[names[name]])}

    def leave_alone(self, pacs: str, counts: Mapping[str, str]) -> None:
        """Writes studies down as having been there; one that is written down keeps its counts of then."""
        names = {self._columns.name("study", uid): uid for uid in counts}
        with self._session() as session:
            held = _baseline(session, pacs, names)
            new = [name for name in names if name not in held]
            session.add_all(BaselineRow(pacs=pacs, name=name, counts=self._print_of(counts[names[name]])) for name in new)

    def _print_of(self, counts: str) -> str:
        return self._columns.name("counts", counts) if counts else ""


def _studies(pacs: str, names: Sequence[str]) -> Select[tuple[int, str, str, int]]:
    columns = (StudyRow.id, StudyRow.name, StudyRow.counts, StudyRow.listed_at)
    return select(*columns).where(StudyRow.pacs == pacs, StudyRow.name.in_(names))


def _baseline(session: Session, pacs: str, names: Collection[str]) -> dict[str, str]:
    """name -> counts."""
    wanted = select(BaselineRow.name, BaselineRow.counts)
    found = [wanted.where(BaselineRow.pacs == pacs, BaselineRow.name.in_(some)) for some in _portions(names)]
    return {name: counts for one in found for name, counts in session.execute(one).all()}


def _portions(names: Collection[str]) -> Iterator[list[str]]:
    left = iter(names)
    while some := list(islice(left, AT_ONCE)):
        yield some
