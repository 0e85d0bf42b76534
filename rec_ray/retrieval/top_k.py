"""Exact top-k search: for each query the k items with the highest inner product, from float32 arrays.

In come an item matrix, a batch of queries, k, and what must not be returned; out go item indices and scores in rank
order: score descending, equal scores by item index ascending. It knows no user, no item id, no filter rule, no Ray: a
rule arrives here as a mask over items or as a list of item indices per query.

What "the float32 order" means. The score of a query and an item is the float32 chain of fused multiply-adds over the
dimensions in order, `s = fma(q[i], x[i], s)`, which is what the inner loop of a matrix product does. The products here
only have shapes (at least 16 queries, at least 64 items, one thread each) for which the library behind torch computes
exactly this, so that scores and ranks depend neither on the size of blocks, nor on the other queries of a batch, nor on
how a catalogue is cut into shards; a test holds the library to it.

How it is fast. A tile of scores that fits the cache is compared with one threshold per query, and only what reaches it
is read again. The threshold is guessed from the first tile, and again after 4, 16, 64 tiles, so that little more than k
survivors remain; one sort of 64-bit keys (query, score, item) orders them. Queries for which a guess was too high
(fewer than k survivors) are searched again with thresholds that are proven, so the result never rests on a guess.
The vectorised comparisons and sorts of numpy make this cheap: 0.7 microseconds to sort 128 keys, where `torch.topk`
takes 4.5. Memory is a few MB per thread whatever the catalogue.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from rec_ray.errors import DataError

# Bits of a sort key: 8 for the query in its block, 32 for the score, 23 for the item.
_SCORE_SHIFT = 23
_QUERY_SHIFT = _SCORE_SHIFT + 32
_ITEM_MASK = (1 << _SCORE_SHIFT) - 1

MAX_ITEMS = 1 << _SCORE_SHIFT
"""Items that one `ExactTopK` can hold (8.4 million); cut larger catalogues into shards and merge."""

_QUERY_BLOCK = 256
_TILE = 2048
_PRODUCT = 1024
_SMALLEST_TILE = 64
_SMALLEST_BLOCK = 16
_GROUP = 8
_LOWEST = np.finfo(np.float32).min
_NO_ITEM = np.iinfo(np.int64).max


class Exclusions(NamedTuple):
    """Item indices that must not be returned, ragged per query.

    values: [total] int32 or int64 item indices, in any order, repeats allowed.
    offsets: [queries + 1] int64; the exclusions of query i are `values[offsets[i]:offsets[i + 1]]`.
    """

    values: NDArray[np.integer]
    offsets: NDArray[np.int64]


class ExactTopK:
    """Search of one item matrix.

    items: [n, d] float32; a C-contiguous array is used without a copy and may be read-only, as in shared memory.
    threads: searches run on this many threads of this process; None takes torch's number.

    Raises DataError when items hold NaN or infinity, or are more than `MAX_ITEMS`.
    """

    def __init__(self, items: NDArray[np.float32], *, threads: int | None = None) -> None:
        if items.ndim != 2 or items.dtype != np.float32:
            raise ValueError(f"items must be a float32 matrix [n, d], got {items.dtype} {list(items.shape)}")
        if len(items) > MAX_ITEMS:
            raise DataError(f"{len(items)} items are more than one search holds ({MAX_ITEMS}); cut them into shards")
        self.item_count, self.embedding_size = items.shape
        self.threads = torch.get_num_threads() if threads is None else threads
        self._largest_norm = _largest_norm(items, "item")
        if len(items) < _SMALLEST_TILE:
            items = np.concatenate([items, np.zeros((_SMALLEST_TILE - len(items), items.shape[1]), np.float32)])
        self._items = _as_tensor(np.ascontiguousarray(items))

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        exclude: Exclusions | tuple[NDArray[np.integer], NDArray[np.int64]] | None = None,
        allowed: NDArray[np.bool_] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the indices and scores of the k best items of each query, in rank order.

        queries: [q, d] float32.  exclude: item indices per query that are never returned.  allowed: [n] bool, items
        that may be returned to anybody (None: all).  Both act before the cut to k.

        Returns indices [q, min(k, n)] int64 and scores [q, min(k, n)] float32. A query with fewer items left than that
        has index -1 and score -inf at its end.

        Raises DataError for queries with NaN or infinity and for scores beyond float32, ValueError for wrong shapes.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        queries, exclude = self._checked(queries, exclude, allowed)
        k = min(k, self.item_count)
        indices = np.empty((len(queries), k), np.int64)
        scores = np.empty((len(queries), k), np.float32)
        if not k:
            return indices, scores

        missed = np.zeros(len(queries), bool)

        def run(search: _BlockSearch, block: slice) -> None:
            indices[block], scores[block] = search.top_k(queries[block], _part(exclude, block), k)
            missed[block] = indices[block, -1] < 0 if search.guesses else False

        self._each_block(len(queries), allowed, run)
        # a guessed threshold was too high, or so much is excluded that the list is short
        again = np.flatnonzero(missed)
        if len(again):
            chosen, left = queries[again], _chosen(exclude, again)

            def prove(search: _BlockSearch, block: slice) -> None:
                search.guesses = False
                indices[again[block]], scores[again[block]] = search.top_k(chosen[block], _part(left, block), k)

            self._each_block(len(again), allowed, prove)
        return indices, scores

    def target_ranks(
        self,
        queries: NDArray[np.float32],
        targets: NDArray[np.integer],
        offsets: NDArray[np.int64],
        exclude: Exclusions | tuple[NDArray[np.integer], NDArray[np.int64]] | None = None,
        allowed: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.int64]:
        """Return the place of each target in the whole ranking of its query, 1 for the best: [t] int64.

        targets: [t] item indices, those of query i from `offsets[i]` to `offsets[i + 1]`. A target that is excluded or
        not allowed has no place: 0. Ranks are those of `search` with k = n, found by counting, without a sort.
        """
        queries, exclude = self._checked(queries, exclude, allowed)
        wanted = _checked(Exclusions(np.asarray(targets, np.int64), offsets), len(queries), self.item_count)
        ranks = np.zeros(len(targets), np.int64)

        def run(search: _BlockSearch, block: slice) -> None:
            part = slice(offsets[block.start], offsets[block.stop])
            ranks[part] = search.ranks(queries[block], _part(wanted, block), _part(exclude, block))

        self._each_block(len(queries), allowed, run)
        return ranks

    def _checked(
        self,
        queries: NDArray[np.float32],
        exclude: Exclusions | tuple[NDArray[np.integer], NDArray[np.int64]] | None,
        allowed: NDArray[np.bool_] | None,
    ) -> tuple[NDArray[np.float32], Exclusions]:
        """Refuse what cannot be searched for; no exclusions become empty ones."""
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.embedding_size:
            raise ValueError(f"queries must be [q, {self.embedding_size}], got {list(queries.shape)}")
        if allowed is not None and allowed.shape != (self.item_count,):
            raise ValueError(f"allowed must be [{self.item_count}], got {list(allowed.shape)}")
        if _largest_norm(queries, "query") * self._largest_norm > float(np.finfo(np.float32).max) / 2:
            raise DataError("scores would leave the range of float32: normalise the queries or the items")
        if exclude is None:
            return queries, Exclusions(np.zeros(0, np.int64), np.zeros(len(queries) + 1, np.int64))
        return queries, _checked(Exclusions(*exclude), len(queries), self.item_count)

    def _each_block(
        self, count: int, allowed: NDArray[np.bool_] | None, run: Callable[[_BlockSearch, slice], None]
    ) -> None:
        """Call `run` for blocks of queries on the threads of this search."""
        size = _QUERY_BLOCK
        while size > _SMALLEST_BLOCK and size * (self.threads - 1) >= count:
            size //= 2
        blocks = iter([slice(start, min(start + size, count)) for start in range(0, count, size)])
        blocked = np.zeros(0, np.int64) if allowed is None else np.flatnonzero(~allowed)

        def work() -> None:
            torch.set_num_threads(1)  # one product per thread: no barrier between threads, and the bits stay the same
            search = _BlockSearch(self._items, self.item_count, size, blocked)
            for block in blocks:
                run(search, block)

        torch_threads = torch.get_num_threads()
        try:
            if self.threads > 1 and count > size:
                with ThreadPoolExecutor(self.threads) as pool:
                    for done in [pool.submit(work) for _ in range(self.threads)]:
                        done.result()
            else:
                work()
        finally:
            torch.set_num_threads(torch_threads)


def merge_top_k(
    parts: Sequence[tuple[NDArray[np.int64], NDArray[np.float32]]], starts: Sequence[int], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Merge the top-k lists of item shards into the lists of the whole catalogue.

    parts: per shard indices [q, k'] within the shard (-1: none) and scores [q, k'].
    starts: per shard the catalogue index of its first item.

    Returns indices [q, k] int64 and scores [q, k] float32, k cut to the length of all lists together.
    """
    keys = np.concatenate(
        [
            np.where(indices < 0, _NO_ITEM, _descending(scores) << 31 | indices + start)
            for (indices, scores), start in zip(parts, starts, strict=True)
        ],
        axis=1,
    )
    keys.sort(axis=1)
    keys = keys[:, :k]
    none = keys == _NO_ITEM
    indices = np.where(none, -1, keys & ((1 << 31) - 1))
    return indices, np.where(none, np.float32(-np.inf), _scores(keys >> 31))


class _BlockSearch:
    """Buffers and the search of one block of queries at a time, by one thread."""

    def __init__(self, items: torch.Tensor, item_count: int, block: int, blocked: NDArray[np.int64]) -> None:
        self.items, self.item_count, self.blocked = items, item_count, blocked
        tiles = math.ceil(len(items) / _TILE)
        self.tile = math.ceil(len(items) / tiles / _SMALLEST_TILE) * _SMALLEST_TILE
        self.scores = torch.empty((self.tile, block))
        self.mask = np.empty(self.tile * block, np.bool_)
        self.guesses = tiles > 1

    def top_k(
        self, queries: NDArray[np.float32], exclude: Exclusions, k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return indices and scores [q, k] of one block; a list that ends with -1 is not certain while this guesses."""
        keys, first = self._survivors(queries, exclude, k)
        return _lists(keys, first, k)

    def ranks(self, queries: NDArray[np.float32], targets: Exclusions, exclude: Exclusions) -> NDArray[np.int64]:
        """Return the ranks of the targets of one block: one pass over its scores per place in the lists of targets."""
        item = targets.values.astype(np.int64)
        query = _owners(targets)
        score = _fixed_scores(self.items, _padded(queries), item, query)
        turn = np.arange(len(item)) - targets.offsets[query]
        better = np.zeros(len(item), np.int64)
        for start, low, stop, tile in self._tiles(queries, exclude):
            scores = tile.numpy()
            for now in range(int(turn.max(initial=-1)) + 1):
                at = np.flatnonzero(turn == now)
                bar = np.full(scores.shape[1], np.inf, np.float32)
                before = item[at] >= stop  # items of this tile win a tie against targets behind it
                bar[query[at]] = np.where(before, np.nextafter(score[at], np.float32(-np.inf)), score[at])
                better[at] += _count_above(scores, bar)[query[at]]
                for one in at[(item[at] >= start) & (item[at] < stop)]:
                    column = scores[: item[one] - low, query[one]]
                    better[one] += np.count_nonzero(column == score[one])
        barred = np.isin(item, self.blocked)
        pairs = _owners(exclude) * self.item_count + exclude.values
        barred |= np.isin(query * self.item_count + item, pairs)
        return np.where(barred, 0, better + 1)

    def _tiles(self, queries: NDArray[np.float32], exclude: Exclusions) -> Iterator[tuple[int, int, int, torch.Tensor]]:
        """Yield the scores of items from `start` to `stop` as a tile [rows, padded queries] whose row 0 is item `low`.

        Rows of padding, of items that an earlier tile had, and what is excluded or not allowed have -inf. The tile's
        memory is used again for the next one.
        """
        padded = _padded(queries).t()
        width = padded.shape[1]
        excluded = _by_tile(exclude, self.tile)
        for start in range(0, len(self.items), self.tile):
            low = max(0, min(start, len(self.items) - _SMALLEST_TILE))
            stop = min(start + self.tile, len(self.items))
            rows = math.ceil((stop - low) / _GROUP) * _GROUP
            tile = self.scores.view(-1)[: rows * width].view(rows, width)
            for at in range(low, stop, _PRODUCT):  # a product this high leaves its result in the cache
                end = min(at + _PRODUCT, stop)
                at = max(low, end - _PRODUCT)
                torch.matmul(self.items[at:end], padded, out=tile[at - low : end - low])
            self._mask(tile, low, start, stop, excluded.get(start // self.tile))
            yield start, low, stop, tile

    def _survivors(
        self, queries: NDArray[np.float32], exclude: Exclusions, k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return sorted keys (query, score, item) of items that may be in the lists, and where each query begins."""
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
        """Give -inf to rows that an earlier tile had, to padding, to items not allowed and to exclusions."""
        if low < start:
            tile[: start - low] = -math.inf
        if low + len(tile) > min(stop, self.item_count):
            tile[min(stop, self.item_count) - low :] = -math.inf
        if len(self.blocked):
            begin, end = np.searchsorted(self.blocked, [low, stop])
            tile.numpy()[self.blocked[begin:end] - low] = -np.inf
        if excluded is not None:
            item, query = excluded
            tile.numpy()[item - low, query] = -np.inf

    def _rank(self, items_seen: int, k: int) -> int:
        """Return the rank among the first items that the k-th of all is likely (without guesses: certain) to reach."""
        if not self.guesses:
            return k
        expected = k * items_seen / len(self.items)
        return min(k, math.ceil(expected + 2.2 * math.sqrt(expected) + 2))

    def _first_threshold(self, tile: torch.Tensor, count: int, k: int) -> NDArray[np.float32]:
        """Return per query a score that the k-th best item is likely (without guesses: certain) to reach.

        tile: [rows, width], the first one. The r-th largest maximum of groups of neighbours is at most the r-th largest
        score, and is found in an eighth of the numbers.
        """
        rows, width = tile.shape
        rank = self._rank(rows, k)
        group = _GROUP if rows >= 4 * rank * _GROUP else 1
        maxima = torch.amax(tile.view(rows // group, group, width), 1).numpy()
        threshold = np.full(width, np.inf, np.float32)  # padding queries keep nothing
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
    """Keep the best keys of each query up to the rank and raise its threshold above the last: later ties come after."""
    full = np.flatnonzero(np.diff(first) >= rank)
    threshold = threshold.copy()
    last = _scores(keys[first[full] + rank - 1] >> _SCORE_SHIFT & 0xFFFFFFFF)
    threshold[full] = np.nextafter(last, np.float32(np.inf))
    place = np.arange(len(keys)) - np.repeat(first[:-1], np.diff(first))
    return keys[place < rank], threshold


def _lists(keys: NDArray[np.int64], first: NDArray[np.int64], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the first k of each query; a short query is filled with -1 and -inf."""
    position = first[:-1, None] + np.arange(k)
    short = position >= first[1:, None]
    if not short.any():
        best = keys[position]
        return best & _ITEM_MASK, _scores(best >> _SCORE_SHIFT & 0xFFFFFFFF)
    best = np.append(keys, 0)[np.where(short, len(keys), position)]
    indices = np.where(short, -1, best & _ITEM_MASK)
    return indices, np.where(short, np.float32(-np.inf), _scores(best >> _SCORE_SHIFT & 0xFFFFFFFF))


def _fixed_scores(
    items: torch.Tensor, queries: torch.Tensor, item: NDArray[np.int64], query: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the scores [t] of pairs of an item and a query, to the bit those of the tiles."""
    found = np.empty(len(item), np.float32)
    for start in range(0, len(item), _TILE):
        chosen = np.resize(item[start : start + _TILE], max(_SMALLEST_TILE, len(item[start : start + _TILE])))
        product = torch.matmul(items[torch.from_numpy(chosen)], queries.t()).numpy()
        part = query[start : start + _TILE]
        found[start : start + _TILE] = product[np.arange(len(part)), part]
    return found


def _count_above(scores: NDArray[np.float32], bar: NDArray[np.float32]) -> NDArray[np.int64]:
    """Count per column the scores above the column's bar, in sums of bytes that cannot overflow."""
    above = (scores > bar).view(np.uint8)
    total = np.zeros(scores.shape[1], np.int64)
    for start in range(0, len(above), 248):
        total += np.add.reduce(above[start : start + 248], axis=0, dtype=np.uint8)
    return total


def _padded(queries: NDArray[np.float32]) -> torch.Tensor:
    """Return the queries with rows of zeros up to a power of two, at least 16."""
    width = max(_SMALLEST_BLOCK, 1 << (len(queries) - 1).bit_length())
    padded = torch.zeros((width, queries.shape[1]))
    padded[: len(queries)] = _as_tensor(queries)
    return padded


def _owners(ragged: Exclusions) -> NDArray[np.int64]:
    """Return the query of each value: [total]."""
    return np.repeat(np.arange(len(ragged.offsets) - 1), np.diff(ragged.offsets))


def _above(
    tile: NDArray[np.float32], low: int, threshold: NDArray[np.float32], mask: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Return keys (query, score, item) of the scores that reach the threshold of their query.

    tile: [rows, width] scores of items from `low` on, width a power of two.  mask: memory for as many flags.
    """
    width = tile.shape[1]
    mask = mask[: tile.size].reshape(tile.shape)
    np.greater_equal(tile, threshold, out=mask)
    place = np.flatnonzero(mask.reshape(-1))
    keys = _descending(tile.reshape(-1)[place])
    keys <<= _SCORE_SHIFT
    keys |= (place & (width - 1)) << _QUERY_SHIFT
    keys |= (place >> (width.bit_length() - 1)) + low
    return keys


def _descending(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return integers in [0, 2**32) that sort as the scores do from high to low; -0.0 equals 0.0."""
    bits = (scores + np.float32(0)).view(np.int32)
    ascending = bits ^ (bits >> 31 & 0x7FFFFFFF)
    order: NDArray[np.int64] = 0x7FFFFFFF - ascending.astype(np.int64)
    return order


def _scores(order: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the scores that `_descending` turned into these integers."""
    ascending = (0x7FFFFFFF - order).astype(np.int32)
    return (ascending ^ (ascending >> 31 & 0x7FFFFFFF)).view(np.float32)


def _first_of_each(keys: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return where each query's keys begin in the sorted keys, and their end: [count + 1]."""
    first = np.empty(count + 1, np.int64)
    first[:-1] = np.searchsorted(keys, np.arange(count) << _QUERY_SHIFT)
    first[-1] = len(keys)
    return first


def _by_tile(exclude: Exclusions, tile: int) -> dict[int, tuple[NDArray[np.int64], ...]]:
    """Return per tile the (item, query) pairs that are excluded in it."""
    if not len(exclude.values):
        return {}
    item = exclude.values.astype(np.int64)
    query = _owners(exclude)
    number = item // tile
    order = np.argsort(number, kind="stable")
    tiles, begin = np.unique(number[order], return_index=True)
    ends = [*begin[1:].tolist(), len(order)]
    return {
        int(at): (item[order[b:e]], query[order[b:e]]) for at, b, e in zip(tiles, begin.tolist(), ends, strict=True)
    }


def _part(ragged: Exclusions, block: slice) -> Exclusions:
    """Return what belongs to the queries of the block."""
    offsets = ragged.offsets[block.start : block.stop + 1]
    return Exclusions(ragged.values[offsets[0] : offsets[-1]], offsets - offsets[0])


def _chosen(ragged: Exclusions, queries: NDArray[np.int64]) -> Exclusions:
    """Return what belongs to the chosen queries."""
    lengths = np.diff(ragged.offsets)[queries]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Exclusions(
        ragged.values[np.repeat(ragged.offsets[queries] - offsets[:-1], lengths) + np.arange(offsets[-1])], offsets
    )


def _checked(exclude: Exclusions, query_count: int, item_count: int) -> Exclusions:
    """Refuse exclusions that do not belong to these queries and items."""
    values, offsets = exclude
    if offsets.shape != (query_count + 1,) or offsets[0] != 0 or offsets[-1] != len(values):
        raise ValueError(f"offsets must be [{query_count + 1}], from 0 to {len(values)}")
    if len(values) and (int(values.min()) < 0 or int(values.max()) >= item_count):
        raise ValueError(f"exclusions and targets must be item indices from 0 to {item_count - 1}")
    return exclude


def _largest_norm(matrix: NDArray[np.float32], what: str) -> float:
    """Return the largest Euclidean norm of the rows; refuse NaN and infinity."""
    largest = 0.0
    for start in range(0, len(matrix), 8192):
        block = matrix[start : start + 8192].astype(np.float64)
        squares = np.einsum("ij,ij->i", block, block)
        if not np.isfinite(squares).all():
            row = start + int(np.flatnonzero(~np.isfinite(squares))[0])
            raise DataError(f"the vector of {what} {row} holds NaN or infinity; was the model trained without a fault?")
        largest = max(largest, float(squares.max(initial=0.0)))
    return math.sqrt(largest)


def _as_tensor(array: NDArray[np.float32]) -> torch.Tensor:
    """Return a tensor on the array's own memory; a read-only array is only ever read."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
