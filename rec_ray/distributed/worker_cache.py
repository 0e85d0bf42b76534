"""Cache of a Ray worker process for values such as a model, and access to values that all tasks share.

Input: a key and a function that makes the value. Output: the value, made on the first call in this process. Tasks of
several steps then reuse the same warm processes; an actor would need a new process and seconds for its imports.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import ray

Value = TypeVar("Value")
PATIENCE_SECONDS = 5.0
"""Seconds after which a task treats a shared object as lost."""

KEPT = 6
"""Maximum number of values per process; the least recently used one is dropped first."""
_VALUES: OrderedDict[str, Any] = OrderedDict()


def get_or_create(key: str, make: Callable[[], Value]) -> Value:
    """Return the cached value of a key, and make it if this process has none.

    key: must change with the content, like the `hex()` of a reference or a checksum.
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
    reconstruction deadlocks. A task blocked on an object that does not exist yet releases its CPU. So after some
    seconds this waits for a separate task with the object as its argument, which Ray starts only when the object
    exists.
    """
    # Imported on use, because commands that only look something up use this module without Ray.
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    while not ray.wait([reference], timeout=PATIENCE_SECONDS)[0]:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        arrived = ray.remote(num_cpus=0)(_arrived)
        ray.get(arrived.options(scheduling_strategy=here).remote(reference))
    return ray.get(reference)


def _arrived(value: Any) -> None:
    """Run once the value is on this node."""
