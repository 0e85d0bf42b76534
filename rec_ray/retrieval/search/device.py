"""Exact top-k on a CUDA device (or any that torch has): products of half the width choose, float32 chains decide.

In come an item matrix, a device, queries, k and what must not be returned; out go the lists of `ExactTopK`, in the same
order. It knows nothing of users, of batches of a run, or of how many devices there are.

A tile of float16 scores takes a third of the time of its float32 product, and its error has a proven bound. It chooses
k and some spare items of each query, whose scores are then computed again as the float32 chain. Where the best score
that may have been left behind could reach the k-th, the query is searched again with float32 products, whose bound is
10,000 times tighter, and where they cannot tell either, as among equal scores, by `ExactTopK` on the processor. Only
groups of items with the highest maxima are looked at twice, so a tile is read about once. The device works on one block
of queries while the lists of the one before are read; it is never waited for in between.
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
_SPARE = 28
_ALIGNED = 8
"""Numbers in a row of a matrix are a multiple of this: what the fast products of half the width ask for."""
_LEAST_NORM = 2.0**-120
_TOGETHER = 4
"""Batches whose chosen items are scored again together: a step of a chain is then more work than its call."""


class _Pass(NamedTuple):
    """Items that choose: [d + 1 and zeros, n and padding], a column an item, times `scale`.

    scaled: queries too are brought to norms between 0.5 and 1.  error: how far the product of two vectors may be from
    that of the real numbers, over the largest norms of both.
    """

    items: torch.Tensor
    scale: float
    scaled: bool
    error: float


class _Lists(NamedTuple):
    """Items [b, k], their scores and for which queries [b] they are certain, to be read after `wait`."""

    items: torch.Tensor
    scores: torch.Tensor
    sure: torch.Tensor
    there: torch.cuda.Event | None

    @classmethod
    def on_their_way(cls, items: torch.Tensor, scores: torch.Tensor, sure: torch.Tensor) -> _Lists:
        """Start the copies to the processor."""
        items, scores, sure = (part.to("cpu", non_blocking=True) for part in (items, scores, sure))
        there = torch.cuda.Event() if torch.cuda.is_initialized() else None
        if there is not None:
            there.record(torch.cuda.current_stream())
        return cls(items, scores, sure, there)

    def wait(self) -> None:
        """Wait until the copies are there."""
        if self.there is not None:
            self.there.synchronize()


class DeviceTopK:
    """Search of one item matrix on a device.

    items: [n, d] float32.  device: such as "cuda".  chunk: items multiplied at a time.  batch: queries at a time; the
    two bound the memory on the device, 4 bytes a score, beside 6 bytes a number of the items and the vectors of what
    four batches have chosen.
    """

    def __init__(
        self, items: NDArray[np.float32], device: str | torch.device, *, chunk: int = 131_072, batch: int = 2048
    ) -> None:
        self.item_count, size = items.shape
        self.device, self.batch = torch.device(device), batch
        self.chunk = _rounded_up(chunk, _GROUP)
        self._exact = ExactTopK(items)
        self._largest_norm = max(largest_norm(items, "item"), _LEAST_NORM)
        if self.device.type == "cuda":
            # What the bounds rest on: sums in float32, products of float32 as they are.
            torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
            torch.set_float32_matmul_precision("highest")
        # A row more holds -inf where an item must not be returned; a query has a 1 there.
        shape = _rounded_up(size + 1, _ALIGNED), _rounded_up(max(self.item_count, 1), _GROUP * _ALIGNED)
        items_as_they_are = torch.zeros(shape, device=self.device)
        items_as_they_are[:size, : self.item_count] = as_tensor(items).to(self.device).t()
        self._vectors = items_as_they_are[:size]
        scale = 2.0 ** -math.ceil(math.log2(self._largest_norm))
        half = (items_as_they_are * scale).half()
        self._passes = [
            _Pass(half, scale, True, _half_error(size)),
            _Pass(items_as_they_are, 1.0, False, _sum_error(size)),
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
        queries, exclude = self._exact._checked(queries, exclude, allowed)
        k = min(k, self.item_count)
        if not k or not len(queries):
            return np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
        first, second = self._passes
        indices, scores, sure = self._chosen_by(first, queries, k, exclude, allowed)
        left = np.flatnonzero(~sure)
        if len(left):
            again = self._chosen_by(second, queries[left], k, chosen_of(exclude, left), allowed)
            indices[left], scores[left], sure = again
            left = left[~sure]
        if len(left):
            indices[left], scores[left] = self._exact.search(queries[left], k, chosen_of(exclude, left), allowed)
        return indices, scores

    def _chosen_by(
        self,
        choosing: _Pass,
        queries: NDArray[np.float32],
        k: int,
        exclude: Exclusions,
        allowed: NDArray[np.bool_] | None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.bool_]]:
        """Return indices [q, k], scores, and for which queries [q] the lists are certain."""
        self._forbid(choosing, allowed)
        indices = np.empty((len(queries), k), np.int64)
        scores = np.empty((len(queries), k), np.float32)
        sure = np.empty(len(queries), np.bool_)

        def read(block: slice, lists: _Lists) -> None:
            lists.wait()
            indices[block], scores[block] = lists.items.numpy(), lists.scores.numpy()
            sure[block] = lists.sure.numpy()

        # The device works on a block while the lists of the one before are read.
        before: tuple[slice, _Lists] | None = None
        for start in range(0, len(queries), self.batch * _TOGETHER):
            block = slice(start, min(start + self.batch * _TOGETHER, len(queries)))
            lists = self._lists(choosing, queries[block], k, part_of(exclude, block))
            if before is not None:
                read(*before)
            before = block, lists
        if before is not None:
            read(*before)
        return indices, scores, sure

    def _forbid(self, choosing: _Pass, allowed: NDArray[np.bool_] | None) -> None:
        """Write down what must not be returned to anybody, padding included."""
        row = choosing.items[len(self._vectors)]
        row[self.item_count :] = -torch.inf
        row[: self.item_count] = 0
        if allowed is not None:
            row[: self.item_count].masked_fill_(torch.from_numpy(~allowed).to(self.device), -torch.inf)

    def _lists(self, choosing: _Pass, queries: NDArray[np.float32], k: int, exclude: Exclusions) -> _Lists:
        """Return the lists of a block of queries [b, d], on their way to the processor."""
        vectors = torch.from_numpy(queries).to(self.device, non_blocking=True)
        norms = vectors.double().square().sum(1).sqrt().clamp_(min=_LEAST_NORM)
        factors = torch.exp2(-norms.log2().ceil()) if choosing.scaled else torch.ones_like(norms)
        padded = vectors.new_zeros((len(vectors), len(choosing.items)))
        padded[:, : vectors.shape[1]] = vectors * factors[:, None]
        padded[:, vectors.shape[1]] = 1
        scaled, wanted = padded.to(choosing.items.dtype), min(k + _SPARE, self.item_count)
        parts = [
            self._best(
                choosing, scaled[start : start + self.batch], wanted, part_of(exclude, slice(start, start + self.batch))
            )
            for start in range(0, len(queries), self.batch)
        ]
        best, places = (torch.cat(part) for part in zip(*parts, strict=True))
        exact = self._chain(vectors, places).masked_fill_(best == -torch.inf, -torch.inf)
        keys, order = _sort_keys(exact, places).sort(1)
        keys, order = keys[:, :k], order[:, :k]
        items, scores = places.gather(1, order).masked_fill_(keys == NO_ITEM, -1), exact.gather(1, order)
        # Nothing was left behind, or what was is certainly below the k-th.
        last = best.amin(1).double()
        reach = norms * self._largest_norm * (choosing.error + _sum_error(vectors.shape[1]))
        sure = (last == -torch.inf) | (last / (factors * choosing.scale) + reach + 1e-37 < scores[:, -1])
        if best.shape[1] == self.item_count:
            sure = torch.ones_like(sure)
        return _Lists.on_their_way(items.int(), scores, sure)

    def _best(
        self, choosing: _Pass, queries: torch.Tensor, wanted: int, exclude: Exclusions
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the highest scores of a pass, [b, wanted] in any order, and the items that have them.

        queries: [b, rows of the items].
        """
        count = len(queries)
        item, query = (
            torch.from_numpy(index.astype(np.int64)).to(self.device, non_blocking=True)
            for index in (exclude.values, owners(exclude))
        )
        best, places = queries.new_zeros((count, 0)), torch.zeros((count, 0), dtype=torch.long, device=self.device)
        for start in range(0, choosing.items.shape[1], self.chunk):
            part = choosing.items[:, start : start + self.chunk]
            width = part.shape[1]
            # Exclusions of other chunks go to a row that nobody reads: to leave them out would wait for the device.
            tiles = queries.new_empty((count + 1, width))
            tile = torch.matmul(queries, part, out=tiles[:count])
            inside = (item >= start) & (item < start + width)
            at = torch.where(inside, query * width + item - start, count * width)
            tiles.view(-1).index_fill_(0, at, -torch.inf)
            # Item i is in group i modulo their number: so maxima are taken along memory, not across it.
            groups = tile.view(count, _GROUP, -1)
            highest = groups.amax(1)
            # The best items lie in as many groups with the highest maxima.
            top = highest.topk(min(wanted, highest.shape[1]), dim=1, sorted=False).indices[:, None]
            found = groups.gather(2, top.expand(-1, _GROUP, -1)).flatten(1)
            of_group = torch.arange(start, start + width, highest.shape[1], device=self.device)
            scores, at = torch.cat([best, found], 1), torch.cat([places, (of_group[:, None] + top).flatten(1)], 1)
            best, order = scores.topk(min(wanted, scores.shape[1]), dim=1, sorted=False)
            places = at.gather(1, order)
        # Padding, whose score says that it is none.
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
    """Return how far the float16 score of two vectors, each brought below norm 1, may be off, over both norms.

    Each vector is rounded to 11 bits, and so is the score; a number below 2**-14 to a multiple of 2**-24.
    """
    return 3.03 * 2.0**-11 + 4 * _sum_error(size) + 4 * (2 * math.sqrt(size) + 1) * 2.0**-25


def _sum_error(size: int) -> float:
    """Return how far a float32 sum of `size` products may be off in any order, over the norms of the two vectors."""
    return 1.05 * (size + 4) * 2.0**-24


def _sort_keys(scores: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
    """Return what sorts scores from high to low and equal ones by item, as `lists.descending` makes it."""
    bits = (scores + 0.0).view(torch.int32).long()
    keys = 0x7FFFFFFF - (bits ^ (bits >> 31 & 0x7FFFFFFF)) << ITEM_BITS | items
    return keys.masked_fill_(scores == -torch.inf, NO_ITEM)


def _rounded_up(number: int, unit: int) -> int:
    return -(-number // unit) * unit
