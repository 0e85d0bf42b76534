"""Rows behind a Feast feature view, divided into slices that Ray tasks read in parallel.

Input: a Feast batch source and the columns to read. Output: slices; `read_slice` reads one of them as an Arrow table
with the program's own column names, ids as strings and times in UTC. Parquet files are divided by row group, with
numbered rows; every other source is queried through Feast's offline store, one time interval per slice.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs

from rec_ray.config import FeastSettings, FeatureSettings
from rec_ray.errors import ConfigError, FeatureStoreError, SchemaError, list_names
from rec_ray.feature_store.api import PassthroughProvider, RepoConfig
from rec_ray.feature_store.definitions import EventsView, Side, find_events
from rec_ray.feature_store.registry import Registry
from rec_ray.feature_store.source_files import (
    as_utc,
    check_columns,
    column_in_file,
    find_files,
    is_parquet,
    read_footer,
    read_row_groups,
    reads_files,
)
from rec_ray.schema import EVENT_CREATED, EVENT_KEY, EVENT_TIMESTAMP, EVENT_TYPE, EVENT_VALUE, ITEM_ID, USER_ID

FIRST_TIME = datetime(1990, 1, 1, tzinfo=UTC)
"""Start of the yearly intervals of a source without files; one interval covers all older rows."""
STRETCH = timedelta(days=366)


@dataclass(frozen=True)
class FeatureSource:
    """A Feast batch source and the columns to read from it.

    columns: the program's name -> the name that the feature view uses (the source's field mapping is undone here).
    """

    source: Any
    columns: Mapping[str, str]
    what: str

    @classmethod
    def of(cls, source: Any, columns: Mapping[str, str], *, what: str) -> FeatureSource:
        """Create one from a view's batch source."""
        return cls(source, {name: column_in_file(source, column) for name, column in columns.items()}, what)

    @property
    def time(self) -> str:
        """Timestamp column of the source."""
        return column_in_file(self.source, self.source.timestamp_field)


@dataclass(frozen=True)
class SourceSlice:
    """A part of a source that one task reads.

    path: a Parquet file with `row_groups` of it; None for the time interval [start, end) of any other source, where a
        bound of None is open.
    first_row: the number of its first row within the source. rows: number of rows; None if unknown before reading.
    """

    source: FeatureSource
    first_row: int
    path: str | None = None
    filesystem: pyarrow.fs.FileSystem | None = None
    row_groups: tuple[int, ...] = ()
    rows: int | None = None
    start: datetime | None = None
    end: datetime | None = None
    naive_time: bool = False


def event_source(registry: Registry, feast: FeastSettings, features: FeatureSettings) -> FeatureSource:
    """Return the source of the view whose rows are the events.

    Raises:
        ConfigError: the view is missing, or lacks a field that the settings name.
    """
    events = find_events(registry, feast)
    optional = {EVENT_TYPE: features.interaction.type_field, EVENT_VALUE: features.interaction.value_field}
    for name, field in optional.items():
        if field and field not in events.field_names:
            raise ConfigError(
                f"features.interaction.{name.removeprefix('event_')}_field: view {events.view.name!r} has no field "
                f"{field!r}; it has {list_names(events.field_names, 30)}. Correct the setting or set it to null"
            )
    columns = {USER_ID: events.user, ITEM_ID: events.item} | {name: field for name, field in optional.items() if field}
    columns |= _revision_columns(events)
    return FeatureSource.of(events.view.batch_source, columns, what=f"the events of view {events.view.name!r}")


def _revision_columns(events: EventsView) -> dict[str, str]:
    """Return the columns by which an event corrects another; none without a `created_timestamp_column`."""
    created = events.view.batch_source.created_timestamp_column
    if not created:
        return {}
    keys = [key for key in events.view.join_keys if key != events.user]
    return {EVENT_CREATED: created, **{f"{EVENT_KEY}_{number}": key for number, key in enumerate(keys)}}


def entity_sources(side: Side) -> list[FeatureSource]:
    """Return the sources that list the existing users or items."""
    name = USER_ID if side.side == "user" else ITEM_ID
    return [
        FeatureSource.of(each.view.batch_source, {name: each.view.join_keys[0]}, what=f"view {each.view.name!r}")
        for each in side.views
    ]


def slice_source(store: Any, source: FeatureSource, rows: int) -> list[SourceSlice]:
    """Divide a source into slices of about `rows` rows (files) or into time intervals (other sources).

    Raises:
        FeatureStoreError: a file is missing or unreachable.
        DataError: a file is not a Parquet file.
        SchemaError: a requested column is missing, or the time is not a timestamp.
    """
    if is_parquet(source.source) and reads_files(store.config):
        return _slice_files(source, Path(str(store.repo_path)), rows)
    return slice_time(source, datetime.now(UTC))


def slice_time(source: FeatureSource, now: datetime) -> list[SourceSlice]:
    """Divide a source into time intervals that together cover all rows with a time, future rows included.

    An interval without rows costs one short query.
    """
    bounds: list[datetime | None] = [None, FIRST_TIME]
    while (start := bounds[-1]) is not None:
        bounds.append(start + STRETCH if start + STRETCH < now else None)
    # Row numbers far apart keep the order of the intervals.
    return [
        SourceSlice(source, first_row=number << 40, start=start, end=end)
        for number, (start, end) in enumerate(itertools.pairwise(bounds))
    ]


def _slice_files(source: FeatureSource, repo: Path, rows: int) -> list[SourceSlice]:
    slices: list[SourceSlice] = []
    first_row = 0
    filesystem, paths = find_files(source.source, repo, source.what)
    for path in paths:
        metadata = read_footer(filesystem, path, source.what)
        schema = metadata.schema.to_arrow_schema()
        naive = check_columns(schema, source.columns.values(), source.time, path, source.what)
        part = SourceSlice(source, first_row, path, filesystem, naive_time=naive)
        chosen: list[int] = []
        held = 0
        for group in range(metadata.num_row_groups):
            chosen.append(group)
            held += metadata.row_group(group).num_rows
            if held >= rows or group == metadata.num_row_groups - 1:
                slices.append(replace(part, first_row=first_row, row_groups=tuple(chosen), rows=held))
                first_row += held
                chosen, held = [], 0
    return slices


def read_slice(config: RepoConfig, part: SourceSlice) -> pa.Table:
    """Read a slice: the columns by their new names, ids as strings, `event_timestamp` in UTC microseconds.

    Raises:
        DataError: names the damaged file.
        SchemaError: an id is neither text nor a whole number, or a time is out of range.
        FeatureStoreError: a file is unreachable, or the offline store does not respond.
    """
    source = part.source
    time = source.time
    columns = list(dict.fromkeys([*source.columns.values(), time]))
    if part.path is not None and part.filesystem is not None:
        table = read_row_groups(part.filesystem, part.path, columns, source.what, list(part.row_groups))
    else:
        table = _pull(config, part, [column for column in columns if column != time])
    renamed = {name: table[column] for name, column in source.columns.items()}
    for name in renamed:
        if name.endswith("_id"):
            renamed[name] = as_ids(renamed[name], name, source.what)
    renamed[EVENT_TIMESTAMP] = as_utc(table[time], time, source.what)
    return pa.table(renamed)


def _pull(config: RepoConfig, part: SourceSlice, columns: list[str]) -> pa.Table:
    source = part.source.source
    try:
        job = PassthroughProvider(config).offline_store.pull_all_from_table_or_query(
            config=config,
            data_source=source,
            join_key_columns=[],
            feature_name_columns=columns,
            timestamp_field=part.source.time,
            created_timestamp_column=None,
            start_date=part.start,
            # Feast's bounds are both inclusive.
            end_date=part.end - timedelta(microseconds=1) if part.end else None,
        )
        return job.to_arrow()
    except Exception as error:
        raise FeatureStoreError(
            f"{part.source.what}: the offline store failed: {type(error).__name__}: {error}"
        ) from error


def as_ids(column: pa.ChunkedArray, name: str, what: str) -> pa.ChunkedArray:
    """Return ids as strings.

    Raises:
        SchemaError: the column is neither text nor whole numbers.
    """
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if not (text or pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise SchemaError(f"{what}: {name} is {kind}; an id must be text or a whole number")
    return pc.cast(column, pa.string())
