"""Exact top-k search of one item matrix: for each query the k items with the highest inner product, on all threads.

Input: an item matrix, a batch of queries, k, and items to exclude. Output: item indices and scores in rank order, score
descending, equal scores by item index ascending. Rules arrive as a mask over items or as item indices per query.

Float32 order: the score of a query and an item is the float32 chain of fused multiply-adds over the dimensions in
order, `s = fma(q[i], x[i], s)`, which is the inner loop of a matrix product. The products of `float_search` only have
shapes (at least 16 queries, at least 64 items, one thread each) for which torch's matrix library computes exactly this
chain, and `int8_search` computes the chain itself. So scores and ranks depend neither on the kind of pass, nor on the
block size, nor on the other queries of a batch, nor on the shards of a catalogue; tests compare both.

There are two kinds of passes. On processors that multiply bytes (AVX2, AVX-VNNI, AVX-512 VNNI, ARM dot products), for
catalogues from 4,096 items and k up to a 32nd of them, a first pass over bytes with a proven bound leaves few items,
whose float32 scores are then computed. All other searches use blocked float32 products. Memory is a few MB per thread,
and d + 12 bytes per item for the bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from rec_ray.errors import DataError
from rec_ray.retrieval.search.byte_products import FLOAT32, KERNELS, check_kernel, fastest_kernel
from rec_ray.retrieval.search.float32 import (
    MAX_ITEMS,
    QUERY_BLOCK,
    SMALLEST_BLOCK,
    SMALLEST_TILE,
    FloatSearch,
    as_tensor,
)
from rec_ray.retrieval.search.int8_index import QuantisedItems, largest_norm, quantise_items
from rec_ray.retrieval.search.keys import Exclusions, check_exclusions, chosen_of, part_of
from rec_ray.retrieval.search.threads import run_on_threads

FEWEST_ITEMS = 4096
"""Catalogue size from which a pass over bytes is faster."""
FEWEST_QUERIES = 64
"""Queries of a search from which quantising the items for it is worth the time."""
BYTE_BLOCK = 96
"""Queries per block of the pass over bytes; their survivors fit the cache."""


class _Search(Protocol):
    """Search of one block of queries by one thread; a list that ends with -1 is short, or unproven."""

    def top_k(
        self, queries: NDArray[np.float32], exclude: Exclusions, k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]: ...


_S = TypeVar("_S", bound=_Search)


class ExactTopK:
    """Search of one item matrix; a search may run in several threads at the same time.

    items: [n, d] float32; a C-contiguous array is used without a copy and may be read-only, as in shared memory.
    threads: threads of this process that a search runs on; None takes torch's number. quantised: the items as bytes,
    from `quantise_items`, possibly in shared memory; None makes them when a search is large enough.  kernel: a name
    of `available_kernels`, or "float32" for no pass over bytes; None takes the fastest of this processor.

    Raises DataError when items hold NaN or infinity, or are more than `MAX_ITEMS`, and if the processor lacks the
    kernel.
    """

    def __init__(
        self,
        items: NDArray[np.float32],
        *,
        threads: int | None = None,
        quantised: QuantisedItems | None = None,
        kernel: str | None = None,
    ) -> None:
        if items.ndim != 2 or items.dtype != np.float32:
            raise ValueError(f"items must be a float32 matrix [n, d], got {items.dtype} {list(items.shape)}")
        if len(items) > MAX_ITEMS:
            raise DataError(f"{len(items)} items are more than one search holds ({MAX_ITEMS}); cut them into shards")
        self.item_count, self.embedding_size = items.shape
        self.threads = torch.get_num_threads() if threads is None else threads
        # Quantising has checked that all values are finite.
        self._largest_norm = largest_norm(items, "item") if quantised is None else float(quantised.norm.max(initial=0))
        if len(items) < SMALLEST_TILE:
            items = np.concatenate([items, np.zeros((SMALLEST_TILE - len(items), items.shape[1]), np.float32)])
        self._items = as_tensor(np.ascontiguousarray(items))
        self.kernel = fastest_kernel() if kernel is None else check_kernel(kernel)
        self._quantised = None if quantised is None else quantised.writable()
        self._use_bytes = self.kernel != FLOAT32 and len(items) >= FEWEST_ITEMS and self._largest_norm < 1e15

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        exclude: Exclusions | tuple[NDArray[np.integer], NDArray[np.int64]] | None = None,
        allowed: NDArray[np.bool_] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the indices and scores of the k best items of each query, in rank order.

        queries: [q, d] float32.  exclude: item indices per query that are never returned.  allowed: [n] bool, items
        that may be returned to any query (None: all).  Both apply before the cut to k.

        Returns indices [q, min(k, n)] int64 and scores [q, min(k, n)] float32. A query with fewer remaining items has
        index -1 and score -inf at its end.

        Raises DataError for queries with NaN or infinity and for scores beyond float32, ValueError for wrong shapes.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        queries, exclude = self.check_search(queries, exclude, allowed)
        k = min(k, self.item_count)
        indices = np.empty((len(queries), k), np.int64)
        scores = np.empty((len(queries), k), np.float32)
        if not k:
            return indices, scores
        open_queries = np.arange(len(queries))
        for size, make_search in self._passes(len(queries), k, allowed):
            if not len(open_queries):
                break
            all_open = len(open_queries) == len(queries)
            part = queries if all_open else queries[open_queries]
            excluded = exclude if all_open else chosen_of(exclude, open_queries)
            found = indices if all_open else indices[open_queries]
            found_scores = scores if all_open else scores[open_queries]

            def run(
                search: _Search,
                block: slice,
                part: NDArray[np.float32] = part,
                excluded: Exclusions = excluded,
                found: NDArray[np.int64] = found,
                found_scores: NDArray[np.float32] = found_scores,
            ) -> None:
                found[block], found_scores[block] = search.top_k(part[block], part_of(excluded, block), k)

            self._search_blocks(len(open_queries), size, make_search, run)
            if not all_open:
                indices[open_queries], scores[open_queries] = found, found_scores
            # A list that ends with -1 is unproven, or short because of exclusions.
            open_queries = open_queries[found[:, -1] < 0]
        return indices, scores

    def target_ranks(
        self,
        queries: NDArray[np.float32],
        targets: NDArray[np.integer],
        offsets: NDArray[np.int64],
        exclude: Exclusions | tuple[NDArray[np.integer], NDArray[np.int64]] | None = None,
        allowed: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.int64]:
        """Return the rank of each target in the complete ranking of its query, 1 for the best: [t] int64.

        targets: [t] item indices, those of query i from `offsets[i]` to `offsets[i + 1]`. A target that is excluded or
        not allowed has rank 0. Ranks are those of `search` with k = n, found by counting, without a sort.
        """
        queries, exclude = self.check_search(queries, exclude, allowed)
        wanted = check_exclusions(Exclusions(np.asarray(targets, np.int64), offsets), len(queries), self.item_count)
        ranks = np.zeros(len(targets), np.int64)

        def run(search: FloatSearch, block: slice) -> None:
            part = slice(offsets[block.start], offsets[block.stop])
            ranks[part] = search.ranks(queries[block], part_of(wanted, block), part_of(exclude, block))

        size, make_search = self._float_pass(len(queries), allowed, guesses=False)
        self._search_blocks(len(queries), size, make_search, run)
        return ranks

    def uses_bytes(self, query_count: int, k: int, allowed: NDArray[np.bool_] | None = None) -> bool:
        """Return True if a search of so many queries begins with a pass over bytes."""
        enough = self._quantised is not None or query_count >= FEWEST_QUERIES
        few = 32 * k <= (self.item_count if allowed is None else allowed.sum())
        return bool(self._use_bytes and enough and few)

    def _passes(self, count: int, k: int, allowed: NDArray[np.bool_] | None) -> list[tuple[int, Callable[[], _Search]]]:
        """Return the block size and the search of each pass; a pass searches what the earlier ones have not proven."""
        passes: list[tuple[int, Callable[[], _Search]]] = []
        if self.uses_bytes(count, k, allowed):
            # Lazy import: numba takes a second to load, which only large searches recover.
            from rec_ray.retrieval.search.int8 import ByteSearch

            items, kernel = self._items.numpy(), self.kernel
            if self._quantised is None or not self._quantised.fits(kernel):
                # Also if another kind of processor of a cluster has made the bytes.
                self._quantised = quantise_items(items, bits=KERNELS[kernel].item_bits)
            quantised, allow = self._quantised, self._quantised.allow_bits(allowed)
            passes += [
                (BYTE_BLOCK, lambda: ByteSearch(quantised, items, allow, kernel, guesses=True)),
                (BYTE_BLOCK, lambda: ByteSearch(quantised, items, allow, kernel, guesses=False)),
            ]
        passes.append(self._float_pass(count, allowed, guesses=True))
        if len(self._items) > SMALLEST_TILE:
            passes.append(self._float_pass(count, allowed, guesses=False))
        return passes

    def _float_pass(
        self, count: int, allowed: NDArray[np.bool_] | None, guesses: bool
    ) -> tuple[int, Callable[[], FloatSearch]]:
        size = QUERY_BLOCK
        while size > SMALLEST_BLOCK and size * (self.threads - 1) >= count:
            size //= 2
        forbidden = np.zeros(0, np.int64) if allowed is None else np.flatnonzero(~allowed)
        return size, lambda: FloatSearch(self._items, self.item_count, size, forbidden, guesses)

    def check_search(
        self,
        queries: NDArray[np.float32],
        exclude: Exclusions | tuple[NDArray[np.integer], NDArray[np.int64]] | None,
        allowed: NDArray[np.bool_] | None,
    ) -> tuple[NDArray[np.float32], Exclusions]:
        """Return checked queries and exclusions of a search; no exclusions become empty ones.

        Raises DataError and ValueError as `search`.
        """
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.embedding_size:
            raise ValueError(f"queries must be [q, {self.embedding_size}], got {list(queries.shape)}")
        if allowed is not None and allowed.shape != (self.item_count,):
            raise ValueError(f"allowed must be [{self.item_count}], got {list(allowed.shape)}")
        if largest_norm(queries, "query") * self._largest_norm > float(np.finfo(np.float32).max) / 2:
            raise DataError("scores would leave the range of float32: normalise the queries or the items")
        if exclude is None:
            return queries, Exclusions(np.zeros(0, np.int64), np.zeros(len(queries) + 1, np.int64))
        return queries, check_exclusions(Exclusions(*exclude), len(queries), self.item_count)

    def _search_blocks(
        self, count: int, size: int, make_search: Callable[[], _S], run: Callable[[_S, slice], None]
    ) -> None:
        """Call `run` for each block of queries on the threads of this search, with one search object per thread."""
        blocks = iter([slice(start, min(start + size, count)) for start in range(0, count, size)])

        def work() -> None:
            search = make_search()
            for block in blocks:
                run(search, block)

        # One thread per product: no barrier between threads, and the same bits for any number of threads.
        run_on_threads(work, self.threads if count > size else 1)
