"""SQL tables of the shop whose rows supplement the data in Feast: new users, and clicks of today.

Input: addresses and column names from the settings. Output: Arrow tables with the program's own columns, read in chunks
through a server-side cursor. This module uses neither Feast nor Ray.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import sqlalchemy as sa
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from rec_ray.config import FeatureSettings, SideTableSettings
from rec_ray.errors import ConfigError, SchemaError, UnavailableError, list_names
from rec_ray.logs import LOGGER
from rec_ray.schema import EVENT_TIMESTAMP, EVENT_TYPE, EVENT_VALUE, ITEM_ID, SIGN_UP, TIMESTAMP, USER_ID
from rec_ray.storage.sql_errors import cause_of

DRIVERS = {"postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}
USER_COLUMNS: Mapping[str, str | None] = {USER_ID: "user_id", EVENT_TIMESTAMP: "signup_date"}
INTERACTION_COLUMNS: Mapping[str, str | None] = {
    USER_ID: "user_id",
    ITEM_ID: "item_id",
    EVENT_TIMESTAMP: "timestamp",
    EVENT_TYPE: "interaction_type",
    EVENT_VALUE: "rating",
}
"""Our column -> its default name in the side tables."""


@dataclass(frozen=True)
class SideTable:
    """An existing table and the columns to read.

    name: may begin with a schema and a dot. columns: our name -> the table's. features: field -> the table's column.
    """

    url: str
    name: str
    columns: Mapping[str, str]
    features: Mapping[str, str]
    chunk_rows: int
    password: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class SideTables:
    """The side tables that exist."""

    users: SideTable | None = None
    interactions: SideTable | None = None


def find_side_tables(settings: SideTableSettings, features: FeatureSettings) -> SideTables:
    """Find the existing side tables; a missing one is logged once and is not an error.

    Raises:
        ConfigError: the address is invalid.
        SchemaError: a table lacks a required column, or one that the settings name.
        UnavailableError: the database does not respond.
    """
    if settings.url is None:
        return SideTables()
    password = settings.password.get_secret_value() if settings.password else None
    engine = _engine(settings.url, password)
    interaction = features.interaction
    unread = {EVENT_TYPE: interaction.type_field, EVENT_VALUE: interaction.value_field}
    events = {name: column for name, column in INTERACTION_COLUMNS.items() if unread.get(name, name) is not None}

    def find(table: str | None, columns: Mapping[str, str | None], named: Mapping[str, str | None]) -> SideTable | None:
        if table is None:
            return None
        have = _columns(engine, str(settings.url), table)
        if have is None:
            LOGGER.info("the side table %s does not exist: only the data in Feast is used", table)
            return None
        wanted = {name: column for name, column in {**columns, **named}.items() if column is not None}
        optional = {EVENT_TYPE, EVENT_VALUE, *features.user} - {name for name in named if named[name]}
        missing = [column for name, column in wanted.items() if column not in have and name not in optional]
        if missing:
            raise SchemaError(
                f"the side table {table!r} lacks the columns {list_names(missing)}; it has "
                f"{list_names(sorted(have), 30)}. Correct the columns in section `side_tables`, or set the "
                "table to null"
            )
        left_out = [name for name, column in wanted.items() if column not in have]
        if left_out:
            LOGGER.info("the side table %s has no %s: null in its rows", table, list_names(left_out))
        found = {name: column for name, column in wanted.items() if column in have}
        ours = {name: column for name, column in found.items() if name in INTERACTION_COLUMNS}
        rest = {name: column for name, column in found.items() if name not in ours}
        return SideTable(str(settings.url), table, ours, rest, settings.chunk_rows, password)

    users: dict[str, str | None] = {**USER_COLUMNS, **{name: name for name in features.user}}
    return SideTables(
        find(settings.users, users, settings.user_columns),
        find(settings.interactions, events, settings.interaction_columns),
    )


def read_chunks(table: SideTable) -> Iterator[pa.Table]:
    """Read a side table in the order of time, `chunk_rows` rows at a time.

    A chunk has our columns that the table contains, ids as strings and the time in UTC microseconds; features are one
    JSON object per row in `schema.SIGN_UP`.

    Raises:
        SchemaError: a value in the time column is not a time.
        UnavailableError: the database does not respond.
    """
    names = [*table.columns.values(), *table.features.values()]
    schema, _, name = table.name.rpartition(".")
    columns: list[sa.ColumnClause[Any]] = [sa.column(name) for name in names]
    query = sa.select(*columns).select_from(sa.table(name, schema=schema or None))
    query = query.order_by(sa.column(table.columns[EVENT_TIMESTAMP]))
    with _answering(table.url, table.name, table.password), _engine(table.url, table.password).connect() as connection:
        # With a server-side cursor the client holds one chunk, whatever the size of the table.
        streamed = connection.execution_options(stream_results=True, yield_per=table.chunk_rows)
        for rows in streamed.execute(query).partitions():
            yield _as_arrow(table, rows)


def _as_arrow(table: SideTable, rows: Sequence[Any]) -> pa.Table:
    values = list(zip(*rows, strict=True))
    ours = {name: values[place] for place, name in enumerate(table.columns)}
    found: dict[str, pa.Array] = {}
    for name, column in ours.items():
        if name == EVENT_TIMESTAMP:
            found[name] = pa.array([_as_instant(value, table) for value in column], TIMESTAMP)
        elif name == EVENT_VALUE:
            found[name] = pa.array([None if value is None else float(value) for value in column], pa.float32())
        else:
            found[name] = pa.array([None if value is None else str(value) for value in column], pa.string())
    if table.features:
        fields = values[len(ours) :]
        found[SIGN_UP] = pa.array(
            [
                json.dumps(dict(zip(table.features, row, strict=True)), default=_as_json)
                for row in zip(*fields, strict=True)
            ]
        )
    return pa.table(found)


def _as_instant(value: Any, table: SideTable) -> datetime | None:
    if value is None:
        return None
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = datetime.fromisoformat(value)  # SQLite stores times as text.
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if not isinstance(value, datetime):
        column = table.columns[EVENT_TIMESTAMP]
        raise SchemaError(f"the side table {table.name!r} has {value!r} in {column!r}; expected a time")
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _as_json(value: Any) -> Any:
    if isinstance(value, Decimal):
        return float(value)
    return value.isoformat() if isinstance(value, date) else str(value)


def _columns(engine: sa.Engine, url: str, table: str) -> set[str] | None:
    """Return the columns of a table, or None if the table does not exist."""
    schema, _, name = table.rpartition(".")
    with _answering(url, table, engine.url.password), engine.connect() as connection:
        inspector = sa.inspect(connection)
        if not inspector.has_table(name, schema=schema or None):
            return None
        return {column["name"] for column in inspector.get_columns(name, schema=schema or None)}


def _engine(url: str, password: str | None) -> sa.Engine:
    try:
        address = make_url(url)
        address = address.set(drivername=DRIVERS.get(address.drivername, address.drivername))
        return sa.create_engine(address.set(password=password) if password else address, poolclass=NullPool)
    except (ArgumentError, ValueError, NoSuchModuleError, ModuleNotFoundError) as error:
        reason = str(error) if isinstance(error, (NoSuchModuleError, ModuleNotFoundError)) else "it cannot be parsed"
        raise ConfigError(
            f"side_tables.url: {reason}; expected a form such as postgresql://user@host:5432/name, with the driver "
            "installed"
        ) from None


@contextlib.contextmanager
def _answering(url: str, table: str, password: str | None) -> Iterator[None]:
    """Convert SQLAlchemy errors to an UnavailableError without the password."""
    try:
        yield
    except SQLAlchemyError as error:
        # `from None`, because the traceback of the original would print its text unredacted.
        raise UnavailableError(
            f"the side table {table!r} in {url} cannot be read: {cause_of(error, [password])}; check "
            "side_tables.url, its password, and that this user may read the table"
        ) from None
