"""What a Ray worker process loads once and keeps: a model, an item matrix, a feature store; and what all tasks share.

A key and a function that makes the value come in, the value goes out, made on the first call of this process. Tasks of
several steps then run in the same warm processes, where an actor would need a new one and its imports (seconds each).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

Value = TypeVar("Value")
PATIENCE_SECONDS = 5.0
"""How long a task waits for a shared object before it takes it for lost."""

KEPT = 6
"""Values that a process keeps; the one that was not asked for longest goes first."""
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
    """Return, in a task, what a reference stands for.

    Who waits for an object that was made, and was lost with its node, keeps its CPU (Ray 2.60); where such tasks hold
    all CPUs, what makes it anew never runs. Who waits for an object that was never made gives its CPU back. So after
    some seconds this waits for a task that waits for the object: it needs no CPU, as Ray begins it when all is there.
    """
    while not ray.wait([reference], timeout=PATIENCE_SECONDS)[0]:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        ray.get(_arrived.options(scheduling_strategy=here).remote(reference))
    return ray.get(reference)


@ray.remote(num_cpus=0)
def _arrived(value: Any) -> None:
    """Run where and when a value is there."""
