"""Samples the rows of views in a Feast repository, to decide the roles of their fields.

Input: an open store and definitions. Output: Parquet files in a scratch folder with the newest row of each entity, or
the events with ids and times under the program's own names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rec_ray.errors import SchemaError
from rec_ray.feature_store.api import FeatureStore
from rec_ray.feature_store.as_of_join import find_newest_rows
from rec_ray.feature_store.definitions import EventsView, Side, SideView
from rec_ray.feature_store.offline_source import FeatureSource, SourceSlice, read_slice, slice_source
from rec_ray.feature_store.point_in_time import point_in_time, portable_config
from rec_ray.schema import EVENT_CREATED, EVENT_KEY, EVENT_TIMESTAMP, ITEM_ID, TIMESTAMP, USER_ID

SAMPLE_ROWS = 200_000
"""Sampled rows of a view."""
EVENT_ROWS = 1_000_000
_ENTITY = "entity_id"


def count_rows(store: FeatureStore, view: Any) -> int:
    """Return the number of rows of a view; of a source without files, the rows of a sample, which is large enough."""
    source = FeatureSource.of(view.batch_source, {}, what=f"view {view.name!r}")
    counts = [part.rows for part in slice_source(store, source, SAMPLE_ROWS)]
    if None in counts:
        return _sample(store, source, SAMPLE_ROWS).num_rows
    return sum(count or 0 for count in counts)


def count_ids(store: FeatureStore, view: Any, column: str) -> int:
    """Return the number of distinct ids of a view's column in a sample."""
    source = FeatureSource.of(view.batch_source, {_ENTITY: column}, what=f"view {view.name!r}")
    return pc.count_distinct(_sample(store, source, SAMPLE_ROWS)[_ENTITY]).as_py()


def sample_events(store: FeatureStore, events: EventsView, path: Path) -> pa.Table:
    """Write events with all fields, of a large source the newest; return them without rows that lack an id."""
    columns = {USER_ID: events.user, ITEM_ID: events.item}
    fields = [name for name in events.field_names if name not in (USER_ID, ITEM_ID, EVENT_TIMESTAMP)]
    created = events.view.batch_source.created_timestamp_column
    revision = {EVENT_CREATED: created} if created else {}
    keys = {f"{EVENT_KEY}_{number}": key for number, key in enumerate(events.view.join_keys)} if created else {}
    source = FeatureSource.of(
        events.view.batch_source,
        columns | _numbered(fields) | revision | keys,
        what=f"the events of view {events.view.name!r}",
    )
    rows = _named(_sample(store, source, EVENT_ROWS), fields)
    if created:
        rows = _last_revisions(rows, [*keys, EVENT_TIMESTAMP]).drop_columns([EVENT_CREATED, *keys])
    kept = rows.filter(
        pc.and_(pc.and_(pc.is_valid(rows[USER_ID]), pc.is_valid(rows[ITEM_ID])), pc.is_valid(rows[EVENT_TIMESTAMP]))
    )
    pq.write_table(kept, path)
    return kept


def _last_revisions(rows: pa.Table, same: list[str]) -> pa.Table:
    """Return the row that was created last of those that agree in the columns `same`."""
    frame = rows.select([*same, EVENT_CREATED]).to_pandas()
    frame = frame.sort_values(EVENT_CREATED, kind="stable", na_position="first")
    last = frame.index[~frame.duplicated(same, keep="last")]
    return rows.take(pa.array(sorted(last)))


def sample_features(store: FeatureStore, side: Side, view: SideView, path: Path) -> pa.Table:
    """Write the newest row of each entity in a sample of a view, with the column names that settings use."""
    names = {
        name: side.find(name, "features")[1].name for name in side.field_names if side.find(name, "features")[0] is view
    }
    if view in side.computed:
        ids, times = _entities(store, view)
        rows = point_in_time(portable_config(store), side.join(names), ids, times) if len(ids) else None
        table = rows if rows is not None else pa.table({name: pa.nulls(0) for name in names})
    else:
        source = FeatureSource.of(
            view.view.batch_source,
            {_ENTITY: view.view.join_keys[0], **_numbered(list(names.values()))},
            what=f"view {view.name!r}",
        )
        rows = _sample(store, source, SAMPLE_ROWS)
        ids = pc.unique(rows[_ENTITY]).drop_null()
        latest = pa.array([2**62] * len(ids), pa.int64()).cast(TIMESTAMP)
        newest = find_newest_rows(ids, latest, rows[_ENTITY].combine_chunks(), rows[EVENT_TIMESTAMP].combine_chunks())
        table = _named(rows.take(newest.drop_null()), list(names)).drop_columns([_ENTITY, EVENT_TIMESTAMP])
    table = pa.table({name: _plain(table[name]) for name in table.column_names})
    pq.write_table(table, path)
    return table


def _entities(store: FeatureStore, computed: SideView) -> tuple[pa.Array, pa.Array]:
    """Return the ids in the views that an on-demand view reads, each with the time of its newest row in any of them."""
    rows = []
    for view in computed.sources.values():
        source = FeatureSource.of(view.batch_source, {_ENTITY: view.join_keys[0]}, what=f"view {view.name!r}")
        rows.append(_sample(store, source, SAMPLE_ROWS))
    grouped = pa.concat_tables(rows).group_by(_ENTITY).aggregate([(EVENT_TIMESTAMP, "max")])
    return grouped[_ENTITY].combine_chunks(), grouped[f"{EVENT_TIMESTAMP}_max"].combine_chunks()


def _sample(store: FeatureStore, source: FeatureSource, rows: int) -> pa.Table:
    """Return the newest rows of a source: its last files, or its last time intervals with rows."""
    config = portable_config(store)
    parts: list[pa.Table] = []
    held = 0
    slices: list[SourceSlice] = list(reversed(slice_source(store, source, rows)))
    for part in slices:
        table = read_slice(config, part)
        parts.append(table)
        held += table.num_rows
        if held >= rows:
            break
    try:
        return pa.concat_tables(parts, promote_options="permissive") if parts else _empty(source)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise _mixed(source, parts) or error from None


def _mixed(source: FeatureSource, parts: list[pa.Table]) -> SchemaError | None:
    """Return the error for a column that two files of a source have with types that do not go together."""
    for name, column in source.columns.items():
        first = parts[0].schema.field(name).type
        for part in parts[1:]:
            kind = part.schema.field(name).type
            try:
                pa.unify_schemas([pa.schema([("c", first)]), pa.schema([("c", kind)])], promote_options="permissive")
            except (pa.ArrowInvalid, pa.ArrowTypeError):
                return SchemaError(
                    f"{source.what}: column {column!r} is {first} in one of its files and {kind} in another; write it "
                    "with one type"
                )
    return None


def _empty(source: FeatureSource) -> pa.Table:
    return pa.table(
        {name: pa.nulls(0, pa.string()) for name in source.columns} | {EVENT_TIMESTAMP: pa.nulls(0, TIMESTAMP)}
    )


def _numbered(fields: list[str]) -> dict[str, str]:
    """Return column names that `read_slice` does not treat as ids."""
    return {f"field {number}": field for number, field in enumerate(fields)}


def _named(rows: pa.Table, names: list[str]) -> pa.Table:
    back = {f"field {number}": name for number, name in enumerate(names)}
    return rows.rename_columns([back.get(name, name) for name in rows.column_names])


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column converted to a type that the decisions support."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _plain(pc.cast(column, kind.value_type))
    if pa.types.is_date(kind):
        return pc.cast(column, pa.timestamp("us"))
    if pa.types.is_decimal(kind):
        return pc.cast(column, pa.float64())
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pc.cast(column, pa.string())
    if pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return pc.cast(column, pa.list_(kind.value_type))
    return column
