"""The candidates step on Ray over the search alone, its growth and its memory: `python tests/bench_candidates.py`.

Users with 20 events each and items with vectors of their own are written as the step before would, so that no training
is needed; the towers have random weights, whose vectors have no structure that would help a search. Each case runs in
a process of its own with a Ray of its own; the search alone runs before and after the step, over its vectors.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from benching import run_watched

EVENTS = 20
PART_USERS = 25_000
QUERIES = 8192


def make_items(folder: Path, items: int) -> None:
    """Write a catalogue without features."""
    from rec_ray.distributed.parquet_source import ROW_GROUP
    from rec_ray.retrieval.features.catalogue import CATALOGUE

    index = np.arange(1, items + 1, dtype=np.int32)
    empty = {name: pa.nulls(items, CATALOGUE.field(name).type) for name in CATALOGUE.names if name.startswith("item_")}
    lists = {
        name: pa.ListArray.from_arrays(np.zeros(items + 1, np.int32), pa.array([], kind.type.value_type))
        for name, kind in ((name, CATALOGUE.field(name)) for name in empty)
        if pa.types.is_list(kind.type)
    }
    columns = {
        "item_index": index,
        "item_id": pa.array([f"item{number:08d}" for number in index]),
        "id_index": index,
        "known": np.ones(items, bool),
        "count": np.ones(items, np.int64),
    }
    folder.mkdir(parents=True)
    table = pa.table({name: lists[name] if name in lists else columns[name] for name in CATALOGUE.names})
    pq.write_table(table.cast(CATALOGUE), folder / "part.parquet", row_group_size=ROW_GROUP)


def make_users(folder: Path, users: int, items: int, part_users: int = PART_USERS) -> None:
    """Write timelines without features, `EVENTS` events each, popular items more often."""
    from rec_ray.distributed.parquet_source import ROW_GROUP
    from rec_ray.retrieval.features.timelines import QUERIES, TIMELINES

    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for start in range(0, users, part_users):
        count = min(part_users, users - start)
        offsets = np.arange(0, count * EVENTS + 1, EVENTS, dtype=np.int32)
        total = count * EVENTS
        values: dict[str, Any] = {
            "item_index": 1 + (items * rng.random(total) ** 2).astype(np.int32),
            "event_type": np.ones(total, np.int32),
            "event_seconds": 1_700_000_000 + np.tile(np.arange(EVENTS) * 3600, count),
            "weight": np.ones(total, np.float32),
            "split": np.zeros(total, np.int8),
        }
        columns: dict[str, Any] = {"user_id": pa.array([f"user{number:09d}" for number in range(start, start + count)])}
        for field in TIMELINES:
            if field.name in values:
                flat = pa.array(values[field.name], field.type.value_type)
                columns[field.name] = pa.ListArray.from_arrays(pa.array(offsets), flat)
            elif field.name == "feature_row":
                width = EVENTS + QUERIES
                rows = pa.array(np.zeros(count * width, np.int32))
                columns[field.name] = pa.ListArray.from_arrays(np.arange(0, count * width + 1, width, np.int32), rows)
            elif pa.types.is_list(field.type):
                nothing = pa.array([], field.type.value_type)
                columns[field.name] = pa.ListArray.from_arrays(np.zeros(count + 1, np.int32), nothing)
        table = pa.table({name: columns[name] for name in TIMELINES.names if name in columns})
        kinds = pa.schema([TIMELINES.field(name) for name in table.column_names])
        pq.write_table(table.cast(kinds), folder / f"part-{start:09d}.parquet", row_group_size=ROW_GROUP)


def make_bundle(items: int, history: str) -> Any:
    """Return towers with random weights, 64 dimensions."""
    from rec_ray.retrieval.features.preprocessing import FeaturePreprocessor, Preprocessor
    from rec_ray.retrieval.model.bundle import TwoTowerBundle
    from rec_ray.retrieval.model.towers import build_two_tower

    nothing = FeaturePreprocessor({}, {}, {})
    preprocessor = Preprocessor(nothing, nothing, [f"item{number:08d}" for number in range(1, items + 1)], ["view"])
    shape = {"numeric": 0, "fields": 0, "tokens": nothing.shape.tokens, "vector": 0}
    arguments = {
        "vocabulary_size": items + 1,
        "item_shape": shape,
        "user_shape": shape,
        "event_types": 2,
        "history": history,
        "embedding_size": 64,
    }
    model = build_two_tower(**arguments)
    with torch.no_grad():
        model.item_tower.ids.weight[1:].normal_(generator=torch.Generator().manual_seed(0))
    return TwoTowerBundle(model.eval(), {**arguments, "history_length": 50}, preprocessor, {"run_id": "bench"})


def search_alone(folder: Path, k: int, threads: int) -> float:
    """Return users a second of the search for `QUERIES` users among the items of a step's output, the median of 15.

    Fewer users are asked for several times.
    """
    from rec_ray.retrieval.search import ExactTopK, Exclusions, quantise_items

    def vectors(name: str, parts: int | None) -> np.ndarray[Any, np.dtype[np.float32]]:
        files = sorted((folder / f"{name}_embeddings").glob("*.parquet"))[:parts]
        lists = pa.concat_tables([pq.read_table(file, columns=["embedding"]) for file in files])["embedding"]
        return lists.combine_chunks().flatten().to_numpy().reshape(len(lists), -1)

    items, few = vectors("item", None), vectors("user", 1)
    queries = np.ascontiguousarray(few[np.arange(QUERIES) % len(few)])
    seen = (len(items) * np.random.default_rng(0).random(QUERIES * EVENTS) ** 2).astype(np.int64)
    exclude = Exclusions(seen, np.arange(0, QUERIES * EVENTS + 1, EVENTS))
    search = ExactTopK(items, threads=threads, quantised=quantise_items(items))
    search.search(queries[:256], k)
    rates = []
    for _ in range(15):
        started = time.perf_counter()
        search.search(queries, k, exclude)
        rates.append(QUERIES / (time.perf_counter() - started))
    return statistics.median(rates)


def run_step(users: int, items: int, k: int, history: str, threads: int, gpu_share: float | None) -> dict[str, Any]:
    """Run the step on data made for it and the search alone on its vectors; return users a second of both.

    The search alone runs before and after the step, as the machine may get slower or faster meanwhile.

    gpu_share: of each process; None uses no GPU. The search alone is that of the processor's threads anyway.
    """
    from datetime import UTC, datetime

    from rec_ray.candidates.generate import generate_candidates
    from rec_ray.config import CandidateSettings, RaySettings
    from rec_ray.contracts import RowCounts, TrainingData
    from rec_ray.distributed.runtime import open_ray
    from rec_ray.schema import SplitTimes
    from rec_ray.storage.object_store import open_storage

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_items(folder / "catalogue", items)
        make_users(folder / "few", 2048, items, part_users=2048 // threads)
        make_users(folder / "timelines", users, items)
        # Else the disk is busy with these files while the step is timed.
        os.sync()
        bundle = make_bundle(items, history)
        open_ray(RaySettings(num_cpus=threads))
        now = datetime(2024, 1, 1, tzinfo=UTC)
        took, rates = {}, []
        for name in ("few", "timelines"):  # first a few: every worker starts and loads what it searches with
            data = TrainingData(
                timelines=str(folder / name),
                catalogue=str(folder / "catalogue"),
                catalogue_now=str(folder / "catalogue"),
                preprocessor=bundle.preprocessor,
                users=users if name == "timelines" else 2048,
                items=items,
                events=users * EVENTS,
                positives=users * EVENTS,
                split_times=SplitTimes(now, now, now),
                rows=RowCounts(users * EVENTS, users * EVENTS),
            )
            storage = open_storage(str(folder / "store"))
            started = time.perf_counter()
            settings = CandidateSettings(k=k, use_gpu=gpu_share is not None, gpu_share=gpu_share or 1.0)
            found = generate_candidates(data, bundle, settings, storage, version="1", prefix=f"bench/{name}")
            took[name] = time.perf_counter() - started
            assert found.users == data.users
            rates.append(search_alone(folder / "store" / "bench" / name, k, threads))
        written = sum(path.stat().st_size for path in (folder / "store").rglob("*.parquet"))
    rate, rate_alone = users / took["timelines"], statistics.mean(rates)
    return {
        "users": users,
        "items": items,
        "history": history,
        "seconds": round(took["timelines"], 1),
        "users_per_second": round(rate),
        "search_alone_users_per_second": round(rate_alone),
        "step_over_search_alone": round(rate / rate_alone, 2),
        "megabytes_written": round(written / 2**20),
    }


def main() -> None:
    """Print a line of JSON for the step, for its growth, and for its memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=200_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--history", choices=["none", "mean", "transformer"], default="mean")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5, help="of the step; the one of median seconds is printed")
    parser.add_argument("--only", choices=["step", "growth", "memory"])
    parser.add_argument("--use-gpu", action="store_true")
    parser.add_argument("--gpu-share", type=float, default=1.0, help="of each process, with --use-gpu")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    users, items = arguments.users, arguments.items
    if arguments.one:
        share = arguments.gpu_share if arguments.use_gpu else None
        print(json.dumps(run_step(users, items, arguments.k, arguments.history, arguments.threads, share)))
        return

    def case(users: int, items: int) -> dict[str, Any]:
        sizes = ["--users", str(users), "--items", str(items), "--k", str(arguments.k)]
        ways = ["--history", arguments.history, "--threads", str(arguments.threads)]
        ways += ["--use-gpu", "--gpu-share", str(arguments.gpu_share)] if arguments.use_gpu else []
        return run_watched([__file__, "--one", *sizes, *ways])

    if arguments.only in (None, "step"):
        rounds = [case(users, items) for _ in range(arguments.rounds)]
        ratios = [found["step_over_search_alone"] for found in rounds]
        median = sorted(rounds, key=lambda found: found["seconds"])[len(rounds) // 2]
        step = {**median, "step_over_search_alone": statistics.median(ratios), "ratios": ratios}
        print(json.dumps({"candidates": step}), flush=True)
    if arguments.only in (None, "growth"):
        grown = [
            *(case(times * users // 4, items // 4) for times in (1, 2, 4)),
            *(case(users // 4, times * items // 4) for times in (2, 4)),
        ]
        print(json.dumps({"growth": grown}), flush=True)
    if arguments.only in (None, "memory"):
        memory = [case(users // 4, items), case(users * 5 // 2, items)]
        print(json.dumps({"candidates_memory": memory}), flush=True)


if __name__ == "__main__":
    main()
