"""Workers that were killed because memory ran out: found in what Ray raises, and explained with need and limit.

An error of a step comes in; an error that names the memory goes out where that was the cause, else the error itself.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

from ray.exceptions import ActorDiedError, NodeDiedError, OutOfMemoryError, WorkerCrashedError

from rec_ray.config import RaySettings
from rec_ray.distributed.machine import describe_memory, killed_processes
from rec_ray.errors import ConfigError, UnavailableError


@contextlib.contextmanager
def explained_kills(settings: RaySettings) -> Iterator[None]:
    """Turn the end of a worker that was killed for memory into an error that names need and limit.

    Raises:
        ConfigError: the memory is less than a run needs.
        UnavailableError: it should have been enough, but other processes had it.
    """
    before = killed_processes()
    try:
        yield
    except Exception as error:
        if not is_memory_kill(error, killed_processes() > before):
            raise
        cpus = settings.num_cpus or os.cpu_count() or 1
        enough, said = describe_memory(cpus)
        kind = UnavailableError if enough else ConfigError
        raise kind(
            f"a worker was killed because memory ran out: {said}; raise the limit, or lower ray.num_cpus or "
            "feast.join_rows"
        ) from error


def is_memory_kill(error: BaseException, kernel_killed: bool) -> bool:
    """Return whether an error, or one behind it, is that a process was killed for memory."""
    seen: set[int] = set()
    pending: list[Any] = [error]
    while pending:
        one = pending.pop()
        if not isinstance(one, BaseException) or id(one) in seen:
            continue
        seen.add(id(one))
        died = isinstance(one, (WorkerCrashedError, ActorDiedError, NodeDiedError))
        if isinstance(one, OutOfMemoryError) or "OutOfMemoryError" in str(one) or (died and kernel_killed):
            return True
        failures = getattr(one, "worker_failures", None)
        pending += [one.__cause__, one.__context__, getattr(one, "cause", None), getattr(one, "_base_exc", None)]
        pending += [*failures.values()] if isinstance(failures, Mapping) else []
    return False
