"""The reading register's tables, and what its callers get to see of them.

Table and column names are the contract for infra/migrations, which make the schema; a test holds the two equal.
`blocks.reading` and its parts alone read and write them. Columns called `…_sealed` hold ciphertext, `name` a keyed hash: no
identifier stands here in clear.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import BigInteger, ForeignKey, Index, Integer, LargeBinary, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

Stage = Literal["retrieve", "analyse", "report", "store", "prove", "tell"]
STAGES: tuple[Stage, ...] = ("retrieve", "analyse", "report", "store", "prove", "tell")
# Seconds that a time in the register is ahead at most: a pause before a study's next try, a lease, a notice's wait.
LONGEST_PAUSE, LONGEST_LEASE, LONGEST_WAIT = 3600, 3600, 86_400
# SQLite counts up by itself only in a column that is called INTEGER.
Identity = BigInteger().with_variant(Integer, "sqlite")


class Base(DeclarativeBase):
    """Times are whole seconds since the epoch (UTC); digests are `sha256:…`; codes are joined with blanks."""


class FactRow(Base):
    """What holds for the whole register: the check of its key."""

    __tablename__ = "reading_facts"

    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    value: Mapped[str] = mapped_column(String(128))


class WatermarkRow(Base):
    __tablename__ = "reading_watermarks"

    pacs: Mapped[str] = mapped_column(String(64), primary_key=True)
    at: Mapped[int] = mapped_column(BigInteger)
    polled_at: Mapped[int] = mapped_column(BigInteger)


class PollRow(Base):
    """How the polls of one archive go. since: when it was first looked at here, by a poll or by `rapha health`."""

    __tablename__ = "reading_polls"

    pacs: Mapped[str] = mapped_column(String(64), primary_key=True)
    since: Mapped[int] = mapped_column(BigInteger)
    odd: Mapped[int] = mapped_column(default=0)
    unproven: Mapped[int] = mapped_column(default=0)
    swept_at: Mapped[int | None] = mapped_column(BigInteger, default=None)
    swept_from: Mapped[int | None] = mapped_column(BigInteger, default=None)
    sweep_next: Mapped[int] = mapped_column(BigInteger, default=0)
    sweep_odd: Mapped[int] = mapped_column(default=0)
    sweep_unproven: Mapped[int] = mapped_column(default=0)


class BaselineRow(Base):
    """A study that was in the archive before the first sweep, and is left alone while its counts stay."""

    __tablename__ = "reading_baseline"

    pacs: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    counts: Mapped[str] = mapped_column(String(64))


class StudyRow(Base):
    __tablename__ = "reading_studies"
    __table_args__ = (
        UniqueConstraint("pacs", "name", name="uq_reading_studies_pacs_name"),
        Index("ix_reading_studies_turn", "state", "turn", "id"),
        Index("ix_reading_studies_lease", "state", "lease_until"),
    )

    id: Mapped[int] = mapped_column(Identity, primary_key=True, autoincrement=True)
    pacs: Mapped[str] = mapped_column(String(64))
    name: Mapped[str] = mapped_column(String(64))
    uid_sealed: Mapped[bytes] = mapped_column(LargeBinary)
    details_sealed: Mapped[bytes] = mapped_column(LargeBinary)
    fingerprint: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16))
    stage: Mapped[str] = mapped_column(String(16))
    priority: Mapped[str] = mapped_column(String(8))
    opening: Mapped[int] = mapped_column(default=0)
    changed: Mapped[bool] = mapped_column(default=False)
    cancel_asked: Mapped[bool] = mapped_column(default=False)
    attempt: Mapped[int] = mapped_column(default=0)
    tries: Mapped[int] = mapped_column(default=0)
    unsettled: Mapped[int] = mapped_column(default=0)
    outages: Mapped[int] = mapped_column(default=0)
    outage_since: Mapped[int | None] = mapped_column(BigInteger, default=None)
    codes: Mapped[str] = mapped_column(String(2000), default="")
    turn: Mapped[int] = mapped_column(BigInteger)
    next_at: Mapped[int] = mapped_column(BigInteger)
    queued_at: Mapped[int] = mapped_column(BigInteger)
    registered_at: Mapped[int] = mapped_column(BigInteger)
    content_at: Mapped[int] = mapped_column(BigInteger)
    updated_at: Mapped[int] = mapped_column(BigInteger)
    lease_owner: Mapped[str] = mapped_column(String(128), default="")
    lease_token: Mapped[str] = mapped_column(String(32), default="")
    lease_until: Mapped[int] = mapped_column(BigInteger, default=0)
    counts: Mapped[str] = mapped_column(String(64), default="")
    listed_at: Mapped[int] = mapped_column(BigInteger, default=0)


class PauseRow(Base):
    """An endpoint that could not be reached. until: nobody claims a study of it before; probed: one was let through since."""

    __tablename__ = "reading_pauses"

    pacs: Mapped[str] = mapped_column(String(64), primary_key=True)
    failures: Mapped[int]
    until: Mapped[int] = mapped_column(BigInteger)
    probed: Mapped[bool]


class OwnSeriesRow(Base):
    """A series that this node itself wrote into the archive."""

    __tablename__ = "reading_own_series"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    study: Mapped[int] = mapped_column(ForeignKey("reading_studies.id", name="fk_reading_own_series_study"))


class OwnReportRow(Base):
    """One report of one opening. stored: the archive has taken it."""

    __tablename__ = "reading_own_reports"

    study: Mapped[int] = mapped_column(ForeignKey("reading_studies.id", name="fk_reading_own_reports_study"), primary_key=True)
    opening: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    named_sealed: Mapped[bytes] = mapped_column(LargeBinary)
    stored: Mapped[bool] = mapped_column(default=False)


class InstanceRow(Base):
    """One instance of one opening of a study."""

    __tablename__ = "reading_instances"

    study: Mapped[int] = mapped_column(ForeignKey("reading_studies.id", name="fk_reading_instances_study"), primary_key=True)
    opening: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    uid_sealed: Mapped[bytes] = mapped_column(LargeBinary)
    series_sealed: Mapped[bytes] = mapped_column(LargeBinary)
    sop_class: Mapped[str] = mapped_column(String(64), default="")
    before: Mapped[bool] = mapped_column(default=False)
    after: Mapped[bool] = mapped_column(default=False)
    sha256: Mapped[str] = mapped_column(String(71), default="")
    conflict: Mapped[bool] = mapped_column(default=False)
    analysed: Mapped[bool] = mapped_column(default=False)
    reason: Mapped[str] = mapped_column(String(128), default="")
    opened_sha256: Mapped[str] = mapped_column(String(71), default="")
    referenced: Mapped[bool] = mapped_column(default=False)
    referenced_sha256: Mapped[str] = mapped_column(String(71), default="")


class LetterRow(Base):
    __tablename__ = "reading_letters"

    id: Mapped[int] = mapped_column(Identity, primary_key=True, autoincrement=True)
    study: Mapped[int] = mapped_column(ForeignKey("reading_studies.id", name="fk_reading_letters_study"), index=True)
    opening: Mapped[int]
    attempt: Mapped[int]
    stage: Mapped[str] = mapped_column(String(16))
    codes: Mapped[str] = mapped_column(String(2000))
    at: Mapped[int] = mapped_column(BigInteger)
    resolved_at: Mapped[int | None] = mapped_column(BigInteger, default=None)
    resolution: Mapped[str] = mapped_column(String(16), default="")
    why_sealed: Mapped[bytes] = mapped_column(LargeBinary, default=b"")


class NoticeRow(Base):
    __tablename__ = "reading_notices"
    __table_args__ = (
        UniqueConstraint("study", "opening", "kind", "recipient_group", "template", name="uq_reading_notices_once"),
        Index("ix_reading_notices_due", "state", "next_at"),
    )

    id: Mapped[int] = mapped_column(Identity, primary_key=True, autoincrement=True)
    study: Mapped[int] = mapped_column(ForeignKey("reading_studies.id", name="fk_reading_notices_study"))
    opening: Mapped[int]
    kind: Mapped[str] = mapped_column(String(16))
    recipient_group: Mapped[str] = mapped_column(String(64))
    template: Mapped[str] = mapped_column(String(64))
    facts: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(String(16), default="waiting")
    level: Mapped[int] = mapped_column(default=0)
    tries: Mapped[int] = mapped_column(default=0)
    code: Mapped[str] = mapped_column(String(128), default="")
    created_at: Mapped[int] = mapped_column(BigInteger)
    next_at: Mapped[int] = mapped_column(BigInteger)
    sent_at: Mapped[int | None] = mapped_column(BigInteger, default=None)
    escalate_at: Mapped[int | None] = mapped_column(BigInteger, default=None)
    acknowledged_at: Mapped[int | None] = mapped_column(BigInteger, default=None)
    acknowledged_by: Mapped[str] = mapped_column(String(128), default="")


@dataclass(frozen=True, slots=True, kw_only=True)
class Watermark:
    """Up to where a PACS was polled, and when a poll last came to its end; seconds since the epoch."""

    pacs: str
    at: int
    polled_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What became of a found study. row: 0 for an own report in a study that the register does not hold."""

    row: int
    outcome: Literal["new", "changed", "known", "own-report"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyLease:
    """One claimed study. study_uid: in clear, for this process's memory alone; order: how often it was re-opened; tries: how
    often it failed since it was opened or replayed."""

    row: int
    attempt: int
    pacs: str
    study_uid: str = field(repr=False)
    stage: str
    priority: str
    worker: str
    token: str = field(repr=False)
    until: int
    registered_at: int
    content_at: int
    order: int
    tries: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedStudy:
    """One row, without identifiers: for a console or a view."""

    row: int
    pacs: str
    state: str
    stage: str
    priority: str
    attempt: int
    order: int
    codes: tuple[str, ...]
    queued_at: int
    next_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LostStudy:
    """A study whose lease ran out, and its state from then on: scheduled, dead or canceled."""

    row: int
    attempt: int
    stage: str
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedInstance:
    sop_uid: str = field(repr=False)
    sop_class: str
    series_uid: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnReport:
    """A report of ours, as another document refers to it; its study is the row's."""

    sop_uid: str = field(repr=False)
    sop_class: str
    series_uid: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceState:
    """One instance of the study's present opening. name: the UID under the register's key; sha256: as it was received, "" while
    it was not; opened_sha256: of the file that was opened when it was analysed or left out; referenced_sha256: of the file that
    the report was built on."""

    name: str
    sop_uid: str = field(repr=False)
    sop_class: str
    series_uid: str = field(repr=False)
    before: bool
    after: bool
    sha256: str
    conflict: bool
    analysed: bool
    reason: str
    opened_sha256: str
    referenced: bool
    referenced_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """What somebody must be told. facts: codes and counts, never a value of a patient's."""

    kind: Literal["critical", "result", "dead-letter"]
    recipient_group: str
    template: str
    facts: dict[str, str | int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class DueNotice:
    """A notice, and how far it is told. level: which person; tries: failures at this level; code: the newest failure's, or ""."""

    id: int
    row: int
    kind: str
    recipient_group: str
    template: str
    facts: dict[str, Any]
    state: str
    level: int
    tries: int
    created_at: int
    code: str
    sent_at: int | None
    escalate_at: int | None
    acknowledged_at: int | None
    acknowledged_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingLetter:
    """A study that was given up on; replay goes on from `stage`."""

    id: int
    row: int
    attempt: int
    stage: str
    codes: tuple[str, ...]
    at: int
