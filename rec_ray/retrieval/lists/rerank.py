"""Reranking of a pool of good items to a list: at most n items per category, diversity, new items, required items.

Input: a pool of candidates in rank order for each user of a block. Output: the places of the chosen items. The list is
filled place by place for all users at once; the next item is the best remaining one unless an option requires another.
The caller puts only items into a pool that may be recommended.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

BLOCK = 64
"""Users whose pools are reranked together, so that the cosines of their items fit the cache."""


@dataclass(frozen=True)
class CandidatePool:
    """Candidates of `q` users, at most `p` for each, best first; -1 fills short pools.

    items: [q, p] item indices without repeats. scores: [q, p], -inf where there is no item.
    """

    items: Array
    scores: Array

    def part(self, rows: slice) -> CandidatePool:
        """Return the pools of some users."""
        return CandidatePool(self.items[rows], self.scores[rows])


@dataclass(frozen=True)
class RerankOptions:
    """Requirements of a list beside the scores.

    categories: [n, c] codes of each item's categories, -1 for none; most_per_category: largest number of items of a
    category in a list. always: [n] bool, required items: every list has them if they are in the pool, even if their
    category is full; they count in their categories from the start. fresh: [n] bool, new items; fresh_share: share of
    new items that every prefix of a list reaches while new items remain. diversity: weight of dissimilarity; vectors:
    function from item indices [m] to the vectors [m, d] whose cosines are used.
    """

    categories: Array | None = None
    most_per_category: int = 0
    always: Array | None = None
    fresh: Array | None = None
    fresh_share: float = 0.0
    diversity: float = 0.0
    vectors: Callable[[Array], Array] | None = None


def rerank(pool: CandidatePool, k: int, options: RerankOptions) -> Array:
    """Return the places in the pool of up to `k` chosen items of each user, [q, k], -1 at the end of short lists.

    With diversity the next item has the highest (1 - diversity) * score - diversity * (highest cosine to a chosen
    item), maximal marginal relevance (Carbonell and Goldstein 1998); scores should lie between -1 and 1.
    """
    chosen = np.full((len(pool.items), k), -1, np.int64)
    for start in range(0, len(pool.items), BLOCK):
        rows = slice(start, start + BLOCK)
        chosen[rows] = _rerank(pool.part(rows), k, options)
    return chosen


def _rerank(pool: CandidatePool, k: int, options: RerankOptions) -> Array:
    q, p = pool.items.shape
    row = np.arange(q)
    chosen = np.full((q, k), -1, np.int64)
    remaining = pool.items >= 0
    items = np.where(remaining, pool.items, 0)
    required = remaining & options.always[items] if options.always is not None else None
    missing_required = required.sum(axis=1) if required is not None else np.zeros(q, np.int64)
    fresh = remaining & options.fresh[items] if options.fresh is not None else None
    fresh_count = np.zeros(q, np.int64)
    categories = _Categories(options, items, required)
    cosines = _cosines(options, items)
    value = (1 - options.diversity) * pool.scores
    nearest = np.full((q, p), -1.0, np.float32)
    for place in range(k):
        eligible = categories.eligible(remaining)
        if fresh is not None:
            wanted = math.floor(options.fresh_share * (place + 1) + 1e-9)
            eligible = _prefer(eligible, fresh, fresh_count < wanted)
        if required is not None:
            # The remaining places are just enough for the required items.
            eligible = _prefer(eligible, required, missing_required >= k - place)
        if cosines is None:
            best = eligible.argmax(axis=1)
        else:
            relevance = value - options.diversity * nearest
            best = np.where(eligible, relevance, -np.inf).argmax(axis=1)
        found = eligible[row, best]
        if not found.any():
            break
        chosen[found, place] = best[found]
        remaining[row[found], best[found]] = False
        categories.add(row[found], best[found])
        if fresh is not None:
            fresh_count += found & fresh[row, best]
        if required is not None:
            missing_required -= found & required[row, best]
        if cosines is not None:
            np.maximum(nearest, cosines[row, best], out=nearest)
    return chosen


def _prefer(eligible: Array, wanted: Array, now: Array) -> Array:
    """Restrict rows with `now` to the wanted items, if the row has any."""
    both = eligible & wanted
    narrowed = now & both.any(axis=1)
    return np.where(narrowed[:, None], both, eligible)


def _cosines(options: RerankOptions, items: Array) -> Array | None:
    """Return the cosines of the items of each pool to each other, [q, p, p]."""
    if not options.diversity or options.vectors is None:
        return None
    used, places = np.unique(items, return_inverse=True)
    unit = options.vectors(used)
    unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-30)
    vectors = unit[places.reshape(items.shape)]
    cosines: Array = vectors @ vectors.transpose(0, 2, 1)
    return cosines


class _Categories:
    """Full categories of the pools; required items are counted from the start."""

    def __init__(self, options: RerankOptions, items: Array, required: Array | None) -> None:
        self.codes: Array | None = None
        if options.categories is None or not options.most_per_category:
            return
        self.most = options.most_per_category
        # New numbers keep the counts of a block small.
        used, codes = np.unique(options.categories[items], return_inverse=True)
        codes = codes.reshape(*items.shape, -1)
        self.codes = np.where(used[codes] < 0, -1, codes)
        self.counts = np.zeros((len(items), len(used)), np.int64)
        self.full = np.zeros(items.shape, bool)
        self.required = required if required is not None else np.zeros(items.shape, bool)
        for place in range(items.shape[1] if required is not None else 0):
            rows = np.flatnonzero(self.required[:, place])
            if len(rows):
                self._count(rows, self.codes[rows, place])

    def eligible(self, remaining: Array) -> Array:
        """Return which of the remaining items may be chosen."""
        return remaining if self.codes is None else remaining & (self.required | ~self.full)

    def add(self, rows: Array, places: Array) -> None:
        """Count chosen items, one per row."""
        if self.codes is not None:
            fresh = ~self.required[rows, places]
            self._count(rows[fresh], self.codes[rows[fresh], places[fresh]])

    def _count(self, rows: Array, categories: Array) -> None:
        """Count the categories [r, c] of one item in each of some rows; a row occurs once."""
        for codes in categories.T:
            known = codes >= 0
            at, code = rows[known], codes[known]
            self.counts[at, code] += 1
            reached = self.counts[at, code] >= self.most
            if reached.any() and self.codes is not None:
                at, code = at[reached], code[reached]
                self.full[at] |= (self.codes[at] == code[:, None, None]).any(axis=2)
