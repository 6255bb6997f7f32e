"""The reader: the process that holds the keys and the clear data of one attempt. One connection is one attempt.

Verbs: begin · query · fetch · attach · counts · finish. What comes back is counts and digests. Closing the connection destroys
what the reader holds.
"""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from blocks.channel import Channel
from policies.scope import Scope
from rapha.errors import PeerError

QUERY_SECONDS = 600.0
FETCH_SECONDS = 6 * 3600.0
F = TypeVar("F")


@dataclass(frozen=True, slots=True)
class QueryFacts:
    """Named as in `policies.query.QueryEvidence`."""

    records_root: str
    records_count: int
    query: str
    results: str
    answered: int
    outside: int
    ignored: int
    missing: int
    changed: int
    selected: int
    patients: int


@dataclass(frozen=True, slots=True)
class FetchFacts:
    """Named as in `policies.retrieve.RetrieveEvidence`. movement: codes of what the archive said of a C-MOVE or C-GET that is
    not so, with commas between them."""

    results: str
    before: str
    after: str
    listed: int
    received: int
    missing: int
    changed: int
    extra: int
    undecodable: int
    burned_in: int
    expected_root: str
    received_root: str
    bytes: int
    largest: int
    sealed: bool
    movement: str


@dataclass(frozen=True, slots=True)
class Counts:
    """handed: replies with pixels; unique: records they are of; total: records in staging; malformed: refused while decoding."""

    handed: int
    unique: int
    total: int
    malformed: int


@dataclass(frozen=True, slots=True)
class Finish:
    """The final counts.

    commitment: Merkle root over the handed records' names under `salt`, which stays in the hospital and opens it for an
    auditor; destroyed: staging key and files are gone.
    """

    handed: int
    unique: int
    total: int
    malformed: int
    cap: int
    commitment: str
    salt: str
    destroyed: bool


class Reader(Channel):
    """A connection to the reader, for one attempt. Not shared between threads."""

    def __init__(self, path: Path, *, timeout: float = 60.0) -> None:
        super().__init__(path, peer="reader", timeout=timeout)

    def begin(self, *, job: str, attempt: int, nonce: str, project: str, manifest: Scope, intent: Scope, cap: int) -> None:
        """Starts the attempt in the reader; again after a failed peer. cap: unique records that may be handed over.

        Raises `Refusal` records-…, reader-busy, query-….
        """
        scopes: dict[str, Any] = {"manifest": dataclasses.asdict(manifest), "intent": dataclasses.asdict(intent)}
        self.call("begin", job=job, attempt=attempt, nonce=nonce, project=project, cap=cap, timeout=60.0, **scopes)

    def query(self) -> QueryFacts:
        """Lists the archive. Raises `PeerError` pacs-…."""
        return self._facts(QueryFacts, self.call("query", timeout=QUERY_SECONDS))

    def fetch(self) -> FetchFacts:
        """Retrieves into sealed staging. Raises `PeerError` pacs-…, pacs-set-changed among them."""
        return self._facts(FetchFacts, self.call("fetch", timeout=FETCH_SECONDS))

    def attach(self, fds: Sequence[int]) -> None:
        """Hands the reader its ends of the loader's sockets (at most 16 a call) and closes them here."""
        try:
            self.call("attach", fds=list(fds), timeout=60.0)
        finally:
            for fd in fds:
                os.close(fd)

    def counts(self) -> Counts:
        return self._facts(Counts, self.call("counts", timeout=60.0))

    def finish(self) -> Finish:
        """Ends the handing over and destroys key and staging."""
        return self._facts(Finish, self.call("finish", timeout=120.0))

    def _facts(self, kind: type[F], answer: dict[str, Any]) -> F:
        """The answer as facts: every field, of its type, and no other."""
        fields = {field.name: field.type for field in dataclasses.fields(cast(Any, kind))}
        values = {name: value for name, value in answer.items() if name != "ok"}
        if set(values) != set(fields) or any(type(values[name]) is not fields[name] for name in fields):
            raise PeerError("reader-odd-answer", "the reader answered with other facts than its verb's", peer="reader")
        return kind(**values)
