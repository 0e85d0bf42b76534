"""Users a second of the exact search over the bare product and over faiss: `python tests/bench_top_k.py`.

Every round times all of them one after another on the same vectors, so that a ratio is of one moment of one machine;
what is printed are medians over rounds. Vectors are random unit vectors, which have no structure that a search could
use, and vectors around centres whose popularity falls as in a catalogue, which have; `--items` and `--queries` take
vectors of a trained model (.npy).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rec_ray.retrieval.search import ExactTopK, quantise_items

SIZES = (20_000, 100_000, 500_000)
TILE, BLOCK = 1024, 256


def random_vectors(seed: int, count: int, size: int) -> np.ndarray[Any, Any]:
    """Return unit vectors in random directions [count, size]."""
    found = np.random.default_rng(seed).standard_normal((count, size), dtype=np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def clustered_vectors(seed: int, count: int, size: int) -> np.ndarray[Any, Any]:
    """Return unit vectors around 500 centres with Zipf shares, of a spectrum that falls: [count, size]."""
    centres = np.random.default_rng(0).standard_normal((500, size))
    rng = np.random.default_rng(seed)
    share = 1 / np.arange(1, 501)
    found = centres[rng.choice(500, count, p=share / share.sum())] + 0.7 * rng.standard_normal((count, size))
    found *= np.arange(1, size + 1) ** -0.3
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


MAKERS = {"random": random_vectors, "clustered": clustered_vectors}


def bare_product(items: torch.Tensor, queries: torch.Tensor, threads: int) -> Callable[[], None]:
    """Return the float32 product of all, in tiles that stay in the cache: the fastest way there is here.

    One call of `torch.matmul` that writes all scores to memory takes longer; it is not what the ratio is made with.
    """
    blocks = [queries[start : start + BLOCK].t() for start in range(0, len(queries), BLOCK)]

    def multiply(part: list[torch.Tensor]) -> None:
        torch.set_num_threads(1)
        tile = torch.empty((TILE, BLOCK))
        for block in part:
            for start in range(0, len(items), TILE):
                rows = items[start : start + TILE]
                torch.matmul(rows, block, out=tile.view(-1)[: len(rows) * block.shape[1]].view(len(rows), -1))

    def run() -> None:
        if threads == 1:  # in this thread, whose time may be what counts
            multiply(blocks)
            return
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(multiply, [blocks[place::threads] for place in range(threads)]))

    return run


def compare(
    items: np.ndarray[Any, Any],
    queries: np.ndarray[Any, Any],
    k: int,
    threads: int,
    rounds: int,
    clock: Callable[[], float],
) -> Any:
    """Return users a second of each way, and ratios of the exact search: medians over rounds."""
    started = time.perf_counter()
    quantised = quantise_items(items)
    prepared = time.perf_counter() - started
    search = ExactTopK(items, threads=threads, quantised=quantised)
    floats = ExactTopK(items, threads=threads, use_bytes=False)
    ways: dict[str, Callable[[], Any]] = {
        "bare_product": bare_product(torch.from_numpy(items), torch.from_numpy(queries), threads),
        "exact": lambda: search.search(queries, k),
        "exact_float32_only": lambda: floats.search(queries, k),
    }
    try:
        import faiss

        faiss.omp_set_num_threads(threads)
        index = faiss.IndexFlatIP(items.shape[1])
        index.add(items)
        ways["faiss_flat_ip"] = lambda: index.search(queries, k)
    except ModuleNotFoundError:
        pass
    expected = floats.search(queries[:64], k)
    found = search.search(queries[:64], k)
    if not all(np.array_equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True)):
        raise SystemExit("the search over bytes gives other lists than the search over floats")
    ways["exact"]()
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            started = clock()
            way()
            rates[name].append(len(queries) / (clock() - started))
    others = [name for name in ways if name != "exact"]
    ratios = {
        name: [mine / theirs for mine, theirs in zip(rates["exact"], rates[name], strict=True)] for name in others
    }
    return {
        "items": len(items),
        "users_per_second": {name: round(statistics.median(rate)) for name, rate in rates.items()},
        "exact_over": {name: round(statistics.median(ratio), 2) for name, ratio in ratios.items()},
        "exact_over_worst_round": {name: round(min(ratio), 2) for name, ratio in ratios.items()},
        "seconds_to_make_bytes": round(prepared, 2),
    }


def bench(arguments: argparse.Namespace) -> dict[str, Any]:
    """Compare over sizes and kinds of vectors."""
    if arguments.cpu_time and arguments.threads != 1:
        raise SystemExit("--cpu-time counts one thread: --threads 1")
    if arguments.cpu_time:
        torch.set_num_threads(1)  # a search then runs in the thread that is measured
    clock = time.thread_time if arguments.cpu_time else time.perf_counter
    common = (arguments.k, arguments.threads, arguments.rounds, clock)
    if arguments.items:
        items = np.ascontiguousarray(np.load(arguments.items), dtype=np.float32)
        queries = np.ascontiguousarray(np.load(arguments.queries), dtype=np.float32)[: arguments.users]
        return {"given": [compare(items, queries, *common)]}
    results: dict[str, Any] = {}
    for kind, make in MAKERS.items():
        if kind not in arguments.kinds:
            continue
        results[kind] = []
        for size in arguments.sizes:
            users = min(arguments.users, 40_000_000 // size * 4)
            items, queries = make(1, size, arguments.dimensions), make(2, users, arguments.dimensions)
            results[kind].append(compare(items, queries, *common))
            print(json.dumps({kind: results[kind][-1]}), flush=True)
    return results


def main() -> None:
    """Print the comparison as one line of JSON, the last one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--kinds", nargs="+", choices=MAKERS, default=list(MAKERS))
    parser.add_argument("--users", type=int, default=2048)
    parser.add_argument("--dimensions", type=int, default=64)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpu-time", action="store_true", help="of one thread, for a machine that others use too")
    parser.add_argument("--items", type=Path, help="vectors of a model [n, d] as .npy, with --queries")
    parser.add_argument("--queries", type=Path)
    print(json.dumps({"top_k": bench(parser.parse_args())}))


if __name__ == "__main__":
    main()
