"""Ranking metrics per user, and sums of them that add up over blocks of users.

Input: ranks of held-out items (1 is the best of the whole catalogue), ragged per user, or lists of recommended items.
Output: one value per user and metric, and `MetricSums` with means and bootstrap intervals. The caller ranks, and adds
the values of a segment's users to the sums of that segment.

Ranks are ragged, with offsets [users + 1] as in `ragged`. A user without targets has NaN, which sums leave out. Rank 0
means that the target is excluded from the ranking, or in no list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rec_ray.retrieval.ragged import value_rows

Values = NDArray[np.float64]
Ranks = NDArray[np.int64]

REPLICATES = 200
"""Bootstrap samples of an interval."""


def target_ranks_from_scores(
    scores: NDArray[np.floating[Any]], targets: NDArray[np.integer], offsets: NDArray[np.int64]
) -> Ranks:
    """Return the rank of each target in rows of scores [q, n]: [targets], 0 where its score is -inf.

    Equal scores rank by item index.
    """
    ranks = np.zeros(len(targets), np.int64)
    for place, (user, target) in enumerate(zip(value_rows(offsets), targets, strict=True)):
        row, score = scores[user], scores[user, target]
        if score > -np.inf:
            ranks[place] = 1 + np.count_nonzero(row > score) + np.count_nonzero(row[:target] == score)
    return ranks


def target_ranks_from_lists(
    lists: NDArray[np.integer], targets: NDArray[np.integer], offsets: NDArray[np.int64]
) -> Ranks:
    """Return the rank of each target in its user's list [q, k] of item indices (-1 fills short lists), 0 if absent."""
    found = lists[value_rows(offsets)] == np.asarray(targets)[:, None]
    return np.where(found.any(axis=1), found.argmax(axis=1) + 1, 0)


def recall_at_k(ranks: Ranks, offsets: NDArray[np.int64], k: int) -> Values:
    """Return the share of each user's targets with a rank up to k: [users].

    The denominator is the number of targets, not min(k, targets); with one target recall equals the hit rate.
    """
    return _sum_per_user(((ranks > 0) & (ranks <= k)).astype(np.float64), offsets) / _target_counts(offsets)


def ndcg_at_k(ranks: Ranks, offsets: NDArray[np.int64], k: int) -> Values:
    """Return the normalised discounted cumulative gain with binary relevance: [users] (Jarvelin and Kekalainen 2002).

    The gain of a target is 1 / log2(rank + 1). The ideal list has min(k, number of targets) targets at its first
    places.
    """
    gains = np.where((ranks > 0) & (ranks <= k), 1 / np.log2(np.maximum(ranks, 1) + 1), 0.0)
    ideal = np.concatenate([[np.nan], np.cumsum(1 / np.log2(np.arange(2, k + 2)))])
    return _sum_per_user(gains, offsets) / ideal[np.minimum(np.diff(offsets), k)]


def reciprocal_rank(ranks: Ranks, offsets: NDArray[np.int64], k: int | None = None) -> Values:
    """Return 1 / rank of each user's best target, over the whole ranking, or over the first k and 0 beyond: [users].

    The mean over users is the MRR (MRR@k).
    """
    counted = ranks > 0 if k is None else (ranks > 0) & (ranks <= k)
    gains = np.where(counted, 1 / np.maximum(ranks, 1), 0.0)
    best = np.full(len(offsets) - 1, np.nan)
    with_target = np.diff(offsets) > 0
    if with_target.any():
        best[with_target] = np.maximum.reduceat(gains, offsets[:-1][with_target])
    return best


def novelty(lists: NDArray[np.integer], item_counts: NDArray[np.integer], event_count: int) -> Values:
    """Return the mean self-information -log2 p(item) of each user's list, in bits: [q] (Vargas and Castells 2011).

    lists: [q, k] item indices (-1 fills short lists; an empty list has NaN).  item_counts: [n] training events per
    item; p(item) = (count + 1) / (event_count + n), so that an item without events has a finite value.
    """
    information = -np.log2((np.asarray(item_counts) + 1.0) / (event_count + len(item_counts)))
    filled = lists >= 0
    total = np.where(filled, information[np.maximum(lists, 0)], 0.0).sum(axis=1)
    length = filled.sum(axis=1)
    return np.divide(total, length, out=np.full(len(lists), np.nan), where=length > 0)


def list_diversity(lists: NDArray[np.integer], vectors: NDArray[np.floating[Any]]) -> Values:
    """Return 1 minus the mean cosine of two items of each user's list: [q] (Ziegler et al. 2005).

    lists: [q, k] item indices (-1 fills short lists; a list of fewer than two items has NaN).  vectors: [n, d].
    """
    filled = lists >= 0
    units = np.where(filled[:, :, None], vectors[np.maximum(lists, 0)], 0.0).astype(np.float64)
    units /= np.maximum(np.linalg.norm(units, axis=2, keepdims=True), 1e-30)
    length = filled.sum(axis=1)
    # The square of the sum of unit vectors contains each pair twice and each item with itself once.
    pairs = np.square(units.sum(axis=1)).sum(axis=1) - np.square(units).sum(axis=(1, 2))
    return 1.0 - np.divide(pairs, length * (length - 1), out=np.full(len(lists), np.nan), where=length > 1)


class MetricSums:
    """Sums of per-user values and of their bootstrap replicates; sums over blocks of users add up.

    metrics: names, in the order of `means`.  replicates: of the Poisson bootstrap (Chamandy et al. 2012): a user's
    weight in a replicate is Poisson(1), drawn from a hash of user, replicate and seed. So the intervals depend neither
    on the blocks nor on their order, and two methods measured on the same users with the same seed are paired: see
    `interval_of_difference`.
    """

    def __init__(self, metrics: Sequence[str], *, replicates: int = REPLICATES, seed: int = 0) -> None:
        self.metrics = tuple(metrics)
        self.replicates, self.seed = replicates, seed
        self.totals = np.zeros((replicates + 1, len(self.metrics)))
        self.weights = np.zeros((replicates + 1, len(self.metrics)))

    def add(self, users: NDArray[np.integer], values: Mapping[str, NDArray[np.floating[Any]]]) -> None:
        """Add the values [q] of each metric for users [q], identified by a stable number (an index or a hash of the
        id).
        """
        self.add_drawn(bootstrap_weights(users, self.replicates, self.seed), values)

    def add_drawn(self, draws: Values, values: Mapping[str, NDArray[np.floating[Any]]]) -> None:
        """Add the values [q] of users with `bootstrap_weights` [replicates + 1, q], which several sums can share."""
        if set(values) != set(self.metrics):
            raise ValueError(f"expected the metrics {self.metrics}, got {tuple(values)}")
        table = np.stack([np.asarray(values[name], np.float64) for name in self.metrics], axis=1)
        counted = ~np.isnan(table)
        self.totals += draws @ np.where(counted, table, 0.0)
        self.weights += draws @ counted.astype(np.float64)

    def users(self) -> dict[str, int]:
        """Return the number of users with a value of each metric."""
        return {name: int(self.weights[0, place]) for place, name in enumerate(self.metrics)}

    def means(self) -> dict[str, float]:
        """Return the mean over users of each metric; NaN without users."""
        return dict(zip(self.metrics, self._replicate_means()[0].tolist(), strict=True))

    def intervals(self, level: float = 0.95) -> dict[str, tuple[float, float]]:
        """Return the bootstrap percentile interval of each mean."""
        return {
            name: _percentiles(self._replicate_means()[1:, place], level) for place, name in enumerate(self.metrics)
        }

    def interval_of_difference(self, other: MetricSums, metric: str, level: float = 0.95) -> tuple[float, float]:
        """Return the interval of this mean minus the other's; both must hold the same users."""
        if (self.replicates, self.seed) != (other.replicates, other.seed):
            raise ValueError("a paired difference needs sums of the same replicates and seed")
        means = self._replicate_means()[1:, self.metrics.index(metric)]
        return _percentiles(means - other._replicate_means()[1:, other.metrics.index(metric)], level)

    def _replicate_means(self) -> Values:
        return np.divide(self.totals, self.weights, out=np.full_like(self.totals, np.nan), where=self.weights > 0)


def bootstrap_weights(users: NDArray[np.integer], replicates: int = REPLICATES, seed: int = 0) -> Values:
    """Return the weights of users [replicates + 1, users]: 1 in the first row, Poisson draws in the others."""
    weights = np.ones((replicates + 1, len(users)))
    weights[1:] = poisson_draws(users, replicates, seed)
    return weights


def poisson_draws(users: NDArray[np.integer], replicates: int, seed: int) -> NDArray[np.int64]:
    """Return Poisson(1) draws [replicates, users] that depend only on user, replicate and seed."""
    mask = (1 << 64) - 1
    keys = _mixed(np.asarray(users).astype(np.uint64) + np.uint64((seed * 0x9E3779B97F4A7C15 + 1) & mask))
    steps = _mixed(np.arange(1, replicates + 1, dtype=np.uint64))
    uniform = (_mixed(keys[None, :] ^ steps[:, None]) >> np.uint64(11)) * 2.0**-53
    chances = np.cumsum(np.exp(-1.0) / np.cumprod(np.maximum(np.arange(16.0), 1.0)))
    return np.searchsorted(chances, uniform, side="right")


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return splitmix64 of the numbers (Steele et al. 2014)."""
    numbers = numbers + np.uint64(0x9E3779B97F4A7C15)
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def _sum_per_user(values: Values, offsets: NDArray[np.int64]) -> Values:
    return np.bincount(value_rows(offsets), values, minlength=len(offsets) - 1).astype(np.float64)


def _target_counts(offsets: NDArray[np.int64]) -> Values:
    counts = np.diff(offsets).astype(np.float64)
    return np.where(counts > 0, counts, np.nan)


def _percentiles(values: Values, level: float) -> tuple[float, float]:
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
