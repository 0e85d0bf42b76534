"""Lose one of two nodes with an object that tasks of the other wait for; print what they got, as JSON.

A program of its own: this process is the driver of a cluster that it makes. The driver's node has no CPU, as the head
of a cluster has none; the object is made of another that is lost with it.
"""

from __future__ import annotations

import json
import time

import ray
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rec_ray.distributed import worker_cache as process_cache

WAITING = 6
"""Tasks that wait, three times the CPUs of their node."""


def main() -> None:
    """Print what tasks found within a minute, and how many seconds after the loss the last one ended."""
    soon = {
        "health_check_initial_delay_ms": 0,
        "health_check_period_ms": 500,
        "health_check_failure_threshold": 4,
    }
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": soon})
    lost, left = cluster.add_node(num_cpus=2), cluster.add_node(num_cpus=2)
    try:
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False)

        def on(node: object) -> NodeAffinitySchedulingStrategy:
            return NodeAffinitySchedulingStrategy(node.node_id, soft=True)  # type: ignore[attr-defined]

        @ray.remote(num_cpus=1)
        def block() -> bytes:
            return bytes(2**22)

        @ray.remote(num_cpus=1)
        def shard(made: bytes) -> bytes:
            return made + bytes(2**22)

        @ray.remote(num_cpus=1)
        def wait(references: list[ray.ObjectRef]) -> int:
            return len(process_cache.get_shared(references[0]))

        made = block.options(scheduling_strategy=on(lost)).remote()
        shared = shard.options(scheduling_strategy=on(lost)).remote(made)
        ray.wait([shared], fetch_local=False)
        cluster.remove_node(lost, allow_graceful=False)
        started = time.monotonic()
        waiting = [wait.options(scheduling_strategy=on(left)).remote([shared]) for _ in range(WAITING)]
        done, _ = ray.wait(waiting, num_returns=WAITING, timeout=60)
        outcome = {"found": ray.get(done), "seconds": round(time.monotonic() - started, 1)}
    finally:
        ray.shutdown()
        cluster.shutdown()
    # Last, as Ray prints what the lost node had logged.
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
