"""A study that is still being sent waits: what the archive lists when its turn comes is held to what it listed before."""

from blocks.reading_letters import no_lease, put_back
from blocks.reading_rows import StudyLease, StudyRow
from blocks.reading_sets import InstanceSets
from blocks.reading_shelf import held
from policies.polling import FoundStudy, listing

MOST_TURNS = 10  # a study that grows for longer is read as it is; what is added is a change, and opens it again
LONGEST_QUIET = 3600  # seconds after which a study is due however often it changes while it waits


class Settling(InstanceSets):
    """The waiting part of the register."""

    def settled(self, lease: StudyLease, seen: FoundStudy, now: int, quiet: int) -> bool:
        """Whether the archive lists what it listed before. If not, the study is given back, no try counted, for `quiet` seconds,
        MOST_TURNS times in one opening. seen: as it is listed now. `Refusal` lease-lost, study-canceled."""
        own = self.own_among(one.series_uid for one in seen.series)
        foreign = [one for one in seen.series if one.series_uid not in own]
        print_ = self._columns.name("fingerprint", listing(foreign, seen.instances))
        with self._session() as session:
            row = held(session, lease, now)
            row.changed = False  # nothing was fetched yet: it is all still to come
            if row.fingerprint == print_ or row.unsettled >= MOST_TURNS:
                return True
            row.unsettled, row.fingerprint, row.content_at, row.updated_at = row.unsettled + 1, print_, now, now
            no_lease(row)
            put_back(row, now + quiet)
            return False


def due(row: StudyRow, now: int, quiet: int) -> int:
    """When a study that changes while it waits is due: later than it was, but not put off for ever."""
    return max(row.next_at, min(now + quiet_of(row.priority, quiet), row.queued_at + LONGEST_QUIET))


def quiet_of(priority: str, quiet: int) -> int:
    """An urgent study waits for nothing."""
    return 0 if priority == "urgent" else quiet
