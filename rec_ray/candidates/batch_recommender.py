"""Batch functions of the candidates step: embed items, recommend items to users, list similar items.

Input: batches of the encoded catalogue or of timelines, and references to objects that all processes of a node share.
Output: vectors and lists in Arrow columns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch

from rec_ray.candidates.item_shards import AS_HISTORY, ItemShards
from rec_ray.config import CandidateSettings
from rec_ray.distributed.worker_cache import get_or_create, get_shared
from rec_ray.retrieval.features.catalogue import Catalogue
from rec_ray.retrieval.features.timelines import Timelines, query_batch
from rec_ray.retrieval.learning.learner import multiplies_in_half
from rec_ray.retrieval.lists.builder import ListBuilder
from rec_ray.retrieval.lists.item_filters import raw_columns
from rec_ray.retrieval.lists.popularity import SegmentPopularity, unknown_users
from rec_ray.retrieval.metrics.list_ranker import seen_events
from rec_ray.retrieval.model.bundle import TwoTowerBundle
from rec_ray.retrieval.model.inference import embed_queries, seen_items
from rec_ray.retrieval.ragged import flat_values, lists_of, take_rows
from rec_ray.retrieval.search import ExactTopK, Exclusions
from rec_ray.retrieval.search.faiss_ivf import recall_of
from rec_ray.runs.progress import report_rows
from rec_ray.schema import (
    EMBEDDING,
    EMPTIED_BY,
    ITEM_ID,
    METHOD,
    RAW_NOW,
    RECOMMENDATIONS,
    SCORES,
    SIMILAR_SCORES,
    USER_EMBEDDINGS,
    USER_ID,
    QueryTime,
    Split,
)

Array = np.ndarray[Any, Any]

ALL_EVENTS = Split.TEST + 1
"""Split label above all others: every event is history."""
ITEMS_AT_ONCE = 8192
"""Items per embedding call, which keeps the activations of a tower small."""
MODEL, POPULARITY = "model", "popularity"
INDICES = "indices"
"""Column of lists of catalogue indices, from 0. `name_items` replaces them by ids when a list is written, because ids
take more memory.
"""
_RECOMMENDED = pa.schema(
    [
        *USER_EMBEDDINGS,
        pa.field(INDICES, pa.list_(pa.int32())),
        *(RECOMMENDATIONS.field(name) for name in (SCORES, METHOD)),
        pa.field(EMPTIED_BY, pa.string()),
    ]
)


@dataclass(frozen=True)
class CandidateContext:
    """Inputs that all tasks of the step share, small enough to be passed to each: references, settings and the time.

    bundle: a `TwoTowerBundle`. items: the shards of the catalogue. filters: evaluated `ItemFilters`. popularity:
    `SegmentPopularity`, or None if users without any known data get no list.
    """

    bundle: ray.ObjectRef
    items: ItemShards
    filters: ray.ObjectRef
    popularity: ray.ObjectRef | None
    settings: CandidateSettings
    now: datetime

    @property
    def key(self) -> str:
        """Cache key; it depends on every field."""
        return repr(self)


def _bundle(reference: ray.ObjectRef, device: str = "cpu") -> TwoTowerBundle:
    def load() -> TwoTowerBundle:
        # Tasks run side by side; threads within a product would compete for the same cores.
        torch.set_num_threads(1)
        bundle: TwoTowerBundle = get_shared(reference)
        bundle.model.to(device)
        return bundle

    return get_or_create(f"bundle {reference.hex()} {device}", load)


def _products(precision: str, device: str) -> torch.autocast:
    return torch.autocast(device, torch.bfloat16, enabled=multiplies_in_half(precision, torch.device(device)))


def embed_items(rows: pa.Table, bundle: ray.ObjectRef, device: str, precision: str) -> Iterator[pa.Table]:
    """Yield `item_index`, `item_id`, `embedding` and optionally `as_history` for rows of `CATALOGUE`, in parts.

    bundle: reference to it. device, precision: as in the settings section `candidates`.
    """
    for start in range(0, rows.num_rows, ITEMS_AT_ONCE):
        yield add_history(_embed(rows.slice(start, ITEMS_AT_ONCE), bundle, device, precision), bundle, device)


@torch.inference_mode()
def _embed(batch: pa.Table, bundle: ray.ObjectRef, device: str, precision: str) -> pa.Table:
    loaded = _bundle(bundle, device)
    order = pa.array(np.arange(1, batch.num_rows + 1), pa.int32())
    place = batch.schema.get_field_index("item_index")
    catalogue = Catalogue.from_table(batch.set_column(place, "item_index", order), loaded.preprocessor.items.shape)
    with _products(precision, device):
        vectors = catalogue.to(device).embed(loaded.model, torch.arange(1, batch.num_rows + 1, device=device))
    return pa.table({"item_index": batch["item_index"], ITEM_ID: batch[ITEM_ID], EMBEDDING: _lists(vectors)})


@torch.inference_mode()
def add_history(items: pa.Table, bundle: ray.ObjectRef, device: str = "cpu") -> pa.Table:
    """Add the column `as_history` to embedded items, if the model reads histories by vectors of their own.

    items: `item_id` and `embedding`.
    """
    loaded = _bundle(bundle, device)
    if loaded.model.item_tower.history_ids is None:
        return items
    vectors = torch.from_numpy(flat_values(items[EMBEDDING]).reshape(items.num_rows, -1).copy())
    rows = torch.from_numpy(loaded.preprocessor.encode_item_ids(items[ITEM_ID].combine_chunks())).long()
    read = loaded.model.item_tower.as_history(vectors.to(device), rows.to(device))
    return items.append_column(AS_HISTORY, _lists(read))


def _lists(vectors: torch.Tensor) -> pa.Array:
    return lists_of(np.full(len(vectors), vectors.shape[1]), vectors.cpu().numpy().reshape(-1), pa.float32())


@dataclass(frozen=True)
class Recommender:
    """Recommendation of items to timelines by the model, with the items that all processes of a node share.

    lists: builder of lists by the model. seen_types: codes of the event types that count as seen, or None for all.
    seen_since: seconds since 1970 from which events count, or None.
    """

    shared: CandidateContext
    bundle: TwoTowerBundle
    lists: ListBuilder
    seen_types: Array | None
    seen_since: float | None
    _popular: dict[str, tuple[SegmentPopularity, ListBuilder]] = field(default_factory=dict)

    @classmethod
    def load(cls, shared: CandidateContext) -> Recommender:
        """Load the shared objects into this process."""
        items, settings = shared.items, shared.settings
        bundle = _bundle(shared.bundle, settings.device)
        lists = ListBuilder(
            items,
            items.vectors,
            items.vectors,
            get_shared(shared.filters),
            settings.diversity,
            settings.fresh_share,
            bundle.similarity == "cosine",
        )
        return cls(shared, bundle, lists, *seen_events(settings.filters, bundle, shared.now))

    def embed_users(self, timelines: Timelines) -> tuple[Array, tuple[Array, Array] | None]:
        """Return the vectors [b, d] of users, and the items they have seen (ragged indices from 0), or None."""
        users = np.arange(len(timelines))
        length = int(self.bundle.arguments["history_length"])
        query = query_batch(timelines, users, split=ALL_EVENTS, query=QueryTime.NOW, history_length=length)
        settings = self.shared.settings
        table, rows = self.shared.items.history_rows(query.item_index)
        query = dataclasses.replace(query, item_index=rows).to(settings.device)
        with _products(settings.precision, settings.device):
            vectors = embed_queries(self.bundle.model, query, table).cpu().numpy()
        if not settings.exclude_seen:
            return vectors, None
        seen, first = seen_items(timelines, users, ALL_EVENTS, self.seen_types, self.seen_since)
        return vectors, (seen - 1, first)

    @torch.inference_mode()
    def recommend(self, batch: pa.Table) -> pa.Table:
        """Return `user_id`, `embedding`, `indices`, `scores`, `method` and `emptied_by` for rows of `TIMELINES`."""
        features = self.bundle.preprocessor.users
        timelines = Timelines.from_table(batch, features.shape)
        unknown = unknown_users(timelines, features, self.shared.settings.segment)
        if self.shared.popularity is None and unknown.any():
            known = pa.array(~unknown)
            batch, timelines = batch.filter(known), Timelines.from_table(batch.filter(known), features.shape)
            unknown = np.zeros(len(timelines), bool)
        if not len(timelines):
            return _RECOMMENDED.empty_table()
        vectors, exclude = self.embed_users(timelines)
        raw = raw_columns(batch, RAW_NOW, list(self.shared.settings.user_fields))
        lists = self.lists.build(vectors, self.shared.settings.k, exclude, raw)
        found, scores = lists.indices, lists.scores
        if unknown.any():
            chosen = np.flatnonzero(unknown)
            found[chosen], scores[chosen] = self._most_popular(chosen, exclude, raw)
        indices, list_names = _cut(found, scores)
        return pa.table(
            {
                USER_ID: timelines.user_ids,
                EMBEDDING: lists_of(np.full(len(vectors), vectors.shape[1]), vectors.reshape(-1), pa.float32()),
                INDICES: indices,
                SCORES: list_names,
                METHOD: pa.array([MODEL, POPULARITY]).take(pa.array(unknown.astype(np.int8))),
                EMPTIED_BY: lists.emptied_by,
            }
        )

    def _most_popular(self, users: Array, exclude: tuple[Array, Array] | None, raw: dict[str, pa.Array]) -> Any:
        """Return indices and scores of the popular items of the users' segments that pass the filters."""
        if not self._popular:
            popular: SegmentPopularity = get_shared(self.shared.popularity)
            index = ExactTopK(popular.matrix, threads=1)
            rows = popular.matrix.__getitem__
            lists = dataclasses.replace(self.lists, index=index, vectors=rows, scores_are_cosines=False, _subsets={})
            self._popular[POPULARITY] = popular, lists
        popular, builder = self._popular[POPULARITY]
        user_fields = {name: values.take(pa.array(users)) for name, values in raw.items()}
        segment = self.shared.settings.segment
        segments = pc.cast(user_fields[segment], pa.string()) if segment else pa.nulls(len(users), pa.string())
        remaining_exclude = take_rows(*exclude, users) if exclude is not None else None
        found = builder.build(popular.queries(segments), self.shared.settings.k, remaining_exclude, user_fields)
        return found.indices, found.scores


def _recommender(shared: CandidateContext) -> Recommender:
    return get_or_create(f"recommender {shared.key}", lambda: Recommender.load(shared))


def recommend_items(rows: pa.Table, shared: CandidateContext, progress: str) -> Iterator[pa.Table]:
    """Yield `Recommender.recommend` of rows in parts; the recommender is loaded once per process."""
    recommender = _recommender(shared)
    size = shared.settings.batch_size
    for start in range(0, rows.num_rows, size):
        batch = rows.slice(start, size)
        yield recommender.recommend(batch)
        report_rows(progress, batch.num_rows, more=start + size < rows.num_rows)


@torch.inference_mode()
def measure_recall(batch: pa.Table, shared: CandidateContext) -> pa.Table:
    """Return per user the share of the exact list, without filters, that the approximate list contains."""
    recommender = _recommender(shared)
    vectors, seen = recommender.embed_users(Timelines.from_table(batch, recommender.bundle.preprocessor.users.shape))
    exclude = Exclusions(*seen) if seen is not None else None
    approximate = shared.items.search(vectors, shared.settings.k, exclude)[0]
    exact = shared.items.search(vectors, shared.settings.k, exclude, exactly=True)[0]
    return pa.table({"recall": recall_of(approximate, exact)})


def list_similar_items(batch: pa.Table, shared: CandidateContext) -> pa.Table:
    """Return `item_id`, `indices` and `similar_scores` of the nearest items that may be recommended to some user.

    batch: rows of `embed_items`.
    """
    item_rows = batch["item_index"].to_numpy().astype(np.int64) - 1
    itself = Exclusions(item_rows, np.arange(len(item_rows) + 1))
    vectors = flat_values(batch[EMBEDDING]).reshape(len(item_rows), -1)
    allowed = get_or_create(f"allowed {shared.filters.hex()}", lambda: get_shared(shared.filters).allowed)
    found, scores = shared.items.search(vectors, shared.settings.similar_items, itself, allowed)
    indices, list_names = _cut(found, scores)
    return pa.table({ITEM_ID: batch[ITEM_ID], INDICES: indices, SIMILAR_SCORES: list_names})


def _cut(found: Array, scores: Array) -> tuple[pa.Array, pa.Array]:
    """Return indices and scores [q, k] as lists that end before the first index -1."""
    kept = found >= 0
    lengths = kept.sum(axis=1)
    # Fast path: usually no list is short, and slicing is faster than masking.
    some = slice(None) if kept.all() else kept.reshape(-1)
    indices, list_names = found.reshape(-1)[some].astype(np.int32), scores.reshape(-1)[some]
    return lists_of(lengths, indices, pa.int32()), lists_of(lengths, list_names, pa.float32())


def name_items(rows: pa.Table, column: str, items: ItemShards) -> pa.Table:
    """Replace item `indices` by item ids. column: name of the column of ids."""
    lists = rows[INDICES].combine_chunks()
    return rows.set_column(rows.column_names.index(INDICES), column, items.id_lists(lists))
