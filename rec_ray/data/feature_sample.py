"""Sample of the events joined with user and item features, without Ray, for the checks before a run.

Input: a Feast store and the settings. Output: messages about late features and unmatched ids, as a run logs them. The
join is that of a run, so an error that would stop a run is raised here within seconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rec_ray.config import EvaluationSettings, FeastSettings, FeatureSettings
from rec_ray.data.event_sample import choose_slices
from rec_ray.data.events import as_events, combine_chunks
from rec_ray.data.feature_coverage import (
    MOST,
    Coverage,
    compare_features,
    describe_expired,
    describe_late,
    describe_now,
    describe_unmatched,
)
from rec_ray.data.source_times import describe_late_rows, span_in_footers
from rec_ray.errors import DataError
from rec_ray.feature_store.api import FeatureStore, RepoConfig
from rec_ray.feature_store.definitions import Side, SideName, find_side
from rec_ray.feature_store.offline_source import SourceSlice, entity_sources, event_source, read_slice, slice_source
from rec_ray.feature_store.point_in_time import point_in_time, portable_config
from rec_ray.feature_store.registry import read_registry
from rec_ray.schema import EVENT_TIMESTAMP, ITEM_ID, TIMESTAMP, USER_ID

SAMPLED_EVENTS = 2_000


def examine_features(
    store: FeatureStore, feast: FeastSettings, features: FeatureSettings, evaluation: EvaluationSettings
) -> list[str]:
    """Return messages about suspicious features of some events.

    Raises:
        DataError: every declared feature of users, or of items, was unknown when the events happened.
        As `load_features`, for the sources and the join.
    """
    registry, config, now = read_registry(store), portable_config(store), datetime.now(UTC)
    source = event_source(registry, feast, features)
    parts = choose_slices(slice_source(store, source, feast.join_rows))
    tables = [as_events(read_slice(config, part), part.first_row, now) for part in parts]
    events = pa.concat_tables(tables) if tables else None
    if events is None or not events.num_rows:
        return []
    events = events.take(pa.array(np.unique(np.linspace(0, events.num_rows - 1, SAMPLED_EVENTS).astype(int))))
    cut_off = np.quantile(events[EVENT_TIMESTAMP].cast(pa.int64()).to_numpy(), 1 - evaluation.test_fraction)
    before = pc.less_equal(events[EVENT_TIMESTAMP], pa.scalar(int(cut_off), pa.int64()).cast(TIMESTAMP))
    notes: list[str] = []
    for name, fields, history in (
        ("user", list(features.user), features.user_history),
        ("item", list(features.item), features.item_history),
    ):
        side_name: SideName = "user" if name == "user" else "item"
        side = find_side(registry, feast, side_name)
        slices = [part for each in entity_sources(side) for part in slice_source(store, each, feast.join_rows)]
        learned = events if name == "user" else events.filter(before)
        id_column = USER_ID if name == "user" else ITEM_ID
        if fields and slices:
            unmatched = describe_unmatched(name, _match(config, slices, id_column, learned[id_column]))
            notes += [unmatched] if unmatched else []
        if fields and history == "as_of_now":
            notes.append(describe_now(name))
        elif fields and (name == "user" or evaluation.split == "time"):
            notes += _late(config, side, fields, learned, id_column, int(cut_off), now, slices)
    return notes


def _late(
    config: RepoConfig,
    side: Side,
    fields: list[str],
    events: pa.Table,
    id_column: str,
    cut_off: int,
    now: datetime,
    slices: list[SourceSlice],
) -> list[str]:
    """Compare the features as of the events (of items: as of the test cut-off) with those of today."""
    join, n = side.join(fields), events.num_rows
    ids, times = combine_chunks(events[id_column]), combine_chunks(events[EVENT_TIMESTAMP])
    if id_column == ITEM_ID:
        ids = pc.unique(ids)
        n, times = len(ids), pa.array(np.full(len(ids), cut_off)).cast(TIMESTAMP)
    then = point_in_time(config, join, ids, times)
    coverage = compare_features(then, point_in_time(config, join, ids, pa.array([now] * n, TIMESTAMP)), fields)
    late, expired = coverage.late(), describe_expired(side.side, coverage.expired())
    if not late:
        return expired
    stamps = events[EVENT_TIMESTAMP].cast(pa.int64()).to_numpy()
    middle = pa.scalar(int(np.median(stamps)), pa.int64()).cast(TIMESTAMP).as_py()
    said = describe_late(side.side, late, list(late_views(slices, middle)))
    if len(late) == len(fields):
        raise DataError(f"every declared {side.side} feature is missing from training: {said}")
    return [f"left out of the model: {said}", *expired]


def late_views(slices: Iterable[SourceSlice], middle: datetime) -> Iterable[str]:
    """Yield a message for each view whose rows begin after the middle of the events, according to Parquet footers."""
    by_view: dict[str, list[SourceSlice]] = {}
    for part in slices:
        by_view.setdefault(part.source.what, []).append(part)
    for what, parts in by_view.items():
        span = span_in_footers(parts)
        if span is not None and (said := describe_late_rows(what, span.first, middle)):
            yield said


def _match(config: RepoConfig, slices: list[SourceSlice], id_column: str, ids: pa.ChunkedArray) -> Coverage:
    """Search the sources for the ids of events, slice by slice, until most are found."""
    wanted = combine_chunks(pc.unique(ids))
    found = np.zeros(len(wanted), bool)
    first: str | None = None
    for part in slices:
        have = combine_chunks(read_slice(config, part)[id_column])
        found |= pc.is_in(wanted, value_set=have).to_numpy(zero_copy_only=False)
        if first is None:
            first = pc.min(have.filter(pc.invert(pc.is_in(have, value_set=wanted)))).as_py()
        if found.sum() >= (1 - MOST) * len(wanted):
            break
    missing = wanted.filter(pa.array(~found))
    return Coverage(
        ids=len(wanted),
        unmatched=len(missing),
        unmatched_id=pc.min(missing).as_py() if len(missing) else None,
        idle_id=first,
    )
