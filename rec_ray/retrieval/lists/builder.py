"""Lists of recommended items from query vectors: masks of the filters, search, then reranking.

Input: a search over item vectors, the evaluated filters and a block of users. Output: item indices with scores. Users
with the same mask are searched together. A list that is reranked is chosen from a pool of candidates, which is deepened
until the list is full or no item is remaining.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rec_ray.retrieval.lists.item_filters import ItemFilters, UserGroups
from rec_ray.retrieval.lists.rerank import CandidatePool, RerankOptions, rerank
from rec_ray.retrieval.ragged import Ragged, filter_values, row_offsets, take_rows
from rec_ray.retrieval.search import ExactTopK, Exclusions

Array = npt.NDArray[Any]

DEPTH = 4
"""Pool size as a multiple of the list length, and growth factor of a pool that was too small."""
SMALL_GROUP = 16
"""Users below which a group is searched together with others: a separate search would cost as much as for this many."""
_TOGETHER = 128
"""Largest number of users of joined small groups."""
_EXCLUSIONS = 4_000_000
"""Largest number of exclusions that stand for the masks of joined small groups."""


class Search(Protocol):
    """Search over item vectors: `ExactTopK`, or the shards of a catalogue."""

    def search(
        self, queries: Array, k: int, exclude: Exclusions | None = None, allowed: Array | None = None
    ) -> tuple[Array, Array]:
        """Return the indices and scores of the k best items of each query, as `ExactTopK.search` does."""
        ...


class Lists(NamedTuple):
    """Recommended lists. indices, scores: [q, k], -1 and -inf at the end of short lists. emptied_by: [q] name of the
    filter that left no item, or null.
    """

    indices: Array
    scores: Array
    emptied_by: pa.Array


@dataclass(frozen=True)
class ListBuilder:
    """Builder of lists by one search.

    index: the search. vectors: function from item indices [m] to the vectors [m, d] that it searches; likeness:
    likewise, the vectors whose cosines diversity uses. diversity, fresh_share: as in the settings section `candidates`.
    scores_are_cosines: scores lie between -1 and 1.
    """

    index: Search
    vectors: Callable[[Array], Array]
    likeness: Callable[[Array], Array]
    filters: ItemFilters
    diversity: float = 0.0
    fresh_share: float = 0.0
    scores_are_cosines: bool = False
    _subsets: dict[str, ExactTopK] = field(default_factory=dict, repr=False, compare=False)

    @property
    def reranks(self) -> bool:
        """True if a list can differ from the best items of a mask."""
        filters = self.filters
        return bool(self.diversity or self.fresh_share or filters.categories is not None or len(filters.always))

    def build(self, queries: Array, k: int, exclude: Ragged | None, users: Mapping[str, pa.Array]) -> Lists:
        """Return the list of each user of a block.

        queries: [q, d] float32. exclude: ragged item indices per user that are not recommended. users: field -> [q] raw
        values of the filters' `user_fields`.
        """
        groups = self.filters.groups(users, len(queries))
        emptied_by = pa.array(groups.emptied_by, pa.string()).take(pa.array(groups.group))
        if not self.reranks:
            return Lists(*self._search(self.index, queries, k, exclude, groups), emptied_by)
        k = min(k, self.filters.count)
        indices = np.full((len(queries), k), -1, np.int64)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        capacity = np.array([self.filters.capacity(mask) for mask in groups.masks])
        rows, depth = np.arange(len(queries)), min(DEPTH * k, self.filters.count)
        while len(rows):
            part = UserGroups(groups.group[rows], groups.masks, groups.emptied_by)
            remaining = take_rows(*exclude, rows) if exclude is not None else None
            pool, full = self._pool(queries[rows], k, depth, remaining, part)
            places = rerank(self._scaled(pool), k, self._options)
            filled = places >= 0
            taken = np.where(filled, places, 0)
            indices[rows] = np.where(filled, np.take_along_axis(pool.items, taken, axis=1), -1)
            scores[rows] = np.where(filled, np.take_along_axis(pool.scores, taken, axis=1), -np.inf)
            short = filled.sum(axis=1) < np.minimum(k, capacity[part.group])
            rows = rows[short & full]
            depth = min(DEPTH * depth, self.filters.count)
        return Lists(indices, scores, emptied_by)

    @functools.cached_property
    def _options(self) -> RerankOptions:
        filters = self.filters
        always = np.zeros(filters.count, bool)
        always[filters.always] = True
        return RerankOptions(
            categories=filters.categories.padded() if filters.categories is not None else None,
            most_per_category=filters.most_per_category,
            always=always if len(filters.always) else None,
            fresh=filters.fresh if self.fresh_share else None,
            fresh_share=self.fresh_share,
            diversity=self.diversity,
            vectors=self.likeness if self.diversity else None,
        )

    def _scaled(self, pool: CandidatePool) -> CandidatePool:
        """Scale scores to -1 .. 1, the range of cosines, so that the weight of diversity has the same effect for any
        score.
        """
        if not self.diversity or self.scores_are_cosines:
            return pool
        largest = np.abs(np.where(pool.items >= 0, pool.scores, 0.0)).max(axis=1, initial=1e-30)
        return CandidatePool(pool.items, pool.scores / largest[:, None])

    def _pool(
        self, queries: Array, k: int, depth: int, exclude: Ragged | None, groups: UserGroups
    ) -> tuple[CandidatePool, Array]:
        """Return pools of candidates, and for which users [q] bool there may be more.

        A pool holds the `depth` best items, the best new items, and the items that every list must have.
        """
        found = [self._search(self.index, queries, depth, exclude, groups)]
        full = found[0][0][:, -1] >= 0
        if self.fresh_share and self.filters.fresh is not None:
            # Some new items may be of a category that is full.
            wanted = DEPTH * math.ceil(self.fresh_share * k)
            fresh = np.flatnonzero(self.filters.fresh)
            found.append(self._search_among("fresh", fresh, queries, wanted, exclude, groups))
        always = self.filters.always
        found.append(self._search_among("always", always, queries, len(always), exclude, groups))
        items, scores = (np.concatenate([part[i] for part in found], axis=1) for i in (0, 1))
        repeated = _repeats(items)
        items, scores = np.where(repeated, -1, items), np.where(repeated, -np.inf, scores)
        order = np.lexsort((items, -scores), axis=1)
        items, scores = (np.take_along_axis(values, order, axis=1) for values in (items, scores))
        return CandidatePool(items, scores), full & (depth < self.filters.count)

    def _search_among(
        self, name: str, items: Array, queries: Array, k: int, exclude: Ragged | None, groups: UserGroups
    ) -> tuple[Array, Array]:
        """Search among some items only, with an index of their own."""
        if not len(items) or not k:
            return np.zeros((len(queries), 0), np.int64), np.zeros((len(queries), 0), np.float32)
        if name not in self._subsets:
            self._subsets[name] = ExactTopK(np.ascontiguousarray(self.vectors(items)), threads=1)
        if exclude is not None:
            place = np.full(self.filters.count, -1, np.int64)
            place[items] = np.arange(len(items))
            values = place[exclude[0]]
            exclude = filter_values(values, exclude[1], values >= 0)
        groups = UserGroups(groups.group, [mask[items] for mask in groups.masks], groups.emptied_by)
        places, scores = self._search(self._subsets[name], queries, k, exclude, groups)
        return np.where(places < 0, -1, items[places]), scores

    def _search(
        self, index: Search, queries: Array, k: int, exclude: Ragged | None, groups: UserGroups
    ) -> tuple[Array, Array]:
        """Search for each user among the items of the user's group."""
        if len(groups.masks) == 1:
            mask = groups.masks[0]
            forbidden = Exclusions(*exclude) if exclude is not None else None
            return index.search(queries, k, forbidden, None if mask.all() else mask)
        k = min(k, len(groups.masks[0]))
        indices, scores = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
        for rows, allowed, own in _searches(groups, exclude):
            indices[rows], scores[rows] = index.search(
                queries[rows], k, Exclusions(*own) if own is not None else None, allowed
            )
        return indices, scores


def _repeats(items: Array) -> Array:
    """Return [q, p] bool: the item occurs earlier in its row of items [q, p]."""
    order = np.argsort(items, axis=1, kind="stable")
    ordered = np.take_along_axis(items, order, axis=1)
    repeated = np.zeros(items.shape, bool)
    np.put_along_axis(repeated, order[:, 1:], (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0), axis=1)
    return repeated


def _searches(groups: UserGroups, exclude: Ragged | None) -> Iterator[tuple[Array, Array, Ragged | None]]:
    """Yield the users of each joint search, their joint mask, and the exclusions that restrict it for each user."""
    sizes = np.bincount(groups.group, minlength=len(groups.masks))
    order = np.argsort(groups.group, kind="stable")
    ends = np.cumsum(sizes)
    small: list[tuple[Array, Array]] = []
    joined_users = 0
    for number, size in enumerate(sizes.tolist()):
        rows, mask = order[ends[number] - size : ends[number]], groups.masks[number]
        if size >= SMALL_GROUP:
            yield rows, mask, take_rows(*exclude, rows) if exclude is not None else None
        elif size:
            small.append((rows, mask))
            joined_users += size
            if joined_users >= _TOGETHER or joined_users * len(mask) >= _EXCLUSIONS:
                yield _joined(small, exclude)
                small, joined_users = [], 0
    if small:
        yield _joined(small, exclude)


def _joined(small: Sequence[tuple[Array, Array]], exclude: Ragged | None) -> tuple[Array, Array, Ragged]:
    """Join small groups: items that only some of the groups may get are excluded for the users of the others."""
    rows = np.concatenate([own for own, _ in small])
    allowed = np.logical_or.reduce([mask for _, mask in small])
    forbidden = [np.flatnonzero(allowed & ~mask) for _, mask in small]
    items = np.concatenate([np.tile(own, len(users)) for own, (users, _) in zip(forbidden, small, strict=True)])
    counts = np.concatenate([np.full(len(users), len(own)) for own, (users, _) in zip(forbidden, small, strict=True)])
    if exclude is not None:
        seen, offsets = take_rows(*exclude, rows)
        owner = np.concatenate([np.repeat(np.arange(len(rows)), n) for n in (counts, np.diff(offsets))])
        items = np.concatenate([items, seen])[np.argsort(owner, kind="stable")]
        counts = counts + np.diff(offsets)
    return rows, allowed, (items, row_offsets(counts))
