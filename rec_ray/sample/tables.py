"""Reads a user's own Parquet tables and writes them as a Feast file source reads them.

In goes a folder with `interactions.parquet` and, optionally, `users.parquet` and `items.parquet`; out come files with
string ids, `event_timestamp` in UTC and only column types that Feast knows, streamed, in the same row order. Every row
is kept, odd ones too: a run judges them. What a column means is not known here (see `declarations`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rec_ray.errors import ConfigError, EmptyDataError, SchemaError, listed
from rec_ray.logs import LOGGER
from rec_ray.sample.survey import query_table
from rec_ray.schema import EVENT_TIMESTAMP, ITEM_ID, TIMESTAMP, USER_ID

ROW_GROUP_ROWS = 250_000
ROW_GROUP_BYTES = 256 << 20
TIME_NAMES = (EVENT_TIMESTAMP, "timestamp")
PLACEHOLDER = "is_known"
"""The one field of a table without features; Feast has no view without fields."""
KEYS = {"users": (USER_ID,), "items": (ITEM_ID,), "interactions": (USER_ID, ITEM_ID)}


@dataclass(frozen=True)
class OwnColumn:
    """A column to write: its name and type there, and the column of the file it is made from."""

    name: str
    type: pa.DataType
    origin: str


@dataclass(frozen=True)
class OwnTable:
    """A checked Parquet file of the user.

    columns: what is written, keys first; without `event_timestamp` when the file has no time.
    time_column: the column that is the time of a row, or None.
    notes: what is left out or changed, in words.
    """

    name: str
    path: Path
    rows: int
    columns: tuple[OwnColumn, ...]
    time_column: str | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class OwnTables:
    """The tables of a folder; users and items may be missing."""

    users: OwnTable | None
    items: OwnTable | None
    interactions: OwnTable


@dataclass(frozen=True)
class WrittenTable:
    """A table as it lies in the project, ready for Feast."""

    name: str
    path: Path
    rows: int
    schema: pa.Schema
    notes: tuple[str, ...] = ()


def read_own_tables(folder: str | Path) -> OwnTables:
    """Look at the tables of a folder and plan their columns; no rows are read.

    Raises:
        ConfigError: the folder or its interactions are missing, or a table has several possible event times.
        SchemaError: a file is no Parquet, or lacks its ids or times, or has them with a wrong type.
        EmptyDataError: a table has no rows.
    """
    folder = Path(folder)
    paths = {name: folder / f"{name}.parquet" for name in KEYS}
    if not paths["interactions"].is_file():
        have = listed(sorted(entry.name for entry in folder.iterdir())) if folder.is_dir() else "no such folder"
        raise ConfigError(
            f"no file interactions.parquet in {folder} ({have}); a folder for --from holds interactions.parquet and, "
            "optionally, users.parquet and items.parquet"
        )
    naive: list[str] = []
    tables = {name: _look_at(name, path, naive) for name, path in paths.items() if path.exists()}
    if naive:
        LOGGER.info("timestamps without a zone are taken as UTC: %s", ", ".join(naive))
    return OwnTables(tables.get("users"), tables.get("items"), tables["interactions"])


def _look_at(name: str, path: Path, naive: list[str]) -> OwnTable:
    try:
        with pq.ParquetFile(path) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
    except (OSError, pa.ArrowInvalid) as error:
        raise SchemaError(f"{path} cannot be read as a Parquet file: {error}") from None
    lower = [column.lower() for column in schema.names]
    twice = sorted({column for column in schema.names if lower.count(column.lower()) > 1})
    if twice:
        raise SchemaError(f"{path} has columns that differ in case only, or not at all: {listed(twice)}; rename them")
    missing = [key for key in KEYS[name] if key not in schema.names]
    if missing:
        raise SchemaError(f"{path} lacks the columns {listed(missing)}; it has {listed(schema.names, 30)}")
    if not rows:
        raise EmptyDataError(f"{path} has no rows" + ("" if name == "interactions" else "; remove it or fill it"))
    time = _time_column(name, path, schema)
    columns = [OwnColumn(key, pa.string(), key) for key in KEYS[name]]
    for key in KEYS[name]:
        kind = _decoded(schema.field(key).type)
        if not (_is_text(kind) or pa.types.is_integer(kind)):
            raise SchemaError(f"{path}: column {key!r} is {kind}; an id must be a string or a whole number")
    if time is not None:
        columns.append(OwnColumn(EVENT_TIMESTAMP, TIMESTAMP, time))
    notes = []
    for field in schema:
        if field.name in KEYS[name] or (field.name == time and time in TIME_NAMES):
            continue
        kind = _written_type(field.type)
        if kind is None:
            notes.append(f"{field.name}: left out, Feast has no field for its type {field.type}")
            continue
        if name == "interactions" and field.name == time:
            continue
        columns.append(OwnColumn(field.name, kind, field.name))
    naive += [f"{name}.{field.name}" for field in schema if pa.types.is_timestamp(field.type) and field.type.tz is None]
    if len(columns) == len(KEYS[name]) + (time is not None):
        notes.append(f"no features; the field {PLACEHOLDER} is there because Feast has no view without fields")
    return OwnTable(name, path, rows, tuple(columns), time, tuple(notes))


def _time_column(name: str, path: Path, schema: pa.Schema) -> str | None:
    """Return the column with the time of a row: by name, or the only timestamp."""
    times = [field.name for field in schema if _is_time(field.type)]
    if EVENT_TIMESTAMP in schema.names and EVENT_TIMESTAMP not in times:
        raise SchemaError(
            f"{path}: column {EVENT_TIMESTAMP!r} is {schema.field(EVENT_TIMESTAMP).type}; expected a timestamp"
        )
    for known in TIME_NAMES:
        if known in times:
            return known
    if len(times) > 1:
        raise ConfigError(
            f"{path} has several timestamp columns: {listed(times)}; name the one that is the time of a row "
            f"{EVENT_TIMESTAMP!r}"
        )
    if not times and name == "interactions":
        have = listed((f"{field.name}: {field.type}" for field in schema), 30)
        raise SchemaError(f"{path} has no timestamp column for the time of an event; it has {have}")
    return times[0] if times else None


def write_own_table(table: OwnTable, path: Path, earliest: datetime | None = None) -> WrittenTable:
    """Stream a table into a Feast-ready file.

    Args:
        table: from `read_own_tables`.
        path: file to write.
        earliest: time of the rows when the table has none.

    Raises:
        SchemaError: a value does not fit the type that is written, such as a year 300,000.
    """
    return write_batches(table.name, _converted(table, earliest), path, table.notes)


def write_ids(name: str, interactions: WrittenTable, path: Path, earliest: datetime) -> WrittenTable:
    """Write a table of the distinct ids in the interactions, in the order of their first row."""
    key = KEYS[name][0]
    schema = pa.schema([(key, pa.string()), (EVENT_TIMESTAMP, TIMESTAMP), (PLACEHOLDER, pa.bool_())])

    def batches() -> Iterator[pa.Table]:
        sql = f"SELECT {key} FROM t WHERE {key} <> '' GROUP BY {key} ORDER BY min(file_row_number)"
        with query_table(interactions.path) as connection:
            reader = connection.sql(sql).to_arrow_reader(ROW_GROUP_ROWS)
            for batch in reader:
                n = batch.num_rows
                times = pa.repeat(pa.scalar(earliest, TIMESTAMP), n)
                yield pa.table([batch.column(0).cast(pa.string()), times, pa.repeat(True, n)], schema=schema)

    note = f"made from the distinct {key} of the interactions: there was no {name}.parquet"
    return write_batches(name, batches(), path, (note,))


def write_batches(name: str, tables: Iterable[pa.Table], path: Path, notes: tuple[str, ...] = ()) -> WrittenTable:
    """Write tables of one schema as one Parquet file with row groups of `ROW_GROUP_ROWS`, or fewer when rows are wide.

    Raises:
        EmptyDataError: there is no row.
    """
    held: list[pa.Table] = []
    rows = 0
    writer: pq.ParquetWriter | None = None
    try:
        for table in tables:
            if writer is None:
                writer = pq.ParquetWriter(path, table.schema)
            while table.num_rows:
                room = ROW_GROUP_ROWS - sum(part.num_rows for part in held)
                held.append(table.slice(0, room))
                table = table.slice(room)
                full = sum(part.num_rows for part in held) == ROW_GROUP_ROWS
                if full or sum(part.nbytes for part in held) >= ROW_GROUP_BYTES:
                    rows += _flush(writer, held)
        if writer is not None and held:
            rows += _flush(writer, held)
    finally:
        if writer is not None:
            writer.close()
    if writer is None or not rows:
        raise EmptyDataError(f"the table {name} has no rows")
    return WrittenTable(name, path, rows, pq.read_schema(path), notes)


def _flush(writer: pq.ParquetWriter, held: list[pa.Table]) -> int:
    whole = pa.concat_tables(held)
    held.clear()
    writer.write_table(whole, row_group_size=max(1, whole.num_rows))
    return int(whole.num_rows)


def _converted(table: OwnTable, earliest: datetime | None) -> Iterator[pa.Table]:
    for batch in _read_batches(table):
        arrays = {column.name: _convert(batch.column(column.origin), column, table.path) for column in table.columns}
        if EVENT_TIMESTAMP not in arrays:
            arrays[EVENT_TIMESTAMP] = pa.repeat(pa.scalar(earliest, TIMESTAMP), batch.num_rows)
        if len(arrays) == len(KEYS[table.name]) + 1:
            arrays[PLACEHOLDER] = pa.repeat(True, batch.num_rows)
        yield pa.table(arrays)


def _read_batches(table: OwnTable) -> Iterator[pa.RecordBatch]:
    wanted = list(dict.fromkeys(column.origin for column in table.columns))
    try:
        with pq.ParquetFile(table.path) as file:
            yield from file.iter_batches(batch_size=ROW_GROUP_ROWS // 4, columns=wanted)
    except (OSError, pa.ArrowInvalid) as error:
        raise SchemaError(f"{table.path} is damaged: {error}") from None


def _convert(array: pa.Array, column: OwnColumn, path: Path) -> pa.Array:
    try:
        if pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        if pa.types.is_timestamp(array.type):
            # Nanoseconds are cut; anything coarser must fit.
            zoned = array.type.tz
            fine = array.type.unit == "ns"
            array = pc.cast(array, pa.timestamp("us", zoned), safe=not fine)
            return pc.cast(array, TIMESTAMP) if zoned else pc.assume_timezone(array, "UTC")
        if pa.types.is_date(array.type):
            return pc.assume_timezone(pc.cast(array, pa.timestamp("us")), "UTC")
        return pc.cast(array, column.type)
    except pa.ArrowInvalid as error:
        raise SchemaError(f"{path}: column {column.origin!r} does not fit {column.type}: {error}") from None


def _decoded(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_time(kind: pa.DataType) -> bool:
    return bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind))


def _written_type(kind: pa.DataType) -> pa.DataType | None:
    """Return the type a column is written with, or None for one that Feast has no field for."""
    kind = _decoded(kind)
    if _is_text(kind):
        return pa.string()
    if _is_time(kind):
        return TIMESTAMP
    if pa.types.is_boolean(kind):
        return pa.bool_()
    if pa.types.is_integer(kind):
        return pa.int64()
    if pa.types.is_float16(kind) or pa.types.is_float32(kind):
        return pa.float32()
    if pa.types.is_float64(kind) or pa.types.is_decimal(kind):
        return pa.float64()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        value = _written_type(kind.value_type)
        if value in (pa.string(), pa.float32(), pa.float64()):
            return pa.list_(value)
        if value == pa.int64():
            return pa.list_(pa.string())
    return None
