"""Users a second of the exact search over the bare product and over faiss: `python tests/bench_top_k.py`.

Every round times all of them one after another on the same vectors, so that a ratio is of one moment of one machine;
what is printed are medians over rounds. Each kernel of this processor is one way. Vectors are random unit vectors,
which have no structure that a search could use, vectors around centres whose popularity falls as in a catalogue, and
vectors that a softmax over a batch has trained on generated events; `--items` and `--queries` take vectors of another
model (.npy). For a processor with AVX2 only, on one with more: `MKL_ENABLE_INSTRUCTIONS=AVX2 ATEN_CPU_CAPABILITY=avx2
NUMBA_CPU_NAME=znver3 NUMBA_CPU_FEATURES=+avx2,+fma,+bmi,+bmi2 python tests/bench_top_k.py --kernels avx2`.
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
from rec_ray.retrieval.search.byte_products import FLOAT32, KERNELS, PLAIN, available_kernels

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


def trained_vectors(item_count: int, user_count: int, size: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return unit vectors of items and users that a softmax over batches of 1,024 events has trained: four an item.

    Users and items have one of 500 topics; four of five events are of the user's topic, and items are drawn by Zipf's
    law.
    """
    rng, torch_seed = np.random.default_rng(3), torch.Generator().manual_seed(3)
    items, users = (
        torch.nn.Embedding.from_pretrained(torch.randn(count, size, generator=torch_seed), freeze=False, sparse=True)
        for count in (item_count, user_count)
    )
    optimizer = torch.optim.SparseAdam([*items.parameters(), *users.parameters()], lr=0.1)
    labels = torch.arange(1024)
    for _ in range(4 * item_count // 1024):
        user = rng.integers(0, user_count, 1024)
        item = np.minimum((item_count ** rng.random(1024)).astype(np.int64), item_count - 1)
        of_topic = np.minimum(item // 500 * 500 + user % 500, item_count - 1)
        item = np.where(rng.random(1024) < 0.8, of_topic, item)
        left = torch.nn.functional.normalize(users(torch.from_numpy(user)), dim=1)
        right = torch.nn.functional.normalize(items(torch.from_numpy(item)), dim=1)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(left @ right.t() / 0.07, labels).backward()
        optimizer.step()
    item_vectors, user_vectors = (
        torch.nn.functional.normalize(table.weight.detach(), dim=1).numpy() for table in (items, users)
    )
    return item_vectors, user_vectors


MAKERS = {
    "random": lambda items, users, size: (random_vectors(1, items, size), random_vectors(2, users, size)),
    "clustered": lambda items, users, size: (clustered_vectors(1, items, size), clustered_vectors(2, users, size)),
    "trained": trained_vectors,
}


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
    kernels: list[str],
) -> Any:
    """Return users a second of each way and ratios to the bare product, medians over rounds; all lists are compared."""
    ways: dict[str, Callable[[], Any]] = {
        "bare_product": bare_product(torch.from_numpy(items), torch.from_numpy(queries), threads),
    }
    expected, prepared = ExactTopK(items, threads=threads, kernel=FLOAT32).search(queries[:192], k), {}
    for kernel in [*kernels, FLOAT32]:
        started = time.perf_counter()
        quantised = None if kernel == FLOAT32 else quantise_items(items, bits=KERNELS[kernel].item_bits)
        prepared[kernel] = round(time.perf_counter() - started, 2)
        search = ExactTopK(items, threads=threads, quantised=quantised, kernel=kernel)
        found = search.search(queries[:192], k)
        if not all(np.array_equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True)):
            raise SystemExit(f"the kernel {kernel} gives other lists than float32 products")
        ways[kernel] = lambda search=search: search.search(queries, k)  # type: ignore[misc]
    try:
        import faiss

        faiss.omp_set_num_threads(threads)
        index = faiss.IndexFlatIP(items.shape[1])
        index.add(items)
        ways["faiss_flat_ip"] = lambda: index.search(queries, k)
    except ModuleNotFoundError:
        pass
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            started = clock()
            way()
            rates[name].append(len(queries) / (clock() - started))
    first = kernels[0] if kernels else FLOAT32

    def over(name: str, other: str) -> list[float]:
        return [mine / theirs for mine, theirs in zip(rates[name], rates[other], strict=True)]

    return {
        "items": len(items),
        "users_per_second": {name: round(statistics.median(rate)) for name, rate in rates.items()},
        "over_bare_product": {name: round(statistics.median(over(name, "bare_product")), 2) for name in ways},
        "over_bare_product_worst_round": {name: round(min(over(name, "bare_product")), 2) for name in ways},
        f"{first}_over": {name: round(statistics.median(over(first, name)), 2) for name in ways if name != first},
        "seconds_to_make_bytes": prepared,
    }


def bench(arguments: argparse.Namespace) -> dict[str, Any]:
    """Compare over sizes and kinds of vectors."""
    if arguments.cpu_time and arguments.threads != 1:
        raise SystemExit("--cpu-time counts one thread: --threads 1")
    if arguments.cpu_time:
        torch.set_num_threads(1)  # a search then runs in the thread that is measured
    clock = time.thread_time if arguments.cpu_time else time.perf_counter
    common = (arguments.k, arguments.threads, arguments.rounds, clock, arguments.kernels)
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
            items, queries = make(size, users, arguments.dimensions)
            results[kind].append(compare(items, queries, *common))
            print(json.dumps({kind: results[kind][-1]}), flush=True)
    return results


def main() -> None:
    """Print the comparison as one line of JSON, the last one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--kinds", nargs="+", choices=MAKERS, default=list(MAKERS))
    products = [name for name in available_kernels() if name != PLAIN]
    parser.add_argument("--kernels", nargs="*", choices=available_kernels(), default=products)
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
