"""Ledger of a run: finished steps and their results, stored in the object store under the run id.

Input: a run id and settings. `once` runs each step once: a run that starts again under its id loads the results of
finished steps and continues after them. The work folder is deleted after a successful run. The module names no step,
and uses neither versions nor Feast nor Ray.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import re
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rec_ray.config import Settings, deciding_settings, hash_settings
from rec_ray.errors import ConfigError, DataError, LockedError, StorageError, list_names
from rec_ray.logs import LOGGER
from rec_ray.runs.status import DONE, FAILED, STOPPED, RunStatus
from rec_ray.step_events import subscribe, unsubscribe
from rec_ray.storage.object_store import Storage

if TYPE_CHECKING:
    from rec_ray.runs.step_records import Result

RUNS, TRAININGS = "runs", "training"
"""Folders of the ledgers and of the checkpoints of Ray Train, each by run id."""
LEDGER = "ledger.json"
FORMAT_VERSION = 1


def new_run_id() -> str:
    """Return a new, unique run id."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}"


def run_folder(run_id: str) -> str:
    """Return the key of the folder of a run.

    Raises:
        ConfigError: the text is no valid run id.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}", run_id):
        raise ConfigError(
            f"{run_id!r} is no run id: 1 to 200 letters, digits, dots, dashes and underscores, first a letter or digit"
        )
    return f"{RUNS}/{run_id}"


def work_folder(run_id: str) -> str:
    """Return the key of the work folder of a run, which is deleted after a successful run."""
    return f"{run_folder(run_id)}/work"


def delete_work(storage: Storage, run_id: str) -> None:
    """Delete the work folder of a run; a failure is logged, not raised."""
    for key in (work_folder(run_id), f"{TRAININGS}/{run_id}"):
        try:
            storage.delete_prefix(key)
        except StorageError as error:
            LOGGER.warning("the work folder of run %s cannot be deleted: %s", run_id, error)


def is_unfinished(storage: Storage, run_id: str) -> bool:
    """Return whether a run has a ledger and did not succeed; a damaged ledger counts as unfinished.

    Raises:
        StorageError: the store cannot be read.
    """
    try:
        found = _read(storage, run_id)
    except ConfigError:
        return False
    except DataError:
        return True
    return found is not None and found["report"] is None


class RunLedger:
    """A run and its finished steps.

    as_of: instant up to which events are read, set by the first attempt, so that every retry reads the same events.
    report: report of a successful run, or None.
    """

    def __init__(self, storage: Storage, run_id: str, entries: dict[str, Any]) -> None:
        self.storage, self.run_id = storage, run_id
        self._folder = run_folder(run_id)
        self._entries = entries

    @property
    def as_of(self) -> datetime:
        """Instant up to which the run reads events."""
        return datetime.fromisoformat(self._entries["as_of"])

    @property
    def report(self) -> dict[str, Any] | None:
        """Report of the finished run."""
        return self._entries["report"]

    @property
    def done(self) -> list[str]:
        """Finished steps, in the order of their ends."""
        return list(self._entries["steps"])

    def once(self, step: str, kind: type[Result], do: Callable[[], Result]) -> Result:
        """Return the result of a step, and run it only if no earlier attempt of this run has finished it.

        The result is always read back from its record, so that a retry uses exactly the same result.

        Raises:
            LockedError: another process has taken this run over.
            DataError: the record is damaged.
        """
        # Commands that only look something up use this module without torch, which the records import.
        from rec_ray.runs.step_records import from_files, to_files

        folder = f"{work_folder(self.run_id)}/steps/{step}"
        if step in self._entries["steps"]:
            LOGGER.info("%s was finished by an earlier attempt of run %s", step, self.run_id)
            return from_files(kind, self._read_files(step, folder))
        files = to_files(do())
        self.require_mine()
        for name, data in files.items():
            self.storage.write_bytes(f"{folder}/{name}", data)
        self._entries["steps"][step] = sorted(files)
        sums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        self._entries.setdefault("sums", {})[step] = sums
        self._write()
        return from_files(kind, files)

    def _read_files(self, step: str, folder: str) -> dict[str, bytes]:
        """Return the files of a finished step after comparing them with their sums; earlier programs stored no sums."""
        sums, files = self._entries.get("sums", {}).get(step, {}), {}
        for name in self._entries["steps"][step]:
            key = f"{folder}/{name}"
            found = self.storage.read_bytes(key) if self.storage.exists(key) else None
            if found is None or (name in sums and hashlib.sha256(found).hexdigest() != sums[name]):
                how = "is missing" if found is None else "does not have the SHA-256 sum of the ledger"
                raise DataError(
                    f"{self.storage.uri(key)} {how}: run {self.run_id} cannot continue; start again with a new run id"
                )
            files[name] = found
        return files

    def finish(self, report: Any) -> None:
        """Record the report of the run, a dataclass; later runs under this id do nothing."""
        self.require_mine()
        self._entries["report"] = dataclasses.asdict(report)
        self._write()

    def require_mine(self) -> None:
        """Check that this process still owns the run.

        Raises:
            LockedError: another process has taken it over.
        """
        owner = self.other_owner()
        if owner is not None:
            raise LockedError(
                f"run {self.run_id} was taken over by {owner}; this process stops. One process at a time may work "
                "under a run id"
            )

    def other_owner(self) -> str | None:
        """Return a description of the process that took the run over from this one, or None."""
        found = _read(self.storage, self.run_id)
        if found is None:
            return "a process that deleted its ledger"
        return None if found["attempt"] == self._entries["attempt"] else str(found["owner"])

    def take_over(self) -> None:
        """Become the only writer of this ledger; the previous process stops at its next step."""
        self._entries |= {
            "attempt": uuid.uuid4().hex,
            "owner": f"process {os.getpid()} on {platform.node()} since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
        }
        self._write()

    def _write(self) -> None:
        data = json.dumps(self._entries, indent=1, default=str) + "\n"
        self.storage.write_bytes(f"{self._folder}/{LEDGER}", data.encode())


def can_continue(storage: Storage, settings: Settings, command: str, run_id: str) -> bool:
    """Return True if a command can start or resume a run under a run id: the id is unused, or its run did not succeed.

    False also for an id that belongs to another command or to other settings, which `open_run` refuses.

    Raises:
        ConfigError: the text is no run id.
        DataError: the ledger is damaged.
    """
    run_folder(run_id)
    entries = _read(storage, run_id)
    if entries is None:
        return True
    try:
        _check_same(run_id, entries, command, deciding_settings(settings))
    except ConfigError:
        return False
    return entries["report"] is None


@contextlib.contextmanager
def open_run(storage: Storage, settings: Settings, command: str, run_id: str | None) -> Iterator[RunLedger]:
    """Start or resume a run; its status and log are written to the object store even if it fails.

    A successful run is returned with its `report`, and nothing remains to be done.

    Raises:
        ConfigError: the run id belongs to another command or to other settings, or is invalid.
        DataError: the ledger is damaged.
        StorageError: the store cannot be read or written.
    """
    run_id = run_id or new_run_id()
    run_folder(run_id)
    # Fails within seconds with a clear error; reads from an unreachable store are retried for half a minute.
    storage.check_writable()
    deciding = deciding_settings(settings)
    entries = _read(storage, run_id) or {
        "format_version": FORMAT_VERSION,
        "run_id": run_id,
        "command": command,
        "as_of": datetime.now(UTC).isoformat(),
        "settings": deciding,
        "settings_hash": hash_settings(deciding),
        "steps": {},
        "report": None,
    }
    _check_same(run_id, entries, command, deciding)
    run = RunLedger(storage, run_id, entries)
    if run.report is None:
        run.take_over()
        with _told(run, command):
            yield run
    else:
        LOGGER.info("run %s is finished already: nothing is done", run_id)
        yield run
    delete_work(storage, run_id)


@contextlib.contextmanager
def _told(run: RunLedger, command: str) -> Iterator[None]:
    """Write status and log of the run until its end, successful or not."""
    status = RunStatus(run.storage, run_folder(run.run_id), run_id=run.run_id, command=command)
    LOGGER.addHandler(status)
    subscribe(status.record_step)
    status.begin()
    try:
        if run.done:
            LOGGER.info("run %s continues after %s, with the data as of %s", run.run_id, run.done[-1], run.as_of)
        yield
        status.end(DONE)
    except LockedError as error:
        # Status and log now belong to the process that took the run over.
        if run.other_owner() is None:
            status.end(FAILED, error)
        raise
    except Exception as error:
        status.end(FAILED, error)
        raise
    except BaseException as stop:
        status.end(STOPPED, stop)
        LOGGER.warning("run %s was stopped; resume it with `--run-id %s`", run.run_id, run.run_id)
        raise
    finally:
        unsubscribe(status.record_step)
        LOGGER.removeHandler(status)


def _read(storage: Storage, run_id: str) -> dict[str, Any] | None:
    key = f"{run_folder(run_id)}/{LEDGER}"
    if not storage.exists(key):
        return None
    try:
        entries: dict[str, Any] = json.loads(storage.read_bytes(key))
        if entries["format_version"] != FORMAT_VERSION:
            raise DataError(
                f"{storage.uri(key)} is of format version {entries['format_version']!r}, this program reads "
                f"{FORMAT_VERSION}; use a new run id"
            )
        datetime.fromisoformat(entries["as_of"])
        for name in ("command", "settings", "steps", "report", "attempt", "owner"):
            entries[name]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DataError(f"{storage.uri(key)} is damaged; use a new run id") from None
    return entries


def _check_same(run_id: str, entries: dict[str, Any], command: str, deciding: dict[str, Any]) -> None:
    """Refuse to resume a run with another command or other settings."""
    if entries["command"] != command:
        raise ConfigError(
            f"run id {run_id!r} belongs to `rec-ray {entries['command']}`; use another id for `rec-ray {command}`"
        )
    before, now = _flat(entries["settings"]), _flat(json.loads(json.dumps(deciding)))
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if names:
        first = names[0]
        raise ConfigError(
            f"run id {run_id!r} was begun with other settings: {list_names(names)} differ ({first} was "
            f"{before.get(first)!r}, is {now.get(first)!r}); use another run id, or the earlier settings"
        )


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested settings as `section.key` -> value."""
    if not isinstance(values, dict) or not values:
        return {prefix: values}
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}.{name}" if prefix else str(name))
    return flat
