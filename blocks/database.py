"""A register's database: SQLite in WAL mode with `synchronous=FULL` (an answer given is on disk), or PostgreSQL.

Every failure of it is a `PeerError`; the driver's own words may quote a row and go no further.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Select, create_engine, event
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, SQLAlchemyError

from rapha.errors import ConfigurationError, PeerError

TOO_LARGE = ("OverflowError", "NumericValueOutOfRange")  # SQLite's driver, PostgreSQL


class RowConflict(PeerError):
    """A unique or foreign key would be broken."""


def open_engine(url: str) -> Engine:
    """The engine behind `url`: sqlite:////path or postgresql+psycopg://… Raises `ConfigurationError` register-url."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise ConfigurationError(["register-url"], "the register's URL cannot be read") from None
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise ConfigurationError(["register-url"], "the register is SQLite or PostgreSQL")
    if parsed.get_backend_name() == "sqlite":
        _private_file(parsed.database)
    try:
        engine = create_engine(parsed, pool_pre_ping=True, hide_parameters=True)
    except (ImportError, SQLAlchemyError):
        raise ConfigurationError(["register-url"], "a PostgreSQL register is postgresql+psycopg://…") from None
    if parsed.get_backend_name() == "sqlite":
        event.listen(engine, "connect", _sqlite_connect)
        event.listen(engine, "begin", _sqlite_begin)
    return engine


@contextmanager
def database() -> Iterator[None]:
    """Turns what the driver raises into `RowConflict` register-conflict, `PeerError` register-unavailable, or
    `ConfigurationError` number-too-large for a number that no column holds."""
    try:
        yield
    except IntegrityError:
        raise RowConflict("register-conflict", "a row of the register is in the way", peer="register") from None
    except (OverflowError, SQLAlchemyError) as error:
        if type(getattr(error, "orig", None) or error).__name__ in TOO_LARGE:
            raise ConfigurationError(["number-too-large"], "no row has a number of so many digits") from None
        said = f"the register's database failed ({type(error).__name__})"
        raise PeerError("register-unavailable", said, peer="register") from None


def locked(wanted: Select[Any]) -> Select[Any]:
    """The rows of `wanted` that nobody else holds, held until the transaction ends."""
    return wanted.with_for_update(skip_locked=True)  # PostgreSQL; SQLite has the whole file locked already


def _private_file(database: str | None) -> None:
    if not database or database == ":memory:":
        raise ConfigurationError(["register-url"], "the register needs a file: one in memory is not durable")
    try:
        Path(database).touch(mode=0o600)
    except OSError as error:
        raise ConfigurationError(["register-unwritable"], f"the register's file cannot be made: {error.strerror}") from None


def _sqlite_connect(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # the "begin" listener begins; the driver must not
    cursor = connection.cursor()
    for pragma in ("busy_timeout=15000", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _sqlite_begin(connection: Any) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")  # one writer from the first read on: claims cannot cross
