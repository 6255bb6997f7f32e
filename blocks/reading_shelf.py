"""The reading register's transaction, its key and its schema: what each part of it stands on."""

import hmac
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import ColumnElement, Select, or_, select, text
from sqlalchemy.engine import Connection
from sqlalchemy.orm import InstrumentedAttribute, Session

from blocks.database import database, open_engine
from blocks.reading_rows import FactRow, LetterRow, StudyLease, StudyRow
from blocks.sealed_columns import SealedColumns
from rapha.errors import ConfigurationError, Refusal

MIGRATIONS = Path(__file__).parents[1] / "infra" / "migrations"  # alembic reads them as files; nothing is imported from there
SKEW = 900  # seconds by which the clocks of a register's workers may differ
LOCK = 7_243_771  # the advisory lock under which a PostgreSQL register is migrated; any fixed number


class Shelf:
    """An open register. Safe to share between threads; open one in each process."""

    def __init__(self, url: str, key: bytes) -> None:
        """Opens; creates or migrates the schema. url: sqlite:////path or postgresql+psycopg://…; key: 32 random bytes.

        Raises `ConfigurationError` register-url, weak-register-key, register-newer (by a later release), register-key-wrong.
        """
        self._columns = SealedColumns(key)
        self._engine = open_engine(url)
        with database(), self._engine.begin() as connection:
            _migrate(connection)
        self._check_key()

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _session(self) -> Iterator[Session]:
        """One transaction: committed, durably, when the block ends, rolled back when it raises."""
        with database(), Session(self._engine, expire_on_commit=False) as session, session.begin():
            yield session

    def _check_key(self) -> None:
        mine = self._columns.name("key", "check")
        with self._session() as session:
            if session.get_bind().dialect.name == "postgresql":
                session.execute(text(f"SELECT pg_advisory_xact_lock({LOCK})"))
            row = session.get(FactRow, "key-check")
            if row is None:
                session.add(FactRow(name="key-check", value=mine))
            elif not hmac.compare_digest(row.value, mine):
                raise ConfigurationError(["register-key-wrong"], "the register was written under another key")

    def _study_uid(self, row: StudyRow) -> str:
        return self._columns.open(row.uid_sealed, "studies", "uid", row.id, row.name)

    def _lease(self, row: StudyRow) -> StudyLease:
        return StudyLease(
            row=row.id,
            attempt=row.attempt,
            pacs=row.pacs,
            study_uid=self._study_uid(row),
            stage=row.stage,
            priority=row.priority,
            worker=row.lease_owner,
            token=row.lease_token,
            until=row.lease_until,
            registered_at=row.registered_at,
            content_at=row.content_at,
            order=row.opening,
            tries=row.tries,
        )


def owed_studies() -> Select[tuple[int, int]]:
    """(row, opening) of each study that waits, is worked on, or was given up with a letter that nobody has resolved."""
    letters = select(LetterRow.study).where(LetterRow.resolved_at.is_(None))
    begun = StudyRow.state.in_(("scheduled", "in-progress"))
    return select(StudyRow.id, StudyRow.opening).where(or_(begun, StudyRow.id.in_(letters)))


def come(at: "InstrumentedAttribute[int] | InstrumentedAttribute[int | None]", now: int, longest: int) -> ColumnElement[bool]:
    """Whether a time has come, which is written at most `longest` seconds ahead: one that is further ahead was written by a clock
    that has been set back since, and is not waited for."""
    return or_(at <= now, at > now + longest + SKEW)


def study_of(session: Session, row: int) -> StudyRow:
    """The row, locked. `Refusal` study-unknown."""
    found = session.get(StudyRow, row, with_for_update=True)
    if found is None:
        raise Refusal(["study-unknown"], "the register has no such row")
    return found


def held(session: Session, lease: StudyLease, now: int | None = None, *, cancelled_too: bool = False) -> StudyRow:
    """The leased row, locked. `Refusal` lease-lost, or study-canceled where a cancel was asked."""
    row = study_of(session, lease.row)
    mine = row.state == "in-progress" and secrets.compare_digest(row.lease_token, lease.token)
    if not mine or (now is not None and now >= row.lease_until):
        raise Refusal(["lease-lost"], "this worker no longer holds the study")
    if row.cancel_asked and not cancelled_too:
        raise Refusal(["study-canceled"], "the study was canceled")
    return row


def migrations(connection: Connection) -> Config:
    """Alembic's configuration over an open transaction."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _migrate(connection: Connection) -> None:
    """To the newest schema, once however many open it: SQLite's writer lock or an advisory lock holds the others off."""
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SELECT pg_advisory_xact_lock({LOCK})"))
    config = migrations(connection)
    known = ScriptDirectory.from_config(config)
    there = MigrationContext.configure(connection, opts={"version_table": "reading_schema"}).get_current_revision()
    if there == known.get_current_head():
        return
    if there is not None and there not in {script.revision for script in known.walk_revisions()}:
        raise ConfigurationError(["register-newer"], "a later release wrote this register")
    command.upgrade(config, "head")
