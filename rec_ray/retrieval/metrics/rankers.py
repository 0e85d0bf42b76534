"""Rankings of the whole catalogue for the targets of an evaluation, by two towers or by a recommender that counts.

Input: `Holdout`. Output: a `Ranking`, the ranks of the targets and the best items of each user. Every method ranks
the same items and excludes the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from rec_ray.retrieval.features.catalogue import Catalogue
from rec_ray.retrieval.features.timelines import query_batch
from rec_ray.retrieval.metrics.baselines import Neighbours, Popularity
from rec_ray.retrieval.metrics.holdout import Holdout
from rec_ray.retrieval.metrics.metrics import target_ranks_from_scores
from rec_ray.retrieval.model.bundle import TwoTowerBundle
from rec_ray.retrieval.model.inference import embed_as_history, embed_catalogue, embed_queries
from rec_ray.retrieval.ragged import value_rows
from rec_ray.retrieval.search import ExactTopK
from rec_ray.schema import QueryTime, Split

LIST_LENGTH = 10
"""Length of the lists whose coverage and novelty are measured."""
GROUPS = 8
"""Groups of items per list place whose maxima `best_items` compares."""

Array = NDArray[Any]


@dataclass(frozen=True)
class Ranking:
    """Ranks and lists of a method for `q` users with `t` targets.

    ranks: [t] rank of each target in the whole catalogue, 1 is the best.
    lists: [q, LIST_LENGTH] items, best first, -1 where no item is left. scores: [q, LIST_LENGTH] of these items.
    target_scores: [t]. random_scores: [q], of one random item per user among those that can be recommended, or None.
    """

    ranks: Array
    lists: Array
    scores: Array
    target_scores: Array
    random_scores: Array | None = None


class Ranker(Protocol):
    """A method that ranks the catalogue for users."""

    def rank(self, questions: Holdout) -> Ranking:
        """Return the ranks of the targets, and the best items."""
        ...


class TowerRanker:
    """Ranking by the inner product of user and item vectors.

    An item without an embedding row ranks behind all others and is in no list if the item tower reads no features. So a
    version with an older vocabulary is evaluated on the same targets.
    """

    def __init__(self, bundle: TwoTowerBundle, catalogue: Catalogue) -> None:
        self.bundle = bundle
        self.items = embed_catalogue(bundle.model, catalogue)
        self.history = embed_as_history(bundle.model, catalogue, self.items)
        self.index = ExactTopK(self.items.numpy(), threads=1)
        has_vector = catalogue.id_index.numpy() > 0
        if not bundle.preprocessor.items.shape.is_empty:
            has_vector = np.ones_like(has_vector)
        self.allowed = catalogue.known & has_vector
        self.ranked_last = catalogue.known & ~has_vector

    @torch.inference_mode()
    def rank(self, questions: Holdout) -> Ranking:
        """Return the ranks of the targets, and the best items."""
        length = int(self.bundle.arguments["history_length"])
        batch = query_batch(
            questions.timelines, questions.users, split=Split.TEST, query=QueryTime.TEST, history_length=length
        )
        vectors = embed_queries(self.bundle.model, batch, self.history)
        queries = vectors.numpy()
        targets, offsets, exclude = questions.targets, questions.offsets, questions.exclude
        ranks = self.index.target_ranks(queries, targets, offsets, exclude, self.allowed)
        ranks = np.where(self.ranked_last[targets], self._last_ranks(questions), ranks)
        lists, scores = self.index.search(queries, LIST_LENGTH, exclude, self.allowed)
        target_scores = (vectors[value_rows(offsets)] * self.items[targets]).sum(1).numpy()
        random_items = np.random.default_rng(0).choice(np.flatnonzero(self.allowed), len(questions))
        random_scores = (vectors * self.items[random_items]).sum(1).numpy()
        return Ranking(ranks, lists, scores, target_scores, random_scores)

    def _last_ranks(self, questions: Holdout) -> Array:
        """Return the last rank in the ranking of each target's user: [t]."""
        ranked = self.allowed | self.ranked_last
        ranks = np.full(len(questions), np.count_nonzero(ranked))
        if questions.exclude is not None:
            items, first = questions.exclude
            keys = np.unique(value_rows(first).astype(np.int64) * len(ranked) + items)
            excluded = keys[ranked[keys % len(ranked)]]
            ranks -= np.bincount(excluded // len(ranked), minlength=len(questions))
        return np.repeat(ranks, np.diff(questions.offsets))


class CountingRanker:
    """Ranking by the scores of a recommender that counts."""

    def __init__(self, counted: Popularity | Neighbours, catalogue: Catalogue) -> None:
        self.counted, self.allowed = counted, catalogue.known

    def rank(self, questions: Holdout) -> Ranking:
        """Return the ranks of the targets, and the best items."""
        scores = np.where(self.allowed, self.counted.scores(*questions.history), -np.inf)
        if questions.exclude is not None:
            items, first = questions.exclude
            scores[value_rows(first), items] = -np.inf
        ranks = target_ranks_from_scores(scores, questions.targets, questions.offsets)
        lists = best_items(scores, LIST_LENGTH)
        list_scores = np.where(lists >= 0, np.take_along_axis(scores, np.maximum(lists, 0), axis=1), -np.inf)
        return Ranking(ranks, lists, list_scores, scores[value_rows(questions.offsets), questions.targets])


def best_items(scores: Array, count: int) -> Array:
    """Return the items of the `count` best scores of each row, ties by index, -1 where none is left: [q, count].

    scores: [q, n], -inf for items that may not be listed. Only scores that reach the `count`-th best of the maxima of
    some groups of items are sorted, because partitioning all scores dominated the evaluation time.
    """
    rows, items = scores.shape
    count = min(count, items)
    groups = min(items, GROUPS * count)
    maxima = scores[:, : items - items % groups].reshape(rows, -1, groups).max(axis=1)
    threshold = np.partition(maxima, groups - count, axis=1)[:, groups - count]
    row, item = np.divmod(np.flatnonzero((scores >= threshold[:, None]) & (scores > -np.inf)), items)
    order = np.lexsort((item, -scores[row, item], row))
    row, item = row[order], item[order]
    place = np.arange(len(row)) - np.searchsorted(row, np.arange(rows))[row]
    list_names = place < count
    best = np.full((rows, count), -1, np.int64)
    best[row[list_names], place[list_names]] = item[list_names]
    return best
