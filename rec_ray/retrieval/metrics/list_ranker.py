"""Ranking by the lists of the candidates step, as they would have been made at the test start, for the evaluation.

Input: an encoded catalogue with its raw fields, a model and the settings of the candidates. Output: for each user the
list that the candidates step makes from the fields of items and users at the test start, as a `Ranking`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from rec_ray.retrieval.features.catalogue import Catalogue
from rec_ray.retrieval.features.dislikes import with_disliked
from rec_ray.retrieval.features.timelines import query_batch
from rec_ray.retrieval.lists.builder import ListBuilder
from rec_ray.retrieval.lists.item_filters import evaluate_item_filters, raw_columns
from rec_ray.retrieval.metrics.holdout import Holdout
from rec_ray.retrieval.metrics.metrics import list_diversity, target_ranks_from_lists
from rec_ray.retrieval.metrics.rankers import LIST_LENGTH, Ranking
from rec_ray.retrieval.model.bundle import TwoTowerBundle
from rec_ray.retrieval.model.inference import embed_as_history, embed_catalogue, embed_queries, seen_items
from rec_ray.retrieval.search import ExactTopK
from rec_ray.schema import FIRST_SEEN, RAW_ITEM, RAW_TEST, QueryTime, Split

if TYPE_CHECKING:
    from rec_ray.config.candidates import CandidateSettings

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class ListRanker:
    """List builder for users as of the test start; item indices are those of the catalogue, from 1.

    items: [n + 1, d] item vectors. history: [n + 1, d] item vectors that histories read. seen_types: codes of the event
    types that count as seen, None for all. seen_since: seconds since 1970 from which events count, None for all.
    """

    bundle: TwoTowerBundle
    items: Tensor
    history: Tensor
    lists: ListBuilder
    settings: CandidateSettings
    seen_types: Array | None
    seen_since: float | None

    @classmethod
    def of(
        cls, table: pa.Table, catalogue: Catalogue, bundle: TwoTowerBundle, settings: CandidateSettings, now: datetime
    ) -> ListRanker:
        """Evaluate the filters and embed the catalogue. table: rows of `CATALOGUE` with raw fields. now: test start."""
        fields = [*settings.item_fields, *([FIRST_SEEN] if settings.fresh_share else [])]
        filters = evaluate_item_filters(
            settings.filters,
            pa.table(raw_columns(table.sort_by("item_index"), RAW_ITEM, fields)),
            catalogue.item_ids,
            now,
            item_features=bundle.preprocessor.items.declarations,
            user_features=bundle.preprocessor.users.declarations,
            known=catalogue.known[1:],
            fresh_days=settings.fresh_days if settings.fresh_share else None,
        )
        items = embed_catalogue(bundle.model, catalogue)
        matrix = np.ascontiguousarray(items.numpy()[1:])
        lists = ListBuilder(
            ExactTopK(matrix, threads=1),
            matrix.__getitem__,
            matrix.__getitem__,
            filters,
            settings.diversity,
            settings.fresh_share,
            bundle.similarity == "cosine",
        )
        history = embed_as_history(bundle.model, catalogue, items)
        return cls(bundle, items, history, lists, settings, *seen_events(settings.filters, bundle, now))

    @torch.inference_mode()
    def rank(self, questions: Holdout, batch: pa.Table) -> Ranking:
        """Return the ranks of the targets in the lists, 0 where a list lacks the target.

        batch: the users' rows of `TIMELINES`. Target scores are NaN, because filtered items have no valid score.
        """
        timelines, users = questions.timelines, questions.users
        length = int(self.bundle.arguments["history_length"])
        query = query_batch(timelines, users, split=Split.TEST, query=QueryTime.TEST, history_length=length)
        queries = embed_queries(self.bundle.model, query, self.history).numpy()
        exclude = None
        if self.settings.exclude_seen:
            seen, first = seen_items(timelines, users, Split.TEST, self.seen_types, self.seen_since)
            exclude = seen - 1, first
        raw = raw_columns(batch, RAW_TEST, self.lists.filters.user_fields)
        fields = {name: values.take(pa.array(users)) for name, values in raw.items()}
        found, scores, _ = self.lists.build(queries, self.settings.k, exclude, fields)
        lists = np.where(found >= 0, found + 1, -1)
        ranks = target_ranks_from_lists(lists, questions.targets, questions.offsets)
        target_scores = np.full(len(questions.targets), np.nan)
        return Ranking(ranks, lists[:, :LIST_LENGTH], scores[:, :LIST_LENGTH], target_scores)

    def figures(self, lists: Array) -> dict[str, Array]:
        """Return the diversity of each list and, if new items have a share, that share: [q], NaN where undefined.

        lists: [q, LIST_LENGTH] items, -1 at the end of short ones.
        """
        figures = {f"diversity@{LIST_LENGTH}": list_diversity(lists, self.items.numpy())}
        fresh = self.lists.filters.fresh
        if fresh is not None:
            filled = lists > 0
            length = filled.sum(axis=1)
            new = (filled & fresh[np.maximum(lists - 1, 0)]).sum(axis=1)
            share = np.divide(new, length, out=np.full(len(lists), np.nan), where=length > 0)
            figures[f"fresh@{LIST_LENGTH}"] = share
        return figures


def seen_events(filters: Any, bundle: TwoTowerBundle, now: datetime) -> tuple[Array | None, float | None]:
    """Return the codes of the event types that count as seen and since when, in seconds since 1970; None is all."""
    types = bundle.preprocessor.encode_event_types(pa.array(with_disliked(filters.seen_types), pa.string()))
    since = now.timestamp() - filters.seen_days * 86_400 if filters.seen_days else None
    return (types[types > 0] if filters.seen_types else None), since
