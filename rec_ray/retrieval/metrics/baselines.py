"""Recommenders that only count: popularity, recent popularity, item-kNN, item transitions and a random walk.

Timelines come in as flat arrays (`items` [events], in the order of time within a user, and `offsets` [users + 1]);
counts of blocks of users are merged, then fitted; out go scores [users, items] of the whole catalogue for a block of
histories. They know no features, no split and no files; what a user has seen is excluded by whoever ranks.

Every method scores the whole catalogue: the more popular item wins a tie, and items without a score of their own
follow those with one, in the order of popularity.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rec_ray.errors import EmptyDataError

Items = NDArray[np.integer[Any]]
Offsets = NDArray[np.int64]
Scores = NDArray[np.float64]

_TIE = 1e-9
"""Weight of popularity among items with equal scores; else the numbering of items would decide."""
_UNIT = float(2**24)
"""One step of a random walk in fixed point: sums of whole numbers do not depend on the order of blocks."""


@dataclass(frozen=True)
class Popularity:
    """Scores every item by its weight in the events, the same for every user.

    weights: [n] float64, events per item, or events that fade with age: see `count_popularity`.
    """

    weights: Scores

    def scores(self, items: Items, offsets: Offsets) -> Scores:
        """Return [users, n]; the histories only say how many users there are."""
        return np.broadcast_to(self.weights, (len(offsets) - 1, len(self.weights)))


def count_popularity(
    items: Items,
    item_count: int,
    *,
    times: NDArray[np.int64] | None = None,
    now: int | None = None,
    half_life: float | None = None,
) -> Scores:
    """Return the events per item: [item_count]; the sums of blocks of events add up.

    times: [events], now and half_life in one unit: an event weighs 0.5 ** ((now - time) / half_life).
    """
    if half_life is None:
        return np.bincount(items, minlength=item_count).astype(np.float64)
    if times is None or now is None or half_life <= 0:
        raise ValueError("recent popularity needs times, now and a half_life above 0")
    age = np.maximum(now - times, 0) / half_life
    return np.bincount(items, np.exp2(-age), minlength=item_count).astype(np.float64)


@dataclass(frozen=True)
class PairCounts:
    """Weights of ordered pairs of items, sorted by pair, from which item-kNN, transitions and the walk are fitted.

    pairs: [p] int64, `first * item_count + second`, ascending.  weights: [p] float64.
    users_per_item: [n] float64, users with the item.  events_per_item: [n] float64.
    dropped: pairs that `merge` left out to stay below its limit.
    steps: [p] float64 of whole numbers, sum over the users with both items of `_UNIT` / items of the user; or None.
    """

    pairs: NDArray[np.int64]
    weights: Scores
    users_per_item: Scores
    events_per_item: Scores
    dropped: int = 0
    steps: Scores | None = None

    @property
    def item_count(self) -> int:
        """Items of the catalogue."""
        return len(self.events_per_item)

    def merge(self, other: PairCounts, *, most_pairs: int = 50_000_000) -> PairCounts:
        """Return the counts of both blocks of users.

        Above `most_pairs` (16 to 24 bytes each) the pairs with the smallest weights are dropped and counted in
        `dropped`.
        """
        pairs, columns = _summed(
            np.concatenate([self.pairs, other.pairs]), np.concatenate([self._columns(), other._columns()])
        )
        excess = max(0, len(pairs) - most_pairs)
        if excess:
            keep = np.sort(np.argpartition(columns[:, 0], excess)[excess:])
            pairs, columns = pairs[keep], columns[keep]
        return PairCounts(
            pairs,
            columns[:, 0].copy(),
            self.users_per_item + other.users_per_item,
            self.events_per_item + other.events_per_item,
            self.dropped + other.dropped + excess,
            columns[:, 1].copy() if columns.shape[1] > 1 else None,
        )

    def _columns(self) -> Scores:
        """Return weights and, where there are, steps as columns: [p, 1 or 2]."""
        return np.stack([self.weights] if self.steps is None else [self.weights, self.steps], axis=1)


def count_cooccurrences(items: Items, offsets: Offsets, item_count: int, *, history: int = 50) -> PairCounts:
    """Count users who have both items of a pair among their last `history` distinct items (both orders are kept).

    The counts have `steps`, for `fit_random_walk`.
    """
    user = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    distinct = _last_of_each(user * item_count + items)
    user, item = user[distinct], np.asarray(items)[distinct].astype(np.int64)
    from_end = np.searchsorted(user, user, side="right") - np.arange(len(user))
    user, item = user[from_end <= history], item[from_end <= history]
    step = np.round(_UNIT / np.maximum(np.bincount(user, minlength=len(offsets) - 1), 1))
    sums = _Sums(columns=2)
    for lag in range(1, min(history, len(user))):
        near = user[lag:] == user[:-lag]
        if not near.any():
            break
        one, two = item[:-lag][near], item[lag:][near]
        both = np.concatenate([one * item_count + two, two * item_count + one])
        sums.add(both, np.ones(len(both)), np.tile(step[user[:-lag][near]], 2))
    pairs, columns = sums.total()
    return PairCounts(
        pairs,
        columns[:, 0].copy(),
        np.bincount(item, minlength=item_count).astype(np.float64),
        np.bincount(items, minlength=item_count).astype(np.float64),
        steps=columns[:, 1].copy(),
    )


def count_transitions(items: Items, offsets: Offsets, item_count: int, *, reach: int = 1) -> PairCounts:
    """Count which item followed which: the next one with weight 1, the one after it 1/2, up to `reach` steps."""
    user = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    item = np.asarray(items, np.int64)
    sums = _Sums()
    for lag in range(1, min(reach + 1, len(user))):
        near = (user[lag:] == user[:-lag]) & (item[lag:] != item[:-lag])
        followed = item[:-lag][near] * item_count + item[lag:][near]
        sums.add(followed, np.full(len(followed), 1 / lag))
    pairs, columns = sums.total()
    weights = columns[:, 0].copy()
    events = np.bincount(item, minlength=item_count).astype(np.float64)
    users = np.bincount(item[_last_of_each(user * item_count + item)], minlength=item_count).astype(np.float64)
    return PairCounts(pairs, weights, users, events)


@dataclass(frozen=True)
class Neighbours:
    """Scores items by the neighbours of the items in a history: item-kNN and item transitions.

    offsets: [n + 1], neighbours of item i are `items[offsets[i]:offsets[i + 1]]` with `weights` above 0.
    popularity: [n], orders the items that no neighbour list reaches.
    history: how many of a user's last events are looked at; decay: weight of an event relative to the one after it.
    """

    offsets: Offsets
    items: NDArray[np.int32]
    weights: Scores
    popularity: Scores
    history: int
    decay: float

    def scores(self, items: Items, offsets: Offsets) -> Scores:
        """Return [users, n] float64 for histories in the order of time; an empty history has popularity only."""
        users, count = len(offsets) - 1, len(self.popularity)
        lengths = np.minimum(np.diff(offsets), self.history)
        owner = np.repeat(np.arange(users), lengths)
        from_end = np.cumsum(lengths)[owner] - np.arange(len(owner)) - 1
        event = np.asarray(items)[offsets[1:][owner] - 1 - from_end]
        sizes = np.diff(self.offsets)[event]
        place = np.repeat(self.offsets[event] - (np.cumsum(sizes) - sizes), sizes) + np.arange(int(sizes.sum()))
        weight = self.weights[place] * np.repeat(self.decay**from_end, sizes)
        cell = np.repeat(owner, sizes) * count + self.items[place]
        found = np.bincount(cell, weight, minlength=users * count).reshape(users, count)
        popularity = self.popularity / (self.popularity.max(initial=0.0) + 1.0)  # in [0, 1)
        return np.where(found > 0, found + _TIE * popularity, popularity - 1.0)


def fit_item_knn(
    counts: PairCounts, *, neighbours: int = 200, shrinkage: float = 0.0, history: int = 50, decay: float = 0.8
) -> Neighbours:
    """Fit item-kNN: cosine of two items over users, `c_ij / (sqrt(c_i c_j) + shrinkage)` (Sarwar et al. 2001).

    counts: from `count_cooccurrences`.  neighbours: the most similar ones that an item keeps.
    """
    first, second = np.divmod(counts.pairs, counts.item_count)
    norm = np.sqrt(counts.users_per_item[first] * counts.users_per_item[second]) + shrinkage
    return _strongest(counts, counts.weights / norm, neighbours, history, decay)


def fit_random_walk(
    counts: PairCounts, *, beta: float = 0.5, neighbours: int = 200, history: int = 50, decay: float = 1.0
) -> Neighbours:
    """Fit RP3beta: three random steps on the graph of users and items, damped by popularity (Paudel et al. 2016).

    From an item to one of its users, to one of that user's items; the chance is divided by the users of the item to the
    power of beta.

    counts: from `count_cooccurrences`, for its `steps`.

    Raises:
        ValueError: the counts have no steps.
    """
    if counts.steps is None:
        raise ValueError("the random walk needs counts of count_cooccurrences; these have no steps")
    first, second = np.divmod(counts.pairs, counts.item_count)
    users = np.maximum(counts.users_per_item, 1.0)
    return _strongest(counts, counts.steps / _UNIT / users[first] / users[second] ** beta, neighbours, history, decay)


def fit_transitions(counts: PairCounts, *, neighbours: int = 200, history: int = 1, decay: float = 0.5) -> Neighbours:
    """Fit item transitions: an item scores by how often it followed the last item (with history > 1: the last items).

    counts: from `count_transitions`.
    """
    return _strongest(counts, counts.weights, neighbours, history, decay)


def _strongest(counts: PairCounts, weights: Scores, neighbours: int, history: int, decay: float) -> Neighbours:
    """Keep the strongest neighbours of each item, ties by popularity, then by item index."""
    if not counts.events_per_item.any():
        raise EmptyDataError("the baselines have no event to count")
    first, second = np.divmod(counts.pairs, counts.item_count)
    order = np.lexsort((second, -counts.events_per_item[second], -weights, first))
    first = first[order]
    begin = np.searchsorted(first, np.arange(counts.item_count + 1))
    keep = np.arange(len(first)) - begin[first] < neighbours
    offsets = np.searchsorted(first[keep], np.arange(counts.item_count + 1)).astype(np.int64)
    kept = order[keep]
    return Neighbours(offsets, second[kept].astype(np.int32), weights[kept], counts.events_per_item, history, decay)


class _Sums:
    """Sums of columns of weights per pair, with a bound on the pairs that wait to be sorted in."""

    most_waiting = 4_000_000

    def __init__(self, columns: int = 1) -> None:
        self.parts: list[tuple[NDArray[np.int64], Scores]] = [(np.zeros(0, np.int64), np.zeros((0, columns)))]
        self.waiting = 0

    def add(self, pairs: NDArray[np.int64], *weights: Scores) -> None:
        """Add weights to the pairs. pairs: [p]; weights: a column of [p] each."""
        self.parts.append((pairs, np.stack(weights, axis=1)))
        self.waiting += len(pairs)
        if self.waiting > self.most_waiting:
            self.total()

    def total(self) -> tuple[NDArray[np.int64], Scores]:
        """Return the distinct pairs, ascending, and their weights [p, columns]."""
        pairs, weights = (np.concatenate(column) for column in zip(*self.parts, strict=True))
        self.parts, self.waiting = [_summed(pairs, weights)], 0
        return self.parts[0]


def _summed(pairs: NDArray[np.int64], weights: Scores) -> tuple[NDArray[np.int64], Scores]:
    """Sort the pairs and add the weights of equal ones. weights: [p, columns]."""
    if not len(pairs):
        return pairs, weights
    order = np.argsort(pairs, kind="stable")
    pairs, weights = pairs[order], weights[order]
    begin = np.flatnonzero(np.concatenate([[True], pairs[1:] != pairs[:-1]]))
    return pairs[begin], np.add.reduceat(weights, begin, axis=0)


def _last_of_each(keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the places of the last occurrence of each key, ascending."""
    _, place = np.unique(keys[::-1], return_index=True)
    return np.sort(len(keys) - 1 - place)
