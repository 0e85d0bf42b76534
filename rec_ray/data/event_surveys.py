"""Ray tasks that count event rows before the join, and find active users.

Input: slices of a source, or a side table. Output: surveys and user ids. `events` does the counting, and
`read_timelines` the summaries of timelines.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from rec_ray.candidate_store.erasure import Erased
from rec_ray.contracts import RowCounts
from rec_ray.data.events import EventSurvey, active_users, as_events, combine_chunks, count_rows, survey_events
from rec_ray.data.read_timelines import changed_users, merge_summaries, summarise_events
from rec_ray.data.side_tables import SideTable, read_chunks
from rec_ray.errors import EmptyDataError
from rec_ray.feature_store.api import RepoConfig
from rec_ray.feature_store.offline_source import SourceSlice, read_slice
from rec_ray.logs import LOGGER
from rec_ray.storage.object_store import Storage


@ray.remote(num_cpus=1)
def survey_slice(config: RepoConfig, part: SourceSlice, as_of: datetime, exclude: Sequence[str]) -> EventSurvey:
    """Survey a slice. exclude: ids of users who are left out."""
    return survey_events(read_slice(config, part), as_of, exclude)


@ray.remote(num_cpus=1)
def survey_side_table(table: SideTable, as_of: datetime, exclude: Sequence[str]) -> list[EventSurvey]:
    """Survey a side table, chunk by chunk."""
    return [survey_events(chunk, as_of, exclude) for chunk in read_chunks(table)]


@ray.remote(num_cpus=1, num_returns=2)
def active_in_slice(
    config: RepoConfig, part: SourceSlice, as_of: datetime, since: datetime, exclude: Sequence[str]
) -> tuple[pa.Array, list[EventSurvey]]:
    """Return the ids of the active users of a slice, and its survey."""
    table = read_slice(config, part)
    return active_users(table, as_of, since, exclude), [survey_events(table, as_of, exclude)]


@ray.remote(num_cpus=1, num_returns=2)
def active_in_side_table(
    table: SideTable, as_of: datetime, since: datetime, exclude: Sequence[str]
) -> tuple[pa.Array, list[EventSurvey]]:
    """Return the ids of the active users of a side table, and the surveys of its chunks."""
    chunks = [
        (active_users(chunk, as_of, since, exclude), survey_events(chunk, as_of, exclude))
        for chunk in read_chunks(table)
    ]
    ids = pa.chunked_array([ids for ids, _ in chunks], pa.string())
    return combine_chunks(pc.unique(ids)), [survey for _, survey in chunks]


@ray.remote(num_cpus=1, num_returns=2)
def summarise_slice(
    config: RepoConfig, part: SourceSlice, as_of: datetime, exclude: Sequence[str], erased: Erased
) -> tuple[pa.Table, list[EventSurvey]]:
    """Return the summaries of the timelines in a slice, without forgotten users and items, and its survey."""
    table = read_slice(config, part)
    events = erased.without(as_events(table, 0, as_of, exclude))
    return summarise_events(events), [survey_events(table, as_of, exclude)]


@ray.remote(num_cpus=1, num_returns=2)
def summarise_side_table(
    table: SideTable, as_of: datetime, exclude: Sequence[str], erased: Erased
) -> tuple[pa.Table, list[EventSurvey]]:
    """Return the summaries of the timelines in a side table, and the surveys of its chunks."""
    parts, surveys = [], []
    for chunk in read_chunks(table):
        parts.append(summarise_events(erased.without(as_events(chunk, 0, as_of, exclude))))
        surveys.append(survey_events(chunk, as_of, exclude))
    return merge_summaries(parts), surveys


@ray.remote(num_cpus=1, num_returns=2)
def changed_ids(storage: Storage, recorded: Sequence[Sequence[str]], *parts: pa.Table) -> tuple[pa.Array, int]:
    """Return the ids of users whose timelines are not the recorded ones, and their number.

    recorded: paths of the parts of each record, the oldest record first.
    """
    before = [pq.read_table(path, filesystem=storage.filesystem) for paths in recorded for path in paths]
    ids = changed_users(merge_summaries(parts), before)
    return ids, len(ids)


@ray.remote(num_cpus=1, num_returns=2)
def distinct_ids(*parts: pa.Array) -> tuple[pa.Array, int]:
    """Return the distinct ids of all parts, and their number."""
    ids = combine_chunks(pc.unique(pa.chunked_array(list(parts), pa.string())))
    return ids, len(ids)


def counted_rows(surveys: Sequence[EventSurvey], slices: Sequence[SourceSlice]) -> RowCounts:
    """Add up the surveys and log each decision about rows with its count.

    Raises:
        EmptyDataError: no row is usable.
    """
    rows = count_rows(surveys)
    lost = {
        "null keys": rows.null_keys,
        "null timestamps": rows.null_timestamps,
        "a future time": rows.in_the_future,
        "users of features.interaction.exclude_users": rows.of_excluded_users,
    }
    if rows.read > rows.kept:
        said = ", ".join(f"{count:,} with {name}" for name, count in lost.items() if count)
        LOGGER.warning("of %s interactions %s are left out: %s", f"{rows.read:,}", f"{rows.read - rows.kept:,}", said)
    if any(part.naive_time for part in slices):
        LOGGER.info("interactions: timestamps without a zone are read as UTC")
    if not rows.kept:
        raise EmptyDataError(f"no usable interaction among {rows.read:,} rows; check keys and timestamps of the source")
    return rows
