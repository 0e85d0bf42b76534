"""Converts source rows to events: selects usable rows, finds the split instants, adds the query rows of each user.

Input: Arrow tables from `offline_source.read_slice`. Output: tables of `schema.INTERACTIONS`, counts and the instants
of the split. All functions are pure, without Ray and Feast.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from rec_ray.config import EvaluationSettings
from rec_ray.contracts import RowCounts
from rec_ray.errors import SchemaError
from rec_ray.schema import (
    EVENT_CREATED,
    EVENT_KEY,
    EVENT_ORDER,
    EVENT_TIMESTAMP,
    EVENT_TYPE,
    EVENT_VALUE,
    INTERACTIONS,
    ITEM_ID,
    REVISIONS,
    SIGN_UP,
    TIMESTAMP,
    USER_ID,
    SplitTimes,
)

QUANTILES = 1001
QUERY_ORDER = 2**62
"""`event_order` of the query rows, which follow all events."""


def as_events(table: pa.Table, first_row: int, as_of: datetime, exclude: Sequence[str] = ()) -> pa.Table:
    """Convert a slice to the event schema, without the rows that `RowCounts` counts as lost.

    first_row: the number of the slice's first row within the source; `event_order` counts from there.
    exclude: ids of users who are left out.

    Raises:
        SchemaError: the rating is not a number.
    """
    order = pa.array(np.arange(first_row, first_row + table.num_rows), pa.int64())
    names = table.column_names
    columns = {
        USER_ID: table[USER_ID],
        ITEM_ID: table[ITEM_ID],
        EVENT_TIMESTAMP: table[EVENT_TIMESTAMP],
        EVENT_ORDER: order,
        EVENT_TYPE: pc.cast(table[EVENT_TYPE], pa.string())
        if EVENT_TYPE in names
        else pa.nulls(len(order), pa.string()),
        EVENT_VALUE: _as_float(table[EVENT_VALUE]) if EVENT_VALUE in names else pa.nulls(len(order), pa.float32()),
    }
    events = pa.table(columns, schema=INTERACTIONS)
    if EVENT_CREATED in names:
        events = events.append_column(REVISIONS.field(EVENT_CREATED), _as_number(table[EVENT_CREATED]))
        keys = [pc.cast(table[name], pa.string()) for name in names if name.startswith(EVENT_KEY)]
        nothing = pa.array([""] * len(order), pa.string())
        joined = pc.binary_join_element_wise(nothing, *keys, "\n", null_handling="replace")
        events = events.append_column(REVISIONS.field(EVENT_KEY), joined)
    return events.filter(row_status(events, as_of, exclude) == "kept")


def active_users(table: pa.Table, as_of: datetime, since: datetime, exclude: Sequence[str] = ()) -> pa.Array:
    """Return the ids of the users with a usable event from `since` up to `as_of` in a slice, each once."""
    events = as_events(table, 0, as_of, exclude)
    late = events.filter(pc.greater_equal(events[EVENT_TIMESTAMP], pa.scalar(since, TIMESTAMP)))
    return combine_chunks(pc.unique(late[USER_ID]))


def row_status(table: pa.Table, as_of: datetime, exclude: Sequence[str] = ()) -> npt.NDArray[np.str_]:
    """Return `kept` or the name of the `RowCounts` counter for each row, as [n] strings."""
    excluded = _is_one_of(table[USER_ID], exclude)
    late = pc.fill_null(pc.greater(table[EVENT_TIMESTAMP], pa.scalar(as_of, TIMESTAMP)), False)
    null_key = pc.or_(is_blank(table[USER_ID]), is_blank(table[ITEM_ID]))
    null_time = pc.is_null(table[EVENT_TIMESTAMP])
    masks = [mask.to_numpy(zero_copy_only=False) for mask in map(combine_chunks, (null_key, null_time, late, excluded))]
    names = ["null_keys", "null_timestamps", "in_the_future", "of_excluded_users"]
    return np.select(masks, names, default="kept")


def _is_one_of(ids: pa.ChunkedArray, exclude: Sequence[str]) -> pa.ChunkedArray:
    return pc.is_in(ids, value_set=pa.array(list(exclude), pa.string()))


def is_blank(ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return [n] bool: the id is null or empty."""
    return pc.or_kleene(pc.is_null(ids), pc.fill_null(pc.equal(ids, ""), True))


def combine_chunks(column: Any) -> pa.Array:
    """Return a column as one array."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _as_number(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return timestamps or whole numbers as integers of the same order."""
    kind = column.type
    if pa.types.is_timestamp(kind):
        return pc.cast(pc.cast(column, pa.timestamp("us", kind.tz), safe=False), pa.int64())
    if pa.types.is_date(kind):
        return pc.cast(pc.cast(column, pa.timestamp("us")), pa.int64())
    if pa.types.is_integer(kind) or pa.types.is_null(kind):
        return pc.cast(column, pa.int64())
    raise SchemaError(f"the created_timestamp_column of the events is {kind}; expected a timestamp")


def _as_float(column: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = column.type
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    # True is 1 and False is 0, which is not positive: a column such as `liked`.
    if not (number or pa.types.is_boolean(kind) or pa.types.is_null(kind)):
        raise SchemaError(f"features.interaction.value_field is {kind} in the events; expected a number")
    return pc.cast(column, pa.float32(), safe=False)


@dataclass(frozen=True)
class EventSurvey:
    """Counts and times of the events of a slice, before any join.

    row_status: rows by status, see the function. quantiles: [QUANTILES] microseconds of the kept rows, or empty.
    """

    row_status: dict[str, int]
    quantiles: npt.NDArray[np.int64]


def survey_events(table: pa.Table, as_of: datetime, exclude: Sequence[str] = ()) -> EventSurvey:
    """Count the rows of a slice by status, and sketch the distribution of its event times.

    Raises:
        SchemaError: the rating is not a number.
    """
    counts = Counter(row_status(table, as_of, exclude).tolist())
    kept = as_events(table, 0, as_of, exclude)
    times = pc.cast(kept[EVENT_TIMESTAMP], pa.int64()).to_numpy(zero_copy_only=False)
    if not len(times):
        return EventSurvey(dict(counts), np.zeros(0, np.int64))
    # inverted_cdf weighs all events equally; interpolation under-weights the last.
    shares = (np.arange(QUANTILES) + 0.5) / QUANTILES
    return EventSurvey(dict(counts), np.quantile(times, shares, method="inverted_cdf"))


def count_rows(surveys: Sequence[EventSurvey]) -> RowCounts:
    """Add up the row counts by status."""
    total: Counter[str] = Counter()
    for survey in surveys:
        total.update(survey.row_status)
    return RowCounts(
        read=sum(total.values()),
        kept=total["kept"],
        null_keys=total["null_keys"],
        null_timestamps=total["null_timestamps"],
        in_the_future=total["in_the_future"],
        of_excluded_users=total["of_excluded_users"],
    )


def split_times(surveys: Sequence[EventSurvey], evaluation: EvaluationSettings, as_of: datetime) -> SplitTimes:
    """Return the instants that split the events, from the sketches of at least one slice with events.

    An instant is the time of an event. The sketches locate it to within one event and a thousandth of all.
    """
    if evaluation.split == "leave_one_out":
        return SplitTimes(as_of, as_of, as_of)
    sketches = [survey for survey in surveys if len(survey.quantiles)]
    points = np.concatenate([survey.quantiles for survey in sketches])
    weights = np.concatenate([np.full(QUANTILES, survey.row_status["kept"] / QUANTILES) for survey in sketches])
    order = np.argsort(points, kind="stable")
    points, cumulated = points[order], np.cumsum(weights[order])
    kept = sum(survey.row_status["kept"] for survey in sketches)
    shares = (1 - evaluation.test_fraction - evaluation.validation_fraction, 1 - evaluation.test_fraction)
    places = np.minimum(np.searchsorted(cumulated, np.array(shares) * kept), len(points) - 1)
    validation, test = (pd.Timestamp(int(start), unit="us", tz="UTC").to_pydatetime() for start in points[places])
    return SplitTimes(validation, test, as_of)


def as_query_markers(table: pa.Table, first_row: int, exclude: Sequence[str] = ()) -> pa.Table:
    """Convert rows of a user table to rows without item, one for each user who is not excluded."""
    left_out = pc.or_(is_blank(table[USER_ID]), _is_one_of(table[USER_ID], exclude))
    ids = pc.unique(table[USER_ID].filter(pc.invert(left_out)))
    n = len(ids)
    epoch = pa.array(np.zeros(n, np.int64)).cast(TIMESTAMP)
    columns = [ids, pa.nulls(n, pa.string()), epoch, pa.array(np.full(n, -1)), pa.nulls(n, pa.string())]
    return pa.table([*columns, pa.nulls(n, pa.float32())], schema=INTERACTIONS)


def as_sign_ups(table: pa.Table, as_of: datetime, exclude: Sequence[str] = ()) -> pa.Table:
    """Convert rows of a sign-up table, up to `as_of`, to user markers with the sign-up time and the given features.

    table: `user_id`, `event_timestamp` and, if the table has features, `sign_up`.
    """
    known = pc.fill_null(pc.less_equal(table[EVENT_TIMESTAMP], pa.scalar(as_of, TIMESTAMP)), False)
    left_out = pc.or_(is_blank(table[USER_ID]), _is_one_of(table[USER_ID], exclude))
    rows = table.filter(pc.and_(known, pc.invert(left_out)))
    n = rows.num_rows
    columns = [rows[USER_ID], pa.nulls(n, pa.string()), rows[EVENT_TIMESTAMP], pa.array(np.full(n, -1))]
    told = rows[SIGN_UP] if SIGN_UP in rows.column_names else pa.nulls(n, pa.string())
    markers = pa.table([*columns, pa.nulls(n, pa.string()), pa.nulls(n, pa.float32())], schema=INTERACTIONS)
    return markers.append_column(SIGN_UP, told)


def fill_from_sign_ups(rows: pa.Table, sign_ups: pa.Table, fields: Sequence[str]) -> pa.Table:
    """Fill features that are null in Feast with the values of the sign-up, for rows after it.

    rows: with the column of each field. sign_ups: markers of `as_sign_ups`; the last one of a user counts.

    Raises:
        SchemaError: a value cannot be converted to the Feast type of the field.
    """
    sign_ups = sign_ups.filter(pc.is_valid(sign_ups[SIGN_UP])).sort_by([(EVENT_TIMESTAMP, "descending")])
    if not sign_ups.num_rows:
        return rows
    # Newest first, because `index_in` returns the first match.
    place = pc.index_in(combine_chunks(rows[USER_ID]), value_set=combine_chunks(sign_ups[USER_ID]))
    since = combine_chunks(sign_ups[EVENT_TIMESTAMP]).take(place)
    from_then_on = pc.fill_null(pc.greater_equal(combine_chunks(rows[EVENT_TIMESTAMP]), since), False)
    told = [json.loads(text) for text in sign_ups[SIGN_UP].to_pylist()]
    for name in fields:
        column = combine_chunks(rows[name])
        values = _as_type([values.get(name) for values in told], column.type, name).take(place)
        filled = pc.if_else(pc.and_(from_then_on, pc.is_null(column)), values, column)
        rows = rows.set_column(rows.schema.get_field_index(name), name, filled)
    return rows


def _as_type(values: list[Any], kind: pa.DataType, name: str) -> pa.Array:
    try:
        if pa.types.is_timestamp(kind):
            return pa.array([value and pd.Timestamp(value) for value in values], kind)
        return pa.array(values, kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError, ValueError):
        found = next(value for value in values if value is not None)
        raise SchemaError(
            f"a sign-up has {found!r} for {name!r}, which Feast has as {kind}; name another column, or null, in "
            "side_tables.user_columns"
        ) from None


def with_query_rows(block: pa.Table, instants: Sequence[datetime]) -> pa.Table:
    """Sort each user's rows by time and append a row without item for each instant.

    block: all rows of its users: events, and user markers, which are removed. Events of the same time keep the order of
    the source.
    """
    events = block.filter(pc.is_valid(block[ITEM_ID]))
    users = combine_chunks(pc.unique(block[USER_ID]))
    n = len(users) * len(instants)
    moments = np.array([pd.Timestamp(instant).value // 1000 for instant in instants], np.int64)
    query = pa.table(
        [
            pa.concat_arrays([users] * len(instants)),
            pa.nulls(n, pa.string()),
            pa.array(np.repeat(moments, len(users))).cast(TIMESTAMP),
            pa.array(np.repeat(np.arange(len(instants)) + QUERY_ORDER, len(users))),
            pa.nulls(n, pa.string()),
            pa.nulls(n, pa.float32()),
        ],
        schema=INTERACTIONS,
    )
    for column in block.schema:
        if column.name not in query.column_names:
            query = query.append_column(column, pa.nulls(n, column.type))
    rows = pa.concat_tables([events, query]).combine_chunks()
    # The query rows come last even if events are later than their instants.
    is_query = pc.is_null(rows[ITEM_ID])
    keys = pa.table({"u": rows[USER_ID], "q": is_query, "t": rows[EVENT_TIMESTAMP], "o": rows[EVENT_ORDER]})
    order = pc.sort_indices(keys, [(key, "ascending") for key in keys.column_names])
    return rows.take(order)
