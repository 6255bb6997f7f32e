"""The reader's verbs on its socket: begin · query · fetch · attach · counts · finish · holds. One connection is one attempt."""

import os
import stat
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blocks.archive import Archive
from infra.reader.holding import Begin, Holding
from infra.reader.moving import Receiving
from policies.minimise import project_key
from policies.records import read_records
from policies.scope import Bounds, Scope, scope_codes
from rapha.canonical import is_digest
from rapha.errors import PeerError, Refusal

MAX_RECORDS_FILE = 1 << 30
MAX_DAYS = 366 * 200
Answer = dict[str, Any]
_SESSIONS: "weakref.WeakSet[ReaderSession]" = weakref.WeakSet()


class ReaderSession:
    """Serves one connection. Answers hold counts and digests, never an identifier."""

    def __init__(
        self, archive: Archive, hospital_key: bytes, records: Path, staging: Path, receiving: Receiving | None = None
    ) -> None:
        self._archive, self._hospital_key = archive, hospital_key
        self._records, self._staging, self._receiving = records, staging, receiving
        self._holding: Holding | None = None
        _SESSIONS.add(self)

    def do_begin(self, message: Mapping[str, Any], fds: list[int]) -> Answer:
        """Starts an attempt, or starts it again after a failed peer. Refuses a second attempt on one connection."""
        _close(fds)
        begin = _begin(message)
        held = self._holding
        if held and (held.begin.job, held.begin.attempt, held.begin.nonce) != (begin.job, begin.attempt, begin.nonce):
            raise Refusal(["reader-busy"], "this connection serves another attempt")
        bounds = Bounds(outer=begin.manifest, manifest=begin.manifest, intent=begin.intent)
        if codes := scope_codes(bounds, need_date=False, need_body_part=False, max_days=MAX_DAYS):
            raise Refusal(codes, gate="query")
        self.closed()
        records = read_records(self._read_records())
        key = project_key(self._hospital_key, begin.project)
        self._holding = Holding(begin, self._archive, key, records, self._staging, self._receiving)
        return {}

    def do_query(self, message: Mapping[str, Any], fds: list[int]) -> Answer:
        _close(fds)
        return self._held().query()

    def do_fetch(self, message: Mapping[str, Any], fds: list[int]) -> Answer:
        _close(fds)
        return self._held().fetch()

    def do_attach(self, message: Mapping[str, Any], fds: list[int]) -> Answer:
        if not fds or not all(stat.S_ISSOCK(os.fstat(fd).st_mode) for fd in fds):
            _close(fds)
            raise Refusal(["reader-request-odd"], "attach comes with sockets")
        return {"lines": self._held().attach(fds)}

    def do_counts(self, message: Mapping[str, Any], fds: list[int]) -> Answer:
        _close(fds)
        return dict(self._held().counts())

    def do_finish(self, message: Mapping[str, Any], fds: list[int]) -> Answer:
        _close(fds)
        facts = self._held().finish()
        self.closed()
        return facts

    def do_holds(self, message: Mapping[str, Any], fds: list[int]) -> Answer:
        """Whether a connection holds this attempt, or, asked for ("", 0), any: the keeper's question before it reconnects."""
        _close(fds)
        wanted = (message.get("job"), message.get("attempt"))
        begun = [(held.begin.job, held.begin.attempt) for session in list(_SESSIONS) if (held := session._holding)]
        return {"holds": bool(begun) if wanted == ("", 0) else wanted in begun}

    def closed(self) -> None:
        if self._holding is not None:
            self._holding.destroy()
            self._holding = None

    def _held(self) -> Holding:
        if self._holding is None:
            # Its connection was lost, and with it what was held: the peer failed, no rule said no.
            raise PeerError("reader-not-begun", "no attempt was begun on this connection", peer="reader")
        return self._holding

    def _read_records(self) -> bytes:
        try:
            if self._records.stat().st_size > MAX_RECORDS_FILE:
                raise Refusal(["records-unreadable"], "the records file is too large")
            return self._records.read_bytes()
        except OSError:
            raise Refusal(["records-unreadable"], "the records file cannot be read") from None


def _begin(message: Mapping[str, Any]) -> Begin:
    texts = {name: message.get(name) for name in ("job", "nonce", "project")}
    numbers = {name: message.get(name) for name in ("attempt", "cap")}
    wrong = (
        set(message) != {"verb", "job", "nonce", "project", "attempt", "cap", "manifest", "intent"}
        or not all(isinstance(text, str) and text for text in texts.values())
        or not all(isinstance(number, int) and not isinstance(number, bool) and number > 0 for number in numbers.values())
        or not is_digest(texts["job"])
    )
    if wrong:
        raise _odd()
    return Begin(
        job=str(texts["job"]),
        nonce=str(texts["nonce"]),
        project=str(texts["project"]),
        attempt=int(message["attempt"]),
        cap=int(message["cap"]),
        manifest=_scope(message["manifest"]),
        intent=_scope(message["intent"]),
    )


def _scope(value: object) -> Scope:
    if not isinstance(value, Mapping) or set(value) != {"modalities", "body_parts", "date_from", "date_to"}:
        raise _odd()
    lists, dates = (value["modalities"], value["body_parts"]), (value["date_from"], value["date_to"])
    terms = all(isinstance(terms, list) and all(isinstance(term, str) and term for term in terms) for terms in lists)
    if not terms or not all(isinstance(day, str) for day in dates):
        raise _odd()
    return Scope(modalities=tuple(lists[0]), body_parts=tuple(lists[1]), date_from=dates[0], date_to=dates[1])


def _odd() -> Refusal:
    return Refusal(["reader-request-odd"], "a request to the reader has other fields than its verb's")


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
