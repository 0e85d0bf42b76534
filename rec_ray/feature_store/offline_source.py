"""The rows behind a Feast feature view, cut into slices that Ray tasks can read side by side.

A batch source of Feast and the wanted columns come in, slices come out; `read_slice` reads one of them as an Arrow
table with the program's own column names, ids as strings and times in UTC. Parquet files are cut by row group and
numbered row by row; every other source is asked through Feast's offline store, a stretch of time at a time.
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
"""Start of the yearly stretches of a source without files; one stretch holds all older rows."""
STRETCH = timedelta(days=366)


@dataclass(frozen=True)
class FeatureSource:
    """A batch source of Feast and the columns wanted of it.

    columns: the program's name -> the name that the feature view uses (the source's field mapping is undone here).
    """

    source: Any
    columns: Mapping[str, str]
    what: str

    @classmethod
    def of(cls, source: Any, columns: Mapping[str, str], *, what: str) -> FeatureSource:
        """Make one from a view's batch source."""
        return cls(source, {name: column_in_file(source, column) for name, column in columns.items()}, what)

    @property
    def time(self) -> str:
        """Column of the source with the time of its rows."""
        return column_in_file(self.source, self.source.timestamp_field)


@dataclass(frozen=True)
class SourceSlice:
    """A part of a source that one task reads.

    path: a Parquet file and `row_groups` of it, or, when None, the stretch of time [start, end) of any other source;
        a bound that is None is open.
    first_row: the number of its first row within the source. rows: how many it has; None where only reading tells.
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
        ConfigError: there is no such view, or it lacks a field that the settings name.
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
    """Return the sources that tell which users, or which items, there are."""
    name = USER_ID if side.side == "user" else ITEM_ID
    return [
        FeatureSource.of(each.view.batch_source, {name: each.view.join_keys[0]}, what=f"view {each.view.name!r}")
        for each in side.views
    ]


def slice_source(store: Any, source: FeatureSource, rows: int) -> list[SourceSlice]:
    """Cut a source into slices of about `rows` rows (files) or into stretches of time (anything else).

    Raises:
        FeatureStoreError: a file is missing or cannot be reached.
        DataError: a file is no Parquet file.
        SchemaError: a wanted column is missing, or the time is no timestamp.
    """
    if is_parquet(source.source) and reads_files(store.config):
        return _slice_files(source, Path(str(store.repo_path)), rows)
    return slice_time(source, datetime.now(UTC))


def slice_time(source: FeatureSource, now: datetime) -> list[SourceSlice]:
    """Cut a source into stretches of time that together hold all rows with a time, also those to come.

    A stretch without rows costs one short query.
    """
    bounds: list[datetime | None] = [None, FIRST_TIME]
    while (start := bounds[-1]) is not None:
        bounds.append(start + STRETCH if start + STRETCH < now else None)
    # Numbers far apart keep the order of the stretches.
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
    """Read a slice: the wanted columns by their new names, ids as strings, `event_timestamp` in UTC microseconds.

    Raises:
        DataError: a file is damaged; it is named.
        SchemaError: an id is neither text nor a whole number, or a time is out of range.
        FeatureStoreError: a file cannot be reached, or the offline store does not answer.
    """
    source = part.source
    time = source.time
    columns = list(dict.fromkeys([*source.columns.values(), time]))
    if part.path is not None and part.filesystem is not None:
        table = read_row_groups(part.filesystem, part.path, columns, source.what, list(part.row_groups))
    else:
        table = _pull(config, part, [column for column in source.columns.values() if column != time])
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
        SchemaError: they are neither texts nor whole numbers.
    """
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if not (text or pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise SchemaError(f"{what}: {name} is {kind}; an id must be text or a whole number")
    return pc.cast(column, pa.string())
