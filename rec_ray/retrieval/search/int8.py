"""Exact top-k of a block of queries by a first pass over bytes with a proven bound, and float32 scores of the
survivors.

Input: quantised items, the float32 items, queries, exclusions and k. Output: per query the sort keys of the items that
may be in its list, which include the k best, or no key if that is not proven. The caller searches unproven queries by
other means.

The bound: with q = a Q + e and x = b X + f, Q and X vectors of bytes, the float32 score differs from a b (Q.X) by at
most |aQ| |f| + |e| |x| (Cauchy-Schwarz) and the roundings of the float32 chain. So an item whose byte score plus this
slack stays below a threshold that k scores reach cannot be in the list. The threshold is guessed from the items seen so
far (they are in random order) after 64, 256, 1,024, ... of them; the proof follows at the end, when the k-th float32
score reaches every threshold that was used.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from rec_ray.retrieval.search.float32 import as_tensor
from rec_ray.retrieval.search.int8_index import QuantisedItems
from rec_ray.retrieval.search.int8_kernels import (
    CHAIN_ROWS,
    GROUP_ITEMS,
    GROUP_QUERIES,
    fetch_row,
    is_supported,
    lowest_bit,
    multiply_chain,
    multiply_group,
)
from rec_ray.retrieval.search.keys import NO_ITEM, Exclusions, decode_keys

__all__ = ["ByteSearch", "chain_scores", "is_supported"]

PLACE_BITS = 31
PLACE = (1 << PLACE_BITS) - 1
"""A survivor is one number: the sum of bytes above these bits, the place of the item in them."""
GROUP_BITS = 6
UNDERFLOW = 1e-40
"""Upper bound of the loss of a chain of thousands of steps below the smallest normal float32."""
AHEAD = 16
"""Items whose vectors are prefetched ahead of their use."""
FIRST_CUT = 1
"""Groups of items after which the first threshold is guessed; the next guesses follow after 4, 16, 64 times as many."""


def _compiled(function: Any) -> Any:
    """Compile on first use and keep the machine code on disk if a folder is writable."""
    # No value is NaN and the sign of zero is irrelevant, so minima and counts can be vectorised.
    options = {"nogil": True, "error_model": "numpy", "fastmath": {"nnan", "nsz"}}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no writable folder for the cache
        return numba.njit(**options)(function)


@_compiled
def _bar(values, count, rank):  # type: ignore[no-untyped-def]
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


@_compiled
def _quantise(queries, packed, scale, norm, error, offset):  # type: ignore[no-untyped-def]
    """Write queries as bytes, and the terms of their bounds.

    queries: [q, d].  packed: [blocks, steps, 6, 4].  scale a, norm |aQ|, error |e| + roundings: [q] float64. offset:
    [q] int64, the surplus of a sum over unsigned instead of signed bytes of items.
    """
    size = queries.shape[1]
    for row in range(len(queries)):
        largest = 0.0
        for i in range(size):
            largest = max(largest, abs(float(queries[row, i])))
        # A subnormal scale makes bytes meaningless; the complete query then counts as error.
        step = largest / 127 if largest > 1e-30 else 1.0
        inverse = 1 / step if largest > 1e-30 else 0.0
        block, place = row // GROUP_QUERIES, row % GROUP_QUERIES
        square, residual, norm_square, total = 0.0, 0.0, 0.0, 0
        for i in range(size):
            value = float(queries[row, i])
            number = int(np.rint(value * inverse))
            packed[block, i // 4, place, i % 4] = number
            total += number
            square += (step * number) ** 2
            residual += (value - step * number) ** 2
            norm_square += value * value
        scale[row] = step
        norm[row] = math.sqrt(square) * (1 + 1e-9)
        # The chain rounds once per step; 8 more steps cover the float32 copy of a byte score and the sums here.
        error[row] = math.sqrt(residual) * (1 + 1e-9) + (size + 8) * 2.0**-24 * 1.1 * math.sqrt(norm_square)
        offset[row] = 128 * total


@_compiled
def _cut(row, rank, proven, state, groups, exclude, buffers):  # type: ignore[no-untyped-def]
    """Drop excluded items, raise the threshold to the rank-th score, and drop items that cannot reach it."""
    threshold, count, checked, scale, norm, error, offset = state
    item_of, group_scale, group_error, group_norm = groups
    values, offsets, stamps, stamp = exclude
    found, scores, slacks, scratch = buffers
    survivor_count, kept = count[row], checked[row]
    if offsets[row + 1] > offsets[row]:
        stamp[0] += 1
        current_stamp = stamp[0]
        for i in range(offsets[row], offsets[row + 1]):
            stamps[values[i]] = current_stamp
        for i in range(checked[row], survivor_count):
            found[row, kept] = found[row, i]
            kept += stamps[item_of[found[row, i] & PLACE]] != current_stamp
        survivor_count = kept
    for i in range(survivor_count):
        group = (found[row, i] & PLACE) >> GROUP_BITS
        slacks[i] = norm[row] * group_error[group] + error[row] * group_norm[group] + UNDERFLOW
        scores[i] = scale[row] * group_scale[group] * ((found[row, i] >> PLACE_BITS) - offset[row])
        scratch[i] = scores[i] - slacks[i] if proven else scores[i]
    if survivor_count >= rank:
        bar = _bar(scratch, survivor_count, rank)
        threshold[row] = max(threshold[row], bar)
        kept = 0
        for i in range(survivor_count):
            # Unconditional write, conditional count: a branch here would be mispredicted half of the time.
            is_kept = scores[i] + slacks[i] >= bar
            found[row, kept], scores[kept], slacks[kept] = found[row, i], scores[i], slacks[i]
            kept += is_kept
        survivor_count = kept
    count[row] = checked[row] = survivor_count


@_compiled
def _rank(k, share, guesses):  # type: ignore[no-untyped-def]
    """Return the rank among a share of the items that the k-th best of all items reaches: almost certainly with
    guesses.
    """
    if not guesses:
        return k
    expected = k * share
    return min(k, math.ceil(expected + 3 * math.sqrt(expected) + 3))


@_compiled
def _least_sums(group, queries, least):  # type: ignore[no-untyped-def]
    """Write per query the smallest sum of bytes with which an item of the group may reach the threshold.

    group: 1 / scale, error and norm of the group.  queries: threshold, norm and error of the queries in units of their
    scale, and offset.
    """
    step, spread, length = group
    bars, norms, errors, offset = queries
    for row in range(len(least)):
        bar = (bars[row] - norms[row] * spread - errors[row] * length) * step + offset[row]
        least[row] = np.int32(max(min(bar - 2, 2.0e9), -2.0e9))


@_compiled
def _score_of_key(key):  # type: ignore[no-untyped-def]
    """Return the float32 score in a sort key."""
    ascending = np.int32(0x7FFFFFFF - (key >> 31))
    return np.int32(ascending ^ (ascending >> 31 & 0x7FFFFFFF)).view(np.float32)


@_compiled
def _score(row, start, stop, vectors, memory):  # type: ignore[no-untyped-def]
    """Write the keys of the survivors from `start` to `stop`; return the smallest float32 score."""
    item_of, items, queries = vectors
    found, addresses, scored, keys = memory
    size = queries.shape[1]
    items_at, query_at = items.ctypes.data, queries.ctypes.data + row * size * 4
    lowest = np.inf
    for at in range(start, min(start + AHEAD, stop)):
        fetch_row(items_at + np.int64(item_of[found[row, at] & PLACE]) * size * 4, size)
    for at in range(start, stop, CHAIN_ROWS):
        for ahead in range(min(at + AHEAD, stop), min(at + AHEAD + CHAIN_ROWS, stop)):
            fetch_row(items_at + np.int64(item_of[found[row, ahead] & PLACE]) * size * 4, size)
        for i in range(CHAIN_ROWS):
            item = np.int64(item_of[found[row, min(at + i, stop - 1)] & PLACE])
            addresses[i] = items_at + item * size * 4
        multiply_chain(addresses.ctypes.data, query_at, size, scored.ctypes.data)
        bits = (scored + np.float32(0)).view(np.int32)
        for i in range(min(CHAIN_ROWS, stop - at)):
            ascending = np.int64(bits[i] ^ (bits[i] >> 31 & 0x7FFFFFFF))
            keys[row, at + i] = (0x7FFFFFFF - ascending) << 31 | np.int64(item_of[found[row, at + i] & PLACE])
            lowest = min(lowest, scored[i])
    return lowest


@_compiled
def survivors(index, query_block, exclude, k, guesses, memory):  # type: ignore[no-untyped-def]
    """Write the sort keys of each query's survivors; return their counts [q], 0 without a proof.

    index: packed [groups, steps, 64, 4] bytes; scale, error, norm per group; item index per place; bits of the items
    that may be returned, per group; items [n, d] float32. query_block: queries [q, d] float32, and [blocks, steps, 6,
    4] zeros for their bytes, which the caller keeps referenced: numba frees an array of its own after the last line
    that names it, even if its address is still in use. exclude: values and offsets, and [n] and [1] int32 of memory
    that is kept between calls. memory: found [q, capacity] int64, three [capacity] float64, and keys [q, capacity]
    int64 for the result.
    """
    packed, group_scale, group_error, group_norm, item_of, allow, items = index
    queries, query_bytes = query_block
    found, scores, slacks, scratch, keys = memory
    buffers = (found, scores, slacks, scratch)
    capacity = found.shape[1]
    query_count = len(queries)
    steps, blocks = packed.shape[1], len(query_bytes)
    width = blocks * GROUP_QUERIES
    scale, norm, error = np.ones(width), np.zeros(width), np.zeros(width)
    offset = np.zeros(width, np.int64)
    _quantise(queries, query_bytes, scale, norm, error, offset)
    threshold = np.full(width, np.inf)
    threshold[:query_count] = -np.inf
    bars, norms, errors = (threshold - UNDERFLOW) / scale, norm / scale, error / scale
    count, checked = np.zeros(width, np.int64), np.zeros(width, np.int64)
    least, flags = np.empty(width, np.int32), np.empty(GROUP_QUERIES, np.uint64)
    sums = np.empty((GROUP_QUERIES, GROUP_ITEMS), np.int32)
    state = (threshold, count, checked, scale, norm, error, offset)
    groups = (item_of, group_scale, group_error, group_norm)
    one = np.uint64(1)
    group_count, next_cut = len(packed), FIRST_CUT
    packed_at, bytes_at, least_at = packed.ctypes.data, query_bytes.ctypes.data, least.ctypes.data
    flags_at, sums_at = flags.ctypes.data, sums.ctypes.data
    for group in range(group_count):
        if group == next_cut and group * 3 < group_count * 2:
            rank = _rank(k, group / group_count, guesses)
            for row in range(query_count):
                _cut(row, rank, not guesses, state, groups, exclude, buffers)
            bars = (threshold - UNDERFLOW) / scale
            next_cut *= 4
        if allow[group] == 0:
            continue
        group_bounds = (1 / group_scale[group], group_error[group], group_norm[group])
        _least_sums(group_bounds, (bars, norms, errors, offset), least)
        for block in range(blocks):
            first = block * GROUP_QUERIES
            if not multiply_group(
                packed_at + group * steps * GROUP_ITEMS * 4,
                bytes_at + first * steps * 4,
                least_at + first * 4,
                steps,
                flags_at,
                sums_at,
            ):
                continue
            for place in range(GROUP_QUERIES):
                bits = flags[place] & allow[group]
                if not bits:
                    continue
                row = first + place
                at = count[row]
                while bits:
                    bit = np.int64(lowest_bit(bits))
                    bits &= bits - one
                    found[row, at] = np.int64(sums[place, bit]) << PLACE_BITS | group << GROUP_BITS | bit
                    at += 1
                count[row] = at
                if at > capacity - GROUP_ITEMS:
                    rank = _rank(k, (group + 1) / group_count, guesses)
                    _cut(row, rank, not guesses, state, groups, exclude, buffers)
                    if count[row] > capacity - 4 * GROUP_ITEMS:  # more ties than the capacity
                        threshold[row], count[row], checked[row] = np.inf, 0, 0
                    bars[row] = (threshold[row] - UNDERFLOW) / scale[row]

    kept = np.zeros(query_count, np.int64)
    addresses, scored = np.empty(CHAIN_ROWS, np.int64), np.empty(CHAIN_ROWS, np.float32)
    vectors, chain_memory = (item_of, items, queries), (found, addresses, scored, keys)
    for row in range(query_count):
        used = threshold[row]
        _cut(row, k, True, state, groups, exclude, buffers)
        survivor_count = count[row]
        if survivor_count < k:
            continue
        # The k best by bytes first: the lowest of their float32 scores is a bound that few other items reach.
        scratch[:survivor_count] = scores[:survivor_count]
        bar = _bar(scratch, survivor_count, k)
        chosen = 0
        for i in range(survivor_count):
            best = scores[i] >= bar
            found[row, chosen], found[row, i] = found[row, i], found[row, chosen]
            scores[chosen], scores[i] = scores[i], scores[chosen]
            slacks[chosen], slacks[i] = slacks[i], slacks[chosen]
            chosen += best
        lowest = _score(row, 0, chosen, vectors, chain_memory)
        first = chosen
        for i in range(chosen, survivor_count):
            may_be_better = scores[i] + slacks[i] >= lowest
            found[row, chosen] = found[row, i]
            chosen += may_be_better
        _score(row, first, chosen, vectors, chain_memory)
        if lowest >= used:
            kept[row] = chosen
            continue
        reached = 0
        for i in range(chosen):
            reached += _score_of_key(keys[row, i]) >= used
        if reached >= k:
            kept[row] = chosen
    return kept


@_compiled
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


class ByteSearch:
    """Buffers and the search of one block of queries at a time, by one thread.

    quantised, items [n, d] float32: writable arrays (nothing is written; one type keeps one compiled search). allow:
    bits of the items that may be returned.  guesses: False uses only proven thresholds, which leave more survivors.
    """

    def __init__(
        self, quantised: QuantisedItems, items: NDArray[np.float32], allow: NDArray[np.uint64], *, guesses: bool
    ) -> None:
        self.quantised = quantised
        self.items, self.allow, self.guesses = items, allow, guesses
        self.stamps, self.stamp = np.zeros(len(items), np.int32), np.zeros(1, np.int32)
        self.memory: tuple[NDArray[Any], ...] = ()
        self.keys = np.zeros((0, 0), np.int64)

    def top_k(
        self, queries: NDArray[np.float32], exclude: Exclusions, k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return indices and scores [q, k] of one block; a list that ends with -1 is unproven."""
        capacity = max(1024, 4 * k) + GROUP_ITEMS // 2  # not a power of two, so that rows do not share cache lines
        width = -(-len(queries) // GROUP_QUERIES) * GROUP_QUERIES
        if self.keys.shape[0] < width or self.keys.shape[1] != capacity:
            self.memory = (np.empty((width, capacity), np.int64), *(np.empty(capacity) for _ in range(3)))
            self.keys = np.empty((width, capacity), np.int64)
        if self.stamp[0] > 2**30:
            self.stamps[:], self.stamp[0] = 0, 0
        packed, item_of, scale, error, norm = self.quantised
        excluded = (exclude.values.astype(np.int64), exclude.offsets, self.stamps, self.stamp)
        queries = queries if queries.flags.writeable else queries.copy()
        query_bytes = np.zeros((width // GROUP_QUERIES, packed.shape[1], GROUP_QUERIES, 4), np.int8)
        index = (packed, scale, error, norm, item_of, self.allow, self.items)
        memory = (*self.memory, self.keys)
        counts = survivors(index, (queries, query_bytes), excluded, k, self.guesses, memory)
        longest = max(int(counts.max(initial=0)), k)
        keys = self.keys[: len(queries), :longest]
        keys = np.where(np.arange(longest) < counts[:, None], keys, NO_ITEM)
        keys.sort(axis=1)
        return decode_keys(keys[:, :k])
