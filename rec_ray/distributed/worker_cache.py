"""Values that a Ray worker process makes once and keeps, such as a model, and values that all tasks share.

A key and a function that makes the value come in, the value goes out, made on the first call in this process. Tasks of
several steps then run in the same warm processes; an actor needs a new process and seconds for its imports.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

Value = TypeVar("Value")
PATIENCE_SECONDS = 5.0
"""Seconds after which a task takes a shared object for lost."""

KEPT = 6
"""Values that a process keeps; the least recently used one is dropped first."""
_VALUES: OrderedDict[str, Any] = OrderedDict()


def get_or_create(key: str, make: Callable[[], Value]) -> Value:
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


def get_shared(reference: ray.ObjectRef) -> Any:
    """Return, in a task, the value of a reference.

    A task blocked on an object that was lost with its node keeps its CPU (Ray 2.60). If such tasks hold every CPU,
    the object is never made again. A task blocked on an object that was not made yet gives its CPU back. So after some
    seconds this waits for a task of its own that takes the object as an argument: Ray starts it only when the object
    is there.
    """
    while not ray.wait([reference], timeout=PATIENCE_SECONDS)[0]:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        ray.get(_arrived.options(scheduling_strategy=here).remote(reference))
    return ray.get(reference)


@ray.remote(num_cpus=0)
def _arrived(value: Any) -> None:
    """Run once the value is on this node."""
