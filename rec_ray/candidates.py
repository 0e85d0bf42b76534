"""Model and encoded tables into `Candidates`: vectors of all items and users, and the best k items of every user.

The catalogue and the timelines stream through `map_batches`; the item vectors are shared by all processes of a node,
and what each task has written is listed in a manifest, which comes last. It knows nothing of Feast, of versions
beyond their name, or of how the model was trained.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
import torch
from numpy.typing import NDArray
from ray.data import Datasink

from rec_ray.config import CandidateSettings
from rec_ray.contracts import Candidates, TrainingData
from rec_ray.errors import DataError, GateError
from rec_ray.item_shards import AS_HISTORY, ItemShards, make_shards
from rec_ray.logs import LOGGER
from rec_ray.process_cache import once_a_process
from rec_ray.retrieval.bundle import TwoTowerBundle
from rec_ray.retrieval.catalogue import Catalogue, lists_of
from rec_ray.retrieval.learning import embed_queries, seen_items
from rec_ray.retrieval.timelines import Timelines, query_batch
from rec_ray.retrieval.top_k import Exclusions
from rec_ray.retrieval.top_k.approximate import recall_of
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
        GateError: approximate lists lack too many of the best items.
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
    item_count = items.count()
    if not item_count:
        raise DataError("the catalogue is empty: there is nothing to recommend")
    shards = make_shards(
        items.to_arrow_refs(),
        item_count,
        bundle.embedding_size,
        shard_items=settings.shard_items,
        approximate=settings.engine != "exact",
        probes=settings.probes,
        device="cuda" if settings.use_gpu else "cpu",
    )
    facts: dict[str, Any] = {"engine": settings.engine}
    how = {"files": files, "items": shards, "k": settings.k, "exclude_seen": settings.exclude_seen}
    if settings.engine != "exact":
        facts["recall"] = check_recall(data, settings, storage, how)
    item_sink = PartsSink(storage, prefix, {ITEM_FOLDER: ITEM_EMBEDDINGS})
    items.write_datasink(item_sink)
    user_sink = PartsSink(storage, prefix, {USER_FOLDER: USER_EMBEDDINGS, RECOMMENDATION_FOLDER: RECOMMENDATIONS})
    (
        ray.data.read_parquet(data.timelines, filesystem=storage.filesystem)
        .map_batches(
            recommend_items,
            fn_kwargs=how,
            batch_size=settings.batch_size,
            batch_format="pyarrow",
            num_gpus=1 if settings.use_gpu else None,
        )
        .write_datasink(user_sink)
    )
    parts = {**item_sink.parts, **user_sink.parts}
    facts |= {"short_lists": user_sink.short_lists(settings.k), "shards": len(shards.refs)}
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


def check_recall(data: TrainingData, settings: CandidateSettings, storage: Storage, how: dict[str, Any]) -> float:
    """Return the mean recall at k of the approximate lists of a sample of users, against exact search.

    how: the arguments of `measure_recall`.

    Raises:
        GateError: it is below `candidates.recall_floor`.
    """
    users = ray.data.read_parquet(data.timelines, filesystem=storage.filesystem)
    share = min(1.0, 2 * settings.recall_users / max(1, data.users))
    sample = users if share == 1.0 else users.random_sample(share, seed=0)
    measured = sample.limit(settings.recall_users).map_batches(
        measure_recall,
        fn_kwargs=how,
        batch_size=settings.batch_size,
        batch_format="pyarrow",
        num_gpus=1 if settings.use_gpu else None,
    )
    found = measured.mean("recall")
    recall = 1.0 if found is None else round(float(found), 4)
    LOGGER.info("%s finds %.4f of the exact lists of %d users", settings.engine, recall, settings.recall_users)
    if recall < settings.recall_floor:
        raise GateError(
            f"{settings.engine} with candidates.probes {settings.probes} finds {recall:.4f} of the exact lists of "
            f"{settings.k} items, below candidates.recall_floor {settings.recall_floor}; raise candidates.probes, or "
            "set candidates.engine: exact"
        )
    return recall


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


def _bundle(files: ray.ObjectRef) -> TwoTowerBundle:
    def load() -> TwoTowerBundle:
        # Tasks run side by side; threads inside a product would wait for each other.
        torch.set_num_threads(1)
        return TwoTowerBundle.from_files(ray.get(files))

    return once_a_process(f"bundle {files.hex()}", load)


@torch.inference_mode()
def embed_items(batch: pa.Table, files: ray.ObjectRef) -> pa.Table:
    """Return `item_index`, `item_id`, `embedding` and perhaps `as_history` for rows of `CATALOGUE`.

    files: reference to the files of a bundle.
    """
    bundle = _bundle(files)
    order = pa.array(np.arange(1, batch.num_rows + 1), pa.int32())
    place = batch.schema.get_field_index("item_index")
    catalogue = Catalogue.from_table(batch.set_column(place, "item_index", order), bundle.preprocessor.items.shape)
    index = torch.arange(1, batch.num_rows + 1)
    vectors = catalogue.embed(bundle.model, index)
    columns = {EMBEDDING: vectors}
    if bundle.model.item_tower.history_ids is not None:
        columns[AS_HISTORY] = catalogue.as_history(bundle.model, index, vectors)
    lists = {
        name: lists_of(np.full(len(each), each.shape[1]), each.numpy().reshape(-1), pa.float32())
        for name, each in columns.items()
    }
    return pa.table({"item_index": batch["item_index"], ITEM_ID: batch[ITEM_ID], **lists})


@torch.inference_mode()
def recommend_items(batch: pa.Table, files: ray.ObjectRef, items: ItemShards, k: int, exclude_seen: bool) -> pa.Table:
    """Return `user_id`, `embedding`, `item_ids` and `scores` for rows of `TIMELINES`."""
    timelines, vectors, exclude = _queries(batch, files, items, exclude_seen)
    found, scores = items.search(vectors, k, exclude)
    kept = found >= 0
    lengths = kept.sum(axis=1)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    return pa.table(
        {
            USER_ID: timelines.user_ids,
            EMBEDDING: lists_of(np.full(len(vectors), vectors.shape[1]), vectors.reshape(-1), pa.float32()),
            ITEM_IDS: pa.ListArray.from_arrays(offsets, items.ids(found[kept])),
            SCORES: lists_of(lengths, scores[kept], pa.float32()),
        }
    )


@torch.inference_mode()
def measure_recall(batch: pa.Table, files: ray.ObjectRef, items: ItemShards, k: int, exclude_seen: bool) -> pa.Table:
    """Return a row a user: the share of the exact list that the approximate one holds."""
    _, vectors, exclude = _queries(batch, files, items, exclude_seen)
    approximate = items.search(vectors, k, exclude)[0]
    return pa.table({"recall": recall_of(approximate, items.search(vectors, k, exclude, exactly=True)[0])})


def _queries(
    batch: pa.Table, files: ray.ObjectRef, items: ItemShards, exclude_seen: bool
) -> tuple[Timelines, NDArray[np.float32], Exclusions | None]:
    """Return the users of a batch, their vectors [b, d] and what must not be in their lists."""
    bundle = _bundle(files)
    timelines = Timelines.from_table(batch, bundle.preprocessor.users.shape)
    users = np.arange(len(timelines))
    length = int(bundle.arguments["history_length"])
    query = query_batch(timelines, users, split=EVERYTHING, query=NOW, history_length=length)
    table, rows = items.history_rows(query.item_index)
    vectors = embed_queries(bundle.model, dataclasses.replace(query, item_index=rows), table).numpy()
    if not exclude_seen:
        return timelines, vectors, None
    seen, first = seen_items(timelines, users, EVERYTHING)
    return timelines, vectors, Exclusions(seen - 1, first)


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
                # Vectors hardly repeat and ids of a large catalogue fill a dictionary: plain, a third of the time.
                pq.write_table(table, buffer, row_group_size=ROW_GROUP, use_dictionary=False)
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
