"""Ray: joined where it runs or started on this machine, made quiet, and checked for GPUs.

Settings go in, a running Ray comes out. It does not know what is computed on it.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import threading
import warnings
from collections.abc import Sequence

import ray
import ray.data

from rec_ray.config import RaySettings, Settings
from rec_ray.errors import ConfigError, UnavailableError
from rec_ray.logs import LOGGER

IDLE_WORKERS = 8
"""Worker processes that a local Ray keeps while they have nothing to do."""


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


@ray.remote(num_cpus=1)
def import_in_worker(modules: Sequence[str]) -> None:
    """Import modules that take seconds in a worker, while the driver imports them too."""
    for module in modules:
        importlib.import_module(module)


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
