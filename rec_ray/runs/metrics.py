"""Metrics of a run, exported through Ray; Prometheus collects them from the metrics port of each node.

Step events and the reports of Ray Train after each epoch set gauges and counters, named `ray_rec_ray_...`. The type of
a step's result selects its counters, so step names may change freely.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import ray.train
from ray.util.metrics import Counter, Gauge

from rec_ray.contracts import MODEL, Candidates, Evaluation, RowCounts, TrainedModel, UpdateReport
from rec_ray.step_events import StepEvent, StepFailed, StepFinished, StepStarted, subscribe, unsubscribe

PREFIX = "rec_ray_"


class RunMetrics:
    """Subscriber to step events that exports them as metrics."""

    def __init__(self) -> None:
        self._step_seconds = Gauge(f"{PREFIX}step_seconds", "Seconds of the last run of a step.", ("step",))
        self._step_running = Gauge(f"{PREFIX}step_running", "1 while a step runs.", ("step",))
        self._steps_failed = Counter(f"{PREFIX}steps_failed", "Failed steps.", ("step",))
        self._rows_read = Counter(f"{PREFIX}rows_read", "Interactions read from Feast.")
        self._rows_dropped = Counter(f"{PREFIX}rows_dropped", "Interactions read and discarded.")
        self._train_steps = Counter(f"{PREFIX}train_steps", "Optimizer steps of finished trainings.")
        self._recall = Gauge(f"{PREFIX}recall", "Recall of the model over all users, by cut-off.", ("k",))
        self._users_scored = Counter(f"{PREFIX}users_scored", "Users with recommendations.")
        self._push_rows = Counter(f"{PREFIX}push_rows", "Rows pushed to the online store.", ("source",))
        self._push_errors = Counter(f"{PREFIX}push_errors", "Failed publications.")

    def record(self, event: StepEvent) -> None:
        """Set the metrics of an event."""
        self._step_running.set(float(isinstance(event, StepStarted)), {"step": event.name})
        if isinstance(event, StepFailed):
            self._steps_failed.inc(1, {"step": event.name})
            if event.publishes:
                self._push_errors.inc(1)
        elif isinstance(event, StepFinished):
            self._step_seconds.set(round(event.seconds, 2), {"step": event.name})
            self._count(event.result)

    def _count(self, result: object) -> None:
        match result:
            case RowCounts():
                _add(self._rows_read, result.read)
                _add(self._rows_dropped, result.read - result.kept)
            case TrainedModel():
                _add(self._train_steps, result.facts.steps)
            case Evaluation():
                for name, value in result.metrics.get(MODEL, {}).items():
                    if name.startswith("recall@"):
                        self._recall.set(value, {"k": name.removeprefix("recall@")})
            case Candidates():
                _add(self._users_scored, result.users)
            case UpdateReport():
                for source, rows in result.rows.items():
                    _add(self._push_rows, rows, source=source)


class EpochMetrics(ray.train.UserCallback):
    """Exports the progress of a training; Ray Train calls it in its controller, which collects from all workers."""

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Export the first worker's values of an epoch; `validation_ndcg@10` becomes `train_validation_ndcg_10`."""
        for name, value in metrics[0].items():
            if isinstance(value, int | float):
                clean = name.replace("@", "_").replace("-", "_")
                Gauge(f"{PREFIX}train_{clean}", f"{name} of the last epoch.").set(value)


def _add(counter: Counter, amount: int, **tags: str) -> None:
    if amount > 0:  # Ray's counters refuse an increment of 0.
        counter.inc(amount, tags or None)


@contextlib.contextmanager
def exported_metrics() -> Iterator[None]:
    """Export the metrics of all steps of the block through the running Ray."""
    metrics = RunMetrics()
    subscribe(metrics.record)
    try:
        yield
    finally:
        unsubscribe(metrics.record)
