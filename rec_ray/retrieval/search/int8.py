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

import numpy as np
from numpy.typing import NDArray

from rec_ray.retrieval.search.byte_products import (
    GROUP_ITEMS,
    GROUP_QUERIES,
    KERNELS,
    STRETCH_STEPS,
    kernel_address,
)
from rec_ray.retrieval.search.int8_index import QuantisedItems
from rec_ray.retrieval.search.int8_kernels import lowest_bit, multiply_group
from rec_ray.retrieval.search.int8_scores import PLACE, PLACE_BITS, compiled, rank_bar, score_survivors
from rec_ray.retrieval.search.keys import NO_ITEM, Exclusions, decode_keys

GROUP_BITS = 6
UNDERFLOW = 1e-40
"""Upper bound of the loss of a chain of thousands of steps below the smallest normal float32."""
FIRST_CUT = 1
"""Groups of items after which the first threshold is guessed; the next guesses follow after 4, 16, 64 times as many."""


@compiled
def _quantise(queries, packed, starts, surplus, limit, scale, norm, error):  # type: ignore[no-untyped-def]
    """Write queries as bytes, the numbers from which their sums start, and the terms of their bounds.

    queries: [q, d].  packed: [blocks, steps, 6, 4].  starts: [blocks, stretches, 6].  surplus: bytes of items less
    their numbers.  limit: of the norm of the bytes of two of four dimensions in a stretch; 0 for sums of 32 bits.
    scale a, norm |aQ|, error |e| + roundings: [q] float64.
    """
    size, stretch_size = queries.shape[1], 4 * STRETCH_STEPS
    for row in range(len(queries)):
        block, place = row // GROUP_QUERIES, row % GROUP_QUERIES
        largest = 0.0
        for i in range(size):
            largest = max(largest, abs(float(queries[row, i])))
        # A subnormal scale makes bytes meaningless; the complete query then counts as error.
        meaningful, most = largest > 1e-30, 127.0
        while True:
            step = largest / most if meaningful else 1.0
            inverse = most / largest if meaningful else 0.0
            square, residual, norm_square, longest = 0.0, 0.0, 0.0, 0.0
            for begin in range(0, size, stretch_size):
                first, second, first_sum, second_sum = 0.0, 0.0, 0, 0
                for i in range(begin, min(begin + stretch_size, size)):
                    value = float(queries[row, i])
                    number = int(np.rint(value * inverse))
                    packed[block, i // 4, place, i % 4] = number
                    if i % 4 < 2:
                        first += number * number
                        first_sum += number
                    else:
                        second += number * number
                        second_sum += number
                    residual += (value - step * number) ** 2
                    norm_square += value * value
                square += first + second
                longest = max(longest, first, second)
                if limit > 0:  # two sums of 16 bits, each with the surplus of its dimensions
                    low, high = -surplus * first_sum & 0xFFFF, -surplus * second_sum & 0xFFFF
                    starts[block, begin // stretch_size, place] = high << 16 | low
                else:
                    starts[block, 0, place] -= surplus * (first_sum + second_sum)
            if limit == 0 or longest <= limit * limit:
                break
            most = min(most - 1, most * limit / math.sqrt(longest))
        scale[row] = step
        norm[row] = step * math.sqrt(square) * (1 + 1e-9)
        # The chain rounds once per step; 8 more steps cover the float32 copy of a byte score and the sums here.
        error[row] = math.sqrt(residual) * (1 + 1e-9) + (size + 8) * 2.0**-24 * 1.1 * math.sqrt(norm_square)


@compiled
def _cut(first, last, rank, proven, state, groups, exclude, buffers):  # type: ignore[no-untyped-def]
    """For queries from `first` to `last`, drop excluded items, raise the threshold to the rank-th score, and drop items
    that cannot reach it. One call takes many queries, because numba counts references to each array of a tuple.
    """
    threshold, count, checked, scale, norm, error = state
    item_of, group_scale, group_error, group_norm = groups
    values, offsets, stamps, stamp = exclude
    found, scores, slacks, scratch = buffers
    for row in range(first, last):
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
            score = scale[row] * group_scale[group] * (found[row, i] >> PLACE_BITS)
            slack = norm[row] * group_error[group] + error[row] * group_norm[group] + UNDERFLOW
            scores[row, i], slacks[row, i] = score, slack
            scratch[i] = score - slack if proven else score
        if survivor_count >= rank:
            bar = rank_bar(scratch, survivor_count, rank)
            threshold[row] = max(threshold[row], bar)
            kept = 0
            for i in range(survivor_count):
                # Unconditional write, conditional count: a branch here would be mispredicted half of the time.
                one, score, slack = found[row, i], scores[row, i], slacks[row, i]
                found[row, kept], scores[row, kept], slacks[row, kept] = one, score, slack
                kept += score + slack >= bar
            survivor_count = kept
        count[row] = checked[row] = survivor_count


@compiled
def _rank(k, share, guesses):  # type: ignore[no-untyped-def]
    """Return the rank among a share of the items that the k-th best of all items reaches: almost certainly with
    guesses.
    """
    if not guesses:
        return k
    expected = k * share
    return min(k, math.ceil(expected + 3 * math.sqrt(expected) + 3))


@compiled
def _sums_below(group, queries, below):  # type: ignore[no-untyped-def]
    """Write per query a sum of bytes above which an item of the group may reach the threshold.

    group: 1 / scale, error and norm of the group.  queries: threshold, norm and error of the queries in units of their
    scale.
    """
    step, spread, length = group
    bars, norms, errors = queries
    for row in range(len(below)):
        bar = (bars[row] - norms[row] * spread - errors[row] * length) * step
        below[row] = np.int32(max(min(bar - 3, 2.0e9), -2.0e9))


@compiled
def survivors(kernel, index, query_block, exclude, k, guesses, memory):  # type: ignore[no-untyped-def]
    """Write the sort keys of each query's survivors; return their counts [q], 0 without a proof.

    kernel: address of a product of bytes, surplus and limit as in `_quantise`. index: packed [groups, steps, 64, 4]
    bytes; scale, error, norm per group; item index per place; bits of the items that may be returned, per group; items
    [n, d] float32. query_block: queries [q, d] float32, and zeros for their bytes [blocks, steps, 6, 4] and for the
    starts of their sums [blocks, stretches, 6] int32, which the caller keeps referenced: numba frees an array of its
    own after the last line that names it, even if its address is still in use. exclude: values and offsets, and [n] and
    [1] int32 of memory that is kept between calls. memory: found [q, capacity] int64, two [q, capacity] float64, one
    [capacity] float64, and keys [q, capacity] int64 for the result.
    """
    packed, group_scale, group_error, group_norm, item_of, allow, items = index
    queries, query_bytes, starts = query_block
    address, surplus, limit = kernel
    found, scores, slacks, scratch, keys = memory
    buffers = (found, scores, slacks, scratch)
    capacity = found.shape[1]
    query_count = len(queries)
    steps, blocks = packed.shape[1], len(query_bytes)
    width = blocks * GROUP_QUERIES
    scale, norm, error = np.ones(width), np.zeros(width), np.zeros(width)
    _quantise(queries, query_bytes, starts, surplus, limit, scale, norm, error)
    threshold = np.full(width, np.inf)
    threshold[:query_count] = -np.inf
    bars, norms, errors = (threshold - UNDERFLOW) / scale, norm / scale, error / scale
    count, checked = np.zeros(width, np.int64), np.zeros(width, np.int64)
    below, flags = np.empty(width, np.int32), np.empty(GROUP_QUERIES, np.uint64)
    sums = np.empty((GROUP_QUERIES, GROUP_ITEMS), np.int32)
    state = (threshold, count, checked, scale, norm, error)
    groups = (item_of, group_scale, group_error, group_norm)
    one = np.uint64(1)
    group_count, next_cut = len(packed), FIRST_CUT
    packed_at, bytes_at, below_at = packed.ctypes.data, query_bytes.ctypes.data, below.ctypes.data
    starts_at, block_starts = starts.ctypes.data, starts[0].nbytes
    flags_at, sums_at = flags.ctypes.data, sums.ctypes.data
    for group in range(group_count):
        if group == next_cut and group * 3 < group_count * 2:
            rank = _rank(k, group / group_count, guesses)
            _cut(0, query_count, rank, not guesses, state, groups, exclude, buffers)
            bars = (threshold - UNDERFLOW) / scale
            next_cut *= 4
        if allow[group] == 0:
            continue
        group_bounds = (1 / group_scale[group], group_error[group], group_norm[group])
        _sums_below(group_bounds, (bars, norms, errors), below)
        for block in range(blocks):
            first = block * GROUP_QUERIES
            if not multiply_group(
                address,
                packed_at + group * steps * GROUP_ITEMS * 4,
                bytes_at + first * steps * 4,
                starts_at + block * block_starts,
                below_at + first * 4,
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
                    _cut(row, row + 1, rank, not guesses, state, groups, exclude, buffers)
                    if count[row] > capacity - 4 * GROUP_ITEMS:  # more ties than the capacity
                        threshold[row], count[row], checked[row] = np.inf, 0, 0
                    bars[row] = (threshold[row] - UNDERFLOW) / scale[row]

    used = threshold.copy()
    _cut(0, query_count, k, True, state, groups, exclude, buffers)
    return score_survivors(k, (used, count), buffers, (item_of, items, queries), keys)


class ByteSearch:
    """Buffers and the search of one block of queries at a time, by one thread.

    quantised, items [n, d] float32: writable arrays (nothing is written; one type keeps one compiled search). allow:
    bits of the items that may be returned.  kernel: a name in `KERNELS`, whose bytes `quantised` has.  guesses: False
    uses only proven thresholds, which leave more survivors.
    """

    def __init__(
        self,
        quantised: QuantisedItems,
        items: NDArray[np.float32],
        allow: NDArray[np.uint64],
        kernel: str,
        *,
        guesses: bool,
    ) -> None:
        product = KERNELS[kernel]
        # Both sums of 16 bits stay in their range, although they may wrap before their ends.
        limit = 32766 / max(quantised.reach, 1.0) if product.is_stretched else 0.0
        self.kernel = (kernel_address(kernel), quantised.zero - product.zero, limit)
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
            shape = (width, capacity)
            self.memory = (np.empty(shape, np.int64), np.empty(shape), np.empty(shape), np.empty(capacity))
            self.keys = np.empty((width, capacity), np.int64)
        if self.stamp[0] > 2**30:
            self.stamps[:], self.stamp[0] = 0, 0
        packed, item_of, scale, error, norm, *_ = self.quantised
        excluded = (exclude.values.astype(np.int64), exclude.offsets, self.stamps, self.stamp)
        queries = queries if queries.flags.writeable else queries.copy()
        blocks, steps = width // GROUP_QUERIES, packed.shape[1]
        query_bytes = np.zeros((blocks, steps, GROUP_QUERIES, 4), np.int8)
        starts = np.zeros((blocks, -(-steps // STRETCH_STEPS), GROUP_QUERIES), np.int32)
        index = (packed, scale, error, norm, item_of, self.allow, self.items)
        memory = (*self.memory, self.keys)
        counts = survivors(self.kernel, index, (queries, query_bytes, starts), excluded, k, self.guesses, memory)
        longest = max(int(counts.max(initial=0)), k)
        keys = self.keys[: len(queries), :longest]
        keys = np.where(np.arange(longest) < counts[:, None], keys, NO_ITEM)
        keys.sort(axis=1)
        return decode_keys(keys[:, :k])
