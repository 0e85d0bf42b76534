"""What a Ray worker process loads once and keeps: a model, an item matrix, a feature store; and what all tasks share.

A key and a function that makes the value come in, the value goes out, made on the first call of this process. Tasks of
several steps then run in the same warm processes, where an actor would need a new one and its imports (seconds each).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import ray

Value = TypeVar("Value")
ASKED_AGAIN_SECONDS = 5.0

KEPT = 6
"""Values that a process keeps; the one that was not asked for longest goes first."""
_VALUES: OrderedDict[str, Any] = OrderedDict()


def once_a_process(key: str, make: Callable[[], Value]) -> Value:
    """Return the value kept under a key, making it when this process has none.

    key: must change with the content, as a reference's `hex()` or a checksum does.
    """
    if key not in _VALUES:
        _VALUES[key] = make()
        while len(_VALUES) > KEPT:
            _VALUES.popitem(last=False)
    _VALUES.move_to_end(key)
    value: Value = _VALUES[key]
    return value


def shared_value(reference: ray.ObjectRef) -> Any:
    """Return, in a task, what a reference stands for.

    It is asked for again every few seconds. When a node is lost with an object, tasks that wait for it give their CPUs
    to the task that makes it anew; those that began to wait before the loss do not (Ray 2.60), and where they hold all
    CPUs, all wait for ever: seen in half of the runs of `candidates` that lost one of two nodes.
    """
    while True:
        try:
            return ray.get(reference, timeout=ASKED_AGAIN_SECONDS)
        except ray.exceptions.GetTimeoutError:
            continue


def share_files(files: Mapping[str, bytes]) -> ray.ObjectRef:
    """Put files into the object store, for `shared_files`.

    As arrays: bytes are packed among what describes an object, which took 0.16 s for 27 MB instead of 0.013.
    """
    return ray.put({name: np.frombuffer(content, np.uint8) for name, content in files.items()})


def shared_files(reference: ray.ObjectRef) -> dict[str, bytes]:
    """Return, in a task, the files of `share_files`."""
    return {name: content.tobytes() for name, content in shared_value(reference).items()}
