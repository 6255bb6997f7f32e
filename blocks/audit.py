"""The audit trail: who did what to whom, as DICOM audit messages (PS3.15 A.5), each encrypted, in a chain that anybody can check.

An entry is the ciphertext of the message's XML beside a few clear fields for searching: kind, stage, outcome, time, and keyed
hashes of the person, the patient and the studies. `rapha ledger verify` checks a trail with the public key alone. Nothing goes on
without its entry: a trail that cannot be written raises before the act begins (`audited`).
"""

import base64
import binascii
import hmac
import logging
import os
import secrets
import socket
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from blocks.audit_segments import Period, Segments
from blocks.profile import load_profile
from blocks.settings import mode_of
from policies.audit_codes import OUTCOMES
from policies.audit_events import KINDS, Act, Patient, Stage, Study, compose
from policies.audit_message import Message, Source, build, parse
from policies.audit_report import Recorded, Wanted, report
from policies.audit_schema import MAX_XML
from policies.minimise import canonical_identifier
from rapha.canonical import canonical
from rapha.errors import ConfigurationError, PeerError, RaphaError, Refusal
from rapha.ledger import MAX_LINE, Entry
from rapha.signing import load_private
from rapha.trail import LEAST_YEARS, MOST_YEARS, SEGMENTS, TRAIL, TRAIL_LOCK

__all__ = ["Act", "AuditTrail", "Patient", "Study", "Wanted", "audited", "create_audit_trail", "open_audit_trail"]
KEY_BYTES, SALT, NONCE = 32, 16, 12
MAX_SEALED = MAX_LINE * 3 // 4 - 1024  # what base64 leaves of a ledger's line, less the fields beside it
MAX_STUDIES = 64
MAX_GROUP = 64
SEGMENT_BYTES = 16 << 20
YEARS = 7
MIN_DISTINCT = 16  # 32 random bytes have fewer distinct values about once in 10^10 keys
log = logging.getLogger("rapha.audit")


class AuditTrail:
    """One trail, open to write and to read. Threads may share it, and processes may each have their own on one folder."""

    def __init__(
        self,
        folder: Path,
        key: bytes,
        signer: Ed25519PrivateKey,
        *,
        source: Source,
        years: int = YEARS,
        segment_bytes: int = SEGMENT_BYTES,
        period: Period = "month",
    ) -> None:
        """key: 32 random bytes, for the ciphertexts and the keyed hashes. `ConfigurationError` audit-… for what is wrong."""
        _checked_key(key)
        if type(years) is not int or not LEAST_YEARS <= years <= MOST_YEARS:
            raise ConfigurationError(["audit-retention"], f"an audit trail is kept {LEAST_YEARS} to {MOST_YEARS} years")
        self.folder, self.source, self.years = folder, source, years
        self._segments = Segments(folder, signer, max_bytes=segment_bytes, period=period)
        self._key, self._names = key, _derived(key, b"rapha audit names v1\n" + self._segments.trail_id.encode())
        self._waiting: list[_Waiter] = []
        self._queue, self._writing = threading.Lock(), threading.Lock()

    @property
    def id(self) -> str:
        return self._segments.trail_id

    def record(
        self,
        kind: str,
        act: Act,
        *,
        outcome: int = 0,
        stage: Stage = "once",
        operation: str = "",
        reason: str = "",
        at: float | None = None,
    ) -> Recorded:
        """Writes one audit message; it is on disk and signed for when this returns.

        kind: one of `policies.audit_events.KINDS`; reason: codes. `PeerError` audit-unwritable where the disk does not take it:
        what was to be audited must not go on. `Refusal` audit-… for a message that the standard does not allow, and audit-broken
        for a trail that is not what was written.
        """
        if stage != "once" and not operation:
            raise Refusal(["audit-operation"], "a begin and its end are joined by the name of their operation")
        moment = time.time() if at is None else at
        told = {"at": int(moment * 1000), "outcome": outcome, "stage": stage, "reason": reason, "operation": operation}
        index = self._index(kind, act, stage, operation, outcome)
        body = {**index, **self._sealed(kind, int(moment), index, self._xml(kind, act, told))}
        segment, entry = self._committed((f"audit.{kind}", body, int(moment)))
        return _recorded(segment, entry)

    def pseudonym(self, kind: str, identifier: str) -> str:
        """What stands for a person, patient or study in this trail (64 hex digits); "" for an empty identifier."""
        if kind == "patient":
            try:
                plain = canonical_identifier("patient", identifier)
            except Refusal:
                return ""
        elif kind in ("study", "person"):
            plain = identifier.strip(" \0") if kind == "study" else identifier.strip().casefold()
        else:
            raise Refusal(["audit-pseudonym-kind"], "a pseudonym is a person's, a patient's or a study's")
        message = f"{kind}\n{plain}".encode(errors="surrogatepass")
        return hmac.new(self._names, message, "sha256").hexdigest() if plain else ""

    def search(self, wanted: Wanted | None = None) -> Iterator[Recorded]:
        """What was recorded and matches, oldest first; the chain is checked on the way. `Refusal` audit-broken."""
        return (one for one, _ in self._found(wanted or Wanted()))

    def messages(self, wanted: Wanted | None = None) -> Iterator[tuple[Recorded, bytes]]:
        """(entry, its DICOM audit message as XML), opened with the key. `Refusal` audit-broken."""
        return ((one, self._opened(entry)) for one, entry in self._found(wanted or Wanted()))

    def message(self, one: Recorded) -> Message:
        """The facts of one entry."""
        for found, xml in self.messages(Wanted(since=one.at, until=one.at)):
            if (found.segment, found.seq) == (one.segment, one.seq):
                return parse(xml)
        raise Refusal(["audit-unknown-entry"], "this trail has no such entry")

    def report(self, wanted: Wanted | None = None) -> dict[str, Any]:
        """Counts of acts by kind, outcome, person and day (see `policies.audit_report.report`)."""
        return report(self.search(wanted))

    def statistics(self) -> dict[str, Any]:
        """What `get_audit_statistics()` answers: `phi_access_count` and the other counts of the whole trail."""
        counts, failed = self.report(), ("4", "8", "12")
        return {
            "phi_access_count": counts["phi_access_count"],
            "total_events": counts["acts"],
            "events_by_kind": counts["by_kind"],
            "events_by_outcome": counts["by_outcome"],
            "failed_events": sum(counts["by_outcome"].get(outcome, 0) for outcome in failed),
            "unfinished_events": counts["by_outcome"].get("unfinished", 0),
            "security_alerts": counts["by_kind"].get("alert", 0),
            "users": len(counts["by_person"]),
            "patients": counts["patients"],
            "studies": counts["studies"],
            "retention_years": self.years,
        }

    def expired(self, now: float | None = None) -> list[int]:
        """The segments that may be removed: closed, the oldest, and past the years that the trail is kept."""
        return self._segments.expired(self.years, int(time.time() if now is None else now))

    def retire(self, person: str, now: float | None = None) -> list[int]:
        """Removes the expired segments, each an audited operator action; their carry-overs stay, so that the chain holds."""
        moment = int(time.time() if now is None else now)
        removed = []
        for number in self._segments.expired(self.years, moment):
            with audited(self, "operator", Act(person=person, subject=f"{self.uri}#segment-{number}", action="E")):
                with self._writing, _as_peer():
                    self._segments.retire(number, self.years, moment)
                removed.append(number)
        return removed

    @property
    def uri(self) -> str:
        """How audit messages name this trail."""
        return f"urn:rapha:audit:{self.id}"

    def _index(self, kind: str, act: Act, stage: Stage, operation: str, outcome: int) -> dict[str, Any]:
        if len(act.studies) > MAX_STUDIES:
            raise Refusal(["audit-too-many-studies"], f"one audit message names at most {MAX_STUDIES} studies")
        return {
            "v": 1,
            "stage": stage,
            "operation": operation,
            "outcome": outcome,
            "action": act.action or KINDS.get(kind, ("", "", ""))[1],
            "person": self.pseudonym("person", act.person),
            "patient": self.pseudonym("patient", act.patient.id) if act.patient else "",
            "studies": sorted({self.pseudonym("study", study.uid) for study in act.studies} - {""}),
        }

    def _xml(self, kind: str, act: Act, told: Mapping[str, Any]) -> bytes:
        """The message compressed; without its instances' UIDs, which the standard leaves open, where they do not fit."""
        packed = zlib.compress(build(compose(kind, act, source=self.source, **told)))
        if len(packed) > MAX_SEALED:
            studies = [replace(s, sop_classes=tuple(replace(c, instances=()) for c in s.sop_classes)) for s in act.studies]
            packed = zlib.compress(build(compose(kind, replace(act, studies=tuple(studies)), source=self.source, **told)))
        if len(packed) > MAX_SEALED:
            raise Refusal(["audit-entry"], "an audit message is larger than an entry holds")
        return packed

    def _sealed(self, kind: str, at: int, index: Mapping[str, Any], packed: bytes) -> dict[str, str]:
        """AES-256-GCM under a key of this entry alone, bound to the trail, the time and the clear fields."""
        salt, nonce = secrets.token_bytes(SALT), secrets.token_bytes(NONCE)
        sealed = AESGCM(_derived(self._key, b"rapha audit seal v1", salt)).encrypt(nonce, packed, self._bound(kind, at, index))
        return {"sealed": base64.b64encode(salt + nonce + sealed).decode()}

    def _bound(self, kind: str, at: int, index: Mapping[str, Any]) -> bytes:
        return canonical({"trail": self.id, "kind": kind, "at": at, "index": index})

    def _opened(self, entry: Entry) -> bytes:
        index = {name: value for name, value in entry.body.items() if name != "sealed"}
        try:
            raw = base64.b64decode(entry.body["sealed"], validate=True)
            cipher = AESGCM(_derived(self._key, b"rapha audit seal v1", raw[:SALT]))
            bound = self._bound(entry.kind.removeprefix("audit."), entry.at, index)
            packed = cipher.decrypt(raw[SALT : SALT + NONCE], raw[SALT + NONCE :], bound)
            return zlib.decompressobj().decompress(packed, MAX_XML + 1)
        except (InvalidTag, KeyError, ValueError, zlib.error):
            raise Refusal(["audit-sealed"], "an audit entry does not open with this key") from None

    def _found(self, wanted: Wanted) -> Iterator[tuple[Recorded, Entry]]:
        with _as_peer("audit-unreadable"):
            for segment, entry in self._segments.entries(wanted.since, wanted.until):
                if "sealed" not in entry.body:  # carry-overs, and what says that a segment was removed
                    continue
                one = _recorded(segment, entry)
                if wanted.matches(one):
                    yield one, entry

    def _committed(self, item: tuple[str, dict[str, Any], int]) -> tuple[int, Entry]:
        """Queues the item; whoever gets to write takes all that wait with one flush."""
        waiter = _Waiter(item)
        with self._queue:
            self._waiting.append(waiter)
        with self._writing:
            while waiter.is_waiting and waiter in self._waiting:
                self._write_waiting()
        if waiter.failed is not None:
            raise waiter.failed
        if waiter.done is None:
            raise PeerError("audit-unwritable", "the audit trail did not take the entry", peer="audit")
        return waiter.done

    def _write_waiting(self) -> None:
        with self._queue:
            group, self._waiting = self._waiting[:MAX_GROUP], self._waiting[MAX_GROUP:]
        failed: RaphaError | None = None
        try:
            with _as_peer():
                for waiter, done in zip(group, self._segments.append([waiter.item for waiter in group]), strict=True):
                    waiter.done = done
        except RaphaError as error:
            failed = error
            log.error("%s", error.codes[0])  # said once, here; the trail itself is not asked to record it
        for waiter in group:
            waiter.failed = failed


class _Waiter:
    """An entry that waits to be written, and what became of it."""

    def __init__(self, item: tuple[str, dict[str, Any], int]) -> None:
        self.item = item
        self.done: tuple[int, Entry] | None = None
        self.failed: RaphaError | None = None

    @property
    def is_waiting(self) -> bool:
        return self.done is None and self.failed is None


class Audited:
    """What the body of `audited` may tell: what it learned of the act, and an outcome other than success."""

    def __init__(self, act: Act) -> None:
        self.act, self.outcome, self.reason = act, 0, ""
        self.operation = secrets.token_hex(8)

    def learned(self, **facts: Any) -> None:
        """Facts that were not known when the act began: `patient=…`, `studies=…`, `query=…`."""
        self.act = replace(self.act, **facts)

    def ended(self, outcome: int, reason: str = "") -> None:
        """The outcome of an act that ends without an exception: 4, 8 or 12, and codes."""
        if outcome not in OUTCOMES:
            raise Refusal(["audit-outcome"], "an outcome is 0, 4, 8 or 12")
        self.outcome, self.reason = outcome, reason


@contextmanager
def audited(trail: AuditTrail, kind: str, act: Act) -> Iterator[Audited]:
    """The act's begin before the body, its end after it, on every way out.

    The body does not run where its begin cannot be written (`PeerError` audit-unwritable). An end that cannot be written raises
    the same after an act that went well; after one that failed, its own error goes on, and the trail shows a begin without end.
    """
    told = Audited(act)
    operation = told.operation
    trail.record(kind, act, stage="begin", operation=operation)
    try:
        yield told
    except BaseException as error:
        outcome, reason = failure(error)
        try:
            trail.record(kind, told.act, outcome=outcome, stage="end", operation=operation, reason=reason)
        except RaphaError as unwritten:
            error.add_note(unwritten.codes[0])
        raise
    trail.record(kind, told.act, outcome=told.outcome, stage="end", operation=operation, reason=told.reason)


def failure(error: BaseException) -> tuple[int, str]:
    """(outcome, codes) of an act that an exception ended; never its text.

    4: a peer failed and it will be tried again; 8: it was refused or broke; 12: the process is going down.
    """
    if isinstance(error, PeerError):
        return 4, " ".join(error.codes)
    if isinstance(error, RaphaError):
        return 8, " ".join(error.codes)
    if isinstance(error, MemoryError) or not isinstance(error, Exception):
        return 12, type(error).__name__
    return 8, type(error).__name__


def open_audit_trail(environment: Mapping[str, str] = os.environ, *, years: int | None = None, make: bool = True) -> AuditTrail:
    """The trail of this node: `RAPHA_AUDIT_DIR` (else the profile's `audit.log_directory`, else `audit` in `RAPHA_STATE_DIR`),
    `RAPHA_AUDIT_KEY_BASE64`, and its signing key `audit.pem` in `RAPHA_KEYS_DIR`. years: how long it is kept;
    `RAPHA_AUDIT_RETENTION_YEARS`, else the profile's `audit.retention_years`, else 7.

    Development makes a trail where there is none, unless `make` is False: who only reads one makes none. Production does not: a
    trail that is gone is no new trail (`rapha audit init`). `ConfigurationError` with a code for what is missing or wrong.
    """
    folder, key, signer = audit_place(environment)
    mode = mode_of(environment, absent="development")
    if make and mode == "development" and not (folder / TRAIL).exists():
        _created(folder, signer)
    return AuditTrail(
        folder, key, signer, source=_source(environment), years=_years(environment, years), period=_period(environment)
    )


def create_audit_trail(environment: Mapping[str, str] = os.environ) -> AuditTrail:
    """A new trail, its first entry the start of recording. `Refusal` audit-exists where there is one, or what is left of one."""
    folder, _, signer = audit_place(environment)
    Segments.create(folder, signer)
    trail = open_audit_trail(environment)
    trail.record("alert", Act(person=f"rapha@{socket.gethostname()}", type="110134", subject=trail.uri))
    return trail


def audit_place(environment: Mapping[str, str]) -> tuple[Path, bytes, Ed25519PrivateKey]:
    """(folder, key, signing key). `ConfigurationError`."""
    named = environment.get("RAPHA_AUDIT_DIR", "").strip() or str(_of_profile(environment, "log_directory") or "")
    state, keys = environment.get("RAPHA_STATE_DIR", "").strip(), environment.get("RAPHA_KEYS_DIR", "").strip()
    text = environment.get("RAPHA_AUDIT_KEY_BASE64", "").strip()
    missing = {"missing-state-dir": named or state, "missing-keys-dir": keys, "missing-audit-key-base64": text}
    if codes := [code for code, value in missing.items() if not value]:
        raise ConfigurationError(codes, "the audit trail needs RAPHA_STATE_DIR or RAPHA_AUDIT_DIR, RAPHA_KEYS_DIR and its key")
    for other in ("RAPHA_PHI_HMAC_KEY_BASE64", "RAPHA_REGISTER_KEY_BASE64"):
        if environment.get(other, "").strip() == text:
            raise ConfigurationError(["audit-key-shared"], f"RAPHA_AUDIT_KEY_BASE64 is {other} too: make it a key of its own")
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ConfigurationError(["bad-audit-key-base64"], "RAPHA_AUDIT_KEY_BASE64 is not base64") from None
    _checked_key(key)
    return Path(named) if named else Path(state) / "audit", key, load_private(Path(keys) / "audit.pem")


def _of_profile(environment: Mapping[str, str], key: str) -> Any:
    """A key of the profile's section `audit`; None without one, or without a profile."""
    path = environment.get("RAPHA_PROFILE_PATH", "").strip()
    return load_profile(Path(path), environment).values.get(f"audit.{key}") if path else None


_OURS = {TRAIL, SEGMENTS, TRAIL_LOCK, "lost+found"}


def _created(folder: Path, signer: Ed25519PrivateKey) -> None:
    others = {one.name for one in folder.iterdir()} - _OURS if folder.is_dir() else set()
    if others:
        raise ConfigurationError(["audit-folder-other"], f"{folder} holds other things than an audit trail: name an empty folder")
    try:
        Segments.create(folder, signer)
    except Refusal:  # another process was first
        if not (folder / TRAIL).exists():
            raise


def _source(environment: Mapping[str, str]) -> Source:
    return Source(environment.get("RAPHA_NODE_ID", "").strip() or socket.gethostname())


def _years(environment: Mapping[str, str], years: int | None) -> int:
    text = environment.get("RAPHA_AUDIT_RETENTION_YEARS", "").strip()
    if years is not None or not text:
        return int(_of_profile(environment, "retention_years") or YEARS) if years is None else years
    if not (text.isascii() and text.isdecimal()):
        raise ConfigurationError(["audit-retention"], "RAPHA_AUDIT_RETENTION_YEARS is not a number of years")
    return int(text)


def _period(environment: Mapping[str, str]) -> Period:
    text = environment.get("RAPHA_AUDIT_SEGMENT", "").strip() or "month"
    if text not in ("day", "month"):
        raise ConfigurationError(["audit-segment"], "RAPHA_AUDIT_SEGMENT is day or month")
    return "day" if text == "day" else "month"


def _checked_key(key: bytes) -> None:
    if len(key) != KEY_BYTES or len(set(key)) < MIN_DISTINCT or len({(b - a) % 256 for a, b in pairwise(key)}) < 8:
        raise ConfigurationError(["weak-audit-key-base64"], f"RAPHA_AUDIT_KEY_BASE64 must be {KEY_BYTES} random bytes")


def _derived(key: bytes, info: bytes, salt: bytes | None = None) -> bytes:
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=salt, info=info).derive(key)


def _recorded(segment: int, entry: Entry) -> Recorded:
    body = entry.body
    try:
        clear = {name: body[name] for name in ("stage", "operation", "outcome", "action", "person", "patient")}
        return Recorded(segment, entry.seq, entry.at, entry.kind.removeprefix("audit."), studies=tuple(body["studies"]), **clear)
    except (KeyError, TypeError):
        raise Refusal(["audit-broken"], "an audit entry has other fields than an audit entry's") from None


@contextmanager
def _as_peer(code: str = "audit-unwritable") -> Iterator[None]:
    """What the disk and the ledger say, in the audit trail's own codes; `code`: what an error of the disk is called."""
    try:
        yield
    except OSError as error:
        raise PeerError(code, f"the audit trail's disk says: {error.strerror}", peer="audit") from None
    except Refusal as refusal:
        if "ledger-entry" in refusal.codes:
            raise Refusal(["audit-entry"], "an audit message is larger than an entry holds") from None
        if "ledger-unwritable" in refusal.codes:
            raise PeerError("audit-unwritable", refusal.message, peer="audit") from None
        if any(code.startswith(("ledger-", "json-")) for code in refusal.codes):
            raise Refusal(["audit-broken"], f"the audit trail is not what was written: {refusal.message}") from None
        raise
