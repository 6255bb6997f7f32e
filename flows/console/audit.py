"""`rapha audit`: search, count and export the audit trail, and remove what is past its time. Each of them is audited itself.

What is printed holds pseudonyms alone; `export` writes the messages in clear, into files that only their owner reads.
"""

import os
import re
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

import cyclopts
from cyclopts import Parameter

from blocks.audit import Act, AuditTrail, Wanted, audited, create_audit_trail, open_audit_trail
from flows.console.announce import COMMANDS
from flows.person import person
from policies.audit_events import KINDS
from policies.audit_message import date_time, parse
from policies.audit_report import Recorded, report
from policies.audit_syslog import framed
from rapha.console.app import AsJson, AtMost, Result
from rapha.errors import ConfigurationError, Refusal

Form = Literal["files", "lines", "syslog"]
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d([Tt ]\d\d:\d\d(:\d\d)?([Zz]|[+-]\d\d:\d\d)?)?")
_PSEUDONYM = re.compile(r"[0-9a-fA-F]{64}")
_EVERY = 5000


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Filter:
    """What is looked for; every option that is given must match."""

    since: Annotated[str | None, Parameter(help="From this moment on: 2026-11-25 or 2026-11-25T10:00Z; UTC without a zone.")] = (
        None
    )
    until: Annotated[str | None, Parameter(help="Up to this moment; a day is meant whole.")] = None
    kind: Annotated[
        list[str] | None,
        Parameter(help="query, transfer, store, access, alert, operator, audit-log, … ; more than one: again.", negative=()),
    ] = None
    outcome: Annotated[list[int] | None, Parameter(help="0, 4, 8 or 12; more than one: again.", negative=())] = None
    person: Annotated[str | None, Parameter(help="Who did it, as the trail was told.")] = None
    patient: Annotated[str | None, Parameter(help="A patient's id in clear: it is hashed, not printed, not recorded.")] = None
    study: Annotated[str | None, Parameter(help="A study's UID in clear: likewise.")] = None
    pseudonym: Annotated[str | None, Parameter(help="64 hex digits as a search prints them, of whatever they stand for.")] = None

    def wanted(self, trail: AuditTrail) -> Wanted:
        """The search that this asks for. `ConfigurationError` audit-filter."""
        if unknown := set(self.kind or ()) - set(KINDS):
            raise ConfigurationError(["audit-filter"], f"no such kind of audit message: {', '.join(sorted(unknown))}")
        if set(self.outcome or ()) - {0, 4, 8, 12}:
            raise ConfigurationError(["audit-filter"], "an outcome is 0, 4, 8 or 12")
        if self.pseudonym is not None and not _PSEUDONYM.fullmatch(self.pseudonym):
            raise ConfigurationError(["audit-filter"], "a pseudonym has 64 hex digits")
        named = {"person": self.person, "patient": self.patient, "study": self.study}
        hashed = {name: trail.pseudonym(name, value) for name, value in named.items() if value is not None}
        if not all(hashed.values()):
            raise ConfigurationError(["audit-filter"], "a person, patient or study must not be empty")
        return Wanted(
            since=_moment(self.since, end=False),
            until=_moment(self.until, end=True),
            kinds=tuple(self.kind or ()),
            outcomes=tuple(self.outcome or ()),
            pseudonym=(self.pseudonym or "").lower(),
            **hashed,
        )


def register(app: cyclopts.App) -> None:
    """Adds the commands."""
    audit = cyclopts.App(name="audit", help=COMMANDS["audit"]["audit"])
    audit.command(search, name="search")
    audit.command(report_counts, name="report")
    audit.command(export, name="export")
    audit.command(expire, name="expire")
    audit.command(init, name="init")
    app.command(audit)


def search(which: Filter | None = None, *, limit: AtMost = 100, as_json: AsJson = False) -> Result:
    """What was done: time, kind, outcome, and the pseudonyms of who and whom.

    Example: `rapha audit search --kind query --since 2026-11-01`

    Parameters
    ----------
    limit
        The newest so many; 0 for all.
    """
    trail = open_audit_trail(os.environ, make=False)
    wanted = (which or Filter()).wanted(trail)
    with audited(trail, "audit-log", Act(person=person(), subject=trail.uri)) as told:
        found = [one for one in _shown(trail.search(wanted)) if one.operation != told.operation]
    rows = [one.to_json() for one in found[-limit:]]
    lines = [
        f"{_time(row['at'])}  {row['kind']:<16} {row['stage']:<5} {row['outcome']:>2}  person {row['person'][:12] or '-':<12}  "
        f"patient {row['patient'][:12] or '-':<12}  {len(row['studies'])} studies  [{row['segment']}/{row['seq']}]"
        for row in rows
    ]
    more = [f"{len(rows)} of {len(found)} shown: --limit 0 for all"] if len(rows) < len(found) else []
    return Result({"found": len(found), "entries": rows}, (lines or ["nothing found"]) + more)


def report_counts(which: Filter | None = None, *, as_json: AsJson = False) -> Result:
    """Counts of acts: by kind, outcome, person and day. A begin and its end are one act.

    Example: `rapha audit report --since 2026-11-01 --until 2026-11-30`
    """
    trail = open_audit_trail(os.environ, make=False)
    wanted = (which or Filter()).wanted(trail)
    with audited(trail, "audit-log", Act(person=person(), subject=trail.uri)) as told:
        counts = report(one for one in _shown(trail.search(wanted)) if one.operation != told.operation)
    lines = [
        f"{counts['acts']} acts, {counts['phi_access_count']} of them on what belongs to patients, in {counts['entries']} entries"
    ]
    for name in ("by_kind", "by_outcome", "by_day"):
        lines += [f"  {name.removeprefix('by_'):<8} {key:<18} {count}" for key, count in counts[name].items()]
    lines += [f"  person   {key[:16]:<18} {count}" for key, count in counts["by_person"].items()]
    return Result(counts, lines)


def export(to: Path, which: Filter | None = None, *, form: Form = "files", as_json: AsJson = False) -> Result:
    """The DICOM audit messages, decrypted: they name patients. Files are made with mode 600.

    Example: `rapha audit export ./november --since 2026-11-01 --until 2026-11-30`

    Parameters
    ----------
    to
        A folder that is not there yet (files: one XML a message), or a file that is not there yet (lines: one message a line;
        syslog: RFC 5424 messages framed for TLS).
    """
    trail = open_audit_trail(os.environ, make=False)
    wanted = (which or Filter()).wanted(trail)
    if to.exists():
        raise ConfigurationError(["audit-export-exists"], f"{to} is there already")
    count = 0
    with audited(trail, "audit-log", Act(person=person(), subject=trail.uri)) as told:
        messages = ((one, xml) for one, xml in trail.messages(wanted) if one.operation != told.operation)
        try:
            count = _files(to, messages) if form == "files" else _stream(to, messages, form)
        except OSError as error:
            raise ConfigurationError(["audit-export-unwritable"], f"{to}: {error.strerror}") from None
    return Result({"exported": count, "to": str(to)}, [f"{count} audit messages, in clear, in {to}"])


def expire(*, remove: bool = False, as_json: AsJson = False) -> Result:
    """Segments whose newest entry is past the years that the trail is kept; with --remove they go, and their carry-overs stay.

    Example: `rapha audit expire --remove`
    """
    trail = open_audit_trail(os.environ, make=False)
    with audited(trail, "audit-log", Act(person=person(), subject=trail.uri)):
        found = trail.expired()
    gone = trail.retire(person()) if remove else []
    said = f"removed: {gone}" if remove else f"past their time: {found}" + (" (--remove takes them away)" if found else "")
    return Result({"expired": found, "removed": gone, "retention_years": trail.years}, [f"segments {said}"])


def init(*, as_json: AsJson = False) -> Result:
    """A new trail in RAPHA_AUDIT_DIR, its first entry the start of recording. Production does not make one by itself.

    Example: `rapha audit init`
    """
    try:
        trail = create_audit_trail(os.environ)
    except Refusal as refusal:  # it is there already: wrong usage, and no gate's answer
        raise ConfigurationError(refusal.codes, refusal.message) from None
    return Result({"trail": trail.id, "folder": str(trail.folder)}, [f"trail {trail.id} in {trail.folder}"])


def _files(folder: Path, messages: Iterator[tuple[Recorded, bytes]]) -> int:
    folder.mkdir(mode=0o700, parents=True)
    count = 0
    for one, xml in messages:
        with _private(folder / f"{one.segment:06d}-{one.seq:08d}.xml") as stream:
            stream.write(xml + b"\n")
        count += 1
    return count


def _stream(path: Path, messages: Iterator[tuple[Recorded, bytes]], form: Form) -> int:
    count, host = 0, socket.gethostname()
    with _private(path) as stream:
        for one, xml in messages:
            if form == "syslog":
                stream.write(framed(xml, at=date_time(parse(xml).event.at), outcome=one.outcome, hostname=host))
            else:
                stream.write(xml + b"\n")
            count += 1
    return count


def _private(path: Path) -> BinaryIO:
    """A new file that only its owner reads. Raises `OSError`."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")


def _shown(found: Iterator[Recorded]) -> Iterator[Recorded]:
    """Says how far it is, on a terminal."""
    for count, one in enumerate(found, 1):
        if count % _EVERY == 0 and sys.stderr.isatty():
            sys.stderr.write(f"\r{count} entries …")
        yield one


def _time(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _moment(text: str | None, *, end: bool) -> int | None:
    if text is None:
        return None
    try:
        if not _MOMENT.fullmatch(text):
            raise ValueError("not a moment")
        moment = datetime.fromisoformat(text.upper().replace("Z", "+00:00"))
    except ValueError:
        raise ConfigurationError(["audit-filter"], "a moment is written 2026-11-25 or 2026-11-25T10:00Z") from None
    at = int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
    return at + 86399 if end and len(text) == 10 else at
