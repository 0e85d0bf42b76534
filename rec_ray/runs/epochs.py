"""Course of a training on the driver: a live bar on a terminal, elsewhere one log line per epoch.

Ray Train calls `EpochReports` in its controller, a process of its own, after each epoch. The reports go through the
key-value store of the cluster's head to `show_epochs`, which shows them while the training runs.
"""

from __future__ import annotations

import contextlib
import contextvars
import json
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import ray.train
from ray.exceptions import RayError
from ray.experimental import internal_kv
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from rec_ray.logs import LOGGER
from rec_ray.runs.step_progress import watch_progress

STAGES = {"learn": "training", "check": "refit check", "publish": "refit"}
"""Stage of a training -> its readable name."""
_NAMESPACE = b"rec_ray_epochs"
_LOOK_SECONDS = 0.5


class EpochReports(ray.train.UserCallback):
    """Passes the first worker's report of each epoch to the driver. name: from `show_epochs`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Store the report under the time of its arrival."""
        key = f"{self.name}/{time.time_ns():020d}".encode()
        internal_kv._internal_kv_put(key, json.dumps(metrics[0]).encode(), namespace=_NAMESPACE)


@contextlib.contextmanager
def show_epochs(*, console: Console | None = None, look_seconds: float = _LOOK_SECONDS) -> Iterator[str]:
    """Show the epochs that are reported under the yielded name, while the context lasts."""
    name = uuid.uuid4().hex
    console = console or Console(file=sys.stderr)
    stopped = threading.Event()
    newest: dict[str, Any] = {}
    showing = threading.Thread(
        target=contextvars.copy_context().run,
        args=(_show, name, stopped, console, look_seconds, newest),
        name="epochs",
        daemon=True,
    )
    showing.start()
    try:
        with watch_progress("epochs", lambda: (newest.get("epoch", 0), newest.get("epochs", 0))):
            yield name
    finally:
        stopped.set()
        showing.join()
        # Without the cluster there are no reports, and the error of the training itself is the one to report.
        with contextlib.suppress(RayError):
            internal_kv._internal_kv_del(name.encode(), del_by_prefix=True, namespace=_NAMESPACE)


def _show(name: str, stopped: threading.Event, console: Console, look_seconds: float, newest: dict[str, Any]) -> None:
    seen: set[bytes] = set()
    with _Bar(console) if console.is_terminal else contextlib.nullcontext() as bar:
        over = False
        while not over:
            over = stopped.wait(look_seconds)
            # The last reports may arrive between the last look and the end of the training.
            with contextlib.suppress(RayError):
                for key in sorted(set(internal_kv._internal_kv_list(name.encode(), namespace=_NAMESPACE)) - seen):
                    seen.add(key)
                    report = json.loads(internal_kv._internal_kv_get(key, namespace=_NAMESPACE) or b"{}")
                    if not report:
                        continue
                    newest.update(report)
                    if bar is None:
                        LOGGER.info("%s", epoch_line(report), extra={"fields": {"event": "epoch", **report}})
                    else:
                        bar.add(report)


def epoch_line(report: dict[str, Any]) -> str:
    """Return one line about an epoch: stage, number, loss, validation NDCG@10, and the time left at most."""
    return (
        f"{stage_of(report)}: epoch {report['epoch']} of at most {report['epochs']}, {figures_of(report)}, "
        f"up to {time_left(report)} left"
    )


def stage_of(report: dict[str, Any]) -> str:
    """Return the readable name of the stage and its history encoder."""
    return f"{STAGES.get(report['stage'], report['stage'])}, history {report['history']}"


def figures_of(report: dict[str, Any]) -> str:
    """Return the loss and, if there was a validation, its NDCG@10."""
    ndcg = report.get("validation_ndcg@10")
    return f"loss {report['loss']:.3f}" + (f", NDCG@10 {ndcg:.4f}" if ndcg is not None else "")


def time_left(report: dict[str, Any]) -> timedelta:
    """Return the time that the remaining epochs of the stage take at most, because a training may stop early."""
    return timedelta(seconds=round((report["epochs"] - report["epoch"]) * report["seconds"]))


class _Bar:
    """Live bars, one for each attempt of a stage."""

    def __init__(self, console: Console) -> None:
        columns = [
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
        ]
        self._progress = Progress(*columns, console=console)
        self._tasks: dict[tuple[str, int], TaskID] = {}

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def add(self, report: dict[str, Any]) -> None:
        """Move the bar of the report's stage and attempt."""
        key = report["stage"], report["attempt"]
        if key not in self._tasks:
            self._tasks[key] = self._progress.add_task(stage_of(report), total=report["epochs"], figures="")
        figures = f"{figures_of(report)}, up to {time_left(report)} left"
        self._progress.update(self._tasks[key], completed=report["epoch"], total=report["epochs"], figures=figures)
