"""Feast into `FeatureTables`: every event with the features of its user as of then, and every item as of two instants.

A Feast store and the names in the settings come in, two streaming Ray Datasets come out; Feast does each point-in-time
join and Ray spreads the joins over blocks (rows in = rows out is asserted at each). It knows nothing of encoding,
models or what the events are used for, beyond the instants at which the features of users are wanted.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
from feast import FeatureService, FeatureStore, FeatureView, RepoConfig

from rec_ray.config import EvaluationSettings, FeastSettings, FeatureSettings
from rec_ray.contracts import FeatureTables, RowCounts, SplitTimes
from rec_ray.errors import ConfigError, EmptyDataError, FeatureStoreError, SchemaError, listed
from rec_ray.feast_store import point_in_time, portable_config
from rec_ray.feature_source import FeatureSource, SourceSlice, read_slice, slice_source
from rec_ray.logs import LOGGER
from rec_ray.schema import (
    AS_OF,
    EVENT_ORDER,
    EVENT_TIMESTAMP,
    EVENT_TYPE,
    EVENT_VALUE,
    FIRST_SEEN,
    INTERACTIONS,
    ITEM_ID,
    TIMESTAMP,
    USER_ID,
    require_columns,
)

QUANTILES = 1001


def load_features(
    store: FeatureStore,
    feast: FeastSettings,
    features: FeatureSettings,
    evaluation: EvaluationSettings,
    as_of: datetime,
) -> FeatureTables:
    """Read all events, users and items that Feast knows up to `as_of`, with their features point in time.

    Raises:
        ConfigError: a feature service does not exist.
        SchemaError: a service lacks a declared feature, or a source lacks a column.
        EmptyDataError: no usable event, or no item, is there.
        FeatureStoreError: the registry or the offline store does not answer.
    """
    interaction_service = _service(store, feast.interaction_service)
    user_service = _service(store, feast.user_service)
    item_service = _service(store, feast.item_service)
    _require_fields(user_service, features.user, feast.user_key)
    item_fields = set(features.item) | ({features.item_name} if features.item_name else set())
    _require_fields(item_service, item_fields, feast.item_key)

    config = portable_config(store)
    events = _event_source(store, interaction_service, feast, features)
    event_slices = slice_source(store, events, feast.join_rows)
    rows, quantiles = _survey(config, event_slices, as_of)
    split_times = _split_times(quantiles, rows.kept, evaluation, as_of)

    event_rows = _read(config, event_slices, functools.partial(_as_events, as_of=as_of))
    user_slices = [
        part
        for source in _entity_sources(store, user_service, feast.user_key)
        for part in slice_source(store, source, feast.join_rows)
    ]
    user_rows = _read(config, user_slices, _as_query_markers)
    partitions = max(1, -(-rows.kept // feast.join_rows))
    everything = event_rows.union(user_rows) if user_slices else event_rows
    # All rows of a user in one block: one block needs no hashing, and hashing costs seconds to start.
    grouped = everything.repartition(partitions, keys=[USER_ID]) if partitions > 1 else everything.repartition(1)
    instants = [split_times.validation_start, split_times.test_start, split_times.as_of]
    interactions = grouped.map_batches(
        _join_users,
        batch_size=None,
        batch_format="pyarrow",
        fn_kwargs={
            "config": config,
            "service": feast.user_service,
            "user_key": feast.user_key,
            "fields": list(features.user),
            "instants": instants,
            "join_rows": feast.join_rows,
        },
    )
    items = _load_items(store, config, item_service, sorted(item_fields), feast, split_times)
    return FeatureTables(interactions, items, split_times, rows)


def _service(store: FeatureStore, name: str) -> FeatureService:
    """Return a feature service.

    Raises:
        ConfigError: there is none of that name.
        FeatureStoreError: the registry cannot be read.
    """
    try:
        services = {service.name: service for service in store.list_feature_services()}
    except Exception as error:
        raise FeatureStoreError(
            f"the Feast registry of project {store.project!r} cannot be read: {error}; was `feast apply` run?"
        ) from error
    if name not in services:
        raise ConfigError(
            f"there is no feature service {name!r} in Feast project {store.project!r}; it has {listed(services)}. "
            "Set the name in section `feast` or run `feast apply`"
        )
    return services[name]


def _require_fields(service: FeatureService, wanted: Mapping[str, Any] | set[str], key: str) -> None:
    have = [feature.name for projection in service.feature_view_projections for feature in projection.features]
    missing = sorted(set(wanted) - set(have))
    if missing:
        raise SchemaError(
            f"feature service {service.name!r} has no field {listed(missing)}; it returns {listed([key, *have], 30)}. "
            "Was `feast apply` run?"
        )


def _views(store: FeatureStore, service: FeatureService) -> list[FeatureView]:
    return [store.get_feature_view(projection.name) for projection in service.feature_view_projections]


def _event_source(
    store: FeatureStore, service: FeatureService, feast: FeastSettings, features: FeatureSettings
) -> FeatureSource:
    """Return the source of the view that has both entities: its rows are the events."""
    views = _views(store, service)
    for view in views:
        if {feast.user_key, feast.item_key} <= set(view.join_keys):
            interaction = features.interaction
            optional = {EVENT_TYPE: interaction.type_field, EVENT_VALUE: interaction.value_field}
            have = [feature.name for feature in view.features]
            missing = [field for field in optional.values() if field and field not in have]
            if missing:
                raise SchemaError(
                    f"feature view {view.name!r} has no field {listed(missing)}; it has {listed(have, 30)}. Correct "
                    "features.interaction.type_field and value_field, or set them to null"
                )
            columns = {USER_ID: feast.user_key, ITEM_ID: feast.item_key}
            columns |= {name: field for name, field in optional.items() if field}
            return FeatureSource.of(view.batch_source, columns, what=f"the events of view {view.name!r}")
    raise ConfigError(
        f"feature service {service.name!r} has no view with the join keys {feast.user_key!r} and {feast.item_key!r}; "
        f"its views are {listed(f'{view.name}{view.join_keys}' for view in views)}"
    )


def _entity_sources(store: FeatureStore, service: FeatureService, key: str) -> list[FeatureSource]:
    """Return the sources that tell which entities there are: those of the views keyed by `key` alone."""
    views = [view for view in _views(store, service) if list(view.join_keys) == [key]]
    name = USER_ID
    return [FeatureSource.of(view.batch_source, {name: key}, what=f"view {view.name!r}") for view in views]


def _read(config: RepoConfig, slices: Sequence[SourceSlice], shape: Any) -> ray.data.Dataset:
    """Return a dataset of the slices, one task each, brought into the shape of `schema.INTERACTIONS`."""

    shared = ray.put(list(slices))

    def read(batch: dict[str, Any]) -> pa.Table:
        parts = [ray.get(shared)[number] for number in batch["id"]]
        return pa.concat_tables([shape(read_slice(config, part), part.first_row) for part in parts])

    return ray.data.range(len(slices), override_num_blocks=max(1, len(slices))).map_batches(
        read, batch_size=1, batch_format="numpy"
    )


def _as_events(table: pa.Table, first_row: int, as_of: datetime) -> pa.Table:
    """Bring a slice into the shape of the events, without the rows that `RowCounts` counts as lost."""
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
        EVENT_VALUE: _as_float(table, EVENT_VALUE) if EVENT_VALUE in names else pa.nulls(len(order), pa.float32()),
    }
    events = pa.table(columns, schema=INTERACTIONS)
    return events.filter(_fate(events, as_of) == "kept")


def _as_float(table: pa.Table, name: str) -> pa.ChunkedArray:
    kind = table.schema.field(name).type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)):
        raise SchemaError(f"features.interaction.value_field is {kind} in the events; expected a number")
    return pc.cast(table[name], pa.float32(), safe=False)


def _fate(events: pa.Table, as_of: datetime) -> Any:
    """Return for each row `kept` or the name of the counter in `RowCounts` that it falls under, as [n] strings."""
    late = pc.fill_null(pc.greater(events[EVENT_TIMESTAMP], pa.scalar(as_of, TIMESTAMP)), False)
    null_key = pc.or_(_is_blank(events[USER_ID]), _is_blank(events[ITEM_ID]))
    null_time = pc.is_null(events[EVENT_TIMESTAMP])
    masks = [mask.to_numpy(zero_copy_only=False) for mask in map(_whole, (null_key, null_time, late))]
    return np.select(masks, ["null_keys", "null_timestamps", "in_the_future"], default="kept")


def _is_blank(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.or_kleene(pc.is_null(column), pc.fill_null(pc.equal(column, ""), True))


def _whole(column: Any) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _as_query_markers(table: pa.Table, first_row: int) -> pa.Table:
    """Turn rows of a user table into rows without item: they tell that the user exists."""
    ids = pc.unique(table[USER_ID]).drop_null()
    n = len(ids)
    epoch = pa.array(np.zeros(n, np.int64), pa.int64()).cast(TIMESTAMP)
    columns = [ids, pa.nulls(n, pa.string()), epoch, pa.array(np.full(n, -1)), pa.nulls(n, pa.string())]
    return pa.table([*columns, pa.nulls(n, pa.float32())], schema=INTERACTIONS)


@dataclass(frozen=True)
class _Survey:
    fates: dict[str, int]
    quantiles: np.ndarray[Any, Any]
    naive: bool


@ray.remote(num_cpus=1)
def _survey_slice(config: RepoConfig, part: SourceSlice, as_of: datetime) -> _Survey:
    table = read_slice(config, part)
    fates, counts = np.unique(_fate(table, as_of), return_counts=True)
    kept = _as_events(table, part.first_row, as_of)
    times = pc.cast(kept[EVENT_TIMESTAMP], pa.int64()).to_numpy(zero_copy_only=False)
    quantiles = (
        np.quantile(times, np.linspace(0, 1, QUANTILES), method="lower") if len(times) else np.zeros(0, np.int64)
    )
    return _Survey(dict(zip(fates.tolist(), counts.tolist(), strict=True)), quantiles, part.naive_time)


def _survey(config: RepoConfig, slices: Sequence[SourceSlice], as_of: datetime) -> tuple[RowCounts, Any]:
    """Count what becomes of the rows and sketch when events happened: [slices, QUANTILES] microseconds and weights."""
    fates: dict[str, int] = {}
    points, weights = [], []
    for survey in ray.get([_survey_slice.remote(config, part, as_of) for part in slices]):
        for fate, count in survey.fates.items():
            fates[fate] = fates.get(fate, 0) + count
        if len(survey.quantiles):
            points.append(survey.quantiles)
            weights.append(np.full(QUANTILES, survey.fates["kept"] / QUANTILES))
    rows = RowCounts(
        read=sum(fates.values()),
        kept=fates.get("kept", 0),
        null_keys=fates.get("null_keys", 0),
        null_timestamps=fates.get("null_timestamps", 0),
        in_the_future=fates.get("in_the_future", 0),
    )
    lost = {name: count for name, count in fates.items() if name != "kept"}
    if lost:
        said = ", ".join(f"{count:,} with {name.replace('_', ' ')}" for name, count in sorted(lost.items()))
        LOGGER.warning("of %s interactions %s are left out: %s", f"{rows.read:,}", f"{sum(lost.values()):,}", said)
    if any(part.naive_time for part in slices):
        LOGGER.info("interactions: timestamps without a zone are taken as UTC")
    if not rows.kept:
        raise EmptyDataError(f"no usable interaction among {rows.read:,} rows; check keys and timestamps of the source")
    point, weight = np.concatenate(points), np.concatenate(weights)
    order = np.argsort(point, kind="stable")
    return rows, (point[order], np.cumsum(weight[order]))


def _split_times(quantiles: Any, kept: int, evaluation: EvaluationSettings, as_of: datetime) -> SplitTimes:
    if evaluation.split == "leave_one_out":
        return SplitTimes(as_of, as_of, as_of)
    points, cumulated = quantiles
    shares = (1 - evaluation.test_fraction - evaluation.validation_fraction, 1 - evaluation.test_fraction)
    starts = [points[min(np.searchsorted(cumulated, share * kept), len(points) - 1)] for share in shares]
    validation, test = (pd.Timestamp(int(start), unit="us", tz="UTC").to_pydatetime() for start in starts)
    return SplitTimes(validation, test, as_of)


def _join_users(
    block: pa.Table,
    config: RepoConfig,
    service: str,
    user_key: str,
    fields: Sequence[str],
    instants: Sequence[datetime],
    join_rows: int,
) -> pa.Table:
    """Add a query row a user and instant, sort by user, time and order, and join the features of users."""
    events = block.filter(pc.is_valid(block[ITEM_ID]))
    users = pc.unique(block[USER_ID])
    n = len(users) * len(instants)
    query = pa.table(
        [
            pa.concat_arrays([_whole(users)] * len(instants)),
            pa.nulls(n, pa.string()),
            pa.array(np.repeat(np.array([pd.Timestamp(t).value // 1000 for t in instants]), len(users))).cast(
                TIMESTAMP
            ),
            # Behind the events, so that the query rows of a user end its rows in the order of the instants.
            pa.array(np.repeat(np.arange(len(instants)) + 2**62, len(users))),
            pa.nulls(n, pa.string()),
            pa.nulls(n, pa.float32()),
        ],
        schema=INTERACTIONS,
    )
    rows = pa.concat_tables([events, query]).combine_chunks()
    is_query = pc.is_null(rows[ITEM_ID])
    keys = pa.table({"u": rows[USER_ID], "q": is_query, "t": rows[EVENT_TIMESTAMP], "o": rows[EVENT_ORDER]})
    rows = rows.take(
        pc.sort_indices(keys, [("u", "ascending"), ("q", "ascending"), ("t", "ascending"), ("o", "ascending")])
    )
    if not fields:
        return rows
    parts = [
        point_in_time(config, service, user_key, _whole(part[USER_ID]), _whole(part[EVENT_TIMESTAMP]), fields)
        for part in (rows.slice(start, join_rows) for start in range(0, rows.num_rows, join_rows))
    ]
    joined = pa.concat_tables(parts).combine_chunks()
    for name in fields:
        rows = rows.append_column(name, joined[name])
    return rows


@ray.remote(num_cpus=1)
def _distinct_items(config: RepoConfig, *slices: SourceSlice) -> pa.Table:
    """Return the items of some slices with the time each was first seen."""
    tables = [read_slice(config, part).select([ITEM_ID, EVENT_TIMESTAMP]) for part in slices]
    return pa.concat_tables(tables).group_by(ITEM_ID).aggregate([(EVENT_TIMESTAMP, "min")])


@ray.remote(num_cpus=1)
def _catalogue(as_of: datetime, *parts: pa.Table) -> pa.Table:
    """Return each item once, in the order of its id, with `first_seen`; items of the future are left out."""
    merged = pa.concat_tables(parts).group_by(ITEM_ID).aggregate([(f"{EVENT_TIMESTAMP}_min", "min")])
    merged = merged.rename_columns([ITEM_ID, FIRST_SEEN])
    usable = pc.and_(
        pc.invert(_is_blank(merged[ITEM_ID])), pc.less_equal(merged[FIRST_SEEN], pa.scalar(as_of, TIMESTAMP))
    )
    return merged.filter(pc.fill_null(usable, False)).sort_by(ITEM_ID)


def _load_items(
    store: FeatureStore,
    config: RepoConfig,
    service: FeatureService,
    fields: Sequence[str],
    feast: FeastSettings,
    split_times: SplitTimes,
) -> ray.data.Dataset:
    """Return the catalogue with its features as of `test_start` and as of `as_of`."""
    views = [view for view in _views(store, service) if list(view.join_keys) == [feast.item_key]]
    if not views:
        raise ConfigError(f"feature service {service.name!r} has no view with the join key {feast.item_key!r} alone")
    slices = [
        part
        for view in views
        for part in slice_source(
            store,
            FeatureSource.of(view.batch_source, {ITEM_ID: feast.item_key}, what=f"view {view.name!r}"),
            feast.join_rows,
        )
    ]
    parts = [_distinct_items.remote(config, part) for part in slices]
    catalogue = _catalogue.remote(split_times.as_of, *parts)
    count = ray.get(_rows.remote(catalogue))
    if not count:
        raise EmptyDataError(f"feature service {service.name!r} knows no item as of {split_times.as_of:%Y-%m-%d %H:%M}")
    blocks = max(1, -(-2 * count // feast.join_rows))
    return (
        ray.data.from_arrow_refs([catalogue])
        .repartition(blocks)
        .map_batches(
            _join_items,
            batch_size=None,
            batch_format="pyarrow",
            fn_kwargs={
                "config": config,
                "service": feast.item_service,
                "item_key": feast.item_key,
                "fields": list(fields),
                "instants": [split_times.test_start, split_times.as_of],
            },
        )
    )


@ray.remote(num_cpus=0)
def _rows(table: pa.Table) -> int:
    return table.num_rows


def _join_items(
    block: pa.Table,
    config: RepoConfig,
    service: str,
    item_key: str,
    fields: Sequence[str],
    instants: Sequence[datetime],
) -> pa.Table:
    """Join the features of items as of each instant: a row an item and instant."""
    n = block.num_rows
    rows = pa.concat_tables([block] * len(instants)).combine_chunks()
    times = pa.concat_arrays([pa.array([instant] * n, TIMESTAMP) for instant in instants])
    rows = rows.append_column(AS_OF, times)
    if fields:
        joined = point_in_time(config, service, item_key, _whole(rows[ITEM_ID]), times, fields)
        for name in fields:
            rows = rows.append_column(name, joined[name])
    require_columns(
        rows, pa.schema([(ITEM_ID, pa.string()), (AS_OF, TIMESTAMP), (FIRST_SEEN, TIMESTAMP)]), what="items"
    )
    return rows
