"""Model and encoded tables into `Candidates`: vectors of all items and users, and the best k items of every user.

The catalogue and the timelines stream through `map_batches`; the item vectors are shared by all processes of a node,
and what each task has written is listed in a manifest, which comes last. It knows nothing of Feast, of versions
beyond their name, or of how the model was trained.
"""

from __future__ import annotations

import hashlib
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
from ray.data import Datasink

from rec_ray.config import CandidateSettings
from rec_ray.contracts import Candidates, TrainingData
from rec_ray.errors import DataError
from rec_ray.process_cache import once_a_process
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
ROW_GROUP = 20_000
NOW, EVERYTHING = 2, 3
"""The query row as of now, and a split label above all others: every event is history."""


def generate_candidates(
    data: TrainingData,
    bundle: TwoTowerBundle,
    settings: CandidateSettings,
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
    # First the manifest: objects of a bucket go one after another, and it must never list parts that are gone.
    storage.delete_prefix(f"{prefix}/{MANIFEST}")
    storage.delete_prefix(prefix)
    files = ray.put(bundle.to_files())
    items = (
        ray.data.read_parquet(data.catalogue_now, filesystem=storage.filesystem)
        .map_batches(embed_items, fn_kwargs={"files": files}, batch_size=8192, batch_format="pyarrow")
        .materialize()
    )
    embedding = _embedded.remote(*items.to_arrow_refs())
    if not ray.get(_count.remote(embedding)):
        raise DataError("the catalogue is empty: there is nothing to recommend")
    item_sink = PartsSink(storage, prefix, {ITEM_FOLDER: ITEM_EMBEDDINGS})
    items.write_datasink(item_sink)
    user_sink = PartsSink(storage, prefix, {USER_FOLDER: USER_EMBEDDINGS, RECOMMENDATION_FOLDER: RECOMMENDATIONS})
    (
        ray.data.read_parquet(data.timelines, filesystem=storage.filesystem)
        .map_batches(
            recommend_items,
            fn_kwargs={"files": files, "embedding": embedding, "k": settings.k, "exclude_seen": settings.exclude_seen},
            batch_size=settings.batch_size,
            batch_format="pyarrow",
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
    storage.write_checked(f"{prefix}/{MANIFEST}", json.dumps(manifest, indent=1).encode())
    return Candidates(version, prefix, manifest["items"], manifest["users"], settings.k, facts)


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
class EmbeddedItems:
    """All items of the catalogue by index: `item_ids` [n] and `matrix` [n, d] float32."""

    item_ids: pa.Array
    matrix: np.ndarray[Any, Any]


@ray.remote(num_cpus=1)
def _embedded(*blocks: pa.Table) -> EmbeddedItems:
    """Put embedded items in the order of their index."""
    full = [block for block in blocks if block.num_rows]
    if not full:
        return EmbeddedItems(pa.array([], pa.string()), np.zeros((0, 1), np.float32))
    table = pa.concat_tables(full).sort_by("item_index").combine_chunks()
    vectors = table[EMBEDDING].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return EmbeddedItems(table[ITEM_ID].combine_chunks(), np.ascontiguousarray(vectors.reshape(table.num_rows, -1)))


@ray.remote(num_cpus=0)
def _count(embedded: EmbeddedItems) -> int:
    return len(embedded.item_ids)


def _bundle(files: ray.ObjectRef) -> TwoTowerBundle:
    def load() -> TwoTowerBundle:
        # Tasks run side by side; threads inside a product would wait for each other.
        torch.set_num_threads(1)
        return TwoTowerBundle.from_files(ray.get(files))

    return once_a_process(f"bundle {files.hex()}", load)


@torch.inference_mode()
def embed_items(batch: pa.Table, files: ray.ObjectRef) -> pa.Table:
    """Return `item_index`, `item_id` and `embedding` for rows of `CATALOGUE`.

    files: reference to the files of a bundle.
    """
    bundle = _bundle(files)
    order = pa.array(np.arange(1, batch.num_rows + 1), pa.int32())
    place = batch.schema.get_field_index("item_index")
    catalogue = Catalogue.from_table(batch.set_column(place, "item_index", order), bundle.preprocessor.items.shape)
    vectors = catalogue.embed(bundle.model, torch.arange(1, batch.num_rows + 1)).numpy()
    lists = lists_of(np.full(len(vectors), vectors.shape[1]), vectors.reshape(-1), pa.float32())
    return pa.table({"item_index": batch["item_index"], ITEM_ID: batch[ITEM_ID], EMBEDDING: lists})


@dataclass(frozen=True)
class Recommender:
    """What recommends items to timelines: the model, and the item vectors that all processes of a node share.

    items: [n + 1, d] with zeros in row 0, as histories read them; index: the search over the n items.
    """

    bundle: TwoTowerBundle
    items: torch.Tensor
    index: ExactTopK
    item_ids: pa.Array

    @classmethod
    def load(cls, files: ray.ObjectRef, embedding: ray.ObjectRef) -> Recommender:
        """Load from references to the files of a bundle and to the embedded items."""
        shared: EmbeddedItems = ray.get(embedding)
        items = torch.from_numpy(np.concatenate([np.zeros((1, shared.matrix.shape[1]), np.float32), shared.matrix]))
        return cls(_bundle(files), items, ExactTopK(shared.matrix, threads=1), shared.item_ids)

    @torch.inference_mode()
    def recommend(self, batch: pa.Table, k: int, exclude_seen: bool) -> pa.Table:
        """Return `user_id`, `embedding`, `item_ids` and `scores` for rows of `TIMELINES`."""
        timelines = Timelines.from_table(batch, self.bundle.preprocessor.users.shape)
        users = np.arange(len(timelines))
        length = int(self.bundle.arguments["history_length"])
        query = query_batch(timelines, users, split=EVERYTHING, query=NOW, history_length=length)
        vectors = embed_queries(self.bundle.model, self.items, query).numpy()
        exclude = None
        if exclude_seen:
            seen, first = seen_items(timelines, users, EVERYTHING)
            exclude = Exclusions(seen - 1, first)
        found, scores = self.index.search(vectors, k, exclude)
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


def recommend_items(
    batch: pa.Table, files: ray.ObjectRef, embedding: ray.ObjectRef, k: int, exclude_seen: bool
) -> pa.Table:
    """Return `Recommender.recommend` of a batch; the recommender is loaded once a process."""
    recommender = once_a_process(f"recommender {embedding.hex()}", lambda: Recommender.load(files, embedding))
    return recommender.recommend(batch, k, exclude_seen)


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
                buffer = pa.BufferOutputStream()
                table = block.select(schema.names).cast(schema)
                # Row groups: whoever publishes reads a part from several places at once.
                pq.write_table(table, buffer, row_group_size=ROW_GROUP)
                data = buffer.getvalue().to_pybytes()
                self.storage.write_checked(f"{self.prefix}/{folder}/{name}", data)
                sha256 = hashlib.sha256(data).hexdigest()
                parts[folder].append({"name": name, "rows": block.num_rows, "bytes": len(data), "sha256": sha256})
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
