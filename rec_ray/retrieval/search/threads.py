"""Threads of the exact search, on which torch computes with one thread each.

A search splits its queries into blocks and multiplies each block on one of these threads. The threads live as long as
the process and are shared by all searches, so that a search may run in several threads of a service at the same time.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

import torch

_LOCK = threading.Lock()


def run_on_threads(work: Callable[[], None], count: int) -> None:
    """Call `work` once on each of `count` threads on which torch uses one thread, and wait for all calls.

    The number of torch threads of the caller and of the process stays the same. Calls beyond the number of processors
    wait for a free thread. The first exception of a call is raised after all calls have ended.
    """
    if count == 1 and torch.get_num_threads() == 1:
        work()
        return
    calls = [_pool(os.getpid()).submit(work) for _ in range(count)]
    wait(calls)
    for call in calls:
        call.result()


@functools.cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Return the threads of a process, all started; a forked process makes its own, because threads do not survive."""
    count = os.cpu_count() or 1
    pool = ThreadPoolExecutor(count, f"top_k_{process}", initializer=_use_one_thread)
    all_started = threading.Barrier(count)
    list(pool.map(lambda _: all_started.wait(), range(count)))
    return pool


def _use_one_thread() -> None:
    """Let torch use one thread in this thread.

    `torch.set_num_threads` also sets the number for threads that start later (torch 2.13), which a second thread
    restores at once. Reading the number first keeps torch from resetting it in the first operation of this thread.
    """
    with _LOCK:
        process_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        restoring = threading.Thread(target=torch.set_num_threads, args=(process_threads,))
        restoring.start()
        restoring.join()
