"""Our own reports, by opening of their study: a later opening's report names the earlier one as its predecessor (PS3.3 C.17.2).

The UIDs are sealed like every identifier. A report counts as an earlier one only once the archive has taken it.
"""

import json
from dataclasses import asdict

from sqlalchemy import func, select

from blocks.reading_rows import OwnReport, OwnReportRow, StudyLease
from blocks.reading_shelf import Shelf, held
from rapha.errors import Refusal


class OwnReports(Shelf):
    """The reports' part of the register. Each write needs the lease: `Refusal` lease-lost, study-canceled."""

    def own_report(self, lease: StudyLease, report: OwnReport) -> None:
        """A report that is about to be stored; said again after a repeat, it stays as it is."""
        name = self._columns.name("report", report.sop_uid)
        with self._session() as session:
            row = held(session, lease)
            place = (row.id, row.opening, name)
            if session.get(OwnReportRow, place) is None:
                sealed = self._columns.seal(json.dumps(asdict(report), sort_keys=True), "reports", "named", *place)
                session.add(OwnReportRow(study=row.id, opening=row.opening, name=name, named_sealed=sealed))

    def report_stored(self, lease: StudyLease, sop_uid: str) -> None:
        """The archive has taken it. `Refusal` report-unknown."""
        with self._session() as session:
            row = held(session, lease)
            found = session.get(OwnReportRow, (row.id, row.opening, self._columns.name("report", sop_uid)))
            if found is None:
                raise Refusal(["report-unknown"], "a report was stored that was not registered before")
            found.stored = True

    def earlier_reports(self, lease: StudyLease) -> tuple[OwnReport, ...]:
        """Those that were stored in the newest opening before this one that stored any, by SOP Instance UID.

        The same for every attempt at one opening: nothing is written for an opening that is over.
        """
        with self._session() as session:
            row = held(session, lease)
            mine = (OwnReportRow.study == row.id, OwnReportRow.opening < row.opening, OwnReportRow.stored)
            newest = session.scalar(select(func.max(OwnReportRow.opening)).where(*mine))
            listed = session.scalars(select(OwnReportRow).where(*mine, OwnReportRow.opening == newest)).all()
            named = [self._columns.open(one.named_sealed, "reports", "named", one.study, one.opening, one.name) for one in listed]
            return tuple(sorted((OwnReport(**json.loads(text)) for text in named), key=lambda one: one.sop_uid))
