"""Metrics of several methods over all users and over segments, as sums that add up over blocks of users.

Input: targets and rankings of a block. Output: `SegmentMetrics`, which travel as a small Arrow table and are merged;
they give means, bootstrap intervals and intervals of differences.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rec_ray.retrieval.features.catalogue import Catalogue
from rec_ray.retrieval.metrics.holdout import Holdout
from rec_ray.retrieval.metrics.metrics import MetricSums, ndcg_at_k, novelty, recall_at_k, reciprocal_rank
from rec_ray.retrieval.metrics.rankers import LIST_LENGTH, Ranking
from rec_ray.retrieval.metrics.segments import segment_items, segment_users
from rec_ray.retrieval.ragged import filter_values, flat_values

EVERYONE = "all"
SEGMENT_METRICS = ("recall@10", "ndcg@10", "mrr")

Array = NDArray[Any]

_TABLE = pa.schema(
    [
        ("method", pa.string()),
        ("segment", pa.string()),
        ("totals", pa.list_(pa.float64())),
        ("weights", pa.list_(pa.float64())),
        ("items", pa.list_(pa.int64())),
        ("times", pa.list_(pa.int64())),
    ]
)
"""One row per method and segment. items, times: the recommended items and how often; only in the rows of all users."""


def metric_names(ks: Sequence[int]) -> list[str]:
    """Return the metric names of every method over all users, in the order of their sums."""
    cut = sorted({*ks, 10})
    return [*(f"recall@{k}" for k in cut), *(f"ndcg@{k}" for k in cut), "mrr", "mrr@20", f"novelty@{LIST_LENGTH}"]


class SegmentMetrics:
    """Metric sums by method and segment, and how often each method recommended each item."""

    def __init__(self, ks: Sequence[int], bounds: tuple[int, int, int], items: int) -> None:
        """Start with empty sums. bounds: of `activity_bounds`. items: size of the catalogue."""
        self.ks, self.bounds, self.items = sorted({*ks, 10}), bounds, items
        self.sums: dict[tuple[str, str], MetricSums] = {}
        self.recommended: dict[str, Array] = {}

    def add(self, method: str, draws: Array, questions: Holdout, ranking: Ranking, catalogue: Catalogue) -> None:
        """Add the ranking of a method. draws: [replicates + 1, q] `bootstrap_weights` of the users."""
        values = self._values(ranking.ranks, questions.offsets)
        count = catalogue.count
        values[f"novelty@{LIST_LENGTH}"] = novelty(ranking.lists, count, int(count.sum()))
        self._sums(method, EVERYONE).add_drawn(draws, {name: values[name] for name in metric_names(self.ks)})
        for segment, mask in segment_users(questions.events, self.bounds).items():
            segment_values = {name: values[name][mask] for name in SEGMENT_METRICS}
            self._sums(method, segment).add_drawn(draws[:, mask], segment_values)
        for segment, mask in segment_items(count[questions.targets]).items():
            values = self._values(*filter_values(ranking.ranks, questions.offsets, mask))
            self._sums(method, segment).add_drawn(draws, {name: values[name] for name in SEGMENT_METRICS})
        items, times = np.unique(ranking.lists[ranking.lists >= 0], return_counts=True)
        self._recommend(method, items, times)

    def _values(self, ranks: Array, offsets: Array) -> dict[str, Array]:
        values = {f"recall@{k}": recall_at_k(ranks, offsets, k) for k in self.ks}
        values |= {f"ndcg@{k}": ndcg_at_k(ranks, offsets, k) for k in self.ks}
        return values | {"mrr": reciprocal_rank(ranks, offsets), "mrr@20": reciprocal_rank(ranks, offsets, 20)}

    def _sums(self, method: str, segment: str) -> MetricSums:
        names = metric_names(self.ks) if segment == EVERYONE else SEGMENT_METRICS
        return self.sums.setdefault((method, segment), MetricSums(names))

    def _recommend(self, method: str, items: Array, times: Array) -> None:
        self.recommended.setdefault(method, np.zeros(self.items + 1, np.int64))[items] += times

    def to_table(self) -> pa.Table:
        """Return the complete state as an Arrow table."""
        rows = []
        for (method, segment), sums in self.sums.items():
            counts = self.recommended[method] if segment == EVERYONE else np.zeros(0, np.int64)
            items = np.flatnonzero(counts)
            rows.append(
                {
                    "method": method,
                    "segment": segment,
                    "totals": sums.totals.reshape(-1),
                    "weights": sums.weights.reshape(-1),
                    "items": items,
                    "times": counts[items],
                }
            )
        return pa.Table.from_pylist(rows, schema=_TABLE)

    def add_table(self, table: pa.Table) -> None:
        """Add the sums of other users, from `to_table`."""
        for row in range(table.num_rows):
            row_table = table.slice(row, 1)
            method, segment = row_table["method"][0].as_py(), row_table["segment"][0].as_py()
            sums = self._sums(method, segment)
            width = len(sums.metrics)
            sums.totals += flat_values(row_table["totals"]).reshape(-1, width)
            sums.weights += flat_values(row_table["weights"]).reshape(-1, width)
            if segment == EVERYONE:
                self._recommend(method, flat_values(row_table["items"]), flat_values(row_table["times"]))

    def methods(self) -> list[str]:
        """Return the methods in the order in which they were added."""
        return list(dict.fromkeys(method for method, segment in self.sums if segment == EVERYONE))

    def segments(self) -> list[str]:
        """Return the segments that have a user, in the order in which they were added."""
        found = dict.fromkeys(segment for _, segment in self.sums if segment != EVERYONE)
        first = self.methods()[:1]
        return [segment for segment in found if first and self.users(first[0], segment)]

    def users(self, method: str, segment: str = EVERYONE) -> int:
        """Return the number of users with a value of a method in a segment."""
        found = self.sums.get((method, segment))
        return found.users()["mrr"] if found else 0
