"""Figures of a run as metrics of Ray, which Prometheus collects from the metrics port of each node.

The log lines of the process come in (it is a handler beside the one of standard error), and what Ray Train reports
after each epoch; gauges and counters called `ray_rec_ray_...` go out. It knows the names of steps and of their facts,
and no step knows of it; where nobody collects, nothing happens.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import ray.train
from ray.util.metrics import Counter, Gauge

from rec_ray.logs import LOGGER

PREFIX = "rec_ray_"


class RunMetrics(logging.Handler):
    """Turns the lines that begin and end a step into metrics."""

    def __init__(self) -> None:
        super().__init__()
        self._step_seconds = Gauge(f"{PREFIX}step_seconds", "Seconds that a step took last.", ("step",))
        self._step_running = Gauge(f"{PREFIX}step_running", "1 while a step runs.", ("step",))
        self._steps_failed = Counter(f"{PREFIX}steps_failed", "Steps that failed.", ("step",))
        self._rows_read = Counter(f"{PREFIX}rows_read", "Interactions read from Feast.")
        self._rows_dropped = Counter(f"{PREFIX}rows_dropped", "Interactions read and left out.")
        self._train_steps = Counter(f"{PREFIX}train_steps", "Optimizer steps of finished trainings.")
        self._recall = Gauge(f"{PREFIX}recall", "Recall of the model over all users, by cut-off.", ("k",))
        self._users_scored = Counter(f"{PREFIX}users_scored", "Users that got recommendations.")
        self._push_rows = Counter(f"{PREFIX}push_rows", "Rows that reached the online store.", ("source",))
        self._push_errors = Counter(f"{PREFIX}push_errors", "Publications that failed.")

    def emit(self, record: logging.LogRecord) -> None:
        """Record what a line says, if it is one of a step; a fault is told as logging tells its own and ends no run."""
        try:
            self._record(getattr(record, "fields", {}))
        except Exception:
            self.handleError(record)

    def _record(self, fields: dict[str, Any]) -> None:
        event, step = fields.get("event"), str(fields.get("step"))
        if event not in ("start", "end", "failed"):
            return
        self._step_running.set(float(event == "start"), {"step": step})
        if event == "failed":
            self._steps_failed.inc(1, {"step": step})
            if step == "update_features":
                self._push_errors.inc(1)
        elif event == "end":
            self._step_seconds.set(fields["seconds"], {"step": step})
            self._count(step, fields)

    def _count(self, step: str, fields: dict[str, Any]) -> None:
        if step == "load_features":
            _add(self._rows_read, fields["read"])
            _add(self._rows_dropped, fields["read"] - fields["rows"])
        elif step == "train":
            _add(self._train_steps, fields["steps"])
        elif step == "evaluate":
            for name, value in fields.items():
                if name.startswith("recall@"):
                    self._recall.set(value, {"k": name.removeprefix("recall@")})
        elif step == "candidates":
            _add(self._users_scored, fields["users"])
        elif step == "update_features":
            for name, value in fields.items():
                if type(value) is int and name != "departed":
                    _add(self._push_rows, value, source=name)


class EpochMetrics(ray.train.UserCallback):
    """Shows how training goes on, from the process of Ray Train that hears from all workers."""

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Take over what the first worker says of an epoch; `validation_ndcg@10` becomes `train_validation_ndcg_10`."""
        for name, value in metrics[0].items():
            if isinstance(value, int | float):
                clean = name.replace("@", "_").replace("-", "_")
                Gauge(f"{PREFIX}train_{clean}", f"{name} of the last epoch.").set(value)


def _add(counter: Counter, amount: int, **tags: str) -> None:
    if amount > 0:  # Ray's counters refuse to be moved by nothing
        counter.inc(amount, tags or None)


@contextlib.contextmanager
def exported_metrics() -> Iterator[None]:
    """Let the metrics of the open Ray follow the log lines meanwhile."""
    metrics = RunMetrics()
    LOGGER.addHandler(metrics)
    try:
        yield
    finally:
        LOGGER.removeHandler(metrics)
