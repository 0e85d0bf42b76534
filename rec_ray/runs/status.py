"""Status and log of a run in the object store, for runs without a terminal.

A logging handler collects log lines for `log.jsonl`, and step events update `status.json`. Both are in the folder of
the run and are written when a step starts or ends; a heartbeat writes the status with the progress of the step in
between. A status that says `running` without a heartbeat is that of a run that was killed: `state_of` returns `lost`.
A failed write is logged once and does not stop the run.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import threading
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from rec_ray.errors import RecRayError, find_known_cause
from rec_ray.logs import LOGGER, JsonFormatter, mask_secrets
from rec_ray.runs.step_progress import read_progress
from rec_ray.step_events import StepEvent, StepFailed, StepStarted
from rec_ray.storage.object_store import Storage

STATUS, LOG = "status.json", "log.jsonl"
RUNNING, FAILED, STOPPED, DONE, LOST = "running", "failed", "stopped", "done", "lost"
NEWEST = "newest.json"
"""Object beside the folders of the runs with the id of the run that began last."""
HEARTBEAT_SECONDS = 60.0
LOST_BEATS = 5
"""Missing heartbeats after which a run counts as lost; a store may be away for a few."""


class RunStatus(logging.Handler):
    """Keeps `status.json` and `log.jsonl` of a run up to date, at the start and the end of each step.

    The log lines of earlier attempts of the run are kept, and new lines follow them.
    """

    def __init__(
        self, storage: Storage, folder: str, *, run_id: str, command: str, heartbeat: float = HEARTBEAT_SECONDS
    ) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter())
        self._storage, self._folder = storage, folder
        self._lines = self._read(LOG).splitlines()
        earlier = self._read_status()
        self._values: dict[str, Any] = {
            "run_id": run_id,
            "command": command,
            "version": earlier.get("version"),
            "state": RUNNING,
            "step": None,
            "error": None,
            "exit_code": None,
            "seconds": earlier.get("seconds", {}),
            "counts": earlier.get("counts", {}),
            "attempts": earlier.get("attempts", 0) + 1,
            "started_at": _now(),
            "updated_at": None,
            "process": f"{os.getpid()} on {platform.node()}",
            "heartbeat_seconds": heartbeat,
            "progress": None,
        }
        self._reachable = True
        self._writing = threading.Lock()
        self._ended = threading.Event()
        self._beating = threading.Thread(target=self._beat, args=(heartbeat,), name="run-heartbeat", daemon=True)

    def begin(self) -> None:
        """Write the status, name this run as the newest one, and start the heartbeat."""
        self._write()
        newest = f"{self._folder.rpartition('/')[0]}/{NEWEST}"
        try:
            self._storage.write_bytes(newest, json.dumps({"run_id": self._values["run_id"]}).encode())
        except RecRayError as error:
            LOGGER.warning("%s is not written: %s", newest, error)
        self._beating.start()

    def _beat(self, seconds: float) -> None:
        while not self._ended.wait(seconds):
            try:
                found = read_progress()
                with self._writing:
                    self._values["progress"] = None if found is None else asdict(found)
                    self._write_status()
            except Exception as error:
                # The next beat tries again; a run without any counts as lost, which is noticed.
                LOGGER.debug("no heartbeat: %s", error)

    def emit(self, record: logging.LogRecord) -> None:
        """Add a line to the log."""
        self._lines.append(self.format(record))

    def record_step(self, event: StepEvent) -> None:
        """Update the status after a step event and write it together with the log."""
        if isinstance(event, StepFailed):
            return  # `end` writes the status of a failed run with its error and exit code.
        if "version" in event.facts:
            self._values["version"] = str(event.facts["version"])
        if isinstance(event, StepStarted):
            self._values |= {"step": event.name, "progress": None}
        else:
            self._values["seconds"][event.name] = round(event.seconds, 2)
            counts = {name: value for name, value in event.facts.items() if name != "version"}
            if counts:
                self._values["counts"][event.name] = counts
        self._write()

    def end(self, state: str, error: BaseException | None = None) -> None:
        """Record the outcome of the attempt; the status keeps the name of its last step."""
        self._ended.set()
        self._values |= {"state": state, "progress": None}
        if error is not None:
            cause = find_known_cause(error)
            said = str(cause) if isinstance(cause, RecRayError) else f"{type(cause).__name__}: {cause}".rstrip(": ")
            self._values["error"] = mask_secrets(said)
            self._values["exit_code"] = getattr(cause, "exit_code", 1) if isinstance(cause, Exception) else None
        self._reachable = True
        self._write()

    def _write(self) -> None:
        if not self._reachable:
            return
        try:
            log = "".join(f"{line}\n" for line in self._lines)
            with self._writing:
                self._storage.write_bytes(f"{self._folder}/{LOG}", log.encode())
                self._write_status()
        except RecRayError as error:
            # Do not write again before the end: each attempt on an unreachable store takes all its retries.
            self._reachable = False
            LOGGER.warning("status and log of the run are not stored: %s", error)

    def _write_status(self) -> None:
        self._values["updated_at"] = _now()
        status = json.dumps(self._values, indent=1, default=str, ensure_ascii=False) + "\n"
        self._storage.write_bytes(f"{self._folder}/{STATUS}", mask_secrets(status).encode())

    def _read(self, name: str) -> str:
        key = f"{self._folder}/{name}"
        return self._storage.read_bytes(key).decode(errors="replace") if self._storage.exists(key) else ""

    def _read_status(self) -> dict[str, Any]:
        """Return the status of the previous attempt; a damaged one is replaced, because nothing depends on it."""
        text = self._read(STATUS)
        try:
            found = json.loads(text) if text else {}
            if isinstance(found, dict) and isinstance(found.get("attempts", 0), int):
                maps = {name: found[name] for name in ("seconds", "counts") if isinstance(found.get(name), dict)}
                return {"version": found.get("version"), "attempts": found.get("attempts", 0), **maps}
        except (ValueError, RecursionError):
            pass
        LOGGER.warning("%s is damaged; it is replaced", self._storage.uri(f"{self._folder}/{STATUS}"))
        return {}


def state_of(status: Mapping[str, Any], now: datetime) -> str:
    """Return the state of a run: that of its status, or `lost` if it should be running and has no heartbeat."""
    beat = status.get("heartbeat_seconds")
    if status["state"] != RUNNING or not beat:
        return str(status["state"])
    silent = (now - datetime.fromisoformat(status["updated_at"])).total_seconds()
    return LOST if silent > LOST_BEATS * float(beat) else RUNNING


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
