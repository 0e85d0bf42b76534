"""Start of Ray: join a cluster or start a local one, reduce its log output, and check for GPUs.

Input: settings. Output: a running Ray.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import ray
import ray.data
from ray._common.utils import get_default_system_temp_dir
from ray._private import services
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.job_config import JobConfig

from rec_ray.config import RaySettings, Settings
from rec_ray.distributed.machine import describe_memory, home_holds, short_folder
from rec_ray.errors import ConfigError, UnavailableError
from rec_ray.logs import LOGGER

IDLE_WORKERS = 8
"""Idle worker processes that a local Ray keeps."""
CONNECT_SECONDS, HEAD_SECONDS = 4.0, 9.0
"""Timeouts in seconds for the connection to a cluster and for the response of its head; together less than 15."""
SLOW_START = "timed out during startup"
"""Part of Ray's error message (2.60) if its processes did not start within 30 seconds."""


def check_gpus(settings: Settings, *, can_come: bool) -> None:
    """Check for GPUs before a step waits for one, because Ray waits forever without a log line.

    can_come: a cluster may still get a node with a GPU, so a missing GPU is only a warning.

    Raises:
        ConfigError: GPUs are requested and there are none.
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
    """Import slow modules in a worker, at the same time as the driver."""
    for module in modules:
        importlib.import_module(module)


def _quieten_ray() -> None:
    """Reduce the log of Ray to messages that a person can act on."""
    levels = {
        **dict.fromkeys(("ray", "ray.data", "ray.train"), logging.WARNING),
        "ray.data._internal.progress": logging.ERROR,
        # Silences "may hang" warnings, which are false while the previous step releases its CPUs.
        "ray.data.dataset": logging.ERROR,
        # A message about the token that a local Ray creates for itself.
        "ray._private.authentication.authentication_token_setup": logging.ERROR,
        # Task errors with a long traceback of Ray itself; `cli` prints the error once.
        "ray.data.exceptions": logging.CRITICAL,
        "ray.data._internal.execution.streaming_executor_state": logging.CRITICAL,
    }
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    # Deprecation warnings between libraries: within Ray, and of ibis with DuckDB in Feast's offline reads.
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"(ray|ibis)\.")


def open_ray(settings: RaySettings) -> bool:
    """Join the cluster or start a local Ray; return whether the caller must stop it.

    Raises:
        UnavailableError: the cluster does not respond, or Ray cannot be started here.
    """
    _quieten_ray()
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # Raise errors of tasks unchanged; Ray Data's own UserCodeException loses the cause (2.60).
    context.raise_original_map_exception = True
    if ray.is_initialized():
        return False
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        if is_local(settings):
            _start(settings)
        else:
            join_cluster(str(settings.address))
    finally:
        if threading.current_thread() is threading.main_thread():
            # The handler that ray.init installs ends the process without a message.
            signal.signal(signal.SIGTERM, on_terminate)
    return True


def is_local(settings: RaySettings) -> bool:
    """Return whether the settings select a local Ray on this machine."""
    return settings.address in (None, "", "local")


def join_cluster(address: str) -> None:
    """Join a cluster after testing its address; Ray itself retries a dead address for minutes.

    Raises:
        UnavailableError: nothing responds there.
    """
    where = f"Ray at {address} (ray.address, or RAY_ADDRESS where that is not set)"
    by_client = address.startswith("ray://")
    try:
        head = address if by_client else services.canonicalize_bootstrap_address(address) or address
    except (ConnectionError, ValueError) as error:
        raise UnavailableError(f"{where} cannot be found: {_first_line(error)}") from error
    if not (is_open(head) and (by_client or is_head(head))):
        raise UnavailableError(
            f"{where} is no cluster that responds; start it, correct the address, or unset it to run on this machine"
        )
    try:
        ray.init(address=address, job_config=_job(), log_to_driver=False, logging_level=logging.WARNING)
    except Exception as error:
        raise UnavailableError(f"{where} cannot be joined: {_first_line(error)}") from error


def is_open(address: str, seconds: float = CONNECT_SECONDS) -> bool:
    """Return whether a server accepts connections at host:port."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=seconds).close()
    except (OSError, ValueError):
        return False
    return True


def is_head(address: str, seconds: float = HEAD_SECONDS) -> bool:
    """Return whether the head of a cluster responds at host:port."""
    answered = threading.Event()

    def ask() -> None:
        # Ray's client retries for 40 seconds, so the thread is abandoned.
        with contextlib.suppress(Exception):
            GcsClient(address=address)
            answered.set()

    asking = threading.Thread(target=ask, name="is_head", daemon=True)
    asking.start()
    asking.join(seconds)
    return answered.is_set()


def _start(settings: RaySettings) -> None:
    """Start a local Ray, even if another one runs on this machine."""
    cpus = settings.num_cpus or os.cpu_count() or 1
    enough, said = describe_memory(cpus)
    if enough:
        LOGGER.info("memory: %s", said)
    else:
        LOGGER.warning("memory: %s; processes may be killed: raise the limit or lower ray.num_cpus", said)
    arguments = {
        # Without an address Ray joins another local one and refuses all settings below.
        "address": "local",
        "num_cpus": cpus,
        "object_store_memory": settings.object_store_memory,
        "include_dashboard": False,
        "log_to_driver": False,
        "logging_level": logging.WARNING,
        # Ray stops idle workers beyond the number of CPUs after a second; each new one imports Feast and torch.
        "_system_config": {"num_workers_soft_limit": IDLE_WORKERS},
        **_folder_of_sockets(),
    }
    _keep_token()
    for attempt in (1, 2):
        try:
            ray.init(**arguments, job_config=_job())
            return
        except Exception as error:
            ray.shutdown()
            late = SLOW_START in str(error)
            if attempt == 1 and late:
                LOGGER.warning("Ray did not start in time; starting it again")
                continue
            hint = "; is the machine overloaded?" if late else ""
            raise UnavailableError(f"Ray cannot be started on this machine: {_first_line(error)}{hint}") from error


def _keep_token() -> None:
    """Keep the token of a local Ray in the environment if the home folder is missing or read-only.

    Ray (2.60) saves a new token in ~/.ray before it starts.
    """
    if not home_holds(".ray") and not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        LOGGER.info("the home folder cannot be written; the token of this Ray is not saved")
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _folder_of_sockets() -> dict[str, str]:
    """Return the folder for Ray's sockets if the folder for temporary files is unsuitable.

    Raises:
        ConfigError: no folder is suitable.
    """
    folder = get_default_system_temp_dir()
    found = short_folder(folder)
    if found is None:
        raise ConfigError(
            f"Ray needs a writable folder with a short path for its sockets; {folder} is not suitable: set TMPDIR"
        )
    if found == folder:
        return {}
    LOGGER.info("Ray works in %s/ray: %s is missing, cannot be written, or is too long for its sockets", found, folder)
    return {"_temp_dir": f"{found}/ray"}


class _ImportPath(list[str]):
    """Folders that Ray puts in front of the import path of its workers.

    Ray (2.60) adds the working folder, where a file feast.py or torch.py would be imported instead of the package. It
    is left out unless this process imports from it too.
    """

    def extend(self, folders: Iterable[str]) -> None:
        """Add folders."""
        super().extend(folder for folder in folders if folder != str(Path.cwd()) or folder in sys.path)


def _job() -> JobConfig:
    job = JobConfig()
    job._py_driver_sys_path = _ImportPath()
    return job


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
