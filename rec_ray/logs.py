"""One log line when a step starts and one when it ends, readable on a terminal and as JSON in a pod.

`configure_logging` sets up the process once; `step` is a context that times a step and logs its result; what was given
to `hide` appears in no line. It knows no step, no settings and nothing of Ray's own log files.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

LOGGER = logging.getLogger("rec_ray")
_ABOUT: dict[str, Any] = {}
_HIDDEN: set[str] = set()


def hide(secrets: Iterable[str]) -> None:
    """Never show these texts, nor what JSON or an address makes of them, in a log line or by `without_secrets`."""
    for secret in secrets:
        if secret:
            _HIDDEN.update({secret, json.dumps(secret)[1:-1], quote(secret, safe="")})


def without_secrets(text: str) -> str:
    """Return a text with every hidden one in it replaced by `***`."""
    for secret in sorted(_HIDDEN, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(super().format(record))


class JsonFormatter(logging.Formatter):
    """One JSON object a line, with the facts of a step beside its message."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_ABOUT,
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return without_secrets(json.dumps(line, default=str, ensure_ascii=False))


def configure_logging(*, as_json: bool = False, level: int = logging.INFO) -> None:
    """Send the program's log lines to standard error; the libraries' own only from warnings up."""
    handler = logging.StreamHandler(sys.stderr)
    if as_json:
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(_TextFormatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    LOGGER.handlers[:] = [handler]
    LOGGER.setLevel(level)
    LOGGER.propagate = False


@contextlib.contextmanager
def about(**facts: Any) -> Iterator[None]:
    """Say these facts, such as run_id="night", in every line of JSON meanwhile."""
    before = dict(_ABOUT)
    _ABOUT.update(facts)
    try:
        yield
    finally:
        _ABOUT.clear()
        _ABOUT.update(before)


@dataclass
class StepLog:
    """What a running step wants to say at its end."""

    facts: dict[str, Any] = field(default_factory=dict)

    def add(self, **facts: Any) -> None:
        """Add facts, such as rows=12, to the line that ends the step."""
        self.facts.update(facts)


@contextlib.contextmanager
def step(name: str, seconds: dict[str, float] | None = None, **facts: Any) -> Iterator[StepLog]:
    """Log the start and the end of a step; put its seconds into `seconds[name]` when that is given."""
    LOGGER.info("%s ...%s", name, _said(facts), extra={"fields": {"step": name, "event": "start", **facts}})
    started = time.perf_counter()
    log = StepLog()
    try:
        with about(step=name, **{fact: facts[fact] for fact in ("version",) if fact in facts}):
            yield log
    except BaseException as error:
        took = time.perf_counter() - started
        fields = {"step": name, "event": "failed", "seconds": round(took, 2)}
        LOGGER.error("%s failed after %.1f s: %s", name, took, type(error).__name__, extra={"fields": fields})
        raise
    took = time.perf_counter() - started
    if seconds is not None:
        seconds[name] = seconds.get(name, 0.0) + took
    fields = {"step": name, "event": "end", "seconds": round(took, 2), **facts, **log.facts}
    LOGGER.info("%s done in %.1f s%s", name, took, _said(log.facts), extra={"fields": fields})


def _said(facts: dict[str, Any]) -> str:
    return "".join(f", {key} {value:,}" if type(value) is int else f", {key} {value}" for key, value in facts.items())
