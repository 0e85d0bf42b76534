"""Summaries of users' timelines as they were read: number of events, newest event, and a checksum of all events.

Input: events of `schema.INTERACTIONS`. Output: one row of `schema.USER_TIMELINES` per user. Two summaries of a user are
equal only if the same events were read, in any order, so late, corrected and removed events show. Summaries of parts of
the events add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rec_ray.schema import EVENT_TIMESTAMP, EVENT_TYPE, EVENT_VALUE, ITEM_ID, USER_ID, USER_TIMELINES

CHECKSUM, EVENTS, NEWEST = "checksum", "events", "newest"
Hashes = NDArray[np.uint64]


def summarise_events(events: pa.Table) -> pa.Table:
    """Return the summary of each user with an event. events: rows without an item are no events."""
    rows = events.filter(pc.is_valid(events[ITEM_ID])) if events.num_rows else events
    if not rows.num_rows:
        return USER_TIMELINES.empty_table()
    columns = {
        USER_ID: rows[USER_ID],
        EVENTS: pa.array(np.ones(rows.num_rows, np.int64)),
        NEWEST: rows[EVENT_TIMESTAMP],
        CHECKSUM: pa.array(_hash_events(rows)),
    }
    return merge_summaries([pa.table(columns, schema=USER_TIMELINES)])


def merge_summaries(parts: Sequence[pa.Table]) -> pa.Table:
    """Add up summaries of different events; one row per user."""
    rows = pa.concat_tables([USER_TIMELINES.empty_table(), *parts])
    # Sums of 64-bit numbers wrap, as a checksum may.
    added = rows.group_by(USER_ID).aggregate([(EVENTS, "sum"), (NEWEST, "max"), (CHECKSUM, "sum")])
    return added.rename_columns([USER_ID, EVENTS, NEWEST, CHECKSUM]).cast(USER_TIMELINES)


def changed_users(now: pa.Table, recorded: Sequence[pa.Table]) -> pa.Array:
    """Return the ids of users whose summary differs from the recorded one, or who have none.

    recorded: summaries, the oldest first; the last one of a user counts.
    """
    before = pa.concat_tables([USER_TIMELINES.empty_table(), *recorded]).combine_chunks()
    # Newest first, because `index_in` returns the first match.
    before = before.take(pa.array(np.arange(before.num_rows)[::-1]))
    place = pc.index_in(_array(now[USER_ID]), value_set=_array(before[USER_ID]))
    same = pc.is_valid(place)
    for name in (EVENTS, NEWEST, CHECKSUM):
        equal = pc.equal(_array(now[name]), _array(before[name]).take(place))
        same = pc.and_(same, pc.fill_null(equal, False))
    return _array(now[USER_ID]).filter(pc.invert(same))


def _hash_events(rows: pa.Table) -> Hashes:
    """Return a hash of the item, the time, the type and the value of each event."""
    hashes = _hash_texts(rows[ITEM_ID])
    hashes = _mix(hashes ^ pc.cast(rows[EVENT_TIMESTAMP], pa.int64()).to_numpy().view(np.uint64))
    hashes = _mix(hashes ^ _hash_texts(rows[EVENT_TYPE]))
    values = pc.fill_null(rows[EVENT_VALUE], float("nan")).to_numpy().astype(np.float32)
    return _mix(hashes ^ values.view(np.uint32).astype(np.uint64))


def _hash_texts(column: pa.ChunkedArray) -> Hashes:
    """Return a hash of each text; a null has one too. Each distinct text is hashed once."""
    encoded = _array(pc.fill_null(column, "")).dictionary_encode()
    texts: Any = np.array(encoded.dictionary.to_pylist(), dtype=object)
    return pd.util.hash_array(texts, categorize=False)[encoded.indices.to_numpy()]


def _mix(hashes: Hashes) -> Hashes:
    """Return well distributed numbers for different ones: the last steps of SplitMix64 (Steele et al. 2014)."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))


def _array(column: Any) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
