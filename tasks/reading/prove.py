"""Stage prove: the archive shows that it holds a report, by storage commitment or by giving it back; in a flow and by hand."""

from collections.abc import Callable
from dataclasses import dataclass

from blocks.archive import Archive, Listed
from blocks.dimse.services import BROKEN_OFF
from blocks.receiver import Receiver
from blocks.study import BuiltObject, StudyReader
from policies.coercion import Compared
from policies.commitment import standing
from rapha.errors import PeerError, Refusal
from tasks.shared.moving import Told
from tasks.shared.returning import moved_back, one_of

SERVICE = "storage commitment"
SECONDS = 20.0
# It does not commit, or not in time: giving the object back proves as much.
OTHERWISE = ("commitment-timeout", "commitment-refused", "commitment-not-offered", *BROKEN_OFF)


@dataclass(frozen=True, slots=True)
class Requests:
    """Transaction UIDs of requests for one object: the one that is made now, and those that were made before it."""

    now: str
    earlier: tuple[str, ...] = ()


def commits(archive: Archive, receiver: Receiver | None) -> bool:
    """Whether the archive is asked to commit: a probe saw that it can, and its report has somebody to come to."""
    return SERVICE in archive.capabilities.services and receiver is not None


def proves(archive: Archive, receives: bool) -> bool:
    """Whether a probe saw a way in which the archive can show what it holds. receives: a receiver is configured."""
    services = archive.capabilities.services
    if archive.method == "WADO-RS" or "C-GET" in services:
        return True
    return receives and bool(services & {SERVICE, "C-MOVE"})


def committed(archive: Archive, receiver: Receiver | None, built: BuiltObject, requests: Requests) -> str:
    """Storage commitment (PS3.4 annex J): "" where the archive commits to this object, else the code of why it does not.

    An archive may report late: what came for earlier requests is looked at first, and again when the wait is over. Raises
    `PeerError` receiver-missing, and of archive and receiver where neither yes nor no was said.
    """
    if receiver is None:
        raise PeerError("receiver-missing", "a report of storage commitment has nobody to come to", peer="receiver")
    what = built.sop_class, built.sop_uid
    if standing(receiver.commitments(requests.earlier), *what) == "committed":
        return ""
    try:
        told = archive.commit([what], requests.now, seconds=SECONDS, elsewhere=receiver.commitment)
    except PeerError as error:
        if error.codes[0] not in OTHERWISE:
            raise
        late = standing(receiver.commitments((*requests.earlier, requests.now)), *what)
        return "" if late == "committed" else error.codes[0]
    return "" if standing([told], *what) == "committed" else "report-not-committed"


@dataclass(frozen=True)
class Back:
    """How objects of one study are read back. study: its UID; told: hears what the archive says of a C-MOVE that is not so."""

    archive: Archive
    reader: StudyReader
    receiver: Receiver | None
    study: str
    told: Told

    def given(self, built: BuiltObject) -> tuple[str, ...]:
        """Tags of what the archive coerced in the object that it gives back, `()` where it is the same.

        Raises `Refusal(report-conflict)` where it holds another object, `PeerError` report-not-there where none,
        pacs-proves-nothing where none can be had.
        """
        name = self.archive.endpoint.name
        by_get: Callable[[], Compared] = lambda: self.reader.verify(name, built.path)  # noqa: E731
        found = one_of(self.archive, self.receiver, by_get, lambda: self._moved(built))
        if found.outcome == "other":
            raise Refusal(["report-conflict"], "the archive holds another object under the report's UID", gate="store")
        if found.outcome == "absent":
            raise PeerError("report-not-there", "the archive does not give the report back", peer="pacs")
        return found.tags

    def _moved(self, built: BuiltObject) -> Compared:
        assert self.receiver is not None  # noqa: S101  # it is asked only where there is one
        one = Listed(built.sop_uid, built.sop_class, built.series_uid)
        key = self.reader.recipient()
        with moved_back(self.archive, self.receiver, self.study, one, key, self.told) as came:
            found = [self.reader.compare(built.path, arrived.path) for arrived in came]
        if len(found) > 1:
            return Compared("other")  # one UID with two contents
        return found[0] if found else Compared("absent")
