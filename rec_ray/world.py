"""The outside world of a run, opened once: object store, version database, Feast and Ray.

Settings come in, a `World` goes out that `pipeline` hands to the steps part by part; Ray is stopped behind it. It knows
how each thing is opened and what to say when it cannot be, and no step.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import signal
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import ray
import ray.data

from rec_ray.config import RaySettings, Settings
from rec_ray.errors import ConfigError, FeatureStoreError, UnavailableError
from rec_ray.feast_api import FeatureStore
from rec_ray.feast_store import secrets_in
from rec_ray.logs import LOGGER, about, hide, step
from rec_ray.model_version import VersionDatabase
from rec_ray.run_ledger import RunLedger, delete_work, new_run_id, work_folder
from rec_ray.run_metrics import exported_metrics
from rec_ray.storage import Storage
from rec_ray.stores import database_of, storage_of

IDLE_WORKERS = 8
"""Worker processes that a local Ray keeps while they have nothing to do."""


@dataclass(frozen=True)
class World:
    """The outside world of a run, opened once."""

    settings: Settings
    storage: Storage
    database: VersionDatabase
    store: FeatureStore
    run_id: str
    as_of: datetime
    seconds: dict[str, float]

    @property
    def owner(self) -> str:
        """Who holds a lock, in words for the one who has to wait."""
        return f"run {self.run_id} on {platform.node()}, process {os.getpid()}"

    @property
    def prefix(self) -> str:
        """Key below which this run keeps what it needs only while it runs."""
        return work_folder(self.run_id)


@contextlib.contextmanager
def open_world(settings: Settings, run: RunLedger | None = None) -> Iterator[World]:
    """Open everything a run needs, cheapest first.

    run: gives the run id and the instant up to which is read; without it both are new, and nobody goes on with what
        was left behind, so it is deleted.

    Raises:
        ConfigError: the feature repository is not there, or GPUs are wanted where there are none.
        UnavailableError: the store, the database, Feast or Ray cannot be reached.
    """
    seconds: dict[str, float] = {}
    run_id, as_of = (run.run_id, run.as_of) if run else (new_run_id(), datetime.now(UTC))
    with about(run_id=run_id), step("start", seconds):
        storage = storage_of(settings)
        if run is None:
            storage.check_writable()
        database = database_of(settings)
        database.migrate()
        stop_ray = open_ray(settings.ray)
    try:
        check_gpus(settings, can_come=not stop_ray or settings.ray.address is not None)
        with about(run_id=run_id), exported_metrics():
            with step("feast", seconds):
                # A run that goes on has read Feast already, and its steps differ in what they need.
                workers = 0 if run is not None and run.done else int(ray.cluster_resources().get("CPU", 1))
                warming = [_warm_up.remote() for _ in range(workers)]
                store = feature_store_of(settings)
                if warming:
                    ray.wait(warming, num_returns=len(warming), timeout=30)
            world = World(settings, storage, database, store, run_id, as_of, seconds)
            try:
                yield world
            finally:
                if run is None:
                    delete_work(storage, run_id)
    finally:
        if stop_ray:
            ray.shutdown()


def feature_store_of(settings: Settings) -> FeatureStore:
    """Open the feature repository of the settings.

    Raises:
        ConfigError: the folder or its feature_store.yaml is not there or cannot be read.
        FeatureStoreError: the registry cannot be reached.
    """
    repo = settings.feast.repo
    if not (Path(repo) / "feature_store.yaml").is_file():
        raise ConfigError(f"feast.repo {repo} has no feature_store.yaml; correct the setting or run `rec-ray init`")
    try:
        store = FeatureStore(repo_path=repo)
        hide(secrets_in(store.config))
        return store
    except (ValueError, TypeError) as error:
        raise ConfigError(f"feature_store.yaml in {repo} cannot be read: {error}") from error
    except Exception as error:
        raise FeatureStoreError(f"the feature repository {repo} cannot be opened: {error}") from error


def check_gpus(settings: Settings, *, can_come: bool) -> None:
    """Say what would wait for a GPU that is not there, which Ray does for ever and without a word.

    can_come: a cluster may get a node with one; then it is a warning.

    Raises:
        ConfigError: GPUs are wanted, and there are none.
    """
    sections = {"train": settings.train.use_gpu, "candidates": settings.candidates.use_gpu}
    wanted = " and ".join(f"{section}.use_gpu" for section, use_gpu in sections.items() if use_gpu)
    if not wanted or ray.cluster_resources().get("GPU"):
        return
    if not can_come:
        raise ConfigError(f"{wanted}: this machine has no GPU that Ray sees; set it to false, or name a cluster")
    LOGGER.warning("%s: Ray has no GPU yet, and the step waits until a node with one joins", wanted)


def owner_of(run_id: str) -> str:
    """Return who publishes, in words for the one who has to wait."""
    return f"run {run_id} on {platform.node()}, process {os.getpid()}"


@ray.remote(num_cpus=1)
def _warm_up() -> None:
    """Import what takes seconds, in a worker, while the driver does the same."""
    import torch  # noqa: F401

    import rec_ray.feast_api  # noqa: F401


def _quieten_ray() -> None:
    """Let Ray say what a person can act on, and that once."""
    levels = {
        **dict.fromkeys(("ray", "ray.data", "ray.train"), logging.WARNING),
        "ray.data._internal.progress": logging.ERROR,
        # That a step may hang, whenever the step before still holds the CPUs for a moment.
        "ray.data.dataset": logging.ERROR,
        # That a Ray started here wants a token, which it has made itself.
        "ray._private.authentication.authentication_token_setup": logging.ERROR,
        # What a task raised, with a page of Ray's own calls and a request to report it; `cli` says it once.
        "ray.data.exceptions": logging.CRITICAL,
        "ray.data._internal.execution.streaming_executor_state": logging.CRITICAL,
    }
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    # What libraries say to each other: Ray's own, and ibis to DuckDB when Feast reads offline features.
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"(ray|ibis)\.")


def open_ray(settings: RaySettings) -> bool:
    """Join the cluster or start a local Ray; return whether it is ours to stop."""
    _quieten_ray()
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # An error raised in a task arrives as it is; Ray Data's own UserCodeException comes without its cause (2.60).
    context.raise_original_map_exception = True
    if ray.is_initialized():
        return False
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        if settings.address:
            ray.init(address=settings.address, log_to_driver=False, logging_level=logging.WARNING)
        else:
            ray.init(
                num_cpus=settings.num_cpus or os.cpu_count(),
                object_store_memory=settings.object_store_memory,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.WARNING,
                # Ray ends idle workers beyond the CPUs after a second, and each successor imports Feast and torch anew.
                _system_config={"num_workers_soft_limit": IDLE_WORKERS},
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UnavailableError(f"Ray at {settings.address or 'this machine'} cannot be reached: {error}") from error
    if threading.current_thread() is threading.main_thread():
        # ray.init puts a handler of its own there, which ends the process without a word.
        signal.signal(signal.SIGTERM, on_terminate)
    return True
