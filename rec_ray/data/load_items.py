"""Loads the catalogue: every item of the item views with its features as of two instants, as a streaming Ray Dataset.

Input: slices of the item views and the instants of the split. Output: a dataset whose blocks contain all rows of the
first instant, then all of the second, for their items.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data

from rec_ray.data.events import combine_chunks, is_blank
from rec_ray.errors import EmptyDataError
from rec_ray.feature_store.api import RepoConfig
from rec_ray.feature_store.definitions import Side
from rec_ray.feature_store.feature_join import FeatureJoin
from rec_ray.feature_store.offline_source import SourceSlice, read_slice
from rec_ray.feature_store.point_in_time import point_in_time
from rec_ray.logs import LOGGER
from rec_ray.schema import AS_OF, EVENT_TIMESTAMP, FIRST_SEEN, ITEM_ID, TIMESTAMP, SplitTimes, require_columns

ITEMS = pa.schema([(ITEM_ID, pa.string()), (FIRST_SEEN, TIMESTAMP), (AS_OF, TIMESTAMP)])


def load_items(
    slices: Sequence[SourceSlice],
    config: RepoConfig,
    side: Side,
    fields: Sequence[str],
    join_rows: int,
    times: SplitTimes,
    as_of_now: bool,
) -> ray.data.Dataset:
    """Return the catalogue with its features as of `test_start` and as of `as_of`; all as of `as_of` with as_of_now.

    Raises:
        EmptyDataError: no item exists up to `as_of`.
    """
    parts = [_distinct_items.remote(config, part) for part in slices]
    catalogue, rows, left_out = _catalogue.remote(times.as_of, *parts) if parts else (None, 0, {})
    for what, count in ray.get(left_out).items() if parts else ():
        if count:
            LOGGER.warning("%s items with %s are left out", f"{count:,}", what)
    count = ray.get(rows) if parts else 0
    if not count:
        raise EmptyDataError(f"{side.what} has no item as of {times.as_of:%Y-%m-%d %H:%M}")
    instants = [times.test_start, times.as_of]
    blocks = -(-len(instants) * count // join_rows)
    return (
        keep_blocks_whole(ray.data.from_arrow_refs([catalogue]))
        .repartition(min(blocks, count))
        .map_batches(
            _join_items,
            batch_size=None,
            batch_format="pyarrow",
            fn_kwargs={
                "config": config,
                "join": side.join(fields),
                "instants": instants,
                "as_of_now": as_of_now,
            },
        )
    )


@ray.remote(num_cpus=1)
def _distinct_items(config: RepoConfig, part: SourceSlice) -> pa.Table:
    """Return the items of a slice with the time of their first row."""
    table = read_slice(config, part).select([ITEM_ID, EVENT_TIMESTAMP])
    return table.group_by(ITEM_ID).aggregate([(EVENT_TIMESTAMP, "min")])


@ray.remote(num_cpus=1, num_returns=3)
def _catalogue(as_of: datetime, *parts: pa.Table) -> tuple[pa.Table, int, dict[str, int]]:
    """Return the usable items sorted by id, with `first_seen`; their number; and counts of items left out by reason."""
    merged = pa.concat_tables(parts).group_by(ITEM_ID).aggregate([(f"{EVENT_TIMESTAMP}_min", "min")])
    merged = merged.rename_columns([ITEM_ID, FIRST_SEEN])
    blank = is_blank(merged[ITEM_ID])
    begun = pc.fill_null(pc.less_equal(merged[FIRST_SEEN], pa.scalar(as_of, TIMESTAMP)), False)
    usable = merged.filter(pc.and_(pc.invert(blank), begun)).sort_by(ITEM_ID)
    left_out = {
        "a null or empty id": pc.sum(blank).as_py() or 0,
        "no time, or only a future time": pc.sum(pc.and_(pc.invert(blank), pc.invert(begun))).as_py() or 0,
    }
    return usable, usable.num_rows, left_out


def _join_items(
    block: pa.Table,
    config: RepoConfig,
    join: FeatureJoin,
    instants: Sequence[datetime],
    as_of_now: bool,
) -> pa.Table:
    """Join the features of items as of each instant: all rows of one instant, then all of the next.

    as_of_now: join all as of the last instant, so that every item exists at the first one, whatever its row dates.
    """
    n = block.num_rows
    rows = pa.concat_tables([block] * len(instants)).combine_chunks()
    moments = pa.concat_arrays([pa.array([instant] * n, TIMESTAMP) for instant in instants])
    rows = rows.append_column(AS_OF, moments)
    if as_of_now:
        moments = pa.array([instants[-1]] * rows.num_rows, TIMESTAMP)
        first = pa.scalar(instants[0], TIMESTAMP)
        first_seen = pc.if_else(
            pc.greater(combine_chunks(rows[FIRST_SEEN]), first), first, combine_chunks(rows[FIRST_SEEN])
        )
        rows = rows.set_column(rows.schema.get_field_index(FIRST_SEEN), FIRST_SEEN, first_seen)
    if join.columns and n:
        joined = point_in_time(config, join, combine_chunks(rows[ITEM_ID]), moments)
        for name in join.columns:
            rows = rows.append_column(name, joined[name])
    require_columns(rows, ITEMS, what="the items")
    return rows


def keep_blocks_whole(dataset: ray.data.Dataset) -> ray.data.Dataset:
    """Keep the output of each task in one block of any size, for a dataset and all datasets derived from it.

    Ray Data 2.60 splits the output of a map or a shuffle that is 1.5 times larger than
    `DataContext.target_max_block_size` (128 MB). That would separate the rows of a user, or the two instants of an
    item. A dataset passes its own context to derived datasets, so other datasets are unaffected; `join_rows` bounds the
    blocks instead.
    """
    dataset.context.target_max_block_size = None
    return dataset
