"""Writes planned tables in the layout of a Feast file source, streamed, for tables of any size.

Input: tables of `own_tables`. Output: Parquet files with string ids, `event_timestamp` in UTC and only column types
that Feast supports, in the same row order. Every row is kept, because the run decides which rows are usable.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rec_ray.errors import EmptyDataError, SchemaError
from rec_ray.sample.own_tables import KEYS, NO_ROLE, PLACEHOLDER, Decision, OwnColumn, OwnTable
from rec_ray.sample.survey import query_table
from rec_ray.sample.times import as_utc, without_sentinels, without_words_for_null
from rec_ray.schema import EVENT_TIMESTAMP, TIMESTAMP

ROW_GROUP_ROWS = 250_000
ROW_GROUP_BYTES = 256 << 20


@dataclass(frozen=True)
class WrittenTable:
    """A table written into the project, ready for Feast."""

    name: str
    path: Path
    rows: int
    schema: pa.Schema
    decisions: tuple[Decision, ...] = ()

    @property
    def notes(self) -> list[str]:
        """The decisions as lines, without the self-evident ones."""
        plain = ("id ", "time ")
        return [str(made) for made in self.decisions if not made.role.startswith(plain) and made.why != NO_ROLE]


def write_own_table(table: OwnTable, path: Path, earliest: datetime | None = None) -> WrittenTable:
    """Stream a table into a Feast-ready file.

    Args:
        table: from `read_own_tables`.
        path: file to write.
        earliest: time of the rows of users or items without one.

    Raises:
        SchemaError: a value does not fit the written type, such as a year 300,000.
    """
    return write_batches(table.name, _converted(table, earliest), path, table.decisions)


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

    why = f"created from the distinct ids of the interactions, because there is no table {name}"
    return write_batches(name, batches(), path, (Decision(name, key, "made", why),))


def write_batches(
    name: str, tables: Iterable[pa.Table], path: Path, decisions: tuple[Decision, ...] = ()
) -> WrittenTable:
    """Write tables of one schema as one Parquet file with row groups of `ROW_GROUP_ROWS`, or fewer when rows are wide.

    Raises:
        EmptyDataError: the tables have no rows.
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
    return WrittenTable(name, path, rows, pq.read_schema(path), decisions)


def _flush(writer: pq.ParquetWriter, held: list[pa.Table]) -> int:
    whole = pa.concat_tables(held)
    held.clear()
    writer.write_table(whole, row_group_size=max(1, whole.num_rows))
    return int(whole.num_rows)


def _converted(table: OwnTable, earliest: datetime | None) -> Iterator[pa.Table]:
    wanted = list(dict.fromkeys(column.origin for column in table.columns))
    for batch in table.files.batches(wanted, ROW_GROUP_ROWS // 4):
        if not batch.num_rows:
            continue
        arrays = {column.name: _convert(batch.column(column.origin), column, table) for column in table.columns}
        if EVENT_TIMESTAMP not in arrays:
            arrays[EVENT_TIMESTAMP] = pa.repeat(pa.scalar(earliest, TIMESTAMP), batch.num_rows)
        elif earliest is not None and table.name != "interactions":
            arrays[EVENT_TIMESTAMP] = pc.fill_null(arrays[EVENT_TIMESTAMP], pa.scalar(earliest, TIMESTAMP))
        if len(arrays) == len(KEYS[table.name]) + 1:
            arrays[PLACEHOLDER] = pa.repeat(True, batch.num_rows)
        yield pa.table(arrays)


def _convert(array: pa.Array, column: OwnColumn, table: OwnTable) -> pa.Array:
    try:
        if pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        if column.type == TIMESTAMP:
            times = as_utc(array, column.unit)
            is_event = table.name == "interactions" and column.name == EVENT_TIMESTAMP
            return without_sentinels(times) if is_event else times
        text = pa.types.is_string(array.type) or pa.types.is_large_string(array.type)
        if text and not pa.types.is_string(column.type):
            array = without_words_for_null(pc.cast(array, pa.string()))
        is_key = column.name in KEYS[table.name]
        if is_key and text and pa.types.is_floating(table.files.schema.field(column.origin).type):
            array = pc.replace_substring_regex(without_words_for_null(array), pattern=r"\.0*$", replacement="")
        if is_key and pa.types.is_floating(array.type):
            # pandas stores whole numbers as floats if the column has a null.
            array = pc.cast(pc.if_else(pc.is_nan(array), pa.scalar(None, array.type), array), pa.int64())
        # A 64-bit hash loses digits as a float, which matters to no feature.
        return pc.cast(array, column.type, safe=not pa.types.is_uint64(array.type))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise SchemaError(
            f"{table.files.shown}: column {column.origin!r} does not fit {column.type}: {error}"
        ) from None
