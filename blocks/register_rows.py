"""The register's tables, and what its callers get to see of them.

Table and column names are the contract for migrations; `blocks.register` alone reads and writes them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, LargeBinary, String, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """Times are whole seconds since the epoch (UTC); digests are `sha256:…`; codes are joined with blanks."""


class JobRow(Base):
    __tablename__ = "jobs"
    __table_args__ = (
        UniqueConstraint("owner", "client_nonce", name="uq_jobs_owner_client_nonce"),
        Index("ix_jobs_state_created", "state", "created_at"),
    )

    id: Mapped[str] = mapped_column(String(71), primary_key=True)
    owner: Mapped[str] = mapped_column(String(64))
    client_nonce: Mapped[str] = mapped_column(String(64))
    document: Mapped[bytes] = mapped_column(LargeBinary)
    state: Mapped[str] = mapped_column(String(16))
    codes: Mapped[str] = mapped_column(String(2000), default="")
    side: Mapped[str] = mapped_column(String(8), default="")
    attempt: Mapped[int] = mapped_column(default=0)
    crashes: Mapped[int] = mapped_column(default=0)
    cancel_asked: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[int] = mapped_column(BigInteger)
    updated_at: Mapped[int] = mapped_column(BigInteger)


class AttemptRow(Base):
    __tablename__ = "attempts"

    job: Mapped[str] = mapped_column(ForeignKey("jobs.id", name="fk_attempts_job"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    nonce: Mapped[str] = mapped_column(String(64), unique=True)
    lease_owner: Mapped[str] = mapped_column(String(128))
    lease_token: Mapped[str] = mapped_column(String(32))
    lease_until: Mapped[int] = mapped_column(BigInteger, index=True)
    stage: Mapped[str] = mapped_column(String(32), default="")
    state: Mapped[str] = mapped_column(String(16), default="running")
    codes: Mapped[str] = mapped_column(String(2000), default="")
    started_at: Mapped[int] = mapped_column(BigInteger)
    updated_at: Mapped[int] = mapped_column(BigInteger)


class WebhookNonceRow(Base):
    __tablename__ = "webhook_nonces"

    key_id: Mapped[str] = mapped_column(String(128), primary_key=True)
    nonce: Mapped[str] = mapped_column(String(128), primary_key=True)
    forget_at: Mapped[int] = mapped_column(BigInteger, index=True)


class OutboxRow(Base):
    __tablename__ = "outbox"
    __table_args__ = (
        UniqueConstraint("job", "attempt", "kind", name="uq_outbox_job_attempt_kind"),
        Index("ix_outbox_state_next", "state", "next_at"),
    )

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    job: Mapped[str] = mapped_column(ForeignKey("jobs.id", name="fk_outbox_job"))
    attempt: Mapped[int]
    kind: Mapped[str] = mapped_column(String(16))
    digest: Mapped[str] = mapped_column(String(71))
    path: Mapped[str] = mapped_column(String(1024))
    tries: Mapped[int] = mapped_column(default=0)
    next_at: Mapped[int] = mapped_column(BigInteger)
    state: Mapped[str] = mapped_column(String(16), default="waiting")
    code: Mapped[str] = mapped_column(String(128), default="")


class DeadLetterRow(Base):
    __tablename__ = "dead_letters"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    job: Mapped[str] = mapped_column(ForeignKey("jobs.id", name="fk_dead_letters_job"), index=True)
    attempt: Mapped[int]
    kind: Mapped[str] = mapped_column(String(16))
    stage: Mapped[str] = mapped_column(String(32))
    codes: Mapped[str] = mapped_column(String(2000))
    at: Mapped[int] = mapped_column(BigInteger)
    resolved_at: Mapped[int | None] = mapped_column(BigInteger, default=None)
    resolution: Mapped[str] = mapped_column(String(200), default="")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """One claimed attempt. `resumes` is True where the attempt goes on in place (Settle, Deliver) instead of running anew."""

    job: str
    owner: str
    number: int
    nonce: str
    worker: str
    token: str
    until: int
    stage: str
    resumes: bool
    document: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStatus:
    """What a job's owner may see of it."""

    job: str
    owner: str
    state: str
    side: str
    codes: tuple[str, ...]
    attempt: int
    stage: str
    created: int
    updated: int

    def to_json(self) -> dict[str, Any]:
        return {
            "job": self.job,
            "state": self.state,
            "side": self.side,
            "codes": list(self.codes),
            "attempt": self.attempt,
            "stage": self.stage,
            "created": self.created,
            "updated": self.updated,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """An attempt whose lease ran out, and its job's state from then on: crashed, owing, dead or cancelled."""

    job: str
    attempt: int
    state: str
    codes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFacts:
    """What Intake asks of the register about a job: nothing of it comes from the declaration."""

    registered: bool
    owner: str
    attempt: int
    nonce: str
    open_jobs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One thing that is owed to the orchestrator: the file at `path`, whose digest is `digest`."""

    id: int
    job: str
    attempt: int
    kind: str
    digest: str
    path: Path
    tries: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    id: int
    job: str
    attempt: int
    kind: str
    stage: str
    codes: tuple[str, ...]
    at: int


def lease_of(row: JobRow, attempt: AttemptRow, resumes: bool) -> Lease:
    return Lease(
        job=row.id,
        owner=row.owner,
        number=attempt.number,
        nonce=attempt.nonce,
        worker=attempt.lease_owner,
        token=attempt.lease_token,
        until=attempt.lease_until,
        stage=attempt.stage,
        resumes=resumes,
        document=row.document,
    )


def status_of(row: JobRow, attempt: AttemptRow | None) -> JobStatus:
    return JobStatus(
        job=row.id,
        owner=row.owner,
        state=row.state,
        side=row.side,
        codes=tuple(row.codes.split()),
        attempt=row.attempt,
        stage=attempt.stage if attempt else "",
        created=row.created_at,
        updated=row.updated_at,
    )


def delivery_of(row: OutboxRow) -> Delivery:
    return Delivery(
        id=row.id, job=row.job, attempt=row.attempt, kind=row.kind, digest=row.digest, path=Path(row.path), tries=row.tries
    )


def letter_of(row: DeadLetterRow) -> DeadLetter:
    return DeadLetter(
        id=row.id, job=row.job, attempt=row.attempt, kind=row.kind, stage=row.stage, codes=tuple(row.codes.split()), at=row.at
    )
