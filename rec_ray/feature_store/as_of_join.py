"""Point-in-time join of rows in memory: for each key and time the newest feature row that was valid then.

Input: Arrow arrays. Output: indices of feature rows. The rules are those of Feast: a feature row is valid from its time
on, for the view's TTL if it has one; among rows of the same time the one created last counts.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

_OLDEST = np.iinfo(np.int64).min


def find_newest_rows(
    keys: pa.Array,
    times: pa.Array,
    feature_keys: pa.Array,
    feature_times: pa.Array,
    *,
    created: pa.Array | None = None,
    ttl: int = 0,
) -> pa.Array:
    """Return [n] int64: the index of the feature row for each key and time, null where there is none.

    Args:
        keys: [n] keys to join; a null has no feature row.
        times: [n] timestamps in microseconds.
        feature_keys: [m] keys of the feature rows, of the type of `keys`.
        feature_times: [m] timestamps in microseconds; a row without one is never returned.
        created: [m] time at which each feature row was written; without it the later one of equal rows counts.
        ttl: microseconds for which a feature row is valid; 0: for ever.
    """
    known = keys.drop_null().unique()
    usable = pc.and_(pc.is_in(feature_keys, value_set=known), pc.is_valid(feature_times))
    rows = pc.indices_nonzero(usable).to_numpy().astype(np.int64)
    code = _codes(feature_keys.take(pa.array(rows)), known)
    time = _micros(feature_times)[rows]
    written = np.zeros(len(rows), np.int64) if created is None else _micros(created)[rows]
    # A stable sort keeps the last of rows that are equal in all three last.
    order = np.lexsort((written, time, code))
    rows, code, time = rows[order], code[order], time[order]

    asked_code, asked_time = _codes(keys, known), _micros(times)
    both = np.lexsort(
        (
            np.repeat([0, 1], [len(rows), len(keys)]),
            np.concatenate([time, asked_time]),
            np.concatenate([code, asked_code]),
        )
    )
    # In the merged order of key and time, the last preceding feature row is the newest one.
    passed = np.maximum.accumulate(np.where(both < len(rows), both, -1)) if len(both) else both
    newest = np.empty(len(keys), np.int64)
    is_asked = both >= len(rows)
    newest[both[is_asked] - len(rows)] = passed[is_asked]
    if not len(rows):
        return pa.nulls(len(keys), pa.int64())
    found = (newest >= 0) & (asked_code >= 0) & (code[newest] == asked_code)
    if ttl:
        found &= asked_time - time[newest] <= ttl
    return pa.array(rows[newest], mask=~found)


def _codes(keys: pa.Array, known: pa.Array) -> npt.NDArray[np.int64]:
    """Return the index of each key in `known`, -1 for a null."""
    codes = pc.fill_null(pc.index_in(keys, value_set=known), -1)
    return np.asarray(codes.to_numpy(zero_copy_only=False), np.int64)


def _micros(times: pa.Array) -> npt.NDArray[np.int64]:
    """Return times as integers; a null becomes the oldest time."""
    numbers = pc.fill_null(pc.cast(times, pa.int64()), _OLDEST)
    return np.asarray(numbers.to_numpy(zero_copy_only=False), np.int64)
