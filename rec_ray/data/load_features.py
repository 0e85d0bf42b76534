"""Loads `FeatureTables` from Feast: events with the features of their users, and the items as of two instants.

Input: a Feast store and the settings. Output: two streaming Ray Datasets. Ray spreads the point-in-time joins over
blocks, and each join returns one row per input row. `training_data` labels and encodes the events.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data

from rec_ray.candidate_store.increments import RecordedTimelines
from rec_ray.config import CandidateSettings, EvaluationSettings, FeastSettings, FeatureSettings, SideTableSettings
from rec_ray.contracts import ActiveUsers, FeatureTables
from rec_ray.data.event_surveys import (
    active_in_side_table,
    active_in_slice,
    changed_ids,
    counted_rows,
    distinct_ids,
    summarise_side_table,
    summarise_slice,
    survey_side_table,
    survey_slice,
)
from rec_ray.data.events import (
    as_events,
    as_query_markers,
    as_sign_ups,
    combine_chunks,
    fill_from_sign_ups,
    split_times,
    with_query_rows,
)
from rec_ray.data.load_items import ITEMS, keep_blocks_whole, load_items
from rec_ray.data.side_tables import SideTable, find_side_tables, read_chunks
from rec_ray.data.source_times import note_times
from rec_ray.distributed.worker_cache import get_shared
from rec_ray.feature_store.api import FeatureStore, RepoConfig
from rec_ray.feature_store.definitions import find_side, raw_fields, require_fields
from rec_ray.feature_store.feature_join import FeatureJoin
from rec_ray.feature_store.offline_source import SourceSlice, entity_sources, event_source, read_slice, slice_source
from rec_ray.feature_store.point_in_time import point_in_time, portable_config
from rec_ray.feature_store.registry import read_registry
from rec_ray.retrieval.lists.item_filters import try_filters
from rec_ray.schema import (
    EVENT_CREATED,
    EVENT_TIMESTAMP,
    FIRST_SEEN,
    INTERACTIONS,
    ITEM_ID,
    REVISIONS,
    SIGN_UP,
    SIGN_UP_FIELD,
    TIMESTAMP,
    USER_ID,
    SplitTimes,
)

SIDE_ORDER = 2**61
"""`event_order` of the first row of a side table."""


def load_features(
    store: FeatureStore,
    feast: FeastSettings,
    features: FeatureSettings,
    evaluation: EvaluationSettings,
    as_of: datetime,
    side_tables: SideTableSettings | None = None,
    *,
    candidates: CandidateSettings | None = None,
    raw_of_items: Mapping[str, str] | None = None,
    active: ActiveUsers | None = None,
) -> FeatureTables:
    """Read all events, users and items in Feast up to `as_of`, with their point-in-time features.

    side_tables: tables of the shop whose rows are added. candidates: adds the fields that its filters name.
    raw_of_items: further raw item fields -> the setting that names each. active: only these users, without a holdout.

    Raises:
        ConfigError: a view is missing, or a setting names a missing field.
        SchemaError: a source lacks a column or has it with a wrong type.
        DataError: a file is damaged.
        EmptyDataError: there is no usable event or no item.
        FeatureStoreError: the registry or the offline store does not respond.
    """
    registry = read_registry(store)
    user_side, item_side = find_side(registry, feast, "user"), find_side(registry, feast, "item")
    require_fields(user_side, dict.fromkeys(features.user, "features.user"), INTERACTIONS.names)
    item_fields = set(features.item) | ({features.item_name} if features.item_name else set())
    require_fields(item_side, dict.fromkeys(item_fields, "features.item"), ITEMS.names)
    candidates = candidates or CandidateSettings()
    raw_items = raw_fields(item_side, {**(raw_of_items or {}), **candidates.item_fields}, ITEMS.names)
    raw_users = raw_fields(user_side, candidates.user_fields, INTERACTIONS.names)
    try_filters(candidates.filters, raw_items, raw_users, features.item, features.user)
    item_fields |= set(raw_items.names)
    raw_items = raw_items.append(ITEMS.field(FIRST_SEEN)) if candidates.fresh_share else raw_items

    config = portable_config(store)
    events = event_source(registry, feast, features)
    event_slices = slice_source(store, events, feast.join_rows)
    exclude = features.interaction.exclude_users
    side = find_side_tables(side_tables or SideTableSettings(), features)
    if active is not None:
        rows, times = active.rows, SplitTimes(as_of, as_of, as_of)
    else:
        surveys = ray.get([survey_slice.remote(config, part, as_of, exclude) for part in event_slices])
        if side.interactions:
            surveys += ray.get(survey_side_table.remote(side.interactions, as_of, exclude))
        rows = counted_rows(surveys, event_slices)
        times = split_times(surveys, evaluation, as_of)

    shape = functools.partial(as_events, as_of=as_of, exclude=exclude)
    parts = [_read(config, event_slices, shape)]
    users = entity_sources(user_side) if active is None else []
    user_slices = [part for source in users for part in slice_source(store, source, feast.join_rows)]
    if user_slices:
        parts.append(_read(config, user_slices, functools.partial(as_query_markers, exclude=exclude)))
    if side.interactions:
        parts.append(_read_side_table(side.interactions, shape))
    if side.users:
        parts.append(_read_side_table(side.users, lambda chunk, _: as_sign_ups(chunk, as_of, exclude)))
    more = [*(REVISIONS if EVENT_CREATED in events.columns else ()), *([SIGN_UP_FIELD] if side.users else ())]
    if more:
        same = {"fn_kwargs": {"more": pa.schema(more)}, "batch_size": None, "batch_format": "pyarrow"}
        parts = [part.map_batches(_with_columns, **same) for part in parts]
    if active is not None:
        of_active = {"fn_kwargs": {"users": active.ids}, "batch_size": None, "batch_format": "pyarrow"}
        parts = [part.map_batches(_of_users, **of_active).materialize() for part in parts]
    everything = parts[0].union(*parts[1:]) if parts[1:] else parts[0]
    held = rows.kept if active is None else sum(part.count() for part in parts)
    partitions = max(1, -(-held // feast.join_rows))
    # All rows of a user must be in one block. A single block skips the hash shuffle, which takes seconds to start.
    grouped = everything.repartition(partitions, keys=[USER_ID]) if partitions > 1 else everything.repartition(1)
    interactions = grouped.map_batches(
        _join_users,
        batch_size=None,
        batch_format="pyarrow",
        fn_kwargs={
            "config": config,
            "join": user_side.join([*features.user, *raw_users.names]),
            "instants": [times.validation_start, times.test_start, times.as_of],
            "join_rows": feast.join_rows,
            "as_of_now": features.user_history == "as_of_now",
        },
    )
    item_slices = [
        part for source in entity_sources(item_side) for part in slice_source(store, source, feast.join_rows)
    ]
    items = load_items(
        item_slices,
        config,
        item_side,
        sorted(item_fields),
        feast.join_rows,
        times,
        features.item_history == "as_of_now",
    )
    notes: tuple[str, ...] = ()
    sources: dict[str, int] = {}
    if active is None:
        event_times = np.concatenate([survey.quantiles for survey in surveys])
        notes, sources = note_times(config, features, event_times, user_slices, item_slices)
    return FeatureTables(interactions, items, times, rows, raw_items, raw_users, notes, sources)


def find_active_users(
    store: FeatureStore,
    feast: FeastSettings,
    features: FeatureSettings,
    as_of: datetime,
    since: datetime,
    side_tables: SideTableSettings | None = None,
) -> ActiveUsers:
    """Find the users with a usable event from `since` on, up to `as_of`.

    Raises:
        As `load_features`, for events.
    """
    config = portable_config(store)
    slices = slice_source(store, event_source(read_registry(store), feast, features), feast.join_rows)
    side = find_side_tables(side_tables or SideTableSettings(), features)
    exclude = features.interaction.exclude_users
    found = [active_in_slice.remote(config, part, as_of, since, exclude) for part in slices]
    if side.interactions:
        found.append(active_in_side_table.remote(side.interactions, as_of, since, exclude))
    ids, count = distinct_ids.remote(*(ids for ids, _ in found))
    surveys = [survey for part in ray.get([surveys for _, surveys in found]) for survey in part]
    return ActiveUsers(ids, ray.get(count), counted_rows(surveys, slices))


def find_changed_users(
    store: FeatureStore,
    feast: FeastSettings,
    features: FeatureSettings,
    as_of: datetime,
    recorded: RecordedTimelines,
    side_tables: SideTableSettings | None = None,
) -> ActiveUsers:
    """Find the users whose events up to `as_of` are not those that the recorded candidates were computed from.

    Raises:
        As `load_features`, for events.
    """
    config = portable_config(store)
    slices = slice_source(store, event_source(read_registry(store), feast, features), feast.join_rows)
    side = find_side_tables(side_tables or SideTableSettings(), features)
    exclude = features.interaction.exclude_users
    found = [summarise_slice.remote(config, part, as_of, exclude, recorded.erased) for part in slices]
    if side.interactions:
        found.append(summarise_side_table.remote(side.interactions, as_of, exclude, recorded.erased))
    ids, count = changed_ids.remote(recorded.storage, recorded.parts, *(table for table, _ in found))
    surveys = [survey for part in ray.get([surveys for _, surveys in found]) for survey in part]
    return ActiveUsers(ids, ray.get(count), counted_rows(surveys, slices))


def _read(config: RepoConfig, slices: Sequence[SourceSlice], shape: Any) -> ray.data.Dataset:
    """Return a dataset of the slices, one task each, converted to `schema.INTERACTIONS`."""

    shared = ray.put(list(slices))

    def read(batch: dict[str, Any]) -> pa.Table:
        parts = [get_shared(shared)[number] for number in batch["id"]]
        return pa.concat_tables([shape(read_slice(config, part), part.first_row) for part in parts])

    slots = keep_blocks_whole(ray.data.range(len(slices), override_num_blocks=max(1, len(slices))))
    return slots.map_batches(read, batch_size=1, batch_format="numpy")


def _read_side_table(table: SideTable, shape: Callable[[pa.Table, int], pa.Table]) -> ray.data.Dataset:
    """Return a dataset of a side table, read by one task that yields chunk by chunk."""

    def read(_: dict[str, Any]) -> Iterator[pa.Table]:
        # Order: after the rows of Feast's sources, before the query rows.
        first_row = SIDE_ORDER
        for chunk in read_chunks(table):
            yield shape(chunk, first_row)
            first_row += chunk.num_rows

    slot = keep_blocks_whole(ray.data.range(1, override_num_blocks=1))
    return slot.map_batches(read, batch_size=1, batch_format="numpy")


def _with_columns(rows: pa.Table, more: pa.Schema) -> pa.Table:
    """Append the columns that only some of the parts have, null in the other parts."""
    for column in more:
        if column.name not in rows.column_names:
            rows = rows.append_column(column, pa.nulls(rows.num_rows, column.type))
    return rows.select([*INTERACTIONS.names, *more.names])


def _of_users(block: pa.Table, users: ray.ObjectRef) -> pa.Table:
    return block.filter(pc.is_in(block[USER_ID], value_set=get_shared(users))) if block.num_rows else block


def _join_users(
    block: pa.Table,
    config: RepoConfig,
    join: FeatureJoin,
    instants: Sequence[datetime],
    join_rows: int,
    as_of_now: bool,
) -> pa.Table:
    """Add the query rows, sort the rows, and join the user features as of each row, or all as of now."""
    sign_ups = block.filter(pc.is_null(block[ITEM_ID])) if SIGN_UP in block.column_names else None
    rows = with_query_rows(block.drop_columns([SIGN_UP]) if sign_ups is not None else block, instants)
    if not join.columns or not rows.num_rows:
        return rows
    times = pa.array([instants[-1]] * rows.num_rows, TIMESTAMP) if as_of_now else combine_chunks(rows[EVENT_TIMESTAMP])
    ids = combine_chunks(rows[USER_ID])
    parts = [
        point_in_time(config, join, ids.slice(start, join_rows), times.slice(start, join_rows))
        for start in range(0, rows.num_rows, join_rows)
    ]
    joined = pa.concat_tables(parts).combine_chunks()
    for name in join.columns:
        rows = rows.append_column(name, joined[name])
    return rows if sign_ups is None else fill_from_sign_ups(rows, sign_ups, join.columns)
