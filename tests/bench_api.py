"""Latency and load time of a recommender on one core, beside a batch: `python tests/bench_api.py`.

The store is written first, with random weights and items without features.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

sys.path.insert(0, str(Path(__file__).parent / "api"))

from served_store import random_bundle, random_timelines, random_vectors

from rec_ray.api.recommender import Recommender
from rec_ray.candidate_store.manifest import CandidatesManifest, Part, write_manifest
from rec_ray.retrieval.ragged import lists_of
from rec_ray.schema import ITEM_EMBEDDINGS, RECOMMENDATIONS, USER_EMBEDDINGS
from rec_ray.storage.live_pointer import write_live
from rec_ray.storage.model_store import candidates_folder, save_model
from rec_ray.storage.object_store import Storage, open_storage


def write_store(storage: Storage, items: int, history: str) -> None:
    """Store a version with item vectors and no users."""
    bundle = random_bundle(items, history)
    save_model(bundle, "1", storage)
    vectors = random_vectors(bundle)
    matrix = vectors.matrix[1:]
    lists = lists_of(np.full(items, matrix.shape[1]), matrix.reshape(-1), pa.float32())
    parts = {}
    for folder, table in (
        ("item_embeddings", pa.table([vectors.item_ids, lists], schema=ITEM_EMBEDDINGS)),
        ("user_embeddings", USER_EMBEDDINGS.empty_table()),
        ("recommendations", RECOMMENDATIONS.empty_table()),
    ):
        buffer = pa.BufferOutputStream()
        pq.write_table(table, buffer)
        data = buffer.getvalue().to_pybytes()
        storage.write_bytes(f"{candidates_folder('1')}/{folder}/part.parquet", data)
        parts[folder] = (Part("part.parquet", table.num_rows, len(data), hashlib.sha256(data).hexdigest()),)
    manifest = CandidatesManifest("1", parts, k=100, items=items, embedding_size=bundle.embedding_size)
    write_manifest(storage, candidates_folder("1"), manifest)
    write_live(storage, "1")


def bench(history: str, items: int, requests: int) -> dict[str, Any]:
    """Return seconds to open, milliseconds of a request, and the number of lists that differ from a batch."""
    with tempfile.TemporaryDirectory() as folder:
        write_store(open_storage(folder), items, history)
        started, began = time.perf_counter(), time.process_time()
        served = Recommender.open(folder)
        opened, worked_at_open = time.perf_counter() - started, time.process_time() - began
        served.warm_up()
        warm = time.perf_counter() - started - opened
        timelines = random_timelines(served, requests, 1)
        ids = served.item_ids.to_pylist()
        histories = [[ids[index - 1] for index in row] for row in timelines["item_index"].to_pylist()]
        lists, taken, worked = [], [], []
        for each in histories:
            started, began = time.perf_counter(), time.thread_time()
            lists.append(served.recommend(history=each, k=10))
            taken.append(1000 * (time.perf_counter() - started))
            worked.append(1000 * (time.thread_time() - began))
        batch = served.recommend_timelines(timelines, k=10)
        different = [one.item_ids != other.item_ids for one, other in zip(lists, batch, strict=True)]
        gaps = [np.abs(np.subtract(one.scores, other.scores)).max() for one, other in zip(lists, batch, strict=True)]
        return {
            "items": items,
            "open_seconds": round(opened, 3),
            "open_cpu_seconds": round(worked_at_open, 3),
            "warm_up_seconds": round(warm, 2),
            "requests": requests,
            "p50_ms": round(float(np.quantile(taken, 0.5)), 3),
            "p99_ms": round(float(np.quantile(taken, 0.99)), 3),
            "p99_cpu_ms": round(float(np.quantile(worked, 0.99)), 3),
            "lists_that_differ_from_the_batch": sum(different),
            "largest_difference_of_scores": float(max(gaps)),
        }


def main() -> None:
    """Print one line of JSON per history encoder."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--requests", type=int, default=10_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    for history in ("mean", "transformer"):
        print(json.dumps({history: bench(history, arguments.items, arguments.requests)}), flush=True)


if __name__ == "__main__":
    main()
