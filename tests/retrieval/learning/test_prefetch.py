"""Batches from a thread: the same ones in the same order, errors arrive, and a reader that leaves stops the maker."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from rec_ray.retrieval.learning.prefetch import AHEAD, prefetched

CPU = torch.device("cpu")


@pytest.mark.parametrize("threaded", [None, True])
def test_the_same_batches_come_in_the_same_order(threaded: bool | None) -> None:
    batches: Any = iter(range(20))
    assert list(prefetched(batches, CPU, threaded=threaded)) == list(range(20))


def test_what_making_a_batch_raises_arrives_after_the_batches_before() -> None:
    def made() -> Iterator[Any]:
        yield 1
        raise OSError("the disk is gone")

    batches = prefetched(made(), CPU, threaded=True)
    assert next(batches) == 1  # type: ignore[comparison-overlap]
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)


def test_a_reader_that_leaves_ends_the_thread_and_only_a_few_batches_wait() -> None:
    made: list[int] = []

    def endless() -> Iterator[Any]:
        while True:
            made.append(len(made))
            yield made[-1]

    batches = prefetched(endless(), CPU, threaded=True)
    assert [next(batches) for _ in range(3)] == [0, 1, 2]  # type: ignore[comparison-overlap]
    maker = next(thread for thread in threading.enumerate() if thread.name == "prefetch")
    batches.close()  # type: ignore[attr-defined]
    maker.join(timeout=30)
    assert not maker.is_alive()
    assert len(made) <= 3 + AHEAD + 2
