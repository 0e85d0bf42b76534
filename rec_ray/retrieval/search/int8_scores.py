"""Float32 scores of the items that the pass over bytes leaves, and the compilation of both by numba.

Input: survivors per query with their byte scores and slacks, items and queries. Output: sort keys of the items that may
be among the k best, or the scores of chosen items.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from rec_ray.retrieval.search.float32 import as_tensor
from rec_ray.retrieval.search.int8_kernels import CHAIN_ROWS, fetch_row, multiply_chain

PLACE_BITS = 31
PLACE = (1 << PLACE_BITS) - 1
"""A survivor is one number: the sum of bytes above these bits, the place of the item in them."""
AHEAD = 16
"""Items whose vectors are prefetched ahead of their use."""


def compiled(function: Any) -> Any:
    """Compile on first use and keep the machine code on disk if a folder is writable."""
    # No value is NaN and the sign of zero is irrelevant, so minima and counts can be vectorised.
    options = {"nogil": True, "error_model": "numpy", "fastmath": {"nnan", "nsz"}}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no writable folder for the cache
        return numba.njit(**options)(function)


@compiled
def rank_bar(values, count, rank):  # type: ignore[no-untyped-def]
    """Return a number that at least `rank` of the first `count` values reach, and few more than `rank`.

    Interval halving with counts has no unpredictable branch and is faster than a quickselect.
    """
    low, high = np.inf, -np.inf
    for i in range(count):
        low = values[i] if values[i] < low else low
        high = values[i] if values[i] > high else high
    for _ in range(24):
        middle = 0.5 * (low + high)
        reached = 0
        for i in range(count):
            reached += values[i] >= middle
        if reached >= rank:
            low = middle
            if reached * 32 <= rank * 33:
                break
        else:
            high = middle
    return low


@compiled
def _score_of_key(key):  # type: ignore[no-untyped-def]
    """Return the float32 score in a sort key."""
    ascending = np.int32(0x7FFFFFFF - (key >> 31))
    return np.int32(ascending ^ (ascending >> 31 & 0x7FFFFFFF)).view(np.float32)


@compiled
def _score(row, start, stop, bar, found, item_of, items_at, query_at, size, addresses, scored, keys):  # type: ignore[no-untyped-def]
    """Write the keys of the survivors from `start` to `stop` whose float32 score reaches the bar; return the smallest
    such score and the end of the keys.
    """
    lowest, end = np.inf, start
    for at in range(start, min(start + AHEAD, stop)):
        fetch_row(items_at + np.int64(item_of[found[row, at] & PLACE]) * size * 4, size)
    for at in range(start, stop, CHAIN_ROWS):
        for ahead in range(min(at + AHEAD, stop), min(at + AHEAD + CHAIN_ROWS, stop)):
            fetch_row(items_at + np.int64(item_of[found[row, ahead] & PLACE]) * size * 4, size)
        for i in range(CHAIN_ROWS):
            item = np.int64(item_of[found[row, min(at + i, stop - 1)] & PLACE])
            addresses[i] = items_at + item * size * 4
        multiply_chain(addresses.ctypes.data, query_at, size, scored.ctypes.data)
        for i in range(min(CHAIN_ROWS, stop - at)):
            bits = np.float32(scored[i]).view(np.int32) if scored[i] != 0 else np.int32(0)  # -0.0 equals 0.0
            ascending = np.int64(bits ^ (bits >> 31 & 0x7FFFFFFF))
            keys[row, end] = (0x7FFFFFFF - ascending) << 31 | np.int64(item_of[found[row, at + i] & PLACE])
            if scored[i] >= bar:
                lowest = min(lowest, scored[i])
                end += 1
    return lowest, end


@compiled
def score_survivors(k, state, buffers, vectors, keys):  # type: ignore[no-untyped-def]
    """Write the sort keys of the survivors that may be among the k best; return their counts, 0 without a proof."""
    threshold, count = state
    found, scores, slacks, scratch = buffers
    item_of, items, queries = vectors
    query_count = len(queries)
    kept = np.zeros(query_count, np.int64)
    addresses, scored = np.empty(CHAIN_ROWS, np.int64), np.empty(CHAIN_ROWS, np.float32)
    size = queries.shape[1]
    items_at, queries_at = items.ctypes.data, queries.ctypes.data
    for row in range(query_count):
        survivor_count = count[row]
        if survivor_count < k:
            continue
        query_at = queries_at + row * size * 4
        # The k best by bytes first: the lowest of their float32 scores is a bound that few other items reach.
        for i in range(survivor_count):
            scratch[i] = scores[row, i]
        bar = rank_bar(scratch, survivor_count, k)
        chosen = 0
        for i in range(survivor_count):
            best = scores[row, i] >= bar
            found[row, chosen], found[row, i] = found[row, i], found[row, chosen]
            scores[row, chosen], scores[row, i] = scores[row, i], scores[row, chosen]
            slacks[row, chosen], slacks[row, i] = slacks[row, i], slacks[row, chosen]
            chosen += best
        lowest, _ = _score(row, 0, chosen, -np.inf, found, item_of, items_at, query_at, size, addresses, scored, keys)
        first = chosen
        for i in range(chosen, survivor_count):
            may_be_better = scores[row, i] + slacks[row, i] >= lowest
            found[row, chosen] = found[row, i]
            chosen += may_be_better
        end = _score(row, first, chosen, lowest, found, item_of, items_at, query_at, size, addresses, scored, keys)[1]
        if lowest >= threshold[row]:
            kept[row] = end
            continue
        reached = 0
        for i in range(end):
            reached += _score_of_key(keys[row, i]) >= threshold[row]
        if reached >= k:
            kept[row] = end
    return kept


@compiled
def _chain_scores(items_at, queries, places, scores):  # type: ignore[no-untyped-def]
    """Write the scores [q, m] of the items at places [q, m].  items_at: address of float32 [n, d]."""
    size, wanted = queries.shape[1], places.shape[1]
    rows, scored = np.empty(CHAIN_ROWS, np.int64), np.empty(CHAIN_ROWS, np.float32)
    for row in range(len(queries)):
        for start in range(0, wanted, CHAIN_ROWS):
            for i in range(CHAIN_ROWS):
                rows[i] = items_at + places[row, min(start + i, wanted - 1)] * size * 4
            multiply_chain(rows.ctypes.data, queries.ctypes.data + row * size * 4, size, scored.ctypes.data)
            for i in range(min(CHAIN_ROWS, wanted - start)):
                scores[row, start + i] = scored[i]


def chain_scores(
    items: NDArray[np.float32], queries: NDArray[np.float32], places: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the float32 chains [q, m] of queries [q, d] and the items [n, d] at places [q, m]."""
    scores = np.empty(places.shape, np.float32)
    if scores.size:
        _chain_scores(items.ctypes.data, as_tensor(queries).numpy(), places, scores)
    return scores
