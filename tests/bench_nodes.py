"""One node and two nodes, a cluster and a local Ray, as JSON: `python tests/bench_nodes.py`, as root.

Nodes are network namespaces on this machine (`nodes`), so two of them have no more cores than one: what can be faster
on two is what waits, which is publishing. For that the online store is put `--delay` seconds away, by a relay that
holds every answer back.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from benching import make_shop
from node_jobs import Job, manifest_environment
from nodes import BIN, RayNodes, why_not
from servers import Redis

CPUS = 3
"""Of each node, and of the local Ray."""
BATCH = 100
"""Rows of a push: many waits in a short bench."""


@contextlib.contextmanager
def held_back(host: str, port: int, seconds: float) -> Iterator[int]:
    """Give a port of `host` that leads to another one of it, with answers that come so many seconds later."""
    loop = asyncio.new_event_loop()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
        while data := await reader.read(2**16):
            loop.call_later(delay, writer.write, data)
        loop.call_later(delay, writer.close)

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(host, port)
        await asyncio.gather(pump(reader, there_writer, 0.0), pump(there_reader, writer, seconds))

    server = loop.run_until_complete(asyncio.start_server(relay, host, 0))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def make_project(folder: Path, online_store: dict[str, Any], interactions: int) -> None:
    """Write a shop whose run is short, and whose online store is a given one."""
    make_shop(folder, interactions)
    changes = {
        "train": {"epochs": 3, "refit": "off"},
        "model": {"history": "mean"},
        "publish": {"batch_rows": BATCH},
        "evaluation": {"gate": "off"},
        "ray": {"threads": 1},
    }
    for file, changed in ((folder / "rec_ray.yaml", changes), (folder / "feature_repo" / "feature_store.yaml", {})):
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
        for section, new in changed.items():
            values[section] = {**values.get(section, {}), **new}
        if file.name == "feature_store.yaml":
            values["online_store"] = online_store
        file.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def seconds_of(log: str, step: str) -> float:
    """Return the seconds that the log gives for a step."""
    found = re.findall(rf"\b{step} done in ([0-9.]+) s", log)
    if not found:
        raise SystemExit(f"the log does not say how long {step} took:\n{log[-3000:]}")
    return float(found[-1])


def run_locally(project: Path) -> dict[str, Any]:
    """Do the whole line with a Ray that the run starts itself."""
    command = [str(BIN / "rec-ray"), "run", "-C", str(project), "--json", "--set", f"ray.num_cpus={CPUS}"]
    started = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    took = time.perf_counter() - started
    return {"seconds": round(took, 1), "steps": json.loads(done.stdout)["seconds"]}


def run_on_nodes(cluster: RayNodes, project: Path) -> dict[str, Any]:
    """Do the whole line as a job; seconds from submitting to the first step of training, too."""
    job = Job(cluster, project, "bench-run", "aaaaa")
    begun = job.wait(lambda: "train ..." in job.log(), "training", every=0.2)
    job.wait(lambda: bool(job.checkpoints()), "the first epoch", every=0.05)
    # They are gone when the run has ended.
    progress = json.loads((job.trained / max(job.checkpoints()) / "progress.json").read_text(encoding="utf-8"))
    to_first_step = begun + progress["seconds_to_first_step"]
    took = job.wait(lambda: bool(job.ended()), "the end", every=0.5)
    log = job.finish()
    steps = {name: float(took) for name, took in re.findall(r"\b(\w+) done in ([0-9.]+) s", log)}
    return {"seconds": round(took, 1), "submit_to_first_step": round(to_first_step, 1), "steps": steps}


def repeat_publishing(cluster: RayNodes, project: Path, rounds: int) -> list[float]:
    """Publish version 1 some times; return the seconds of the step, without the start of the job."""
    took = []
    for number in range(rounds):
        job = Job(cluster, project, f"bench-publish-{len(cluster.nodes)}-{number}", "aaaaa", ["publish", "1"])
        took.append(seconds_of(job.finish(), "update_features"))
    return took


def main() -> None:
    """Print a line of JSON for the cluster's overhead, and one for one and two nodes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--interactions", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--delay", type=float, default=0.5, help="seconds that the online store is away")
    arguments = parser.parse_args()
    reason = why_not()
    if reason is not None:
        print(json.dumps({"nodes": {"not measured": reason}}))
        return
    with (
        tempfile.TemporaryDirectory() as temporary,
        RayNodes(manifest_environment()) as cluster,
        Redis(cluster.gateway) as redis,
        held_back(cluster.gateway, redis.port, arguments.delay) as far_port,
    ):
        near = redis.online_store()
        far = {**near, "connection_string": near["connection_string"].replace(f":{redis.port},", f":{far_port},")}
        local, submitted = Path(temporary) / "local", Path(temporary) / "submitted"
        make_project(local, near, arguments.interactions)
        alone = run_locally(local)
        cluster.have_workers(1, CPUS)
        make_project(submitted, near, arguments.interactions)
        as_job = run_on_nodes(cluster, submitted)
        overhead = round(as_job["seconds"] - alone["seconds"], 1)
        print(json.dumps({"overhead": {"local": alone, "job": as_job, "seconds_more": overhead}}), flush=True)
        file = submitted / "feature_repo" / "feature_store.yaml"
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
        file.write_text(yaml.safe_dump({**values, "online_store": far}), encoding="utf-8")
        found: dict[str, list[float]] = {}
        for nodes in (1, 2):
            cluster.have_workers(nodes, CPUS)
            found[f"seconds_{nodes}_nodes"] = repeat_publishing(cluster, submitted, arguments.rounds)
        one, two = (statistics.median(seconds) for seconds in found.values())
        scaling = {"store_seconds_away": arguments.delay, "cpus_a_node": CPUS, **found}
        print(json.dumps({"scaling": {**scaling, "one_over_two": round(one / two, 2)}}), flush=True)


if __name__ == "__main__":
    main()
