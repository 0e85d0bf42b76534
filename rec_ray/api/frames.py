"""Tables of the caller as Arrow: pandas, Polars and Arrow frames, rows, or columns, with checked ids and times.

Input: a frame of any of these kinds. Output: an Arrow table, string ids and UTC times; a frame that cannot be used is
an error of one line. The module imports neither pandas nor Polars.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rec_ray.errors import DataError, SchemaError, list_names
from rec_ray.schema import TIMESTAMP

Frame = Any
"""A pandas, Polars or Arrow table, or any object with `__arrow_c_stream__`; a list of rows; a mapping of columns."""


def to_table(frame: Frame, what: str) -> pa.Table:
    """Return a frame as an Arrow table without dictionaries, views and decimals. what: noun of the frame in messages.

    Raises:
        SchemaError: it is no table, or a column has values of several types.
    """
    try:
        table = _as_arrow(frame)
    except (pa.ArrowException, AttributeError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SchemaError(f"{what} cannot be read as a table: {reason}") from None
    if table is None:
        raise SchemaError(
            f"{what} is a {type(frame).__name__}; expected a pandas, Polars or Arrow table, a list of rows, or a "
            "mapping of columns"
        )
    twice = sorted({name for name in table.column_names if table.column_names.count(name) > 1})
    if twice:
        raise SchemaError(f"{what} has the columns {list_names(twice)} more than once; rename or drop them")
    return pa.table({name: plain_column(table[name]) for name in table.column_names})


def _as_arrow(frame: Frame) -> pa.Table | None:
    if isinstance(frame, pa.Table):
        return frame
    if isinstance(frame, pa.RecordBatch):
        return pa.Table.from_batches([frame])
    if type(frame).__module__.partition(".")[0] == "pandas":
        return pa.Table.from_pandas(frame, preserve_index=False)
    if hasattr(frame, "__arrow_c_stream__"):
        return pa.table(frame)
    if isinstance(frame, Mapping):
        return pa.table(dict(frame))
    if isinstance(frame, Sequence) and not isinstance(frame, str) and all(isinstance(row, Mapping) for row in frame):
        names = list(dict.fromkeys(name for row in frame for name in row))
        return pa.table({name: [row.get(name) for row in frame] for name in names})
    return None


def plain_column(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Return a column as one array of a plain type: no dictionary, large string, string view or decimal."""
    values = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    kind = values.type
    if pa.types.is_dictionary(kind):
        # Not `dictionary_decode`, which has no kernel for the string views of Polars.
        return plain_column(values.dictionary).take(values.indices)
    if pa.types.is_large_string(kind) or kind == pa.string_view():
        return values.cast(pa.string())
    if pa.types.is_decimal(kind):
        return pc.cast(values, pa.float64(), safe=False)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return values.cast(pa.list_(plain_column(pa.array([], kind.value_type)).type))
    return values


def require_names(table: pa.Table, names: Mapping[str, str], what: str) -> None:
    """Check that a table has columns. names: column -> the argument that names it.

    Raises:
        SchemaError: one is missing; the message names the columns of the table and the argument.
    """
    for column, argument in names.items():
        if column not in table.column_names:
            raise SchemaError(
                f"{what} has no column {column!r}; it has {list_names(table.column_names, 20)}. Name the column with "
                f"{argument}=..."
            )


def id_column(table: pa.Table, name: str, what: str) -> pa.Array:
    """Return a column of ids as strings; whole numbers are written without a decimal point.

    Raises:
        SchemaError: the ids are neither strings nor whole numbers.
        DataError: an id is null or empty.
    """
    column = plain_column(table[name])
    kind = column.type
    if column.null_count:
        raise DataError(f"{what}: {column.null_count:,} of {len(column):,} ids in {name!r} are null; drop these rows")
    if pa.types.is_integer(kind):
        return column.cast(pa.string())
    if pa.types.is_null(kind) and not len(column):
        return pa.array([], pa.string())
    if not pa.types.is_string(kind):
        raise SchemaError(
            f"{what}: the ids in {name!r} are {kind}; expected strings or whole numbers: .astype('str'), "
            "or .astype('int64') for whole numbers that became fractions"
        )
    blank = pc.sum(pc.equal(column, "")).as_py() or 0
    if blank:
        raise DataError(f"{what}: {blank:,} of {len(column):,} ids in {name!r} are empty; drop these rows")
    return column


def time_column(table: pa.Table, name: str, what: str, timezone: str | None) -> pa.Array:
    """Return a column of times in UTC microseconds. timezone: zone of times without one, or None to refuse those.

    Raises:
        SchemaError: the column holds no times, or times without a zone while `timezone` is None.
        DataError: a time is null, or the zone is unknown.
    """
    column = plain_column(table[name])
    kind = column.type
    if pa.types.is_date(kind):
        column = column.cast(pa.timestamp("us"))
    elif not pa.types.is_timestamp(kind):
        raise SchemaError(
            f"{what}: {name!r} holds {kind}; expected timestamps (pd.to_datetime(frame[{name!r}], utc=True), with "
            "unit='s' for seconds since 1970)"
        )
    if column.null_count:
        raise DataError(f"{what}: {column.null_count:,} of {len(column):,} times in {name!r} are null; drop these rows")
    if getattr(kind, "tz", None) is None:
        if timezone is None:
            raise SchemaError(f"{what}: the times in {name!r} have no time zone; name it with timezone='UTC'")
        try:
            column = pc.assume_timezone(column, timezone, ambiguous="earliest", nonexistent="earliest")
        except pa.ArrowInvalid:
            raise DataError(f"timezone={timezone!r} is unknown; use a name such as Europe/Berlin") from None
    return pc.cast(column, TIMESTAMP, safe=False)
