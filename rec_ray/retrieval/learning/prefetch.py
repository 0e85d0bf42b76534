"""Prefetching: a thread prepares batches while the accelerator works on the previous one.

Input: an iterator of `TimelineBatch` and a device. Output: the same batches in the same order; for a CUDA device pinned
and copied asynchronously, for a CPU unchanged, because a second thread would only take CPU time from the first.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import torch

from rec_ray.retrieval.features.timelines import TimelineBatch

AHEAD = 2
"""Maximum number of waiting batches."""


def prefetched(
    batches: Iterator[TimelineBatch], device: torch.device, *, threaded: bool | None = None
) -> Iterator[TimelineBatch]:
    """Yield the batches; exceptions of their iterator are raised here.

    threaded: prepare them on a thread; by default only for CUDA.
    """
    on_cuda = device.type == "cuda"
    if not (on_cuda if threaded is None else threaded):
        yield from batches
        return
    waiting: queue.Queue[TimelineBatch | BaseException | None] = queue.Queue(AHEAD)
    stopped = threading.Event()

    def put(value: TimelineBatch | BaseException | None) -> bool:
        while not stopped.is_set():
            try:
                waiting.put(value, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def make() -> None:
        try:
            for batch in batches:
                if not put(batch.pin_memory().to(device) if on_cuda else batch):
                    return
            put(None)
        except BaseException as error:
            put(error)

    threading.Thread(target=make, name="prefetch", daemon=True).start()
    try:
        while (batch := waiting.get()) is not None:
            if isinstance(batch, BaseException):
                raise batch
            yield batch
    finally:
        stopped.set()
