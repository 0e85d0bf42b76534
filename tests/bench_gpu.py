"""The search, the towers and training on a GPU: `python tests/bench_gpu.py`; without one it measures nothing.

The search is compared with the bare float32 product of the same tiles, in turns, in wall-clock time with arrays in and
lists out and in the device's own time, and its lists with those of the processor; embedding and training with the
processor of the machine. Only arrays and tensors are needed, no Ray. The whole step on a GPU is
`python tests/bench_candidates.py --only step --use-gpu --gpu-share 0.125`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from bench_candidates import make_bundle, make_items, make_users
from bench_top_k import MAKERS

from rec_ray.config import TrainSettings
from rec_ray.retrieval.features.batch import FeatureShape
from rec_ray.retrieval.features.catalogue import Catalogue
from rec_ray.retrieval.features.timelines import Timelines, query_batch, training_windows
from rec_ray.retrieval.learning.learner import Learner, multiplies_in_half
from rec_ray.retrieval.learning.prefetch import prefetched
from rec_ray.retrieval.model.inference import embed_queries
from rec_ray.retrieval.model.towers import build_two_tower
from rec_ray.retrieval.search import ExactTopK, Exclusions
from rec_ray.retrieval.search.device import DeviceTopK

DIMENSIONS, EVENTS, HISTORY = 64, 20, 50


def seconds_of(run: Callable[[], Any]) -> float:
    """Return the seconds until a call and all it asked of the GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def device_seconds(run: Callable[[], Any]) -> float:
    """Return the seconds that a GPU itself works for a call, whatever the processor does meanwhile."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    return float(sum(event.self_device_time_total for event in profile.key_averages())) / 1e6


def bench_search(device: str, kind: str, count: int, users: int, k: int, rounds: int) -> dict[str, Any]:
    """Return users a second of the search, arrays in and lists out, and of the bare product of its tiles."""
    items, queries = MAKERS[kind](count, users, DIMENSIONS)
    exclude = Exclusions(
        np.random.default_rng(3).integers(0, count, users * EVENTS), np.arange(0, users * EVENTS + 1, EVENTS)
    )
    search = DeviceTopK(items, device)
    matrix, vectors = torch.from_numpy(items).to(device), torch.from_numpy(queries).to(device)

    def bare() -> None:
        for block in vectors.split(search.batch):
            for rows in matrix.split(search.chunk):
                torch.matmul(block, rows.t())

    first, plain = search._passes[0], search._lists
    chosen: list[int] = []

    def counted(choosing: Any, some: np.ndarray[Any, Any], *rest: Any) -> Any:
        chosen.extend([len(some)] * (choosing is not first))
        return plain(choosing, some, *rest)

    search._lists = counted  # type: ignore[method-assign]
    found = search.search(queries, k, exclude)
    search._lists = plain  # type: ignore[method-assign]
    some = slice(0, 256)
    few = Exclusions(exclude.values[: 256 * EVENTS], exclude.offsets[:257])
    expected = ExactTopK(items).search(queries[some], k, few)
    if not all(np.array_equal(mine[some], theirs) for mine, theirs in zip(found, expected, strict=True)):
        raise SystemExit("the device gives other lists than the processor")
    bare()

    def searched() -> None:
        search.search(queries, k, exclude)

    times = [(seconds_of(searched), seconds_of(bare)) for _ in range(rounds)]
    own = [device_seconds(bare) / device_seconds(searched) for _ in range(3 if device == "cuda" else 0)]
    return {
        "vectors": kind,
        "items": count,
        "queries_of_a_search": users,
        "users_per_second": round(users / statistics.median(mine for mine, _ in times)),
        "bare_product": round(users / statistics.median(bare for _, bare in times)),
        "over_bare_product": round(statistics.median(bare / mine for mine, bare in times), 2),
        "device_time_over_bare_product": round(statistics.median(own), 2) if own else None,
        "searched_twice": round(sum(chosen) / users, 5),
    }


def bench_embedding(device: str, precision: str, history: str, timelines: Timelines, items: int) -> dict[str, Any]:
    """Return users a second of the user tower, timelines in and vectors out."""
    model = make_bundle(items, history).model.to(device)
    table = torch.nn.functional.normalize(torch.randn(items + 1, DIMENSIONS, device=device), dim=1)
    users = np.arange(2048)

    def embed() -> Any:
        query = query_batch(timelines, users, split=3, query=2, history_length=HISTORY).to(device)
        half = multiplies_in_half(precision, torch.device(device))
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=half):
            return embed_queries(model, query, table).cpu()

    embed()
    rate = len(users) / statistics.median(seconds_of(embed) for _ in range(5))
    return {"history": history, "device": device, "precision": precision, "users_per_second": round(rate)}


def bench_learning(
    device: str, precision: str, history: str, timelines: Timelines, catalogue: Catalogue
) -> dict[str, Any]:
    """Return positives a second of training steps, the first ten left out, and the loss of the last."""
    torch.manual_seed(0)
    shape = asdict(FeatureShape())
    model = build_two_tower(
        vocabulary_size=len(catalogue) + 1, item_shape=shape, user_shape=shape, event_types=2, history=history
    )
    settings = TrainSettings(
        batch_size=4096,
        learning_rate=2e-3,
        weight_decay=0.01,
        warmup=0.1,
        temperature=0.07,
        loss="softmax",
        in_batch_negatives=True,
        uniform_negatives=2048,
        log_q=True,
        explicit_negatives=False,
        label_smoothing=0.0,
        precision=precision,
        seed=0,
    )
    learner = Learner(model, catalogue, settings, total_steps=40, device=device)
    windows = training_windows(timelines, HISTORY, 1)
    positives, started, loss = 0, 0.0, 0.0
    for step, batch in enumerate(prefetched(learner.batches(timelines, windows, 1), learner.device)):
        if step == 10:
            positives, started = 0, time.perf_counter()
        loss = learner.step(batch)
        positives += int((batch.weight > 0).sum())
        if step == 40:
            break
    rate = round(positives / (time.perf_counter() - started))
    return {"history": history, "device": device, "precision": precision, "positives_per_second": rate, "loss": loss}


def main() -> None:
    """Print a line of JSON for each of the three."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 500_000, 2_000_000])
    parser.add_argument("--users", type=int, nargs="+", default=[2048, 16_384])
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cuda", help="cpu tries the program out")
    parser.add_argument("--only", choices=["search", "embedding", "learning"])
    arguments = parser.parse_args()
    device = arguments.device
    if device == "cuda" and not torch.cuda.is_available():
        print(json.dumps({"gpu": "none here, nothing measured"}))
        return
    if device == "cuda":
        print(json.dumps({"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}), flush=True)
    if arguments.only in (None, "search"):
        cases = [(kind, count, users) for kind in MAKERS for count in arguments.sizes for users in arguments.users]
        found = [bench_search(device, *case, arguments.k, arguments.rounds) for case in cases]
        print(json.dumps({"gpu_search": found}), flush=True)
    if arguments.only == "search":
        return
    items = min(arguments.sizes)
    with tempfile.TemporaryDirectory() as temporary:
        make_items(Path(temporary) / "catalogue", items)
        make_users(Path(temporary) / "timelines", 20_000, items)
        timelines = Timelines.from_table(pq.read_table(Path(temporary) / "timelines"), FeatureShape())
        catalogue = Catalogue.from_table(pq.read_table(Path(temporary) / "catalogue"), FeatureShape())
    ways = [("cpu", "float32"), *((device, precision) for precision in ("float32", "bf16"))]
    histories = ("mean", "transformer")
    if arguments.only in (None, "embedding"):
        embedded = [bench_embedding(*way, history, timelines, items) for history in histories for way in ways]
        print(json.dumps({"gpu_embedding": embedded}), flush=True)
    if arguments.only in (None, "learning"):
        learned = [bench_learning(*way, history, timelines, catalogue) for history in histories for way in ways]
        print(json.dumps({"gpu_learning": learned}), flush=True)


if __name__ == "__main__":
    main()
