"""Exact top-k on a CUDA device (or another device of torch): float16 products choose, float32 chains decide.

Input: an item matrix, a device, queries, k and items to exclude. Output: the lists of `ExactTopK`, in the same order.

A tile of float16 scores takes a third of the time of its float32 product, and its error has a proven bound. It chooses
k and some extra items of each query, whose scores are then recomputed as float32 chains. If the best score that may
have been missed could reach the k-th, the query is searched again with float32 products, whose bound is 10,000 times
tighter, and if that proves nothing either, as with equal scores, by `ExactTopK` on the processor. Only groups of items
with the highest maxima are read twice, so a tile is read about once. The device computes one block of queries while the
lists of the previous block are read; nothing waits for the device in between.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from rec_ray.retrieval.search.exact import ExactTopK
from rec_ray.retrieval.search.float32 import as_tensor
from rec_ray.retrieval.search.int8_index import largest_norm
from rec_ray.retrieval.search.keys import ITEM_BITS, NO_ITEM, Exclusions, chosen_of, owners, part_of

_GROUP = 32
_EXTRA_ITEMS = 28
_ALIGNED = 8
"""Matrix row lengths are multiples of this number, which fast float16 products require."""
_LEAST_NORM = 2.0**-120
_BATCHES_RESCORED = 4
"""Batches whose chosen items are rescored together, so that a step of a chain is more work than its call."""


class _Pass(NamedTuple):
    """Items of a pass: [d + 1 and zeros, n and padding], one column per item, times `scale`.

    scaled: queries are also scaled to norms between 0.5 and 1.  error: bound on the error of the product of two
    vectors, relative to the largest norms of both.
    """

    items: torch.Tensor
    scale: float
    scaled: bool
    error: float


class _Lists(NamedTuple):
    """Items [b, k], their scores, and which queries [b] are proven; valid after `wait`."""

    items: torch.Tensor
    scores: torch.Tensor
    proven: torch.Tensor
    copied: torch.cuda.Event | None

    @classmethod
    def start_copies(cls, items: torch.Tensor, scores: torch.Tensor, proven: torch.Tensor) -> _Lists:
        """Start the copies to the processor."""
        items, scores, proven = (part.to("cpu", non_blocking=True) for part in (items, scores, proven))
        copied = torch.cuda.Event() if torch.cuda.is_initialized() else None
        if copied is not None:
            copied.record(torch.cuda.current_stream())
        return cls(items, scores, proven, copied)

    def wait(self) -> None:
        """Wait until the copies have arrived."""
        if self.copied is not None:
            self.copied.synchronize()


class DeviceTopK:
    """Search of one item matrix on a device.

    items: [n, d] float32.  device: such as "cuda".  chunk: items per product.  batch: queries per product; both bound
    the memory on the device, 4 bytes per score, beside 6 bytes per number of the items and the vectors of the items
    that four batches choose.  searched: number of queries by the pass that searched them: float16, float32, processor.
    """

    def __init__(
        self, items: NDArray[np.float32], device: str | torch.device, *, chunk: int = 131_072, batch: int = 2048
    ) -> None:
        self.item_count, size = items.shape
        self.device, self.batch = torch.device(device), batch
        self.chunk = _rounded_up(chunk, _GROUP)
        self.searched = {"float16": 0, "float32": 0, "processor": 0}
        self._exact = ExactTopK(items)
        self._largest_norm = max(largest_norm(items, "item"), _LEAST_NORM)
        if self.device.type == "cuda":
            # The bounds assume sums in float32 and unreduced float32 products.
            torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
            torch.set_float32_matmul_precision("highest")
        # One more row holds -inf for items that must not be returned; a query has a 1 there.
        shape = _rounded_up(size + 1, _ALIGNED), _rounded_up(max(self.item_count, 1), _GROUP * _ALIGNED)
        float_items = torch.zeros(shape, device=self.device)
        float_items[:size, : self.item_count] = as_tensor(items).to(self.device).t()
        self._vectors = float_items[:size]
        scale = 2.0 ** -math.ceil(math.log2(self._largest_norm))
        half_items = (float_items * scale).half()
        self._passes = [
            _Pass(half_items, scale, True, _half_error(size)),
            _Pass(float_items, 1.0, False, _sum_error(size)),
        ]

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        exclude: Exclusions | None = None,
        allowed: NDArray[np.bool_] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the indices and scores of the k best items of each query, as `ExactTopK.search` does."""
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        queries, exclude = self._exact.check_search(queries, exclude, allowed)
        k = min(k, self.item_count)
        if not k or not len(queries):
            return np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
        first, second = self._passes
        self.searched["float16"] += len(queries)
        indices, scores, proven = self._search_pass(first, queries, k, exclude, allowed)
        open_queries = np.flatnonzero(~proven)
        self.searched["float32"] += len(open_queries)
        if len(open_queries):
            second_lists = self._search_pass(
                second, queries[open_queries], k, chosen_of(exclude, open_queries), allowed
            )
            indices[open_queries], scores[open_queries], proven = second_lists
            open_queries = open_queries[~proven]
        self.searched["processor"] += len(open_queries)
        if len(open_queries):
            indices[open_queries], scores[open_queries] = self._exact.search(
                queries[open_queries], k, chosen_of(exclude, open_queries), allowed
            )
        return indices, scores

    def _search_pass(
        self,
        search_pass: _Pass,
        queries: NDArray[np.float32],
        k: int,
        exclude: Exclusions,
        allowed: NDArray[np.bool_] | None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.bool_]]:
        """Return indices [q, k], scores, and which queries [q] have proven lists."""
        self._forbid(search_pass, allowed)
        indices = np.empty((len(queries), k), np.int64)
        scores = np.empty((len(queries), k), np.float32)
        proven = np.empty(len(queries), np.bool_)

        def read(block: slice, lists: _Lists) -> None:
            lists.wait()
            indices[block], scores[block] = lists.items.numpy(), lists.scores.numpy()
            proven[block] = lists.proven.numpy()

        # The device computes a block while the lists of the previous block are read.
        before: tuple[slice, _Lists] | None = None
        for start in range(0, len(queries), self.batch * _BATCHES_RESCORED):
            block = slice(start, min(start + self.batch * _BATCHES_RESCORED, len(queries)))
            lists = self._lists(search_pass, queries[block], k, part_of(exclude, block))
            if before is not None:
                read(*before)
            before = block, lists
        if before is not None:
            read(*before)
        return indices, scores, proven

    def _forbid(self, search_pass: _Pass, allowed: NDArray[np.bool_] | None) -> None:
        """Set the row of forbidden items, padding included."""
        row = search_pass.items[len(self._vectors)]
        row[self.item_count :] = -torch.inf
        row[: self.item_count] = 0
        if allowed is not None:
            row[: self.item_count].masked_fill_(torch.from_numpy(~allowed).to(self.device), -torch.inf)

    def _lists(self, search_pass: _Pass, queries: NDArray[np.float32], k: int, exclude: Exclusions) -> _Lists:
        """Return the lists of a block of queries [b, d], with their copies to the processor started."""
        vectors = torch.from_numpy(queries).to(self.device, non_blocking=True)
        norms = vectors.double().square().sum(1).sqrt().clamp_(min=_LEAST_NORM)
        factors = torch.exp2(-norms.log2().ceil()) if search_pass.scaled else torch.ones_like(norms)
        padded = vectors.new_zeros((len(vectors), len(search_pass.items)))
        padded[:, : vectors.shape[1]] = vectors * factors[:, None]
        padded[:, vectors.shape[1]] = 1
        scaled, wanted = padded.to(search_pass.items.dtype), min(k + _EXTRA_ITEMS, self.item_count)
        parts = [
            self._best(
                search_pass,
                scaled[start : start + self.batch],
                wanted,
                part_of(exclude, slice(start, start + self.batch)),
            )
            for start in range(0, len(queries), self.batch)
        ]
        best, places = (torch.cat(part) for part in zip(*parts, strict=True))
        exact = self._chain(vectors, places).masked_fill_(best == -torch.inf, -torch.inf)
        keys, order = _sort_keys(exact, places).sort(1)
        keys, order = keys[:, :k], order[:, :k]
        items, scores = places.gather(1, order).masked_fill_(keys == NO_ITEM, -1), exact.gather(1, order)
        # Proven: no item was missed, or every missed item is certainly below the k-th.
        last = best.amin(1).double()
        reach = norms * self._largest_norm * (search_pass.error + _sum_error(vectors.shape[1]))
        proven = (last == -torch.inf) | (last / (factors * search_pass.scale) + reach + 1e-37 < scores[:, -1])
        if best.shape[1] == self.item_count:
            proven = torch.ones_like(proven)
        return _Lists.start_copies(items.int(), scores, proven)

    def _best(
        self, search_pass: _Pass, queries: torch.Tensor, wanted: int, exclude: Exclusions
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the highest scores of a pass, [b, wanted] in any order, and their items.

        queries: [b, rows of the items].
        """
        count = len(queries)
        item, query = (
            torch.from_numpy(index.astype(np.int64)).to(self.device, non_blocking=True)
            for index in (exclude.values, owners(exclude))
        )
        best, places = queries.new_zeros((count, 0)), torch.zeros((count, 0), dtype=torch.long, device=self.device)
        for start in range(0, search_pass.items.shape[1], self.chunk):
            part = search_pass.items[:, start : start + self.chunk]
            width = part.shape[1]
            # Exclusions of other chunks go to an unused row, because filtering them would wait for the device.
            tiles = queries.new_empty((count + 1, width))
            tile = torch.matmul(queries, part, out=tiles[:count])
            inside = (item >= start) & (item < start + width)
            at = torch.where(inside, query * width + item - start, count * width)
            tiles.view(-1).index_fill_(0, at, -torch.inf)
            # Item i is in group i modulo the number of groups, so that maxima are taken along memory.
            groups = tile.view(count, _GROUP, -1)
            highest = groups.amax(1)
            # The best items lie in as many groups, those with the highest maxima.
            top = highest.topk(min(wanted, highest.shape[1]), dim=1, sorted=False).indices[:, None]
            found = groups.gather(2, top.expand(-1, _GROUP, -1)).flatten(1)
            of_group = torch.arange(start, start + width, highest.shape[1], device=self.device)
            scores, at = torch.cat([best, found], 1), torch.cat([places, (of_group[:, None] + top).flatten(1)], 1)
            best, order = scores.topk(min(wanted, scores.shape[1]), dim=1, sorted=False)
            places = at.gather(1, order)
        # Clamped padding has score -inf.
        return best, places.clamp_(max=self.item_count - 1)

    def _chain(self, queries: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Return the float32 chains [b, m] of the items at places [b, m]: each step in float64, rounded to float32.

        The product of two float32 is exact in float64. The sum is rounded twice, which differs from a fused
        multiply-add once in about 2**29 steps, by the last bit.
        """
        vectors = self._vectors.index_select(1, places.flatten()).view(-1, *places.shape)
        score, queries = torch.zeros(places.shape, device=self.device), queries.double()
        for place, numbers in enumerate(vectors):
            torch.addcmul(score, queries[:, place, None], numbers, out=score)
        return score


def _half_error(size: int) -> float:
    """Return the error bound of the float16 score of two vectors, each scaled below norm 1, relative to both norms.

    Each vector is rounded to 11 bits, and so is the score; a number below 2**-14 is rounded to a multiple of 2**-24.
    """
    return 3.03 * 2.0**-11 + 4 * _sum_error(size) + 4 * (2 * math.sqrt(size) + 1) * 2.0**-25


def _sum_error(size: int) -> float:
    """Return the error bound of a float32 sum of `size` products in any order, relative to the norms of the two
    vectors.
    """
    return 1.05 * (size + 4) * 2.0**-24


def _sort_keys(scores: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
    """Return keys that sort scores from high to low and equal scores by item, as `lists.descending`."""
    bits = (scores + 0.0).view(torch.int32).long()
    keys = 0x7FFFFFFF - (bits ^ (bits >> 31 & 0x7FFFFFFF)) << ITEM_BITS | items
    return keys.masked_fill_(scores == -torch.inf, NO_ITEM)


def _rounded_up(number: int, unit: int) -> int:
    return -(-number // unit) * unit
