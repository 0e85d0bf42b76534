"""Context of a run: object store, version database, Feast and Ray, opened once.

Input: settings. Output: a `RunContext`, whose parts `pipeline` passes to the steps; Ray is stopped afterwards. Errors
name the part that cannot be opened.
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import ray
import ray.data

from rec_ray.config import RaySettings, Settings
from rec_ray.distributed.killed_workers import explained_kills
from rec_ray.distributed.runtime import check_gpus, import_in_worker, is_local, open_ray
from rec_ray.feature_store.api import FeatureStore
from rec_ray.feature_store.repository import open_store
from rec_ray.logs import log_context
from rec_ray.runs.ledger import RunLedger, delete_work, new_run_id, work_folder
from rec_ray.runs.metrics import exported_metrics
from rec_ray.runs.progress import show_waiting
from rec_ray.runs.stores import open_object_store, open_version_database
from rec_ray.step_events import step
from rec_ray.storage.object_store import Storage
from rec_ray.versions.registry import VersionDatabase

SLOW_IMPORTS = ("torch", "rec_ray.feature_store.api")
"""Slow modules that workers import at their start."""


@dataclass(frozen=True)
class RunContext:
    """Opened stores and services of a run."""

    settings: Settings
    storage: Storage
    database: VersionDatabase
    store: FeatureStore
    run_id: str
    as_of: datetime
    seconds: dict[str, float]

    @property
    def prefix(self) -> str:
        """Key of the work folder of this run."""
        return work_folder(self.run_id)


@contextlib.contextmanager
def open_context(settings: Settings, run: RunLedger | None = None) -> Iterator[RunContext]:
    """Open everything a run needs, cheapest first.

    run: supplies the run id and the instant up to which events are read; without it both are new, and the work folder
        is deleted at the end, because such a run cannot be resumed.

    Raises:
        ConfigError: the feature repository does not exist, or GPUs are requested and there are none.
        UnavailableError: the store, the database, Feast or Ray cannot be reached.
    """
    seconds: dict[str, float] = {}
    run_id, as_of = (run.run_id, run.as_of) if run else (new_run_id(), datetime.now(UTC))
    with log_context(run_id=run_id), step("start", seconds):
        storage = open_object_store(settings)
        if run is None:
            storage.check_writable()
        database = open_version_database(settings)
        database.migrate()
        with show_waiting(describe_start(settings.ray)):
            stop_ray = open_ray(settings.ray)
    try:
        check_gpus(settings, can_come=not stop_ray or not is_local(settings.ray))
        with log_context(run_id=run_id), explained_kills(settings.ray), exported_metrics():
            with step("feast", seconds):
                # A resumed run may have read Feast already, and its remaining steps import other modules.
                workers = 0 if run is not None and run.done else int(ray.cluster_resources().get("CPU", 1))
                warming = [import_in_worker.remote(SLOW_IMPORTS) for _ in range(workers)]
                with show_waiting(f"opening {settings.feast.repo}; {workers} workers import Feast and torch"):
                    store = open_feature_store(settings)
                    if warming:
                        ray.wait(warming, num_returns=len(warming), timeout=30)
            context = RunContext(settings, storage, database, store, run_id, as_of, seconds)
            try:
                yield context
            finally:
                if run is None:
                    delete_work(storage, run_id)
    finally:
        if stop_ray:
            ray.shutdown()


def describe_start(ray_settings: RaySettings) -> str:
    """Return the wait for Ray in words."""
    if is_local(ray_settings):
        return "starting Ray on this machine; this takes about 10 seconds"
    return f"joining the Ray cluster at {ray_settings.address}"


def open_feature_store(settings: Settings) -> FeatureStore:
    """Open the feature repository of the settings.

    Raises:
        ConfigError: the folder or its feature_store.yaml does not exist or cannot be read.
        FeatureStoreError: the registry cannot be reached.
    """
    return open_store(settings.feast.repo)


def describe_owner(run_id: str) -> str:
    """Return a description of this process as lock owner, for waiting processes."""
    return f"run {run_id} on {platform.node()}, process {os.getpid()}"
