"""Sizes of worker pods for the data at hand: CPU, memory, object store, /dev/shm and ephemeral storage.

In: settings and the plan of a run, whose estimates count all processes of a step together. Out: the sizes of one worker
pod, which can be written into the worker group of a manifest. Only `plan_sizes` reads Feast's registry and files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rec_ray.config import Settings

if TYPE_CHECKING:
    from rec_ray.cli.plan import Plan

GIB = 2**30
HEADROOM = 1.25
"""Memory beyond the estimate: a pod that exceeds its limit is killed, and its work is repeated."""
LEAST_MEMORY = 4 * GIB
"""Memory of a pod with Ray's own processes and one process that has imported Feast and torch."""
STORE_SHARE = 0.3
"""Share of the memory for the object store, Ray's default."""
SHARED_MEMORY_SHARE = 0.94
"""Share of /dev/shm for the object store; Ray puts a store above a share of 0.95 into /tmp."""
LOGS = 4 * GIB
"""Scratch space beside spilled objects: logs and temporary files."""


@dataclass(frozen=True)
class PodSizes:
    """Sizes of one worker pod. cpus: whole cores; all others in bytes, whole GiB except the store."""

    workers: int
    cpus: int
    memory: int
    object_store: int
    shared_memory: int
    scratch: int
    ephemeral_storage: int

    def rows(self) -> dict[str, str]:
        """Return the sizes in the notation of Kubernetes, by label."""
        return {
            "worker pods": str(self.workers),
            "cpu": str(self.cpus),
            "memory": _quantity(self.memory),
            "object-store-memory": str(self.object_store),
            "/dev/shm": _quantity(self.shared_memory),
            "/tmp": _quantity(self.scratch),
            "ephemeral-storage": _quantity(self.ephemeral_storage),
        }


def cpus_of(settings: Settings) -> int:
    """Return the CPUs of a worker pod: those it trains with, and one for the tasks that feed the training."""
    return max(4, settings.train.cpus_per_worker + 1)


def plan_sizes(settings: Settings) -> PodSizes:
    """Plan the run on the cluster that the settings describe, and return the sizes of its worker pods.

    Raises:
        ConfigError, SchemaError, UnavailableError: as `plan_run`.
    """
    from rec_ray.cli.plan import plan_run

    cores = settings.train.least_workers * cpus_of(settings)
    ray = settings.ray.model_copy(update={"num_cpus": cores, "address": None})
    return size_workers(plan_run(settings.model_copy(update={"ray": ray})), settings)


def size_workers(plan: Plan, settings: Settings) -> PodSizes:
    """Return the sizes with which the largest step of a plan fits into the fewest workers of the settings."""
    workers = settings.train.least_workers
    share = plan.memory_bytes / workers
    memory = _whole(max(share * HEADROOM, LEAST_MEMORY))
    store = int(memory * STORE_SHARE)
    scratch = _whole(share) + LOGS  # in the worst case all data of a step are spilled
    return PodSizes(
        workers=workers,
        cpus=cpus_of(settings),
        memory=memory,
        object_store=store,
        shared_memory=_whole(store / SHARED_MEMORY_SHARE),
        scratch=scratch,
        ephemeral_storage=scratch + LOGS,
    )


def fit_workers(group: dict[str, Any], sizes: PodSizes) -> None:
    """Write the sizes into a worker group of a RayCluster."""
    pod = group["template"]["spec"]
    for requested in pod["containers"][0]["resources"].values():
        requested |= {"cpu": str(sizes.cpus), "memory": _quantity(sizes.memory)}
        requested["ephemeral-storage"] = _quantity(sizes.ephemeral_storage)
    group["rayStartParams"]["object-store-memory"] = str(sizes.object_store)
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    volumes["shared-memory"]["emptyDir"]["sizeLimit"] = _quantity(sizes.shared_memory)
    volumes["scratch"]["emptyDir"]["sizeLimit"] = _quantity(sizes.scratch)


def _whole(size: float) -> int:
    """Round up to whole GiB."""
    return math.ceil(size / GIB) * GIB


def _quantity(size: int) -> str:
    return f"{size // GIB}Gi"
