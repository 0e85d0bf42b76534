"""Exact top-k search of one item matrix: for each query the k items with the highest inner product, on all threads.

In come an item matrix, a batch of queries, k, and what must not be returned; out go item indices and scores in rank
order: score descending, equal scores by item index ascending. It knows no user, no item id, no filter rule, no Ray: a
rule arrives here as a mask over items or as a list of item indices per query.

What "the float32 order" means. The score of a query and an item is the float32 chain of fused multiply-adds over the
dimensions in order, `s = fma(q[i], x[i], s)`, which is what the inner loop of a matrix product does. The products of
`float_search` only have shapes (at least 16 queries, at least 64 items, one thread each) for which the library behind
torch computes exactly this, and the scores of `int8_search` are written as such a chain. So scores and ranks depend
neither on the way, nor on the size of blocks, nor on the other queries of a batch, nor on how a catalogue is cut into
shards; a test holds both to it.

Two ways lead there. On processors that multiply bytes (AVX-512 VNNI), for catalogues from 4,096 items on and k up to a
32nd of them, a first pass over bytes with a proven bound leaves about 1.4 k items of which the float32 scores are
computed: 1.5 to 4 times the rate of the float32 product alone. Everything else goes by blocked float32 products.
Memory is a few MB per thread, and d + 12 bytes an item for the bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from rec_ray.errors import DataError
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

FEWEST_ITEMS = 4096
"""Items from which on a pass over bytes pays."""
FEWEST_QUERIES = 64
"""Queries of a search from which on it pays to make the bytes for it."""
BYTE_BLOCK = 96
"""Queries of a block of the pass over bytes; with what they have found so far they fit the cache."""


class _Search(Protocol):
    """A search of one block of queries by one thread; a list that ends with -1 is short, or not certain."""

    def top_k(
        self, queries: NDArray[np.float32], exclude: Exclusions, k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]: ...


_S = TypeVar("_S", bound=_Search)


class ExactTopK:
    """Search of one item matrix.

    items: [n, d] float32; a C-contiguous array is used without a copy and may be read-only, as in shared memory.
    threads: searches run on this many threads of this process; None takes torch's number.
    quantised: the items as bytes, as `quantise_items` gives them and possibly in shared memory; None makes them when a
    search is large enough.  use_bytes: False never passes over bytes.

    Raises DataError when items hold NaN or infinity, or are more than `MAX_ITEMS`.
    """

    def __init__(
        self,
        items: NDArray[np.float32],
        *,
        threads: int | None = None,
        quantised: QuantisedItems | None = None,
        use_bytes: bool = True,
    ) -> None:
        if items.ndim != 2 or items.dtype != np.float32:
            raise ValueError(f"items must be a float32 matrix [n, d], got {items.dtype} {list(items.shape)}")
        if len(items) > MAX_ITEMS:
            raise DataError(f"{len(items)} items are more than one search holds ({MAX_ITEMS}); cut them into shards")
        self.item_count, self.embedding_size = items.shape
        self.threads = torch.get_num_threads() if threads is None else threads
        # whoever made the bytes has looked at every number
        self._largest_norm = largest_norm(items, "item") if quantised is None else float(quantised.norm.max(initial=0))
        if len(items) < SMALLEST_TILE:
            items = np.concatenate([items, np.zeros((SMALLEST_TILE - len(items), items.shape[1]), np.float32)])
        self._items = as_tensor(np.ascontiguousarray(items))
        self._quantised = (
            None if quantised is None else QuantisedItems(*(as_tensor(part).numpy() for part in quantised))
        )
        self._use_bytes = use_bytes and len(items) >= FEWEST_ITEMS and self._largest_norm < 1e15

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
        left = np.arange(len(queries))
        for size, make_search in self._ways(len(queries), k, allowed):
            if not len(left):
                break
            whole = len(left) == len(queries)
            chosen, excluded = (queries, exclude) if whole else (queries[left], chosen_of(exclude, left))
            found, reached = indices if whole else indices[left], scores if whole else scores[left]

            def run(
                search: _Search,
                block: slice,
                chosen: NDArray[np.float32] = chosen,
                excluded: Exclusions = excluded,
                found: NDArray[np.int64] = found,
                reached: NDArray[np.float32] = reached,
            ) -> None:
                found[block], reached[block] = search.top_k(chosen[block], part_of(excluded, block), k)

            self._each_block(len(left), size, make_search, run)
            if not whole:
                indices[left], scores[left] = found, reached
            # not proven, or so much is excluded that the list is short
            left = left[found[:, -1] < 0]
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
        wanted = check_exclusions(Exclusions(np.asarray(targets, np.int64), offsets), len(queries), self.item_count)
        ranks = np.zeros(len(targets), np.int64)

        def run(search: FloatSearch, block: slice) -> None:
            part = slice(offsets[block.start], offsets[block.stop])
            ranks[part] = search.ranks(queries[block], part_of(wanted, block), part_of(exclude, block))

        size, make_search = self._float_way(len(queries), allowed, guesses=False)
        self._each_block(len(queries), size, make_search, run)
        return ranks

    def _ways(self, count: int, k: int, allowed: NDArray[np.bool_] | None) -> list[tuple[int, Callable[[], _Search]]]:
        """Return the searches to try one after another, each on what the one before has not proven."""
        ways: list[tuple[int, Callable[[], _Search]]] = []
        pays = self._quantised is not None or count >= FEWEST_QUERIES
        if self._use_bytes and pays and 32 * k <= (self.item_count if allowed is None else allowed.sum()):
            # imported here: numba costs a second that only large searches give back
            from rec_ray.retrieval.search.int8 import ByteSearch, is_supported

            if is_supported():
                items = self._items.numpy()
                if self._quantised is None:
                    self._quantised = quantise_items(items)
                quantised, allow = self._quantised, self._quantised.allow_bits(allowed)
                ways += [
                    (BYTE_BLOCK, lambda: ByteSearch(quantised, items, allow, guesses=True)),
                    (BYTE_BLOCK, lambda: ByteSearch(quantised, items, allow, guesses=False)),
                ]
        ways.append(self._float_way(count, allowed, guesses=True))
        if len(self._items) > SMALLEST_TILE:
            ways.append(self._float_way(count, allowed, guesses=False))
        return ways

    def _float_way(
        self, count: int, allowed: NDArray[np.bool_] | None, guesses: bool
    ) -> tuple[int, Callable[[], FloatSearch]]:
        size = QUERY_BLOCK
        while size > SMALLEST_BLOCK and size * (self.threads - 1) >= count:
            size //= 2
        blocked = np.zeros(0, np.int64) if allowed is None else np.flatnonzero(~allowed)
        return size, lambda: FloatSearch(self._items, self.item_count, size, blocked, guesses)

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
        if largest_norm(queries, "query") * self._largest_norm > float(np.finfo(np.float32).max) / 2:
            raise DataError("scores would leave the range of float32: normalise the queries or the items")
        if exclude is None:
            return queries, Exclusions(np.zeros(0, np.int64), np.zeros(len(queries) + 1, np.int64))
        return queries, check_exclusions(Exclusions(*exclude), len(queries), self.item_count)

    def _each_block(
        self, count: int, size: int, make_search: Callable[[], _S], run: Callable[[_S, slice], None]
    ) -> None:
        """Call `run` for blocks of queries on the threads of this search, with one search object a thread."""
        blocks = iter([slice(start, min(start + size, count)) for start in range(0, count, size)])

        def work() -> None:
            torch.set_num_threads(1)  # one product per thread: no barrier between threads, and the bits stay the same
            search = make_search()
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
