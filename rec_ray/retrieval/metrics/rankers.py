"""Answers to the questions of an evaluation: where the targets stand in a ranking of the whole catalogue, and the list.

`Questions` come in and a `Ranking` goes out, from two towers or from a recommender that counts. Every method ranks the
same items and leaves the same ones out; it knows no metric, no segment and not which method is better.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from rec_ray.contracts import TEST
from rec_ray.retrieval.features.catalogue import Catalogue
from rec_ray.retrieval.features.timelines import query_batch
from rec_ray.retrieval.metrics.baselines import Neighbours, Popularity
from rec_ray.retrieval.metrics.holdout import Questions
from rec_ray.retrieval.metrics.metrics import target_ranks_from_scores
from rec_ray.retrieval.model.bundle import TwoTowerBundle
from rec_ray.retrieval.model.inference import embed_as_history, embed_catalogue, embed_queries
from rec_ray.retrieval.search import ExactTopK

LIST_LENGTH = 10
"""Length of the lists whose coverage and novelty are measured."""

Array = NDArray[Any]


@dataclass(frozen=True)
class Ranking:
    """What a method answers to `q` questions with `t` targets.

    ranks: [t] place of each target in the ranking of the whole catalogue, 1 is the best.
    lists: [q, LIST_LENGTH] items, best first, -1 where no item is left. scores: [q, LIST_LENGTH] of these items.
    target_scores: [t]. random_scores: [q] of one item each, drawn from all that can be recommended, or None.
    """

    ranks: Array
    lists: Array
    scores: Array
    target_scores: Array
    random_scores: Array | None = None


class Method(Protocol):
    """Whatever ranks the catalogue for users."""

    def rank(self, questions: Questions) -> Ranking:
        """Return where the targets stand, and the best items."""
        ...


class TowerMethod:
    """Ranks by the product of user and item vectors.

    An item that the model cannot know, because it has no embedding row of its own and the item tower reads no features,
    ranks behind all others and is in no list: so a version whose vocabulary is older is judged on the same targets.
    """

    def __init__(self, bundle: TwoTowerBundle, catalogue: Catalogue) -> None:
        self.bundle = bundle
        self.items = embed_catalogue(bundle.model, catalogue)
        self.history = embed_as_history(bundle.model, catalogue, self.items)
        self.index = ExactTopK(self.items.numpy(), threads=1)
        knows = catalogue.id_index.numpy() > 0
        if not bundle.preprocessor.items.shape.is_empty:
            knows = np.ones_like(knows)
        self.allowed = catalogue.known & knows
        self.last = catalogue.known & ~knows

    @torch.inference_mode()
    def rank(self, questions: Questions) -> Ranking:
        """Return where the targets stand, and the best items."""
        length = int(self.bundle.arguments["history_length"])
        query = query_batch(questions.timelines, questions.users, split=TEST, query=1, history_length=length)
        vectors = embed_queries(self.bundle.model, query, self.history)
        queries = vectors.numpy()
        targets, offsets, exclude = questions.targets, questions.offsets, questions.exclude
        ranks = self.index.target_ranks(queries, targets, offsets, exclude, self.allowed)
        ranks = np.where(self.last[targets], self._rankable(questions), ranks)
        lists, scores = self.index.search(queries, LIST_LENGTH, exclude, self.allowed)
        owner = np.repeat(np.arange(len(questions)), np.diff(offsets))
        target_scores = (vectors[owner] * self.items[targets]).sum(1).numpy()
        drawn = np.random.default_rng(0).choice(np.flatnonzero(self.allowed), len(questions))
        random_scores = (vectors * self.items[drawn]).sum(1).numpy()
        return Ranking(ranks, lists, scores, target_scores, random_scores)

    def _rankable(self, questions: Questions) -> Array:
        """Return the last place of the ranking of each target's user: [t]."""
        places = np.full(len(questions), np.count_nonzero(self.allowed | self.last))
        if questions.exclude is not None:
            items, first = questions.exclude
            owner = np.repeat(np.arange(len(questions)), np.diff(first))
            keys = np.unique(owner.astype(np.int64) * len(self.allowed) + items)
            ranked = (self.allowed | self.last)[keys % len(self.allowed)]
            places -= np.bincount(keys[ranked] // len(self.allowed), minlength=len(questions))
        return np.repeat(places, np.diff(questions.offsets))


GROUPS = 8
"""Groups of items whose maxima are compared, for each item of a list."""


class CountingMethod:
    """Ranks by the scores of a recommender that only counts."""

    def __init__(self, counted: Popularity | Neighbours, catalogue: Catalogue) -> None:
        self.counted, self.allowed = counted, catalogue.known

    def rank(self, questions: Questions) -> Ranking:
        """Return where the targets stand, and the best items."""
        scores = np.where(self.allowed, self.counted.scores(*questions.history), -np.inf)
        if questions.exclude is not None:
            items, first = questions.exclude
            scores[np.repeat(np.arange(len(questions)), np.diff(first)), items] = -np.inf
        owner = np.repeat(np.arange(len(questions)), np.diff(questions.offsets))
        ranks = target_ranks_from_scores(scores, questions.targets, questions.offsets)
        lists = best_items(scores, LIST_LENGTH)
        found = np.take_along_axis(scores, np.maximum(lists, 0), axis=1)
        return Ranking(ranks, lists, np.where(lists >= 0, found, -np.inf), scores[owner, questions.targets])


def best_items(scores: Array, count: int) -> Array:
    """Return the items of the `count` best scores of each row, ties by index, -1 where none is left: [q, count].

    scores: [q, n], -inf for what may not be listed. What reaches the `count`-th best of the maxima of some groups of
    items is sorted, and nothing else: partitioning all scores took most of an evaluation.
    """
    rows, items = scores.shape
    count = min(count, items)
    groups = min(items, GROUPS * count)
    head = scores[:, : items - items % groups].reshape(rows, -1, groups).max(axis=1)
    reached = np.partition(head, groups - count, axis=1)[:, groups - count]
    row, item = np.divmod(np.flatnonzero((scores >= reached[:, None]) & (scores > -np.inf)), items)
    order = np.lexsort((item, -scores[row, item], row))
    row, item = row[order], item[order]
    place = np.arange(len(row)) - np.searchsorted(row, np.arange(rows))[row]
    listed = place < count
    best = np.full((rows, count), -1, np.int64)
    best[row[listed], place[listed]] = item[listed]
    return best
