"""Exact top-k and ranks of a block of queries by blocked float32 products, on any processor and for any k.

Input: the items as a tensor, a block of queries, exclusions and k. Output: lists or ranks; a list is marked as unproven
if a guessed threshold was too high.

A tile of scores that fits the cache is compared with one threshold per query, and only scores that reach it are read
again. The threshold is guessed from the first tile, and again after 4, 16, 64 tiles, so that little more than k
survivors remain; one sort of 64-bit keys (query, score, item) orders them. Queries whose guess was too high (fewer than
k survivors) are searched again with proven thresholds, so the result never depends on a guess.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from rec_ray.retrieval.search.keys import Exclusions, descending, owners, scores_of

# Bits of a sort key: 8 for the query in its block, 32 for the score, 23 for the item.
_SCORE_SHIFT = 23
_QUERY_SHIFT = _SCORE_SHIFT + 32
_ITEM_MASK = (1 << _SCORE_SHIFT) - 1

MAX_ITEMS = 1 << _SCORE_SHIFT
"""Largest number of items of one search (8.4 million); larger catalogues are cut into shards and merged."""

QUERY_BLOCK = 256
SMALLEST_BLOCK = 16
SMALLEST_TILE = 64
_TILE = 2048
_PRODUCT = 1024
_GROUP = 8
_LOWEST = np.finfo(np.float32).min


class FloatSearch:
    """Buffers and the search of one block of queries at a time, by one thread.

    items: [n, d], at least 64 rows, of which the first `item_count` are items.  block: queries of the largest block.
    forbidden: items that are never returned, ascending.  guesses: False uses only proven thresholds.
    """

    def __init__(
        self, items: torch.Tensor, item_count: int, block: int, forbidden: NDArray[np.int64], guesses: bool = True
    ) -> None:
        self.items, self.item_count, self.forbidden = items, item_count, forbidden
        tiles = math.ceil(len(items) / _TILE)
        self.tile = math.ceil(len(items) / tiles / SMALLEST_TILE) * SMALLEST_TILE
        self.scores = torch.empty((self.tile, block))
        self.mask = np.empty(self.tile * block, np.bool_)
        self.guesses = guesses and tiles > 1

    def top_k(
        self, queries: NDArray[np.float32], exclude: Exclusions, k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return indices and scores [q, k] of one block; with guesses, a list that ends with -1 is unproven."""
        keys, first = self._survivors(queries, exclude, k)
        return _lists(keys, first, k)

    def ranks(self, queries: NDArray[np.float32], targets: Exclusions, exclude: Exclusions) -> NDArray[np.int64]:
        """Return the ranks of the targets of one block, one pass over its scores per place in the target lists."""
        item = targets.values.astype(np.int64)
        query = owners(targets)
        score = _fixed_scores(self.items, _padded(queries), item, query)
        place_of_target = np.arange(len(item)) - targets.offsets[query]
        better = np.zeros(len(item), np.int64)
        for start, low, stop, tile in self._tiles(queries, exclude):
            scores = tile.numpy()
            for place in range(int(place_of_target.max(initial=-1)) + 1):
                at = np.flatnonzero(place_of_target == place)
                threshold = np.full(scores.shape[1], np.inf, np.float32)
                before = item[at] >= stop  # items of this tile win ties against later targets
                threshold[query[at]] = np.where(before, np.nextafter(score[at], np.float32(-np.inf)), score[at])
                better[at] += _count_above(scores, threshold)[query[at]]
                for one in at[(item[at] >= start) & (item[at] < stop)]:
                    column = scores[: item[one] - low, query[one]]
                    better[one] += np.count_nonzero(column == score[one])
        forbidden_targets = np.isin(item, self.forbidden)
        pairs = owners(exclude) * self.item_count + exclude.values
        forbidden_targets |= np.isin(query * self.item_count + item, pairs)
        return np.where(forbidden_targets, 0, better + 1)

    def _tiles(self, queries: NDArray[np.float32], exclude: Exclusions) -> Iterator[tuple[int, int, int, torch.Tensor]]:
        """Yield the scores of items from `start` to `stop` as a tile [rows, padded queries] whose row 0 is item `low`.

        Rows of padding, of items in an earlier tile, and excluded or forbidden items have -inf. The tile's memory is
        reused for the next tile.
        """
        padded = _padded(queries).t()
        width = padded.shape[1]
        excluded = _by_tile(exclude, self.tile)
        for start in range(0, len(self.items), self.tile):
            low = max(0, min(start, len(self.items) - SMALLEST_TILE))
            stop = min(start + self.tile, len(self.items))
            rows = math.ceil((stop - low) / _GROUP) * _GROUP
            tile = self.scores.view(-1)[: rows * width].view(rows, width)
            for at in range(low, stop, _PRODUCT):  # the result of a product of this height stays in the cache
                end = min(at + _PRODUCT, stop)
                at = max(low, end - _PRODUCT)
                torch.matmul(self.items[at:end], padded, out=tile[at - low : end - low])
            self._mask(tile, low, start, stop, excluded.get(start // self.tile))
            yield start, low, stop, tile

    def _survivors(
        self, queries: NDArray[np.float32], exclude: Exclusions, k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return sorted keys (query, score, item) of items that may be in the lists, and each query's first place in
        them.
        """
        threshold: NDArray[np.float32] | None = None
        kept: list[NDArray[np.int64]] = []
        kept_count, next_cut = 0, 4 * self.tile
        for _, low, stop, tile in self._tiles(queries, exclude):
            if threshold is None:
                threshold = self._first_threshold(tile, len(queries), k)
            keys = _above(tile.numpy(), low, threshold, self.mask)
            kept.append(keys)
            kept_count += len(keys)
            if (stop >= next_cut or kept_count > 16 * k * tile.shape[1]) and stop < len(self.items):
                merged = np.sort(np.concatenate(kept))
                rank = self._rank(stop, k)
                merged, threshold = _cut(merged, _first_of_each(merged, len(queries)), threshold, rank)
                kept, kept_count, next_cut = [merged], len(merged), 4 * stop
        merged = np.sort(np.concatenate(kept))
        return merged, _first_of_each(merged, len(queries))

    def _mask(
        self, tile: torch.Tensor, low: int, start: int, stop: int, excluded: tuple[NDArray[np.int64], ...] | None
    ) -> None:
        """Set rows of an earlier tile, padding, forbidden items and exclusions to -inf."""
        if low < start:
            tile[: start - low] = -math.inf
        if low + len(tile) > min(stop, self.item_count):
            tile[min(stop, self.item_count) - low :] = -math.inf
        if len(self.forbidden):
            begin, end = np.searchsorted(self.forbidden, [low, stop])
            tile.numpy()[self.forbidden[begin:end] - low] = -np.inf
        if excluded is not None:
            item, query = excluded
            tile.numpy()[item - low, query] = -np.inf

    def _rank(self, items_seen: int, k: int) -> int:
        """Return the rank among the first items that the k-th best of all items reaches: likely with guesses, certainly
        without.
        """
        if not self.guesses:
            return k
        expected = k * items_seen / len(self.items)
        return min(k, math.ceil(expected + 2.2 * math.sqrt(expected) + 2))

    def _first_threshold(self, tile: torch.Tensor, count: int, k: int) -> NDArray[np.float32]:
        """Return per query a score that the k-th best item reaches: likely with guesses, certainly without.

        tile: [rows, width], the first one. The r-th largest maximum of groups of neighbours is at most the r-th largest
        score, and needs an eighth of the comparisons.
        """
        rows, width = tile.shape
        rank = self._rank(rows, k)
        group = _GROUP if rows >= 4 * rank * _GROUP else 1
        maxima = torch.amax(tile.view(rows // group, group, width), 1).numpy()
        threshold = np.full(width, np.inf, np.float32)  # no item reaches the threshold of padding queries
        if rank > len(maxima):
            threshold[:count] = _LOWEST
        else:
            columns = np.ascontiguousarray(maxima.T[:count])
            columns.partition(len(maxima) - rank, axis=1)
            threshold[:count] = np.maximum(columns[:, len(maxima) - rank], _LOWEST)
        return threshold


def _cut(
    keys: NDArray[np.int64], first: NDArray[np.int64], threshold: NDArray[np.float32], rank: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the best keys of each query up to the rank, and thresholds above the last key: later ties rank lower."""
    full = np.flatnonzero(np.diff(first) >= rank)
    threshold = threshold.copy()
    last = scores_of(keys[first[full] + rank - 1] >> _SCORE_SHIFT & 0xFFFFFFFF)
    threshold[full] = np.nextafter(last, np.float32(np.inf))
    place = np.arange(len(keys)) - np.repeat(first[:-1], np.diff(first))
    return keys[place < rank], threshold


def _lists(keys: NDArray[np.int64], first: NDArray[np.int64], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the first k items of each query; short lists are filled with -1 and -inf."""
    position = first[:-1, None] + np.arange(k)
    short = position >= first[1:, None]
    if not short.any():
        best = keys[position]
        return best & _ITEM_MASK, scores_of(best >> _SCORE_SHIFT & 0xFFFFFFFF)
    best = np.append(keys, 0)[np.where(short, len(keys), position)]
    indices = np.where(short, -1, best & _ITEM_MASK)
    return indices, np.where(short, np.float32(-np.inf), scores_of(best >> _SCORE_SHIFT & 0xFFFFFFFF))


def _fixed_scores(
    items: torch.Tensor, queries: torch.Tensor, item: NDArray[np.int64], query: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the scores [t] of pairs of an item and a query, bit by bit those of the tiles."""
    found = np.empty(len(item), np.float32)
    for start in range(0, len(item), _TILE):
        padded_items = np.resize(item[start : start + _TILE], max(SMALLEST_TILE, len(item[start : start + _TILE])))
        product = torch.matmul(items[torch.from_numpy(padded_items)], queries.t()).numpy()
        part = query[start : start + _TILE]
        found[start : start + _TILE] = product[np.arange(len(part)), part]
    return found


def _count_above(scores: NDArray[np.float32], threshold: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return per column the number of scores above the column's threshold, in sums of bytes that cannot overflow."""
    above = (scores > threshold).view(np.uint8)
    total = np.zeros(scores.shape[1], np.int64)
    for start in range(0, len(above), 248):
        total += np.add.reduce(above[start : start + 248], axis=0, dtype=np.uint8)
    return total


def _padded(queries: NDArray[np.float32]) -> torch.Tensor:
    """Return the queries with rows of zeros up to a power of two, at least 16."""
    width = max(SMALLEST_BLOCK, 1 << (len(queries) - 1).bit_length())
    padded = torch.zeros((width, queries.shape[1]))
    padded[: len(queries)] = as_tensor(queries)
    return padded


def _above(
    tile: NDArray[np.float32], low: int, threshold: NDArray[np.float32], mask: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Return keys (query, score, item) of the scores that reach the threshold of their query.

    tile: [rows, width] scores of items from `low`, width a power of two.  mask: memory for as many flags.
    """
    width = tile.shape[1]
    mask = mask[: tile.size].reshape(tile.shape)
    np.greater_equal(tile, threshold, out=mask)
    place = np.flatnonzero(mask.reshape(-1))
    keys = descending(tile.reshape(-1)[place])
    keys <<= _SCORE_SHIFT
    keys |= (place & (width - 1)) << _QUERY_SHIFT
    keys |= (place >> (width.bit_length() - 1)) + low
    return keys


def _first_of_each(keys: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return the place of each query's first key in the sorted keys, and the end: [count + 1]."""
    first = np.empty(count + 1, np.int64)
    first[:-1] = np.searchsorted(keys, np.arange(count) << _QUERY_SHIFT)
    first[-1] = len(keys)
    return first


def _by_tile(exclude: Exclusions, tile: int) -> dict[int, tuple[NDArray[np.int64], ...]]:
    """Return the excluded (item, query) pairs of each tile."""
    if not len(exclude.values):
        return {}
    item = exclude.values.astype(np.int64)
    query = owners(exclude)
    number = item // tile
    order = np.argsort(number, kind="stable")
    tiles, begin = np.unique(number[order], return_index=True)
    ends = [*begin[1:].tolist(), len(order)]
    return {
        int(at): (item[order[b:e]], query[order[b:e]]) for at, b, e in zip(tiles, begin.tolist(), ends, strict=True)
    }


def as_tensor(array: NDArray[np.generic]) -> torch.Tensor:
    """Return a tensor that shares the array's memory; callers never write to a read-only array."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
