"""Detection of workers that were killed for lack of memory, in errors of Ray, and an error with need and limit.

Input: an error of a step. Output: an error about memory if that was the cause, else the error itself.
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
    """Translate the error about a worker that was killed for memory into one with need and limit.

    Raises:
        ConfigError: the memory is less than a run needs.
        UnavailableError: the limit is high enough, but other processes used the memory.
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
    """Return whether an error, or one of its causes, is a process killed for memory."""
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
