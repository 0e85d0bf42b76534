"""Metrics of a model on the held-out events of a fit, beside counting baselines, in one process.

Input: encoded timelines, a catalogue and a model that has not seen the held-out events. Output: metrics by method. The
rankers and sums are those of the pipeline's evaluation.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from rec_ray.contracts import KNN, MODEL, POPULARITY, TRANSITIONS
from rec_ray.retrieval.features.catalogue import Catalogue
from rec_ray.retrieval.features.timelines import Timelines
from rec_ray.retrieval.metrics.baselines import (
    Neighbours,
    count_cooccurrences,
    count_popularity,
    count_transitions,
    fit_item_knn,
    fit_transitions,
)
from rec_ray.retrieval.metrics.baselines import Popularity as PopularityCounts
from rec_ray.retrieval.metrics.holdout import collect_held_out, positives_before_test, users_with_targets
from rec_ray.retrieval.metrics.metrics import bootstrap_weights
from rec_ray.retrieval.metrics.rankers import CountingRanker, Ranker, TowerRanker
from rec_ray.retrieval.metrics.segment_metrics import EVERYONE, SegmentMetrics
from rec_ray.retrieval.model.bundle import TwoTowerBundle

CELLS = 20_000_000
"""Largest number of baseline scores, users times items, in memory."""


@dataclass(frozen=True)
class HeldOutMetrics:
    """Metrics of every method on the same users and targets.

    metrics: method -> metric -> mean over users, such as `metrics["model"]["ndcg@10"]`. intervals: likewise, bounds of
    the 95 % bootstrap interval. users: users with a held-out item. targets: held-out items that were ranked.
    """

    metrics: dict[str, dict[str, float]]
    intervals: dict[str, dict[str, tuple[float, float]]]
    users: int
    targets: int

    @property
    def beats_popularity(self) -> bool:
        """True if the model's NDCG@10 is above that of the most popular items."""
        return bool(self.metrics) and self.metrics[MODEL]["ndcg@10"] > self.metrics[POPULARITY]["ndcg@10"]

    def __str__(self) -> str:
        """Table of Recall@10 and NDCG@10 by method."""
        rows = [f"{name:<18}{own['recall@10']:>10.4f}{own['ndcg@10']:>10.4f}" for name, own in self.metrics.items()]
        head = f"{self.users:,} users, {self.targets:,} held-out items"
        return "\n".join([head, f"{'':<18}{'recall@10':>10}{'ndcg@10':>10}", *rows])


def measure_held_out(
    timelines: Timelines,
    catalogue: Catalogue,
    bundle: TwoTowerBundle,
    ks: Sequence[int],
    *,
    exclude_seen: bool,
) -> HeldOutMetrics:
    """Rank the catalogue for every user with a held-out positive. catalogue: as of the test start."""
    items, _, offsets = positives_before_test(timelines)
    n = len(catalogue) + 1
    together, following = count_cooccurrences(items, offsets, n), count_transitions(items, offsets, n)
    counted: dict[str, PopularityCounts | Neighbours] = {
        POPULARITY: PopularityCounts(count_popularity(items, n)),
        KNN: fit_item_knn(together),
        TRANSITIONS: fit_transitions(following),
    }
    methods: dict[str, Ranker] = {MODEL: TowerRanker(bundle, catalogue)}
    methods |= {name: CountingRanker(baseline, catalogue) for name, baseline in counted.items()}
    sums = SegmentMetrics(ks, (0, 0, 0), len(catalogue))
    users, targets = users_with_targets(timelines), 0
    step = max(1, CELLS // n)
    for start in range(0, len(users), step):
        questions, held_out = collect_held_out(
            timelines, users[start : start + step], catalogue, exclude_seen=exclude_seen
        )
        targets += held_out.targets
        if not len(questions):
            continue
        ids = timelines.user_ids.take(pa.array(questions.users)).to_pylist()
        draws = bootstrap_weights(np.array([zlib.crc32(user.encode()) for user in ids], np.int64))
        for name, method in methods.items():
            sums.add(name, draws, questions, method.rank(questions), catalogue)
    everyone = {name: sums.sums[name, EVERYONE] for name in sums.methods()}
    return HeldOutMetrics(
        metrics={name: own.means() for name, own in everyone.items()},
        intervals={name: own.intervals() for name, own in everyone.items()},
        users=sums.users(MODEL),
        targets=targets,
    )
