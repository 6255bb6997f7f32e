"""How the archive is brought to prove that it holds a study's objects, and what of that stands in the ledger.

Storage commitment where the archive offers it. An object that it does not commit to, or not in time, is read back: the ledger's
entry `proof` says which proof it came to and why not the other; `coerced` which attributes the archive changed, by their tags.
"""

from collections.abc import Callable, Mapping, Sequence

from blocks.archive import Archive
from blocks.receiver import Receiver
from blocks.sealed_columns import SealedColumns, column_key
from blocks.study import BuiltObject, StudyReader
from policies.uid import derived_uid
from rapha.errors import PeerError
from tasks.attempt import Attempt
from tasks.reading import prove as proving
from tasks.shared.returning import NOTHING

TRIES = 4  # of a stage within one attempt: one, and as many again as a profile may ask for
EARLIER = 32  # attempts whose requests are looked up


class Transactions:
    """Transaction UIDs of storage commitment: another for each request (PS3.4 J.3.2), and each of them again when it is needed.

    Nobody without the register's key can foresee one, so that nobody else reports for it.
    """

    def __init__(self, environment: Mapping[str, str], attempt: Attempt) -> None:
        self._columns = SealedColumns(column_key(environment["RAPHA_REGISTER_KEY_BASE64"]))
        self._attempt = attempt
        self._asked: dict[str, int] = {}

    def requests(self, sop_uid: str) -> proving.Requests:
        """The next request for this object, and those that this attempt and earlier ones may have made."""
        own = self._asked[sop_uid] = self._asked.get(sop_uid, 0) + 1
        number = self._attempt.number
        before = [(one, each) for one in range(max(1, number - EARLIER), number) for each in range(1, TRIES + 1)]
        before += [(number, each) for each in range(1, own)]
        return proving.Requests(self._uid(sop_uid, number, own), tuple(self._uid(sop_uid, *one) for one in before))

    def _uid(self, sop_uid: str, attempt: int, request: int) -> str:
        facts = "\0".join(map(str, (sop_uid, self._attempt.job, attempt, request)))
        return derived_uid("transaction", [self._columns.name("transaction", facts)])


def uncommitted(
    archive: Archive, receiver: Receiver | None, objects: Sequence[BuiltObject], requests: Callable[[str], proving.Requests]
) -> dict[str, str]:
    """SOP instance -> why the archive does not commit to it, "" where it is not asked to; empty where it commits to all.

    requests: SOP instance -> its transactions.
    """
    if not proving.commits(archive, receiver):
        return dict.fromkeys((one.sop_uid for one in objects), "")
    answers = {one.sop_uid: proving.committed(archive, receiver, one, requests(one.sop_uid)) for one in objects}
    return {uid: code for uid, code in answers.items() if code}


def read_back(
    archive: Archive,
    reader: StudyReader,
    receiver: Receiver | None,
    study: str,
    objects: Sequence[BuiltObject],
    attempt: Attempt,
    *,
    row: int,
    why: Mapping[str, str] | None = None,
) -> None:
    """Has each object given back and compared. why: as `uncommitted` said it. Raises as `tasks.reading.prove.Back`, with the
    reason of `why` where nothing can be given back at all: a commitment may still come."""

    def told(turn: int, codes: tuple[str, ...]) -> None:
        attempt.record("movement", round=turn, codes=list(codes))

    back = proving.Back(archive, reader, receiver, study, told)
    for one in objects:
        try:
            tags = back.given(one)
        except PeerError as error:
            code = (why or {}).get(one.sop_uid)
            if error.codes != (NOTHING,) or not code:
                raise
            raise PeerError(code, "the archive does not commit to the report, and gives nothing back", peer="pacs") from None
        if tags:
            attempt.record("coerced", row=row, object=one.sha256, tags=list(tags))
