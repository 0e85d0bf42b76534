"""Progress of a step with many tasks: finished rows, rows per second and the remaining time.

Tasks report finished rows; the driver adds them up and shows a bar on a terminal, or logs one line per minute. The
counts go through the key-value store of the cluster's head, so no process is started for them. A repeated task starts
from zero.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta

import ray
from ray.exceptions import RayError
from ray.experimental import internal_kv
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from rec_ray.logs import LOGGER
from rec_ray.runs.step_progress import watch_progress

LINE_SECONDS = 60.0
"""Seconds between two log lines."""
_LOOK_SECONDS = 1.0
_NAMESPACE = b"rec_ray_progress"
_REPORT_SECONDS = 0.5
_DONE: dict[str, tuple[int, float]] = {}
"""Task key -> finished rows and time of the last report, for the newest task of this process only."""


def report_rows(name: str, rows: int, *, more: bool = False) -> None:
    """Report, in a task, the rows finished since the last call.

    name: name of the progress, from `show_progress`. more: the task continues, so frequent reports are combined.
    """
    key = f"{name}/{ray.get_runtime_context().get_task_id()}"
    done, said = _DONE.get(key, (0, -math.inf))
    done, now = done + rows, time.monotonic()
    if not more or now - said >= _REPORT_SECONDS:
        said = now
        internal_kv._internal_kv_put(key.encode(), str(done).encode(), overwrite=True, namespace=_NAMESPACE)
    _DONE.clear()
    _DONE[key] = done, said


@contextlib.contextmanager
def show_progress(
    what: str,
    total: int,
    *,
    console: Console | None = None,
    line_seconds: float = LINE_SECONDS,
    look_seconds: float = _LOOK_SECONDS,
) -> Iterator[str]:
    """Show how many of `total` rows are finished while the context lasts; yield the name to which the tasks report.

    what: label of the step and its rows, such as `candidates: users`.
    """
    name = f"{what}/{uuid.uuid4().hex}"
    console = console or Console(file=sys.stderr)
    stopped = threading.Event()
    show = _bar if console.is_terminal else _lines
    showing = threading.Thread(
        target=contextvars.copy_context().run,
        args=(show, what, total, lambda: _rows_done(name), stopped, console, line_seconds, look_seconds),
        name="progress",
        daemon=True,
    )
    showing.start()
    try:
        with watch_progress(what, lambda: (_rows_done(name), total)):
            yield name
    finally:
        stopped.set()
        showing.join()
        # Without the cluster there are no counts, and the error of the step itself is the one to report.
        with contextlib.suppress(RayError):
            internal_kv._internal_kv_del(name.encode(), del_by_prefix=True, namespace=_NAMESPACE)


@contextlib.contextmanager
def show_waiting(what: str, *, console: Console | None = None) -> Iterator[None]:
    """Show the awaited service and the elapsed time while the context lasts; outside a terminal one log line."""
    console = console or Console(file=sys.stderr)
    if not console.is_terminal:
        LOGGER.info("%s", what)
        yield
        return
    columns = [SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn()]
    with Progress(*columns, console=console, transient=True) as progress:
        progress.add_task(what, total=None)
        yield


def _rows_done(name: str) -> int:
    keys = internal_kv._internal_kv_list(name.encode(), namespace=_NAMESPACE)
    values = (internal_kv._internal_kv_get(key, namespace=_NAMESPACE) for key in keys)
    return sum(int(value) for value in values if value is not None)


def _bar(
    what: str,
    total: int,
    done: Callable[[], int],
    stopped: threading.Event,
    console: Console,
    _line_seconds: float,
    look_seconds: float,
) -> None:
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}")]
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        task = progress.add_task(what, total=total, speed="")
        started = time.monotonic()
        while not stopped.wait(look_seconds):
            rows = done()
            progress.update(task, completed=rows, speed=f"{rows / (time.monotonic() - started):,.0f}/s")


def _lines(
    what: str,
    total: int,
    done: Callable[[], int],
    stopped: threading.Event,
    _console: Console,
    line_seconds: float,
    _look_seconds: float,
) -> None:
    started = time.monotonic()
    while not stopped.wait(line_seconds):
        LOGGER.info("%s", progress_line(what, done(), total, time.monotonic() - started))


def progress_line(what: str, done: int, total: int, seconds: float) -> str:
    """Return one line with finished rows, rows per second and the remaining time."""
    speed = done / seconds if seconds else 0.0
    left = f"{timedelta(seconds=round(max(0, total - done) / speed))} left" if speed else "no estimate yet"
    return f"{what}: {done:,} of {total:,}, {speed:,.0f} a second, {left}"
