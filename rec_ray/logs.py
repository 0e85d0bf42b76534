"""Log lines: readable on a terminal, one JSON object a line in a pod, without secrets.

`configure_logging` sets up the process once, `log_context` adds values to all lines of a block, and texts given to
`hide_secrets` are masked in every line. Steps are logged by `step_events`; log files of Ray are left to Ray.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, TextIO
from urllib.parse import quote

LOGGER = logging.getLogger("rec_ray")
_CONTEXT: ContextVar[Mapping[str, Any]] = ContextVar("rec_ray_log_context", default=MappingProxyType({}))
"""Values of JSON lines, such as run_id. A new thread has them only if it runs in `contextvars.copy_context()`."""
_SECRETS: set[str] = set()
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def hide_secrets(secrets: Iterable[str]) -> None:
    """Mask these texts from now on, also as JSON and URLs encode them, in log lines and in `mask_secrets`."""
    for secret in secrets:
        if secret:
            _SECRETS.update({secret, json.dumps(secret)[1:-1], quote(secret, safe="")})


def mask_secrets(text: str) -> str:
    """Return the text with `***` in place of every hidden text."""
    for secret in sorted(_SECRETS, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def printable(text: str) -> str:
    """Return a text with its control characters, such as those of terminal sequences, written out as `\\x1b`."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(mask_secrets(super().format(record)))


class JsonFormatter(logging.Formatter):
    """One JSON object a line: message, log context and the `fields` of the record."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_CONTEXT.get(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return mask_secrets(json.dumps(line, default=str, ensure_ascii=False))


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to the present `sys.stderr`, which a live bar replaces so that lines appear above it."""

    @property
    def stream(self) -> TextIO:
        """The present standard error."""
        return sys.stderr

    @stream.setter
    def stream(self, _: TextIO) -> None:
        """Ignore the stream of the base class."""


def configure_logging(*, as_json: bool = False, level: int = logging.INFO) -> None:
    """Send the program's log lines to standard error; libraries log warnings and errors only."""
    handler = _StderrHandler()
    if as_json:
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(_TextFormatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    LOGGER.handlers[:] = [handler]
    LOGGER.setLevel(level)
    LOGGER.propagate = False


@contextlib.contextmanager
def log_context(**values: Any) -> Iterator[None]:
    """Add these values, such as run_id="night", to every JSON line of the block."""
    token = _CONTEXT.set({**_CONTEXT.get(), **values})
    try:
        yield
    finally:
        _CONTEXT.reset(token)
