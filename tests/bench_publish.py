"""Publishing at size, as JSON: throughput over one call of Feast and a loop of calls, memory, and a rollback.

Called by `make bench`, or alone: `python tests/bench_publish.py --only throughput --store redis`. Servers are started
and stopped here; every figure is of one run on one machine, and nothing here is a test.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from servers import PostgreSQL, Redis
from stored_versions import write_feast_repo, write_version

ROOT = Path(__file__).resolve().parents[1]
SERVERS: dict[str, Callable[[], Any]] = {"postgresql": PostgreSQL, "redis": Redis}


def make_project(folder: Path, online_store: dict[str, Any], sizes: Sequence[int], k: int, vector: int) -> None:
    """Write a project with one stored version for each size; each next one has a tenth of other users."""
    import yaml

    from rec_ray.storage.object_store import open_storage

    write_feast_repo(folder / "repo", online_store)
    settings = {
        "feast": {"repo": str(folder / "repo")},
        "storage": {"url": str(folder / "store")},
        "database": {"url": f"sqlite:///{folder}/versions.db"},
        "ray": {"num_cpus": 2},
    }
    (folder / "rec_ray.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    storage = open_storage(str(folder / "store"))
    items = [f"item-{number:06d}" for number in range(2000)]
    for version, users in enumerate(sizes, start=1):
        first = (version - 1) * users // 10
        names = [f"user-{number:07d}" for number in range(first, first + users)]
        write_version(storage, str(version), names, items, k=k, size=vector)


def push_in_one_loop(folder: Path) -> dict[str, float]:
    """Push version 1 by calling `store.push` in this process, a batch after the other."""
    return push_here(folder, whole=False)


def push_in_one_call(folder: Path) -> dict[str, float]:
    """Push version 1 by one call of `store.push` for each push source, in this process."""
    return push_here(folder, whole=True)


def push_here(folder: Path, *, whole: bool) -> dict[str, float]:
    """Push version 1 from this process. whole: all rows of a source at once."""
    import pyarrow as pa
    from feast.data_source import PushMode

    from rec_ray.candidate_store.manifest import read_manifest
    from rec_ray.candidate_store.parts import PartSlice, StoredCandidates, read_slice
    from rec_ray.config.loading import load_settings
    from rec_ray.feature_store.push_targets import push_frame
    from rec_ray.publishing.push import find_push_targets
    from rec_ray.runs.context import open_feature_store
    from rec_ray.runs.stores import open_object_store

    settings = load_settings(folder / "rec_ray.yaml")
    store, storage = open_feature_store(settings), open_object_store(settings)
    prefix = "two-tower/1/candidates"
    candidates = StoredCandidates(prefix, read_manifest(storage, prefix))
    targets = find_push_targets(store, settings.publish)
    rows = 0
    started = time.perf_counter()
    for name, target in targets.items():
        parts = zip(candidates.paths(storage, name), candidates.parts(name), strict=True)
        pieces = [PartSlice(path, 0, part.rows) for path, part in parts]
        batches = (batch for piece in pieces for batch in read_slice(storage, piece, settings.publish.batch_rows))
        for batch in [pa.concat_tables(batches)] if whole else batches:
            frame = push_frame(batch, target, "1", datetime.now(UTC))
            store.push(target.source, frame, to=PushMode.ONLINE)
            rows += len(frame)
    return {"rows": rows, "seconds": time.perf_counter() - started}


def _soon() -> datetime:
    return datetime.now(UTC) + timedelta(milliseconds=1)


def push_side_by_side(folder: Path) -> dict[str, float]:
    """Push version 1 as a run does, with all its checks; a first small push has warmed the workers up."""
    from rec_ray.candidate_store.manifest import read_manifest
    from rec_ray.candidate_store.parts import StoredCandidates
    from rec_ray.config.loading import load_settings
    from rec_ray.distributed.runtime import open_ray
    from rec_ray.publishing.push import PushLock, update_feature_store
    from rec_ray.runs.context import open_feature_store
    from rec_ray.runs.stores import open_object_store

    settings = load_settings(folder / "rec_ray.yaml")
    open_ray(settings.ray)
    store, storage = open_feature_store(settings), open_object_store(settings)
    started = 0.0
    for version in ("2", "1"):
        prefix = f"two-tower/{version}/candidates"
        candidates = StoredCandidates(prefix, read_manifest(storage, prefix))
        started = time.perf_counter()
        report = update_feature_store(store, storage, candidates, settings.publish, PushLock(_soon))
    return {"rows": sum(report.rows.values()), "seconds": time.perf_counter() - started}


SAME_RANK = {"RAY_worker_niceness": "0"}
"""The server works on the same cores. At Ray's niceness of 15 it interrupts a worker of Ray at every answer, which
costs PostgreSQL a fifth of the throughput, and does not interrupt a process of the other two ways."""
WAYS = {"one_call": push_in_one_call, "loop": push_in_one_loop, "side_by_side": push_side_by_side}
"""The same rows pushed by one process in one call or many, and by the program."""


def in_a_process(command: str, folder: Path) -> dict[str, Any]:
    """Run one of the functions above in a process of its own."""
    arguments = [sys.executable, __file__, "--inside", command, "--folder", str(folder)]
    done = subprocess.run(arguments, stdout=subprocess.PIPE, cwd=ROOT, text=True, env={**os.environ, **SAME_RANK})
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def bench_throughput(name: str, users: int, rounds: int) -> dict[str, Any]:
    """Push the same rows in one call, in one loop and side by side, in turn, and compare the medians."""
    with SERVERS[name]() as server, tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_project(folder, server.online_store(), [users, 200], k=100, vector=64)
        took: dict[str, list[float]] = {way: [] for way in WAYS}
        rows = 0
        for _ in range(rounds):
            for way in took:
                found = in_a_process(way, folder)
                rows = found["rows"]
                took[way].append(found["seconds"])
        median = {way: statistics.median(seconds) for way, seconds in took.items()}
        return {
            "rows": rows,
            "rows_per_second": {way: round(rows / seconds) for way, seconds in median.items()},
            "over_one_call": round(median["one_call"] / median["side_by_side"], 2),
            "over_a_loop_of_calls": round(median["loop"] / median["side_by_side"], 2),
            "seconds": {way: [round(second, 1) for second in seconds] for way, seconds in took.items()},
        }


def bench_memory(sizes: Sequence[int]) -> dict[str, Any]:
    """Publish as a person does, with short lists and vectors, and watch the largest process."""
    from benching import MemoryWatch

    found: dict[str, Any] = {}
    for users in sizes:
        with Redis() as server, tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            make_project(folder, server.online_store(), [users, users], k=10, vector=8)
            for version in ("1", "2"):
                command = [sys.executable, "-m", "rec_ray.cli", "publish", version, "-C", str(folder), "--json"]
                running = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True)
                watch = MemoryWatch(running.pid)
                out, _ = running.communicate()
                peaks = watch.stop()
                if running.returncode:
                    raise SystemExit(f"{' '.join(command)} ended with {running.returncode}")
                found[f"{users} users, version {version}"] = {**peaks, "seconds": json.loads(out)["seconds"]}
    return found


def bench_rollback(users: int) -> dict[str, Any]:
    """Publish two versions, then time `rec-ray versions rollback` to the first; there are no weights to load."""
    with Redis() as server, tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_project(folder, server.online_store(), [users, users], k=100, vector=64)

        def command(*words: str) -> dict[str, Any]:
            line = [sys.executable, "-m", "rec_ray.cli", *words, "-C", str(folder), "--json"]
            done = subprocess.run(line, check=True, stdout=subprocess.PIPE, cwd=ROOT, text=True)
            answer: dict[str, Any] = json.loads(done.stdout)
            return answer

        for version in ("1", "2"):
            command("publish", version)
        started = time.perf_counter()
        report = command("versions", "rollback", "1")
        took = time.perf_counter() - started
        live = command("versions", "list")["versions"][0]["version"]
        return {"users": users, "seconds": round(took, 1), "live": live, **report["counts"]}


def main() -> None:
    """Run the benches asked for and write one JSON file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "bench_publish.json")
    parser.add_argument("--only", choices=["throughput", "memory", "rollback"])
    parser.add_argument("--store", choices=list(SERVERS))
    parser.add_argument("--users", type=int, default=100_000, help="of the throughput")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 500_000], help="users of the memory bench")
    parser.add_argument("--rollback-users", type=int, default=100_000)
    parser.add_argument("--inside", choices=list(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        print(json.dumps(WAYS[arguments.inside](arguments.folder)))
        return
    results: dict[str, Any] = {}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)

    def keep(name: str, found: dict[str, Any]) -> None:
        results[name] = found
        print(json.dumps({name: found}), flush=True)
        arguments.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")

    if arguments.only in (None, "throughput"):
        for store in [arguments.store] if arguments.store else SERVERS:
            keep(f"throughput {store}", bench_throughput(store, arguments.users, arguments.rounds))
    if arguments.only in (None, "rollback"):
        keep("rollback", bench_rollback(arguments.rollback_users))
    if arguments.only in (None, "memory"):
        keep("memory", bench_memory(arguments.sizes))


if __name__ == "__main__":
    main()
