"""The record of published versions in a SQL database: numbers reserved, versions committed, one publisher at a time.

A run reserves a number with its id and later publishes a `VersionRow` under it; `SELECT version FROM model_version
ORDER BY updated_at DESC LIMIT 1` is the live version at every instant: rows are only ever inserted, whole and newest.
It does not know what a version consists of, where that is kept, or whether it reached the feature store.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Dialect, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import NullPool
from sqlalchemy.schema import CreateColumn

from rec_ray.errors import ConfigError, DataError, LockedError, RecRayError, UnavailableError

LOGGER = logging.getLogger(__name__)
DRIVERS = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}
WAIT_SECONDS = 30
"""How long a SQLite statement waits for another writer, and a PostgreSQL connection for the server."""

_PUBLISHING = "publishing"
_MIGRATION_LOCK = 7_235_917_001  # any number that no other program takes for pg_advisory_xact_lock


class _UtcDateTime(sa.types.TypeDecorator[datetime]):
    """An instant: aware in the program, stored as UTC; what others stored without a zone is read as UTC."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value} has no time zone; give an aware datetime")
        utc = value.astimezone(UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


METADATA = sa.MetaData()
VERSIONS = sa.Table(
    "model_version",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("version", sa.String(50), nullable=False),
    sa.Column("updated_at", _UtcDateTime, nullable=False),
    # Nullable, all of them: a database that knew only the columns above gets the rest added.
    sa.Column("run_id", sa.String(200)),
    sa.Column("artifact_uri", sa.Text),
    sa.Column("sha256", sa.String(64)),
    sa.Column("metrics", sa.Text),
    sa.Column("settings_hash", sa.String(64)),
    sa.Column("data_from", _UtcDateTime),
    sa.Column("data_to", _UtcDateTime),
    sa.Column("parent", sa.String(50)),
)
RESERVATIONS = sa.Table(
    "model_version_reservation",
    METADATA,
    sa.Column("version", sa.String(50), primary_key=True),
    sa.Column("run_id", sa.String(200), nullable=False, unique=True),
    sa.Column("reserved_at", _UtcDateTime, nullable=False),
    sa.Column("state", sa.String(20), nullable=False),
)
LOCKS = sa.Table(
    "publishing_lock",
    METADATA,
    sa.Column("name", sa.String(50), primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("token", sa.String(32), nullable=False),
    sa.Column("expires_at", _UtcDateTime, nullable=False),
)


@dataclass(frozen=True)
class VersionRow:
    """One publication of a version; a rollback publishes an older version once more, as a new row.

    metrics: JSON values; a number that is not finite is stored as null.
    data_from, data_to: range of the events learned from, aware.
    parent: the version that was live before; `publish` fills it in.
    id, updated_at: set by `publish`.
    """

    version: str
    run_id: str | None = None
    artifact_uri: str | None = None
    sha256: str | None = None
    metrics: Mapping[str, Any] | None = None
    settings_hash: str | None = None
    data_from: datetime | None = None
    data_to: datetime | None = None
    parent: str | None = None
    updated_at: datetime | None = None
    id: int | None = None


class VersionDatabase:
    """The version tables in SQLite or PostgreSQL.

    Nothing is contacted until a method is called. Methods that write make or extend the tables first; methods that
    read change nothing and find nothing where there are no tables yet. Every method raises UnavailableError when the
    database cannot be reached or refuses.
    """

    def __init__(self, url: str, password: str | None = None) -> None:
        """url: SQLAlchemy address without a password, such as `sqlite:////folder/versions.db`.

        Raises:
            ConfigError: the address cannot be read, names another kind of database, or holds a password.
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
        if self._is_sqlite:
            if address.database in (None, "", ":memory:"):
                raise ConfigError("database.url names no file; versions must outlive the process")
            arguments: dict[str, Any] = {"timeout": WAIT_SECONDS}
        else:
            # Columns that others made without a zone are filled with the time of the session.
            arguments = {"connect_timeout": WAIT_SECONDS, "options": "-c timezone=UTC"}
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

    def __repr__(self) -> str:
        return f"VersionDatabase({self.url!r})"

    def migrate(self) -> None:
        """Make the tables that are missing and add the columns that an existing one lacks; nothing is ever removed."""
        with self._write("migrate the tables in", None) as connection:
            if not self._is_sqlite:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
            METADATA.create_all(connection)
            for table in METADATA.sorted_tables:
                have = {column["name"] for column in sa.inspect(connection).get_columns(table.name)}
                for column in table.columns:
                    if column.name not in have:
                        definition = CreateColumn(column).compile(dialect=connection.dialect)
                        connection.execute(sa.text(f"ALTER TABLE {table.name} ADD COLUMN {definition}"))
        self._migrated = True

    def reserve(self, run_id: str) -> str:
        """Return the number of a run: one above all there are, and the same one whenever the run asks again.

        Raises:
            ConfigError: the run id is empty or longer than 200 characters.
        """
        if not 0 < len(run_id) <= 200:
            raise ConfigError(f"a run id has 1 to 200 characters; got {len(run_id)}")
        with self._write("reserve a version in", RESERVATIONS) as connection:
            mine = connection.scalar(sa.select(RESERVATIONS.c.version).where(RESERVATIONS.c.run_id == run_id))
            if mine is not None:
                return str(mine)
            taken = sa.union(sa.select(VERSIONS.c.version), sa.select(RESERVATIONS.c.version))
            numbers = [int(text) for text in connection.scalars(taken) if text and text.isascii() and text.isdigit()]
            version = str(max(numbers, default=0) + 1)
            values = {"version": version, "run_id": run_id, "reserved_at": _now(connection), "state": "reserved"}
            connection.execute(sa.insert(RESERVATIONS).values(values))
            return version

    def publish(self, row: VersionRow, lock: PublishingLock | None = None) -> VersionRow:
        """Insert the row that makes a version live: the last thing a publication does.

        Its `updated_at` is now, or just above the newest one when the clock went backwards. A row that is live already,
        with the same checksum and run, is given back and not inserted again, so the step can be repeated.

        Args:
            row: the version; `id`, `updated_at` and, when None, `parent` are filled in.
            lock: the lock that the publisher holds; checked in the same transaction.

        Raises:
            LockedError: the lock is no longer held.
            DataError: the version was published before with another checksum, the row holds what the table cannot, or
                the table cannot be ordered by time.
        """
        if not 0 < len(row.version) <= 50:
            raise DataError(f"a version has 1 to 50 characters; got {row.version!r}")
        for name, instant in (("data_from", row.data_from), ("data_to", row.data_to)):
            if instant is not None and instant.tzinfo is None:
                raise DataError(f"{name} of version {row.version} has no time zone: {instant}")
        with self._write(f"publish version {row.version} in", VERSIONS) as connection:
            if lock is not None:
                lock.check(connection)
            for sha256 in connection.scalars(sa.select(VERSIONS.c.sha256).where(VERSIONS.c.version == row.version)):
                if None not in (sha256, row.sha256) and sha256 != row.sha256:
                    raise DataError(
                        f"version {row.version} was published with the checksum {sha256}, now it has {row.sha256}; "
                        "a published version never changes: run again to get a new one"
                    )
            live = connection.execute(_newest_first(VERSIONS.columns).limit(1)).mappings().first()
            if live and (live["version"], live["sha256"], live["run_id"]) == (row.version, row.sha256, row.run_id):
                return _row(live)
            now, newest = _now(connection), live["updated_at"] if live else None
            updated_at = now if newest is None else max(now, newest + timedelta(microseconds=1))
            parent = row.parent if row.parent is not None or live is None else str(live["version"])
            published = replace(row, parent=parent, updated_at=updated_at, id=None)
            values = {field.name: getattr(published, field.name) for field in fields(published) if field.name != "id"}
            metrics = None if row.metrics is None else json.dumps(_without_nan(row.metrics), sort_keys=True)
            inserted = sa.insert(VERSIONS).values({**values, "metrics": metrics}).returning(VERSIONS.c.id)
            new_id = connection.scalar(inserted)
            if connection.scalar(_newest_first([VERSIONS.c.id]).limit(1)) != new_id:
                raise DataError(
                    f"model_version in {self.url} cannot be ordered: a row has no updated_at, or one in another format "
                    "or precision, and would stay the live one; correct that row"
                )
            is_mine = RESERVATIONS.c.version == row.version
            connection.execute(sa.update(RESERVATIONS).where(is_mine).values(state="published"))
            return replace(published, id=new_id)

    def live(self) -> str | None:
        """Return the version that readers see, or None when nothing was published yet."""
        rows = self._rows(1)
        return rows[0].version if rows else None

    def list_versions(self) -> list[VersionRow]:
        """Return all publications, the live one first."""
        return self._rows()

    def get(self, version: str) -> VersionRow | None:
        """Return the newest publication of a version, or None."""
        rows = self._rows(1, version)
        return rows[0] if rows else None

    @contextlib.contextmanager
    def publishing_lock(self, owner: str, seconds: float) -> Iterator[PublishingLock]:
        """Be the only publisher while the context lasts.

        A daemon thread renews the lock; when its process is killed, or cannot reach the database, it runs out.

        Args:
            owner: who holds it, in words for the one who has to wait.
            seconds: after so long without renewal the lock is free.

        Raises:
            LockedError: another publisher holds it; the message names the owner and when the lock runs out.
        """
        lock = PublishingLock(self, owner, seconds)
        lock.acquire()
        renewing = threading.Thread(target=lock.renew_until_released, name="publishing-lock", daemon=True)
        renewing.start()
        try:
            yield lock
        finally:
            lock.release()

    def _rows(self, limit: int | None = None, version: str | None = None) -> list[VersionRow]:
        if self._file is not None and not self._file.exists():
            return []  # SQLite would make the file.
        with self._read("read the versions in") as connection:
            inspector = sa.inspect(connection)
            if not inspector.has_table(VERSIONS.name):
                return []
            have = {column["name"] for column in inspector.get_columns(VERSIONS.name)}
            query = _newest_first([column for column in VERSIONS.columns if column.name in have]).limit(limit)
            if version is not None:
                query = query.where(VERSIONS.c.version == version)
            return [_row(found) for found in connection.execute(query).mappings()]

    @contextlib.contextmanager
    def _read(self, doing: str) -> Iterator[Connection]:
        with self._translated(doing), self._engine.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def _write(self, doing: str, table: sa.Table | None) -> Iterator[Connection]:
        """Begin a transaction in which no other process writes to the table; readers go on."""
        if table is not None and not self._migrated:
            self.migrate()
        with self._translated(doing), self._engine.execution_options(rec_ray_write=True).begin() as connection:
            if table is not None and not self._is_sqlite:
                connection.execute(sa.text(f"LOCK TABLE {table.name} IN SHARE ROW EXCLUSIVE MODE"))
            yield connection

    @contextlib.contextmanager
    def _translated(self, doing: str) -> Iterator[None]:
        """Turn what SQLAlchemy raises into an UnavailableError without the password."""
        try:
            yield
        except ValueError as error:
            raise DataError(f"a value in the database {self.url} cannot be read: {error}; correct that row") from None
        except SQLAlchemyError as error:
            cause = str(getattr(error, "orig", None) or error).strip() or type(error).__name__
            if self._password:
                cause = cause.replace(self._password, "***")
            # From None: the traceback of the original would print its text unredacted.
            raise UnavailableError(
                f"cannot {doing} the database {self.url}: {cause.splitlines()[0]}; check database.url, its password, "
                "and that the database is up and this user may write there"
            ) from None


class PublishingLock:
    """The row that says who publishes; `VersionDatabase.publishing_lock` makes, renews and releases it."""

    def __init__(self, database: VersionDatabase, owner: str, seconds: float) -> None:
        self.database, self.owner, self.seconds = database, owner, seconds
        # An owner that was killed and starts again is not the one whose lock has to run out.
        self.token = uuid.uuid4().hex
        self._released = threading.Event()

    def acquire(self) -> None:
        """Take the lock if it is free or has run out.

        Raises:
            LockedError: another publisher holds it.
        """
        with self.database._write("take the publishing lock in", LOCKS) as connection:
            now = _now(connection)
            held = connection.execute(sa.select(LOCKS).where(LOCKS.c.name == _PUBLISHING)).mappings().first()
            if held and held["expires_at"] > now:
                raise LockedError(
                    f"{held['owner']} is publishing; its lock runs out at {held['expires_at']:%Y-%m-%d %H:%M:%S} UTC "
                    "unless it is renewed: wait for it, or until then if that run is dead"
                )
            connection.execute(sa.delete(LOCKS).where(LOCKS.c.name == _PUBLISHING))
            expires_at = now + timedelta(seconds=self.seconds)
            values = {"name": _PUBLISHING, "owner": self.owner, "token": self.token, "expires_at": expires_at}
            connection.execute(sa.insert(LOCKS).values(values))

    def check(self, connection: Connection | None = None) -> None:
        """Find out whether nobody has taken the lock over, as happens to one that was not renewed in time.

        Raises:
            LockedError: it was taken over; names the present owner.
        """
        if connection is None:
            with self.database._read("check the publishing lock in") as connection:
                return self.check(connection)
        # FOR UPDATE: until this transaction ends nobody can take the lock over (PostgreSQL; SQLite has one writer).
        held = connection.execute(sa.select(LOCKS.c.owner, LOCKS.c.token).with_for_update()).first()
        if held is None or held.token != self.token:
            by = f"{held.owner} took it over" if held else "it was released"
            raise LockedError(f"the publishing lock of {self.owner} was lost, {by}; nothing was committed, run again")
        return None

    def renew_until_released(self) -> None:
        """Move the expiry ahead three times in its span; a database that is away for a moment is tried again."""
        while not self._released.wait(self.seconds / 3):
            try:
                with self.database._write("renew the publishing lock in", LOCKS) as connection:
                    expires_at = _now(connection) + timedelta(seconds=self.seconds)
                    renewed = sa.update(LOCKS).where(LOCKS.c.token == self.token).values(expires_at=expires_at)
                    if connection.execute(renewed).rowcount == 0 and not self._released.is_set():
                        LOGGER.error("the publishing lock of %s was lost: it was not renewed in time", self.owner)
                        return
            except RecRayError as error:
                LOGGER.warning("%s; trying again in %.0f s", error, self.seconds / 3)

    def release(self) -> None:
        """Free the lock; when the database is away it runs out by itself."""
        self._released.set()
        try:
            with self.database._write("release the publishing lock in", LOCKS) as connection:
                connection.execute(sa.delete(LOCKS).where(LOCKS.c.token == self.token))
        except RecRayError as error:
            LOGGER.warning("%s; the publishing lock runs out in %.0f s", error, self.seconds)


def _leave_transactions_alone(connection: Any, _record: Any) -> None:
    """Keep Python's sqlite3 from beginning transactions late and ending them before DDL."""
    connection.isolation_level = None


def _begin(connection: Connection) -> None:
    """Take SQLite's write lock at the beginning: two readers that both go on to write would fail at once."""
    writes = connection.get_execution_options().get("rec_ray_write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _now(connection: Connection) -> datetime:
    """Return the time of the database, one clock for all machines; that of this machine for SQLite."""
    if connection.dialect.name == "sqlite":
        return datetime.now(UTC)
    now: datetime = connection.execute(sa.select(sa.func.clock_timestamp())).scalar_one()
    return now.astimezone(UTC)


def _newest_first(columns: Iterable[sa.ColumnElement[Any]]) -> sa.Select[Any]:
    """The order in which every reader of the table finds the live version."""
    return sa.select(*columns).order_by(VERSIONS.c.updated_at.desc())


def _row(found: Mapping[Any, Any]) -> VersionRow:
    metrics = found.get("metrics")
    return VersionRow(**{**found, "metrics": json.loads(metrics) if metrics else None})


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _without_nan(entry) for key, entry in value.items()}
    return [_without_nan(entry) for entry in value] if isinstance(value, (list, tuple)) else value
