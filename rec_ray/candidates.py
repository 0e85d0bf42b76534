"""Model and encoded tables into `Candidates`: vectors of all items and users, and the best k items of every user.

The catalogue and the timelines stream through `map_batches`; the item vectors are shared by all scoring actors of a node
and what each task has written is listed in a manifest, which is written last. It knows nothing of Feast, of versions
beyond their name, or of how the model was trained.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
import torch
from ray.data import ActorPoolStrategy, Datasink

from rec_ray.config import CandidateSettings, RaySettings
from rec_ray.contracts import Candidates, TrainingData
from rec_ray.errors import DataError
from rec_ray.retrieval.bundle import TwoTowerBundle
from rec_ray.retrieval.catalogue import Catalogue, lists_of
from rec_ray.retrieval.learning import embed_queries, seen_items
from rec_ray.retrieval.timelines import Timelines, query_batch
from rec_ray.retrieval.top_k import ExactTopK, Exclusions
from rec_ray.schema import (
    EMBEDDING,
    ITEM_EMBEDDINGS,
    ITEM_ID,
    ITEM_IDS,
    RECOMMENDATIONS,
    SCORES,
    USER_EMBEDDINGS,
    USER_ID,
)
from rec_ray.storage import Storage

ITEM_FOLDER, USER_FOLDER, RECOMMENDATION_FOLDER = "item_embeddings", "user_embeddings", "recommendations"
MANIFEST = "manifest.json"
NOW, EVERYTHING = 2, 3
"""The query row as of now, and a split label above all others: every event is history."""


def generate_candidates(
    data: TrainingData,
    bundle: TwoTowerBundle,
    settings: CandidateSettings,
    ray_settings: RaySettings,
    storage: Storage,
    *,
    version: str,
    prefix: str,
) -> Candidates:
    """Embed every item and user and write each user's `k` best items, best first.

    prefix: key below which `item_embeddings/`, `user_embeddings/`, `recommendations/` and the manifest are written.
    A list is shorter than k only when the catalogue, less what is excluded, is.

    Raises:
        DataError: the catalogue is empty.
    """
    storage.delete_prefix(prefix)
    files = ray.put(bundle.to_files())
    actors, threads = _actors(ray_settings)
    items = (
        ray.data.read_parquet(data.catalogue_now, filesystem=storage.filesystem)
        .map_batches(
            EmbedItems,
            fn_constructor_kwargs={"files": files},
            batch_size=8192,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=1),
            num_cpus=_SHARE,
        )
        .materialize()
    )
    embedding = ray.get(_matrix.remote(*items.to_arrow_refs()))
    matrix, item_ids = ray.put(embedding.matrix), ray.put(embedding.item_ids)
    if not len(embedding.item_ids):
        raise DataError("the catalogue is empty: there is nothing to recommend")
    item_sink = PartsSink(storage, prefix, {ITEM_FOLDER: ITEM_EMBEDDINGS})
    items.write_datasink(item_sink)
    user_sink = PartsSink(storage, prefix, {USER_FOLDER: USER_EMBEDDINGS, RECOMMENDATION_FOLDER: RECOMMENDATIONS})
    (
        ray.data.read_parquet(data.timelines, filesystem=storage.filesystem)
        .map_batches(
            RecommendItems,
            fn_constructor_kwargs={
                "files": files,
                "matrix": matrix,
                "item_ids": item_ids,
                "k": settings.k,
                "exclude_seen": settings.exclude_seen,
                "threads": threads,
            },
            batch_size=settings.batch_size,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(min_size=1, max_size=actors),
            num_cpus=_SHARE,
        )
        .write_datasink(user_sink)
    )
    parts = {**item_sink.parts, **user_sink.parts}
    facts = {"short_lists": user_sink.short_lists(settings.k)}
    manifest = {
        "version": version,
        "k": settings.k,
        "items": sum(part["rows"] for part in parts[ITEM_FOLDER]),
        "users": sum(part["rows"] for part in parts[USER_FOLDER]),
        "similarity": bundle.similarity,
        "embedding_size": bundle.embedding_size,
        "parts": parts,
        **facts,
    }
    storage.write_bytes(f"{prefix}/{MANIFEST}", json.dumps(manifest, indent=1).encode())
    return Candidates(version, prefix, manifest["items"], manifest["users"], settings.k, facts)


_SHARE = 0.5
"""Logical CPUs that a scoring actor reserves: the tasks that read for it must find a free one beside it."""


def _actors(settings: RaySettings) -> tuple[int, int]:
    """Return how many scoring actors to run and with how many threads each: together no more than there are CPUs."""
    cores = int(ray.cluster_resources().get("CPU", 1))
    threads = settings.threads or min(4, cores)
    return max(1, cores // threads), threads


def read_manifest(storage: Storage, prefix: str) -> dict[str, Any]:
    """Return the manifest of written candidates.

    Raises:
        DataError: there is none, so the candidates are incomplete or were never made.
    """
    key = f"{prefix}/{MANIFEST}"
    if not storage.exists(key):
        raise DataError(f"{storage.uri(prefix)} holds no complete candidates; run `rec-ray candidates VERSION` first")
    manifest: dict[str, Any] = json.loads(storage.read_bytes(key))
    return manifest


@dataclass(frozen=True)
class _Embedding:
    item_ids: pa.Array
    matrix: np.ndarray[Any, Any]


@ray.remote(num_cpus=1)
def _matrix(*blocks: pa.Table) -> _Embedding:
    """Put embedded items in the order of their index: [n, d] float32."""
    table = pa.concat_tables([block for block in blocks if block.num_rows]).sort_by("item_index").combine_chunks()
    vectors = table[EMBEDDING].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return _Embedding(table[ITEM_ID].combine_chunks(), np.ascontiguousarray(vectors.reshape(table.num_rows, -1)))


class EmbedItems:
    """Gives rows of the catalogue their vectors; the model is loaded once an actor."""

    def __init__(self, files: ray.ObjectRef) -> None:
        """files: reference to the files of a bundle."""
        torch.set_num_threads(1)
        self.bundle = TwoTowerBundle.from_files(ray.get(files))

    @torch.inference_mode()
    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return `item_index`, `item_id` and `embedding` for rows of `CATALOGUE`."""
        order = pa.array(np.arange(1, batch.num_rows + 1), pa.int32())
        place = batch.schema.get_field_index("item_index")
        shape = self.bundle.preprocessor.items.shape
        catalogue = Catalogue.from_table(batch.set_column(place, "item_index", order), shape)
        vectors = catalogue.embed(self.bundle.model, torch.arange(1, batch.num_rows + 1)).numpy()
        lists = lists_of(np.full(len(vectors), vectors.shape[1]), vectors.reshape(-1), pa.float32())
        return pa.table({"item_index": batch["item_index"], ITEM_ID: batch[ITEM_ID], EMBEDDING: lists})


class RecommendItems:
    """Gives timelines their vectors and their best items; model and item matrix are loaded once an actor."""

    def __init__(
        self,
        files: ray.ObjectRef,
        matrix: ray.ObjectRef,
        item_ids: ray.ObjectRef,
        k: int,
        exclude_seen: bool,
        threads: int,
    ) -> None:
        """matrix: reference to [n, d] float32, shared by the actors of a node; item_ids: to its n ids."""
        # The search cuts its work into blocks itself; threads inside the products would wait for each other.
        torch.set_num_threads(1)
        self.bundle = TwoTowerBundle.from_files(ray.get(files))
        shared = ray.get(matrix)
        self.items = torch.from_numpy(np.concatenate([np.zeros((1, shared.shape[1]), np.float32), shared]))
        self.index = ExactTopK(shared, threads=threads)
        self.item_ids = ray.get(item_ids)
        self.k, self.exclude_seen = k, exclude_seen

    @torch.inference_mode()
    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return `user_id`, `embedding`, `item_ids` and `scores` for rows of `TIMELINES`."""
        timelines = Timelines.from_table(batch, self.bundle.preprocessor.users.shape)
        users = np.arange(len(timelines))
        length = int(self.bundle.arguments["history_length"])
        query = query_batch(timelines, users, split=EVERYTHING, query=NOW, history_length=length)
        vectors = embed_queries(self.bundle.model, self.items, query).numpy()
        exclude = None
        if self.exclude_seen:
            seen, first = seen_items(timelines, users, EVERYTHING)
            exclude = Exclusions(seen - 1, first)
        found, scores = self.index.search(vectors, self.k, exclude)
        kept = found >= 0
        lengths = kept.sum(axis=1)
        ids = self.item_ids.take(pa.array(found[kept]))
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
        return pa.table(
            {
                USER_ID: timelines.user_ids,
                EMBEDDING: lists_of(np.full(len(vectors), vectors.shape[1]), vectors.reshape(-1), pa.float32()),
                ITEM_IDS: pa.ListArray.from_arrays(offsets, ids),
                SCORES: lists_of(lengths, scores[kept], pa.float32()),
            }
        )


class PartsSink(Datasink[Any]):
    """Writes each block as one Parquet part in every folder, and knows afterwards which parts are complete.

    A task that is run again writes the same parts over; what a lost task left behind is in no list.
    """

    def __init__(self, storage: Storage, prefix: str, folders: dict[str, pa.Schema]) -> None:
        """folders: folder below `prefix` -> the columns that its parts have."""
        self.storage, self.prefix, self.folders = storage, prefix, folders
        self.parts: dict[str, list[dict[str, Any]]] = {folder: [] for folder in folders}
        self._lengths: dict[int, int] = {}

    def write(self, blocks: Iterable[pa.Table], ctx: Any) -> dict[str, Any]:
        """Write the blocks of one task."""
        parts: dict[str, list[dict[str, Any]]] = {folder: [] for folder in self.folders}
        lengths: dict[int, int] = {}
        for number, block in enumerate(blocks):
            if block.num_rows == 0:
                continue
            for folder, schema in self.folders.items():
                name = f"part-{ctx.task_idx:06d}-{number:03d}.parquet"
                path = self.storage.path(self.prefix, folder, name)
                self.storage.filesystem.create_dir(self.storage.path(self.prefix, folder), recursive=True)
                pq.write_table(block.select(schema.names).cast(schema), path, filesystem=self.storage.filesystem)
                parts[folder].append({"name": name, "rows": block.num_rows})
            if ITEM_IDS in block.column_names:
                found = np.diff(block[ITEM_IDS].combine_chunks().offsets.to_numpy())
                for length, count in zip(*np.unique(found, return_counts=True), strict=True):
                    lengths[int(length)] = lengths.get(int(length), 0) + int(count)
        return {"parts": parts, "lengths": lengths}

    def on_write_complete(self, write_result: Any) -> None:
        """Collect what the tasks that succeeded have written."""
        for written in write_result.write_returns:
            for folder, parts in written["parts"].items():
                self.parts[folder] += parts
            for length, count in written["lengths"].items():
                self._lengths[length] = self._lengths.get(length, 0) + count
        for parts in self.parts.values():
            parts.sort(key=lambda part: part["name"])

    def short_lists(self, k: int) -> int:
        """Return how many users got fewer than `k` items."""
        return sum(count for length, count in self._lengths.items() if length < k)
