"""Stage prove: the archive shows that it holds a report, by storage commitment or by giving it back; in a flow and by hand."""

from blocks.archive import Archive
from blocks.receiver import Receiver
from blocks.study import BuiltObject, StudyReader
from policies.uid import derived_uid
from rapha.errors import PeerError, Refusal

SERVICE = "storage commitment"
SECONDS = 20.0


def commits(archive: Archive, receiver: Receiver | None) -> bool:
    """Whether the archive is asked to commit: a probe saw that it can, and its report has somebody to come to."""
    return SERVICE in archive.capabilities.services and receiver is not None


def committed(archive: Archive, receiver: Receiver | None, built: BuiltObject, nonce: str) -> None:
    """Storage commitment (PS3.4 annex J). nonce: of the attempt, so that no transaction is asked for twice.

    Raises `PeerError` report-not-committed, receiver-missing and of the archive.
    """
    if receiver is None:
        raise PeerError("receiver-missing", "a report of storage commitment has nobody to come to", peer="receiver")
    transaction = derived_uid("transaction", [built.sop_uid, nonce])
    pair = [(built.sop_class, built.sop_uid)]
    told = archive.commit(pair, transaction, seconds=SECONDS, elsewhere=receiver.commitment)
    if built.sop_uid not in told.committed:
        raise PeerError("report-not-committed", "the archive does not commit to the report", peer="pacs")


def given_back(study: StudyReader, pacs: str, built: BuiltObject) -> None:
    """Raises `Refusal(report-conflict)` where the archive holds another object, `PeerError(report-not-there)` where none."""
    found = study.verify(pacs, built.path)
    if found == "other":
        raise Refusal(["report-conflict"], "the archive holds another object under the report's UID", gate="store")
    if found != "same":
        raise PeerError("report-not-there", "the archive does not give the report back", peer="pacs")
