"""Progress of the running step, for the status of a run: parts done, parts in all, and the time that is left.

A step sets a reader with `watch_progress`; the heartbeat of the run calls `read_progress`. The module imports nothing
heavy, so that commands that only look at runs start fast.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class StepProgress:
    """done, total: parts of the step, such as epochs. share: of the work. seconds_left: None before the first part."""

    what: str
    done: int
    total: int
    share: float
    seconds_left: float | None


@dataclass(frozen=True)
class _Watched:
    what: str
    read: Callable[[], tuple[int, int]]
    started: float


_WATCHED: list[_Watched] = []


@contextlib.contextmanager
def watch_progress(what: str, read: Callable[[], tuple[int, int]]) -> Iterator[None]:
    """Let `read_progress` report a step in the context. read: returns finished and all parts, in any thread."""
    watched = _Watched(what, read, time.monotonic())
    _WATCHED.append(watched)
    try:
        yield
    finally:
        _WATCHED.remove(watched)


def read_progress() -> StepProgress | None:
    """Return the progress of the step that began last; None without a step that reports any."""
    if not _WATCHED:
        return None
    watched = _WATCHED[-1]
    done, total = watched.read()
    share = min(1.0, done / max(1, total))
    took = time.monotonic() - watched.started
    left = round(took * (1 - share) / share, 1) if share else None
    return StepProgress(watched.what, done, total, round(share, 4), left)
