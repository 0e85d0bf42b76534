"""From a pool of good items to a list: at most n per category, unlike items, new items, items that must be there.

A pool of candidates in rank order comes in for each user of a block, the places of the chosen ones come out. The choice
goes place by place for all users at once, and takes the next item in rank order unless an option says otherwise. It
knows no ids, no masks (what is in a pool may be recommended) and not how a pool was found.
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
"""Users whose pools are worked on at a time: the similarities of their items among each other fit the cache."""


@dataclass(frozen=True)
class Pool:
    """Candidates of `q` users, `p` at most for each, best first; -1 fills up.

    items: [q, p] item indices, none twice. scores: [q, p], -inf where there is no item.
    """

    items: Array
    scores: Array

    def part(self, rows: slice) -> Pool:
        """Return the pools of some users."""
        return Pool(self.items[rows], self.scores[rows])


@dataclass(frozen=True)
class Options:
    """What a list must be beside good.

    categories: [n, c] codes of each item's categories, -1 fills up; most_per_category: items of one in a list at most.
    always: [n] bool, items that every list has when they are in the pool, full category or not; they count in their
        categories from the start.
    fresh: [n] bool, new items; fresh_share: in every beginning of a list so many of them at least, while there are any.
    diversity: weight of unlikeness; vectors: gives for item indices [m] the vectors [m, d] that they are compared by.
    """

    categories: Array | None = None
    most_per_category: int = 0
    always: Array | None = None
    fresh: Array | None = None
    fresh_share: float = 0.0
    diversity: float = 0.0
    vectors: Callable[[Array], Array] | None = None


def rerank(pool: Pool, k: int, options: Options) -> Array:
    """Return the places in the pool of up to `k` chosen items of each user, [q, k], -1 at the end of short lists.

    With diversity the next item is the one with the highest (1 - diversity) * score - diversity * (highest cosine to
    an item chosen before), maximal marginal relevance (Carbonell & Goldstein 1998); scores should lie between -1 and 1.
    """
    chosen = np.full((len(pool.items), k), -1, np.int64)
    for start in range(0, len(pool.items), BLOCK):
        rows = slice(start, start + BLOCK)
        chosen[rows] = _rerank(pool.part(rows), k, options)
    return chosen


def _rerank(pool: Pool, k: int, options: Options) -> Array:
    q, p = pool.items.shape
    row = np.arange(q)
    chosen = np.full((q, k), -1, np.int64)
    left = pool.items >= 0
    items = np.where(left, pool.items, 0)
    must = left & options.always[items] if options.always is not None else None
    waiting = must.sum(axis=1) if must is not None else np.zeros(q, np.int64)
    fresh = left & options.fresh[items] if options.fresh is not None else None
    new = np.zeros(q, np.int64)
    capped = _Categories(options, items, must)
    likeness = _likeness(options, items)
    value = (1 - options.diversity) * pool.scores
    nearest = np.full((q, p), -1.0, np.float32)
    for place in range(k):
        eligible = capped.leave(left)
        if fresh is not None:
            wanted = math.floor(options.fresh_share * (place + 1) + 1e-9)
            eligible = _prefer(eligible, fresh, new < wanted)
        if must is not None:
            # The places that are left are just enough for those that must be there.
            eligible = _prefer(eligible, must, waiting >= k - place)
        if likeness is None:
            best = eligible.argmax(axis=1)
        else:
            worth = value - options.diversity * nearest
            best = np.where(eligible, worth, -np.inf).argmax(axis=1)
        some = eligible[row, best]
        if not some.any():
            break
        chosen[some, place] = best[some]
        left[row[some], best[some]] = False
        capped.add(row[some], best[some])
        if fresh is not None:
            new += some & fresh[row, best]
        if must is not None:
            waiting -= some & must[row, best]
        if likeness is not None:
            np.maximum(nearest, likeness[row, best], out=nearest)
    return chosen


def _prefer(eligible: Array, wanted: Array, now: Array) -> Array:
    """Leave only the wanted ones in the rows of `now` that have any."""
    both = eligible & wanted
    narrowed = now & both.any(axis=1)
    return np.where(narrowed[:, None], both, eligible)


def _likeness(options: Options, items: Array) -> Array | None:
    """Return the cosines of the items of each pool among each other, [q, p, p]."""
    if not options.diversity or options.vectors is None:
        return None
    used, places = np.unique(items, return_inverse=True)
    own = options.vectors(used)
    own = own / np.maximum(np.linalg.norm(own, axis=1, keepdims=True), 1e-30)
    vectors = own[places.reshape(items.shape)]
    cosines: Array = vectors @ vectors.transpose(0, 2, 1)
    return cosines


class _Categories:
    """Which items of the pools are of a category that is full; the items that must be there are counted at once."""

    def __init__(self, options: Options, items: Array, must: Array | None) -> None:
        self.codes: Array | None = None
        if options.categories is None or not options.most_per_category:
            return
        self.most = options.most_per_category
        # Numbered anew, so that the counts of a block stay small.
        used, codes = np.unique(options.categories[items], return_inverse=True)
        codes = codes.reshape(*items.shape, -1)
        self.codes = np.where(used[codes] < 0, -1, codes)
        self.counts = np.zeros((len(items), len(used)), np.int64)
        self.full = np.zeros(items.shape, bool)
        self.must = must if must is not None else np.zeros(items.shape, bool)
        for place in range(items.shape[1] if must is not None else 0):
            rows = np.flatnonzero(self.must[:, place])
            if len(rows):
                self._count(rows, self.codes[rows, place])

    def leave(self, left: Array) -> Array:
        """Return which of the items that are left may be chosen."""
        return left if self.codes is None else left & (self.must | ~self.full)

    def add(self, rows: Array, places: Array) -> None:
        """Count chosen items, one a row."""
        if self.codes is not None:
            fresh = ~self.must[rows, places]
            self._count(rows[fresh], self.codes[rows[fresh], places[fresh]])

    def _count(self, rows: Array, own: Array) -> None:
        """Count the categories [r, c] of one item in each of some rows, none twice."""
        for codes in own.T:
            known = codes >= 0
            at, code = rows[known], codes[known]
            self.counts[at, code] += 1
            reached = self.counts[at, code] >= self.most
            if reached.any() and self.codes is not None:
                at, code = at[reached], code[reached]
                self.full[at] |= (self.codes[at] == code[:, None, None]).any(axis=2)
