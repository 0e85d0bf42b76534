"""Typed events of the steps of a run: started, finished, failed.

`step` is a context manager that times a step, logs its first and last line and passes an event to every subscriber: the
run status, the metrics and the command line. Subscribers recognise a step by its result and by `publishes`, not by its
name or its log lines, so neither a renamed step nor a higher log level changes them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from rec_ray.logs import LOGGER, log_context


@dataclass(frozen=True)
class StepStarted:
    """A step begins. facts: values to report, such as version="7"."""

    name: str
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StepFinished:
    """A step ended well.

    facts: those of the start and those added meanwhile. result: the contract that the step produced, if it set one.
    publishes: the step pushed rows to the online store and committed the version.
    """

    name: str
    seconds: float
    facts: Mapping[str, Any] = field(default_factory=dict)
    result: object = None
    publishes: bool = False


@dataclass(frozen=True)
class StepFailed:
    """A step raised. publishes: as in `StepFinished`; rows may have reached the online store."""

    name: str
    seconds: float
    error: BaseException
    publishes: bool = False


StepEvent: TypeAlias = StepStarted | StepFinished | StepFailed
Subscriber: TypeAlias = Callable[[StepEvent], None]
_SUBSCRIBERS: list[Subscriber] = []


def subscribe(subscriber: Subscriber) -> None:
    """Call `subscriber` with every later event of this process; an exception in it is logged and ends no run."""
    _SUBSCRIBERS.append(subscriber)


def unsubscribe(subscriber: Subscriber) -> None:
    """Undo one `subscribe` of the same callable."""
    _SUBSCRIBERS.remove(subscriber)


@dataclass
class RunningStep:
    """A step in progress, as its body sees it. result: set it to the contract that the step produces."""

    facts: dict[str, Any] = field(default_factory=dict)
    result: object = None

    def add(self, **facts: Any) -> None:
        """Add facts, such as rows=12, to the last log line and to the `StepFinished` event."""
        self.facts.update(facts)


@contextlib.contextmanager
def step(
    name: str, seconds: dict[str, float] | None = None, *, publishes: bool = False, **facts: Any
) -> Iterator[RunningStep]:
    """Run the body as a step: two log lines, two events, and its time added to `seconds[name]`.

    publishes: the body pushes rows to the online store and commits the version. facts: values for log and events.
    """
    LOGGER.info("%s ...%s", name, _in_words(facts), extra={"fields": {"step": name, "event": "start", **facts}})
    _publish(StepStarted(name, facts))
    started = time.perf_counter()
    running = RunningStep()
    try:
        with log_context(step=name, **{fact: facts[fact] for fact in ("version",) if fact in facts}):
            yield running
    except BaseException as error:
        took = time.perf_counter() - started
        fields = {"step": name, "event": "failed", "seconds": round(took, 2)}
        LOGGER.error("%s failed after %.1f s: %s", name, took, type(error).__name__, extra={"fields": fields})
        _publish(StepFailed(name, took, error, publishes))
        raise
    took = time.perf_counter() - started
    if seconds is not None:
        seconds[name] = seconds.get(name, 0.0) + took
    everything = {**facts, **running.facts}
    fields = {"step": name, "event": "end", "seconds": round(took, 2), **everything}
    LOGGER.info("%s done in %.1f s%s", name, took, _in_words(running.facts), extra={"fields": fields})
    _publish(StepFinished(name, took, everything, running.result, publishes))


def _publish(event: StepEvent) -> None:
    for subscriber in tuple(_SUBSCRIBERS):
        try:
            subscriber(event)
        except Exception:
            LOGGER.exception("a subscriber to step events failed on %s of %s", type(event).__name__, event.name)


def _in_words(facts: Mapping[str, Any]) -> str:
    return "".join(f", {key} {value:,}" if type(value) is int else f", {key} {value}" for key, value in facts.items())
