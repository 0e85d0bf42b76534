"""Metrics of the versions and of the newest run, for Prometheus, from a process that outlives every Ray cluster.

In: settings. Out: the text of Prometheus' exposition format, read again at each request from the version database and
from `status.json` of three runs at most: the newest one and those of the two newest publications. The metrics of
`runs.metrics` end with the pods of a run; these remain, so alerts use them. The module changes nothing.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from rec_ray.cli.health import newest_status, read_status
from rec_ray.config import Settings
from rec_ray.errors import ConfigError, DataError, RecRayError
from rec_ray.logs import LOGGER, mask_secrets
from rec_ray.runs.check_records import read_profile
from rec_ray.runs.status import DONE, FAILED, LOST, RUNNING, STOPPED, state_of
from rec_ray.runs.stores import open_object_store, open_version_database
from rec_ray.storage.object_store import Storage
from rec_ray.versions.registry import VersionDatabase

PREFIX = "rec_ray_"
STATES = (RUNNING, FAILED, STOPPED, DONE, LOST)
HELP = {
    "up": "1 if the version database and the object store could be read.",
    "live_version_info": "1, with the live version as label.",
    "live_version_updated_timestamp_seconds": "When the live version became live.",
    "live_metric": "A figure of the live model's evaluation.",
    "users_with_lists": "Users with recommendations in the newest and in the previous publication.",
    "newest_event_timestamp_seconds": "Newest event that the live version learned from.",
    "newest_run_state": "1 for the state of the run that began last, 0 for the others; lost: without a heartbeat.",
    "newest_run_exit_code": "Exit code of that run: 5 refused by the gate, 6 partly published; 0 while it runs.",
    "newest_run_updated_timestamp_seconds": "When that run last wrote its status.",
    "newest_run_progress": "Share of the running step that is done, 0 to 1; 0 between steps.",
    "lock_held_seconds": "How long the publishing lock has been held; 0 if it is free.",
    "unfinished_pushes": "Versions with rows in the online store that are not live.",
}
"""Every metric, all gauges."""


@dataclass
class Samples:
    """Values by metric and labels, in the order of their addition."""

    values: list[tuple[str, dict[str, str], float]] = field(default_factory=list)

    def add(self, name: str, value: float, **labels: str) -> None:
        """Add a value of a metric in HELP."""
        assert name in HELP, name
        self.values.append((name, labels, value))

    def text(self) -> str:
        """Return the exposition format, version 0.0.4."""
        lines: list[str] = []
        for name, meaning in HELP.items():
            found = [(labels, value) for each, labels, value in self.values if each == name]
            if found:
                lines += [f"# HELP {PREFIX}{name} {meaning}", f"# TYPE {PREFIX}{name} gauge"]
                lines += [f"{PREFIX}{name}{_labels(labels)} {value!r}" for labels, value in found]
        return "\n".join(lines) + "\n"


def collect_metrics(settings: Settings) -> str:
    """Return the metrics; without a reachable database or store, `rec_ray_up 0` alone."""
    samples = Samples()
    try:
        storage = open_object_store(settings)
        _add_versions(samples, open_version_database(settings), storage)
        samples.add("up", 1.0)
    except RecRayError as error:
        LOGGER.warning("the versions cannot be read: %s", mask_secrets(str(error)))
        samples = Samples()
        samples.add("up", 0.0)
    return samples.text()


def _add_versions(samples: Samples, database: VersionDatabase, storage: Storage) -> None:
    rows = database.list_versions()
    if rows and rows[0].updated_at is not None:
        live = rows[0]
        samples.add("live_version_info", 1.0, version=live.version)
        samples.add("live_version_updated_timestamp_seconds", rows[0].updated_at.timestamp())
        for name, value in (live.metrics or {}).items():
            if isinstance(value, int | float) and math.isfinite(value):
                samples.add("live_metric", float(value), metric=name)
    for publication, row in zip(("newest", "previous"), rows, strict=False):
        found = read_status(storage, row.run_id) if row.run_id else {}
        users = found.get("counts", {}).get("candidates", {}).get("users")
        if users is not None:
            samples.add("users_with_lists", float(users), publication=publication)
    if rows:
        with contextlib.suppress(DataError):
            profile = read_profile(storage, rows[0].version)
            if profile is not None:
                samples.add("newest_event_timestamp_seconds", float(profile.newest))
        holder = database.lock_holder()
        samples.add("lock_held_seconds", 0.0 if holder is None else float(holder.age or 0.0))
        unfinished = [version for version in database.pushed_since_live() if version != rows[0].version]
        samples.add("unfinished_pushes", float(len(unfinished)))
    status = newest_status(storage, database)
    if status:
        now_in = state_of(status, datetime.now(UTC))
        for state in STATES:
            samples.add("newest_run_state", float(now_in == state), state=state)
        samples.add("newest_run_progress", float((status.get("progress") or {}).get("share", 0.0)))
        samples.add("newest_run_exit_code", float(status["exit_code"] or 0))
        samples.add("newest_run_updated_timestamp_seconds", _timestamp(status["updated_at"]))


def _timestamp(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    pairs = []
    for name, text in labels.items():
        escaped = text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
        pairs.append(f'{name}="{escaped}"')
    return "{" + ",".join(pairs) + "}"


class MetricsServer(ThreadingHTTPServer):
    """Answers GET /metrics with the metrics and GET /healthz without reading anything."""

    daemon_threads = True

    def __init__(self, settings: Settings, address: str) -> None:
        """address: HOST:PORT.

        Raises:
            ConfigError: the address is none, or it is in use.
        """
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise ConfigError(f"--listen {address} is no address; expected HOST:PORT, such as 0.0.0.0:8080")
        self.settings = settings
        self.reading = threading.Lock()
        try:
            super().__init__((host, int(port)), _MetricsRequest)
        except (OSError, OverflowError) as error:
            raise ConfigError(f"--listen {address} cannot be used: {error}; choose another port") from None


class _MetricsRequest(BaseHTTPRequestHandler):
    server: MetricsServer

    def do_GET(self) -> None:
        if self.path == "/metrics":
            with self.server.reading:  # one read at a time, for any number of clients
                self._send(200, collect_metrics(self.server.settings))
        elif self.path == "/healthz":
            self._send(200, "ok\n")
        else:
            self._send(404, "only /metrics and /healthz exist\n")

    def _send(self, code: int, text: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        """Log nothing, because Prometheus requests the metrics twice a minute."""
