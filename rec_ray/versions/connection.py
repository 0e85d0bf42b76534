"""Connections to the version database, SQLite or PostgreSQL: addresses, transactions, the clock, translated errors.

Input: an address and a password. Output: transactions with a single writer; every database error is raised as one of
the program's errors, without the password. The module reads no table.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from rec_ray.errors import ConfigError, DataError, UnavailableError
from rec_ray.storage.sql_errors import cause_of
from rec_ray.versions import migrations

DRIVERS = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}
WAIT_SECONDS = 30
"""Seconds that a SQLite statement waits for another writer, and a PostgreSQL connection for the server."""
_MIGRATION_LOCK = 7_235_917_001  # arbitrary key of pg_advisory_xact_lock, unlikely to be used by another program


class VersionConnection:
    """Connection that opens lazily, when the first transaction begins."""

    def __init__(self, url: str, password: str | None = None, schema: str | None = None) -> None:
        """url: SQLAlchemy address without a password, such as `sqlite:////folder/versions.db`.

        schema: PostgreSQL schema of all tables; created if it is missing.

        Raises:
            ConfigError: the address cannot be read, names another kind of database, or contains a password; or a schema
                is given for SQLite.
        """
        try:
            address = make_url(url)
        except (ArgumentError, ValueError):
            raise ConfigError("database.url cannot be read; it looks like postgresql://user@host:5432/name") from None
        if address.password or "password" in address.query:
            raise ConfigError("database.url holds a password; set REC_RAY__DATABASE__PASSWORD or ..._FILE instead")
        if address.get_backend_name() not in DRIVERS:
            raise ConfigError(f"database.url begins with {address.drivername!r}; known are sqlite and postgresql")
        self.url = address.render_as_string(hide_password=True)
        self._password = password
        self._is_sqlite = address.get_backend_name() == "sqlite"
        self._schema = schema
        if self._is_sqlite:
            if schema is not None:
                raise ConfigError("database.schema_name needs PostgreSQL; with SQLite use a file per project")
            if address.database in (None, "", ":memory:"):
                raise ConfigError("database.url names no file; versions must outlive the process")
            arguments: dict[str, Any] = {"timeout": WAIT_SECONDS}
        else:
            # Columns that other programs created without a time zone take the time of the session.
            path = f" -c search_path={schema}" if schema else ""
            arguments = {"connect_timeout": WAIT_SECONDS, "options": f"-c timezone=UTC{path}"}
            address = address.set(password=password)
        self._file = Path(address.database) if self._is_sqlite and address.database else None
        try:
            address = address.set(drivername=DRIVERS.get(address.drivername, address.drivername))
            self._engine = sa.create_engine(address, poolclass=NullPool, connect_args=arguments)
        except (NoSuchModuleError, ModuleNotFoundError) as error:
            raise ConfigError(f"{error}; install the driver with `pip install rec_ray[postgres]`") from None
        if self._is_sqlite:
            sa.event.listen(self._engine, "connect", _leave_transactions_alone)
            sa.event.listen(self._engine, "begin", _begin)
        self._migrated = False

    @property
    def exists(self) -> bool:
        """True if the database exists; SQLite would create the file."""
        return self._file is None or self._file.exists()

    def migrate(self) -> None:
        """Apply the missing migrations, none of which removes anything.

        Raises:
            UnavailableError: the database cannot be reached or refuses.
        """
        with self._translated("migrate the tables in"), self._begin() as connection:
            if not self._is_sqlite:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
                if self._schema is not None:
                    connection.execute(sa.schema.CreateSchema(self._schema, if_not_exists=True))
            migrations.upgrade(connection)
        self._migrated = True

    def is_migrated(self) -> bool:
        """Return whether the database has all migrations, without changing it.

        Raises:
            UnavailableError: the database cannot be reached.
        """
        if not self.exists:
            return False
        with self.read("read the tables of") as connection:
            return migrations.is_current(connection)

    @contextlib.contextmanager
    def read(self, doing: str) -> Iterator[Connection]:
        """Connect to read.

        doing: verb phrase that an error shows before "the database".
        """
        with self._translated(doing), self._engine.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def write(self, doing: str, table: sa.Table) -> Iterator[Connection]:
        """Begin a transaction in which no other process writes to the table; readers continue."""
        if not self._migrated:
            self.migrate()
        with self._translated(doing), self._begin() as connection:
            if not self._is_sqlite:
                connection.execute(sa.text(f"LOCK TABLE {table.name} IN SHARE ROW EXCLUSIVE MODE"))
            yield connection

    def _begin(self) -> contextlib.AbstractContextManager[Connection]:
        return self._engine.execution_options(rec_ray_write=True).begin()

    @contextlib.contextmanager
    def _translated(self, doing: str) -> Iterator[None]:
        """Translate errors of SQLAlchemy into an UnavailableError without the password."""
        try:
            yield
        except migrations.NewerDatabaseError as error:
            raise ConfigError(f"cannot {doing} the database {self.url}: {error}") from None
        except ValueError as error:
            raise DataError(f"a value in the database {self.url} cannot be read: {error}; correct that row") from None
        except SQLAlchemyError as error:
            # From None: the traceback of the original would print its text unredacted.
            raise UnavailableError(
                f"cannot {doing} the database {self.url}: {cause_of(error, [self._password])}; check database.url, "
                "its password, and that the database is up and this user may write there"
            ) from None


def now(connection: Connection) -> datetime:
    """Return the time of the database, which is one clock for all machines; with SQLite, that of this machine."""
    if connection.dialect.name == "sqlite":
        return datetime.now(UTC)
    found: datetime = connection.execute(sa.select(sa.func.clock_timestamp())).scalar_one()
    return found.astimezone(UTC)


def _leave_transactions_alone(connection: Any, _record: Any) -> None:
    """Stop Python's sqlite3 from beginning transactions late and committing them before DDL."""
    connection.isolation_level = None


def _begin(connection: Connection) -> None:
    """Take SQLite's write lock at the beginning: otherwise two readers that then write would fail."""
    writes = connection.get_execution_options().get("rec_ray_write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
