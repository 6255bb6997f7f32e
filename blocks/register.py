"""The register: what is owed. Rows, leases, attempts, stages, deliveries, dead letters.

A job's states:

    submitted   waiting for its first attempt, or for the next after `retry`
    running     one attempt holds a lease
    crashed     its lease ran out; owed again, `claim` opens a new attempt
    owing       its lease ran out, or a retry was asked, in or after Settle: `claim` hands the same attempt out again, in place
    refused     a gate said no; `retry` opens a new attempt only where the refusal is node-side
    dead        a peer failed for good, or too many attempts crashed: a dead letter says at which stage; `retry` reopens
    done        delivered
    cancelled   by its owner or the node, before Settle

    submitted -> running -> done | refused | dead | cancelled        crashed -> running
                 running -> crashed | owing | dead (reap)            owing -> running

An attempt is one number and one nonce of the node's own; it is running, done, refused, failed, crashed or cancelled.
A lease is a worker's, until a time, with a token that is new at each claim: who lost it can write nothing more.
SQLite in WAL mode with `synchronous=FULL` (an answer given is on disk) or PostgreSQL. Every failure of the database is a
`PeerError`; a rule's no is a `Refusal`.
"""

import random
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from sqlalchemy import delete, func, or_, select, update
from sqlalchemy.orm import Session

from blocks.database import RowConflict, database, locked, open_engine
from blocks.register_rows import (
    AttemptRow,
    Base,
    DeadLetter,
    DeadLetterRow,
    Delivery,
    JobFacts,
    JobRow,
    JobStatus,
    Lease,
    Lost,
    OutboxRow,
    WebhookNonceRow,
    delivery_of,
    lease_of,
    letter_of,
    status_of,
)
from rapha.declaration import Declaration
from rapha.errors import Refusal
from rapha.files import made_folder

OPEN = ("submitted", "running", "crashed", "owing")
CLAIMABLE = ("submitted", "crashed", "owing")
IN_PLACE = frozenset({"settle", "deliver"})  # stages that resume in the same attempt: money may be on its way
MAX_CRASHES = 3
MAX_TRIES = 12
End = Literal["done", "refused", "failed", "crashed", "cancelled"]


class Register:
    """The register behind one database URL. Safe to share between threads; open one in each process."""

    def __init__(self, url: str) -> None:
        """Opens, and creates where it is missing. `url` as SQLAlchemy writes it: sqlite:////path or postgresql+psycopg://…"""
        self._engine = open_engine(url)
        with database():
            Base.metadata.create_all(self._engine)

    @classmethod
    def at(cls, path: Path) -> "Register":
        """The register in a SQLite file."""
        made_folder(path.parent, "state-dir-unusable")
        return cls(f"sqlite:///{path.absolute()}")

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _session(self) -> Iterator[Session]:
        """One transaction: committed, durably, when the block ends, rolled back when it raises."""
        with database(), Session(self._engine, expire_on_commit=False) as session, session.begin():
            yield session

    # -- how a job comes in

    def submit(self, document: bytes, declaration: Declaration, job: str, owner: str, *, now: int) -> tuple[str, bool]:
        """(job id, whether the row is new). The row is on disk when this returns.

        The same declaration is the same job, however often it comes. Raises `Refusal` owner-mismatch where the declaration names
        another owner than the one who sent it, client-nonce-reused where the owner used the nonce for another declaration.
        """
        if declaration.owner != owner:
            raise Refusal(["owner-mismatch"], "the declaration names another owner", gate="intake", side="job", subject=job)
        try:
            with self._session() as session:
                if session.get(JobRow, job) is not None:
                    return job, False
                session.add(
                    JobRow(
                        id=job,
                        owner=owner,
                        client_nonce=declaration.client_nonce,
                        document=document,
                        state="submitted",
                        created_at=now,
                        updated_at=now,
                    )
                )
            return job, True
        except RowConflict:
            return self._same_or_reused(job)

    def _same_or_reused(self, job: str) -> tuple[str, bool]:
        """Another process may have written the same job meanwhile; else it is the nonce that occurs twice."""
        with self._session() as session:
            if session.get(JobRow, job) is not None:
                return job, False
        said = "this owner has used the client nonce for another declaration"
        raise Refusal(["client-nonce-reused"], said, gate="intake", side="job", subject=job)

    def spend_nonce(self, key_id: str, nonce: str, *, now: int, forget_at: int) -> bool:
        """Whether this is the nonce's first use under this key; remembered durably until `forget_at`."""
        try:
            with self._session() as session:
                session.execute(delete(WebhookNonceRow).where(WebhookNonceRow.forget_at < now))
                session.add(WebhookNonceRow(key_id=key_id, nonce=nonce, forget_at=forget_at))
            return True
        except RowConflict:
            return False

    def facts(self, job: str) -> JobFacts:
        """What Intake needs to know; `registered` is False for a job that was never submitted."""
        with self._session() as session:
            row = session.get(JobRow, job)
            if row is None:
                return JobFacts(registered=False, owner="", attempt=0, nonce="", open_jobs=0)
            attempt = session.get(AttemptRow, (job, row.attempt))
            return JobFacts(
                registered=True,
                owner=row.owner,
                attempt=row.attempt,
                nonce=attempt.nonce if attempt else "",
                open_jobs=_open_jobs(session, row.owner),
            )

    def open_jobs(self, owner: str) -> int:
        """How many jobs of this owner are owed."""
        with self._session() as session:
            return _open_jobs(session, owner)

    # -- leases

    def claim(self, worker: str, now: int, lease_seconds: int, *, job: str | None = None) -> Lease | None:
        """The oldest job that is owed (or `job`, if it is), with a lease, or None. Never the same to two workers."""
        with self._session() as session:
            wanted = select(JobRow).where(JobRow.state.in_(CLAIMABLE)).order_by(JobRow.created_at, JobRow.id).limit(1)
            row = session.scalars(locked(wanted if job is None else wanted.where(JobRow.id == job))).first()
            if row is None:
                return None
            resumes = row.state == "owing"
            attempt = _resumed(session, row) if resumes else _opened(session, row, now)
            attempt.lease_owner, attempt.lease_token = worker, secrets.token_hex(16)
            attempt.lease_until, attempt.state, attempt.updated_at = now + lease_seconds, "running", now
            row.state, row.codes, row.side, row.updated_at = "running", "", "", now
            return lease_of(row, attempt, resumes)

    def renew(self, lease: Lease, now: int, lease_seconds: int) -> Lease:
        """The lease, longer. Raises `Refusal` lease-lost, or job-cancelled where a cancel was asked."""
        with self._session() as session:
            row, attempt = _held(session, lease, now)
            attempt.lease_until, attempt.updated_at = now + lease_seconds, now
            return lease_of(row, attempt, lease.resumes)

    def stage(self, lease: Lease, stage: str, now: int) -> None:
        """Writes down which stage the attempt enters. Raises `Refusal` lease-lost or job-cancelled."""
        with self._session() as session:
            row, attempt = _held(session, lease, now)
            if attempt.stage in IN_PLACE and stage not in IN_PLACE:
                raise Refusal(["stage-backwards"], "an attempt in Settle does not go back", subject=lease.job)
            attempt.stage, attempt.updated_at, row.updated_at = stage, now, now

    def finish(self, lease: Lease, state: End, codes: Sequence[str] = (), side: str = "", *, now: int) -> None:
        """Ends the attempt. "failed" (a peer, after its retries) leaves a dead letter. Raises `Refusal` lease-lost."""
        with self._session() as session:
            row, attempt = _held(session, lease, now, cancelled_too=True)
            _end(session, row, attempt, state, codes, side, now)

    def reap(self, now: int) -> list[Lost]:
        """Takes back the leases that ran out; the attempts concerned. What crashed too often becomes a dead letter."""
        with self._session() as session:
            lost = select(AttemptRow).where(AttemptRow.state == "running", AttemptRow.lease_until <= now)
            found = []
            for attempt in session.scalars(locked(lost)).all():
                row = session.get_one(JobRow, attempt.job)
                _end(session, row, attempt, "cancelled" if row.cancel_asked else "crashed", ("lease-lost",), "node", now)
                found.append(Lost(job=row.id, attempt=attempt.number, state=row.state, codes=tuple(row.codes.split())))
            return found

    # -- a person's commands

    def retry(self, job: str, *, now: int) -> None:
        """Owes the job again: a new attempt, or the same one in place once it reached Settle.

        Only after a node-side refusal, a crash or a dead letter; else `Refusal` retry-not-allowed (job-unknown).
        """
        with self._session() as session:
            row = _job(session, job)
            if not (row.state in ("crashed", "dead") or (row.state == "refused" and row.side == "node")):
                raise Refusal(["retry-not-allowed"], f"a job that is {row.state} is not tried again", side="job", subject=job)
            attempt = session.get(AttemptRow, (job, row.attempt))
            row.state = "owing" if attempt is not None and attempt.stage in IN_PLACE else "submitted"
            row.crashes, row.codes, row.side, row.updated_at, row.cancel_asked = 0, "", "", now, False
            _resolve(session, job, "retried", now)

    def cancel(self, job: str, *, now: int, owner: str | None = None) -> str:
        """The state after it: cancelled at once, or running until its flow sees the wish at its next stage.

        `Refusal` cancel-too-late in Settle and after, job-unknown for another owner's job.
        """
        with self._session() as session:
            row = _job(session, job, owner)
            attempt = session.get(AttemptRow, (job, row.attempt))
            if row.state in ("done", "cancelled", "owing") or (attempt is not None and attempt.stage in IN_PLACE):
                raise Refusal(["cancel-too-late"], "this job can no longer be cancelled", side="job", subject=job)
            row.cancel_asked, row.updated_at = True, now
            if row.state != "running":
                row.state, row.codes, row.side = "cancelled", "job-cancelled", "job" if owner else "node"
                _resolve(session, job, "cancelled", now)
            return row.state

    def status(self, job: str, owner: str | None = None) -> JobStatus | None:
        """A job's state; None for an unknown job and for another owner's alike. `owner` None is the node itself."""
        with self._session() as session:
            row = session.get(JobRow, job)
            return (
                None
                if row is None or (owner is not None and row.owner != owner)
                else status_of(row, session.get(AttemptRow, (row.id, row.attempt)))
            )

    def jobs(self, owner: str | None = None, *, limit: int = 100) -> list[JobStatus]:
        """The newest jobs first."""
        with self._session() as session:
            wanted = select(JobRow).order_by(JobRow.created_at.desc(), JobRow.id).limit(limit)
            rows = session.scalars(wanted if owner is None else wanted.where(JobRow.owner == owner)).all()
            return [status_of(row, session.get(AttemptRow, (row.id, row.attempt))) for row in rows]

    def document(self, job: str) -> bytes:
        """The declaration's bytes as they came in. `Refusal` job-unknown."""
        with self._session() as session:
            return _job(session, job).document

    def owed(self) -> list[str]:
        """The jobs that `claim` would hand out, oldest first: what the sweep starts."""
        with self._session() as session:
            wanted = select(JobRow.id).where(JobRow.state.in_(CLAIMABLE)).order_by(JobRow.created_at, JobRow.id)
            return list(session.scalars(wanted).all())

    # -- deliveries

    def owe(self, job: str, attempt: int, kind: str, digest: str, path: Path, *, now: int) -> None:
        """Writes down a delivery. The same again changes nothing; other content under the same name is a `Refusal`."""
        with self._session() as session:
            wanted = select(OutboxRow).where(OutboxRow.job == job, OutboxRow.attempt == attempt, OutboxRow.kind == kind)
            row = session.scalars(wanted).first()
            if row is None:
                session.add(OutboxRow(job=job, attempt=attempt, kind=kind, digest=digest, path=str(path), next_at=now))
            elif row.digest != digest:
                raise Refusal(["delivery-conflict"], f"another {kind} is owed for this attempt already", subject=job)

    def due(self, now: int, *, limit: int = 50, job: str | None = None) -> list[Delivery]:
        """Deliveries whose time has come, oldest first (of one job, whatever their time, if `job` is given)."""
        with self._session() as session:
            wanted = select(OutboxRow).where(OutboxRow.state == "waiting").order_by(OutboxRow.id).limit(limit)
            mine = wanted.where(OutboxRow.next_at <= now) if job is None else wanted.where(OutboxRow.job == job)
            return [delivery_of(row) for row in session.scalars(mine).all()]

    def delivered(self, delivery: int) -> None:
        with self._session() as session:
            session.execute(update(OutboxRow).where(OutboxRow.id == delivery).values(state="sent", code=""))

    def undelivered(self, delivery: int, code: str, *, now: int) -> None:
        """The delivery failed: again after an exponential wait with jitter (5 s to 1 h), a dead letter after MAX_TRIES."""
        with self._session() as session:
            row = session.get_one(OutboxRow, delivery)
            row.tries, row.code = row.tries + 1, code
            row.next_at = now + int(min(3600, 5 * 2**row.tries) * random.uniform(0.5, 1.0))  # noqa: S311  # spread, not secrecy
            if row.tries >= MAX_TRIES:
                row.state = "dead"
                letter = DeadLetterRow(job=row.job, attempt=row.attempt, kind="delivery", stage=row.kind, codes=code, at=now)
                session.add(letter)

    def dead_letters(self) -> list[DeadLetter]:
        """The letters that nobody has resolved, oldest first."""
        with self._session() as session:
            rows = session.scalars(select(DeadLetterRow).where(DeadLetterRow.resolved_at.is_(None)).order_by(DeadLetterRow.id))
            return [letter_of(row) for row in rows.all()]


def _open_jobs(session: Session, owner: str) -> int:
    wanted = select(func.count()).select_from(JobRow).where(JobRow.owner == owner, or_(*(JobRow.state == s for s in OPEN)))
    return session.scalar(wanted) or 0


def _job(session: Session, job: str, owner: str | None = None) -> JobRow:
    row = session.get(JobRow, job, with_for_update=True)
    if row is None or (owner is not None and row.owner != owner):
        raise Refusal(["job-unknown"], "no such job", side="job", subject=job)
    return row


def _opened(session: Session, row: JobRow, now: int) -> AttemptRow:
    row.attempt += 1
    attempt = AttemptRow(job=row.id, number=row.attempt, nonce=secrets.token_hex(32), started_at=now, stage="", codes="")
    session.add(attempt)
    return attempt


def _resumed(session: Session, row: JobRow) -> AttemptRow:
    return session.get_one(AttemptRow, (row.id, row.attempt))


def _held(session: Session, lease: Lease, now: int, *, cancelled_too: bool = False) -> tuple[JobRow, AttemptRow]:
    row = _job(session, lease.job)
    attempt = session.get(AttemptRow, (lease.job, lease.number))
    held = (
        attempt is not None
        and attempt.state == "running"
        and secrets.compare_digest(attempt.lease_token, lease.token)
        and now < attempt.lease_until
    )
    if attempt is None or not held:
        raise Refusal(["lease-lost"], "this worker no longer holds the job", subject=lease.job)
    if row.cancel_asked and not cancelled_too:
        raise Refusal(["job-cancelled"], "the job was cancelled", side="job", subject=lease.job)
    return row, attempt


def _end(session: Session, row: JobRow, attempt: AttemptRow, state: End, codes: Sequence[str], side: str, now: int) -> None:
    joined = " ".join(codes)[:2000]
    in_place = attempt.stage in IN_PLACE
    attempt.state, attempt.codes, attempt.updated_at = state, joined, now
    row.codes, row.side, row.updated_at = joined, side, now
    row.crashes += state == "crashed"
    if state == "failed" or (state == "crashed" and row.crashes >= MAX_CRASHES):
        row.state = "dead"
        letter = DeadLetterRow(job=row.id, attempt=attempt.number, kind="attempt", stage=attempt.stage, codes=joined, at=now)
        session.add(letter)
    elif state == "crashed":
        row.state = "owing" if in_place else "crashed"
    else:
        row.state = state


def _resolve(session: Session, job: str, resolution: str, now: int) -> None:
    open_letters = update(DeadLetterRow).where(DeadLetterRow.job == job, DeadLetterRow.resolved_at.is_(None))
    session.execute(open_letters.values(resolved_at=now, resolution=resolution))
    again = update(OutboxRow).where(OutboxRow.job == job, OutboxRow.state == "dead")
    session.execute(again.values(state="waiting", tries=0, next_at=now))
