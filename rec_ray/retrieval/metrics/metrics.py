"""Ranking metrics per user, and sums of them that add up over blocks of users.

In come ranks of held-out items (1 is the best of the whole catalogue), ragged per user, or lists of recommended items;
out go one value per user and metric, and `MetricSums` with means and bootstrap intervals. It knows no model, no split,
no segment: a caller ranks, picks the users of a segment, and adds their values to the sums of that segment.

Ragged everywhere means flat values and offsets [users + 1]: those of user i are `values[offsets[i]:offsets[i + 1]]`.
A user without targets has NaN, which sums leave out. Rank 0 means "not in the ranking" (excluded, or not in a list).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rec_ray.retrieval.search import ExactTopK, Exclusions

Values = NDArray[np.float64]
Ranks = NDArray[np.int64]

REPLICATES = 200
"""Bootstrap samples behind an interval."""


def target_ranks(
    queries: NDArray[np.float32],
    items: NDArray[np.float32],
    targets: NDArray[np.integer],
    offsets: NDArray[np.int64],
    *,
    exclude: Exclusions | tuple[NDArray[np.integer], NDArray[np.int64]] | None = None,
    allowed: NDArray[np.bool_] | None = None,
) -> Ranks:
    """Return the rank of each target in the whole catalogue, by inner product of queries and items: [targets].

    queries: [q, d].  items: [n, d].  targets: [t] item indices with offsets [q + 1].  exclude: ragged item indices per
    query that are left out of the ranking.  allowed: [n] bool, items that are in the ranking at all.

    Equal scores rank by item index, as in the recommendations. Other targets of the same user stay in the ranking.
    """
    return ExactTopK(items).target_ranks(queries, targets, offsets, exclude, allowed)


def target_ranks_from_scores(
    scores: NDArray[np.floating[Any]],
    targets: NDArray[np.integer],
    offsets: NDArray[np.int64],
    exclude: Exclusions | tuple[NDArray[np.integer], NDArray[np.int64]] | None = None,
) -> Ranks:
    """Return the rank of each target in rows of scores [q, n], where -inf means "not in the ranking": [targets]."""
    scores = np.array(scores)
    if exclude is not None:
        scores[np.repeat(np.arange(len(scores)), np.diff(exclude[1])), exclude[0]] = -np.inf
    ranks = np.zeros(len(targets), np.int64)
    owner = np.repeat(np.arange(len(scores)), np.diff(offsets))
    for place, (user, target) in enumerate(zip(owner, targets, strict=True)):
        row, score = scores[user], scores[user, target]
        if score > -np.inf:
            ranks[place] = 1 + np.count_nonzero(row > score) + np.count_nonzero(row[:target] == score)
    return ranks


def target_ranks_from_lists(
    lists: NDArray[np.integer], targets: NDArray[np.integer], offsets: NDArray[np.int64]
) -> Ranks:
    """Return the place of each target in its user's list [q, k] of item indices (-1 fills short lists), 0 if absent."""
    owner = np.repeat(np.arange(len(lists)), np.diff(offsets))
    found = lists[owner] == np.asarray(targets)[:, None]
    return np.where(found.any(axis=1), found.argmax(axis=1) + 1, 0)


def recall_at_k(ranks: Ranks, offsets: NDArray[np.int64], k: int) -> Values:
    """Return the share of each user's targets among the first k: [users].

    Divided by the number of targets, not by min(k, targets); with one target it equals the hit rate.
    """
    return _sum_per_user(((ranks > 0) & (ranks <= k)).astype(np.float64), offsets) / _target_counts(offsets)


def hit_rate_at_k(ranks: Ranks, offsets: NDArray[np.int64], k: int) -> Values:
    """Return 1 for users with a target among the first k, else 0: [users]."""
    hits = _sum_per_user(((ranks > 0) & (ranks <= k)).astype(np.float64), offsets)
    return np.where(np.isnan(_target_counts(offsets)), np.nan, np.minimum(hits, 1.0))


def ndcg_at_k(ranks: Ranks, offsets: NDArray[np.int64], k: int) -> Values:
    """Return the normalised discounted cumulative gain with binary relevance: [users] (Jarvelin and Kekalainen 2002).

    The gain of a target is 1 / log2(rank + 1). The ideal has min(k, number of targets) targets at the first places.
    """
    gains = np.where((ranks > 0) & (ranks <= k), 1 / np.log2(np.maximum(ranks, 1) + 1), 0.0)
    ideal = np.concatenate([[np.nan], np.cumsum(1 / np.log2(np.arange(2, k + 2)))])
    return _sum_per_user(gains, offsets) / ideal[np.minimum(np.diff(offsets), k)]


def reciprocal_rank(ranks: Ranks, offsets: NDArray[np.int64], k: int | None = None) -> Values:
    """Return 1 / rank of each user's best target, over the whole ranking or over the first k (else 0): [users].

    Its mean is the MRR (MRR@k).
    """
    counted = ranks > 0 if k is None else (ranks > 0) & (ranks <= k)
    gains = np.where(counted, 1 / np.maximum(ranks, 1), 0.0)
    best = np.full(len(offsets) - 1, np.nan)
    asked = np.diff(offsets) > 0
    if asked.any():
        best[asked] = np.maximum.reduceat(gains, offsets[:-1][asked])
    return best


def count_recommended(lists: NDArray[np.integer], item_count: int) -> NDArray[np.int64]:
    """Return how often each item stands in lists [q, k] (-1 fills short lists): [n]; counts of blocks add up."""
    return np.bincount(lists[lists >= 0], minlength=item_count).astype(np.int64)


def catalogue_coverage(recommended: NDArray[np.int64], allowed: NDArray[np.bool_] | None = None) -> float:
    """Return the share of items (of those allowed) that stand in at least one list, from `count_recommended`."""
    chosen = recommended if allowed is None else recommended[allowed]
    return float(np.count_nonzero(chosen) / len(chosen)) if len(chosen) else 0.0


def novelty(lists: NDArray[np.integer], item_counts: NDArray[np.integer], event_count: int) -> Values:
    """Return the mean self-information -log2 p(item) of each user's list, in bits: [q] (Vargas and Castells 2011).

    lists: [q, k] item indices (-1 fills short lists; an empty list has NaN).  item_counts: [n] events per item in
    training; p(item) = (count + 1) / (event_count + n), so that an item without events has a finite value.
    """
    information = -np.log2((np.asarray(item_counts) + 1.0) / (event_count + len(item_counts)))
    filled = lists >= 0
    total = np.where(filled, information[np.maximum(lists, 0)], 0.0).sum(axis=1)
    length = filled.sum(axis=1)
    return np.divide(total, length, out=np.full(len(lists), np.nan), where=length > 0)


def list_diversity(lists: NDArray[np.integer], vectors: NDArray[np.floating[Any]]) -> Values:
    """Return 1 less the mean cosine between two items of each user's list: [q] (Ziegler et al. 2005).

    lists: [q, k] item indices (-1 fills short lists; a list of fewer than two items has NaN).  vectors: [n, d].
    """
    filled = lists >= 0
    own = np.where(filled[:, :, None], vectors[np.maximum(lists, 0)], 0.0).astype(np.float64)
    own /= np.maximum(np.linalg.norm(own, axis=2, keepdims=True), 1e-30)
    length = filled.sum(axis=1)
    # The square of the sum of unit vectors holds each pair twice and each item with itself once.
    pairs = np.square(own.sum(axis=1)).sum(axis=1) - np.square(own).sum(axis=(1, 2))
    return 1.0 - np.divide(pairs, length * (length - 1), out=np.full(len(lists), np.nan), where=length > 1)


class MetricSums:
    """Sums of per-user values and of their bootstrap replicates, for blocks of users that are merged.

    metrics: names, in the order of `means`.  replicates: of the Poisson bootstrap (Chamandy et al. 2012): each user
    weighs Poisson(1) in each replicate, drawn from a hash of the user, the replicate and the seed. So the intervals
    depend neither on the cutting into blocks nor on their order, and two methods measured on the same users with the
    same seed are paired: see `interval_of_difference`.
    """

    def __init__(self, metrics: Sequence[str], *, replicates: int = REPLICATES, seed: int = 0) -> None:
        self.metrics = tuple(metrics)
        self.replicates, self.seed = replicates, seed
        self.totals = np.zeros((replicates + 1, len(self.metrics)))
        self.weights = np.zeros((replicates + 1, len(self.metrics)))

    def add(self, users: NDArray[np.integer], values: Mapping[str, NDArray[np.floating[Any]]]) -> None:
        """Add the values [q] of each metric for users [q], given by a stable number (an index or a hash of the id)."""
        self.add_drawn(bootstrap_weights(users, self.replicates, self.seed), values)

    def add_drawn(self, draws: Values, values: Mapping[str, NDArray[np.floating[Any]]]) -> None:
        """Add the values [q] of users with these `bootstrap_weights` [replicates + 1, q]: several sums share them."""
        if set(values) != set(self.metrics):
            raise ValueError(f"expected the metrics {self.metrics}, got {tuple(values)}")
        table = np.stack([np.asarray(values[name], np.float64) for name in self.metrics], axis=1)
        counted = ~np.isnan(table)
        self.totals += draws @ np.where(counted, table, 0.0)
        self.weights += draws @ counted.astype(np.float64)

    def merge(self, other: MetricSums) -> None:
        """Add the sums of other users."""
        if (self.metrics, self.replicates, self.seed) != (other.metrics, other.replicates, other.seed):
            raise ValueError("only sums of the same metrics, replicates and seed can be merged")
        self.totals += other.totals
        self.weights += other.weights

    def users(self) -> dict[str, int]:
        """Return how many users have a value of each metric."""
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
        """Return the interval of this mean minus the other's; both must have seen the same users."""
        if (self.replicates, self.seed) != (other.replicates, other.seed):
            raise ValueError("a paired difference needs sums of the same replicates and seed")
        own = self._replicate_means()[1:, self.metrics.index(metric)]
        return _percentiles(own - other._replicate_means()[1:, other.metrics.index(metric)], level)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return all state as plain arrays, for a row of an Arrow table or a file."""
        return {
            "metrics": np.array(self.metrics),
            "seed": np.array(self.seed),
            "totals": self.totals,
            "weights": self.weights,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> MetricSums:
        """Return the sums that `to_arrays` gave."""
        totals = np.array(arrays["totals"], np.float64)
        sums = cls([str(name) for name in arrays["metrics"]], replicates=len(totals) - 1, seed=int(arrays["seed"]))
        sums.totals, sums.weights = totals, np.array(arrays["weights"], np.float64)
        return sums

    def _replicate_means(self) -> Values:
        return np.divide(self.totals, self.weights, out=np.full_like(self.totals, np.nan), where=self.weights > 0)


def bootstrap_weights(users: NDArray[np.integer], replicates: int = REPLICATES, seed: int = 0) -> Values:
    """Return the weights of users [replicates + 1, users]: 1 in the first row, Poisson draws in the others."""
    weights = np.ones((replicates + 1, len(users)))
    weights[1:] = poisson_draws(users, replicates, seed)
    return weights


def poisson_draws(users: NDArray[np.integer], replicates: int, seed: int) -> NDArray[np.int64]:
    """Return Poisson(1) draws [replicates, users] that depend on nothing but user, replicate and seed."""
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
    owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    return np.bincount(owner, values, minlength=len(offsets) - 1).astype(np.float64)


def _target_counts(offsets: NDArray[np.int64]) -> Values:
    counts = np.diff(offsets).astype(np.float64)
    return np.where(counts > 0, counts, np.nan)


def _percentiles(values: Values, level: float) -> tuple[float, float]:
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
