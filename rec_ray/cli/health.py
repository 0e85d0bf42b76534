"""Health of a project between runs: what serves now, how old it is, and each fault that nobody has noticed yet.

`examine_health` reads the version database, the object store and, if asked to, a few rows of the online store. It
starts no Ray and never fails on a fault: every fault is a sentence. `rec-ray check` and the exporter of metrics use the
same figures.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from rec_ray.candidate_store.manifest import read_manifest
from rec_ray.config import Settings
from rec_ray.errors import ConfigError, DataError, RecRayError
from rec_ray.logs import mask_secrets
from rec_ray.runs.check_records import read_profile
from rec_ray.runs.ledger import RUNS, run_folder
from rec_ray.runs.status import FAILED, LOST, NEWEST, STATUS, STOPPED, state_of
from rec_ray.runs.stores import open_object_store, open_version_database
from rec_ray.storage.model_store import candidates_folder
from rec_ray.storage.object_store import Storage
from rec_ray.versions.lock import LockHolder
from rec_ray.versions.registry import VersionDatabase, VersionRow

EXIT_CODE = 8
CLOCK_HOURS = 0.25
"""Hours by which a time may lie in the future, for clocks that differ a little."""
LOCK_HOURS = 6.0
"""Hours after which a publishing lock that is renewed counts as stuck; a push of millions of rows takes one."""
LIST_FLOOR = 0.8
"""Share of the lists of the publication before that the newest one must have, as in the alert RecRayListsShrunk."""
CANARY_USERS = 5


@dataclass(frozen=True)
class Health:
    """State of a project; None where it is not known. faults: one sentence each, the reason of exit code 8.

    ages in hours. lists: users with a list in the live version. lists_before: in the publication before. unfinished:
    versions with rows in the online store that are not live. lock: seconds since the publishing lock was taken. online:
    users whose list in the online store is that of the live version, of those that were read.
    """

    faults: list[str] = field(default_factory=list)
    live: str | None = None
    live_age: float | None = None
    newest_event: datetime | None = None
    newest_event_age: float | None = None
    stored: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    run_id: str | None = None
    run_state: str | None = None
    run_step: str | None = None
    run_exit_code: int | None = None
    lists: int | None = None
    lists_before: int | None = None
    unfinished: list[str] = field(default_factory=list)
    lock: float | None = None
    online: str | None = None


def parse_age(text: str) -> float:
    """Return an age in hours, written such as 26h, 90m or 2d.

    Raises:
        ConfigError: it is written otherwise.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([mhd])", text.strip())
    if found is None:
        raise ConfigError(f"--max-age {text} is no age; expected a number with m, h or d, such as 26h")
    return float(found[1]) * {"m": 1 / 60, "h": 1.0, "d": 24.0}[found[2]]


def examine_health(
    settings: Settings,
    max_age: float | None = None,
    *,
    online: bool = False,
    probe: bool = False,
    now: datetime | None = None,
) -> Health:
    """Return the health of a project.

    max_age: hours; default `checks.max_age_hours`. online: read the online store. probe: write and delete an object, so
    that a full disk is noticed.
    """
    now = now or datetime.now(UTC)
    most = settings.checks.max_age_hours if max_age is None else max_age
    faults: list[str] = []
    values: dict[str, Any] = {}
    try:
        storage, database = open_object_store(settings), open_version_database(settings)
        if probe:
            storage.check_writable()
        rows = database.list_versions()
        values |= _live(rows, most, now, faults)
        values |= _events(storage, values["live"], most, now, faults)
        values |= _since(database, rows)
        values |= _run(storage, database, rows, values["refused"], now, faults)
        values |= _lists(storage, rows, faults)
        values |= _pushes(database, values["live"], now, faults)
        if online and values["live"] is not None:
            values |= _canary(settings, storage, values["live"], faults)
    except RecRayError as error:
        faults.append(mask_secrets(str(error)))
    return Health(faults, **values)


def _live(rows: list[VersionRow], most: float, now: datetime, faults: list[str]) -> dict[str, Any]:
    if not rows or rows[0].updated_at is None:
        faults.append("no version is live; run: rec-ray run")
        return {"live": None}
    live, age = rows[0].version, _hours(now - rows[0].updated_at)
    if age > most:
        faults.append(f"version {live} has been live for {age:.0f} h, more than {most:g}: no run was published since")
    if age < -CLOCK_HOURS:
        faults.append(f"version {live} became live {-age:.1f} h in the future: a clock is wrong")
    return {"live": live, "live_age": round(age, 2)}


def _events(storage: Storage, live: str | None, most: float, now: datetime, faults: list[str]) -> dict[str, Any]:
    profile = None
    if live is not None:
        try:
            profile = read_profile(storage, live)
        except DataError as error:
            faults.append(str(error))
    if profile is None or not profile.newest:
        return {}
    newest = datetime.fromtimestamp(profile.newest, UTC)
    age = _hours(now - newest)
    if age > most:
        faults.append(f"the newest event of version {live} is {age:.0f} h old, more than {most:g}: no new data arrive")
    if age < -CLOCK_HOURS:
        faults.append(f"the newest event of version {live} is {-age:.1f} h in the future: a clock is wrong")
    return {"newest_event": newest, "newest_event_age": round(age, 2)}


def _since(database: VersionDatabase, rows: list[VersionRow]) -> dict[str, Any]:
    """Return the versions that were reserved after the live one and are not published."""
    published = {row.version for row in rows}
    since = rows[0].updated_at if rows else None
    later = [each for each in database.reservations() if since is None or each.reserved_at > since]
    later = [each for each in later if each.version not in published]
    refused = {each.version: each.reason or "refused" for each in later if each.state == "refused"}
    return {"stored": [each.version for each in later if each.state == "stored"], "refused": refused}


def newest_status(storage: Storage, database: VersionDatabase) -> Mapping[str, Any]:
    """Return the status of the run that began last; empty without one.

    Raises:
        DataError: it is damaged.
    """
    key = f"{RUNS}/{NEWEST}"
    run_id = None
    if storage.exists(key):
        try:
            run_id = str(json.loads(storage.read_bytes(key))["run_id"])
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{storage.uri(key)} is damaged; the next run writes it again") from None
    if run_id is None:
        reserved = database.reservations()
        run_id = reserved[-1].run_id if reserved else None
    return read_status(storage, run_id) if run_id else {}


def read_status(storage: Storage, run_id: str) -> Mapping[str, Any]:
    """Return the status of a run; empty if it left none.

    Raises:
        DataError: it is damaged.
    """
    key = f"{run_folder(run_id)}/{STATUS}"
    if not storage.exists(key):
        return {}
    try:
        found: dict[str, Any] = json.loads(storage.read_bytes(key))
    except ValueError:
        raise DataError(f"{storage.uri(key)} is damaged; the next attempt of run {run_id} writes it again") from None
    return {"run_id": run_id, **found}


def _run(
    storage: Storage,
    database: VersionDatabase,
    rows: list[VersionRow],
    refused: Mapping[str, str],
    now: datetime,
    faults: list[str],
) -> dict[str, Any]:
    status = newest_status(storage, database)
    if not status:
        return {}
    state, step, code = state_of(status, now), status.get("step"), status.get("exit_code")
    run = f"run {status['run_id']}"
    if state == LOST:
        faults.append(f"{run} was killed in {step}: its last heartbeat is of {status['updated_at']}")
    elif state == FAILED:
        reason = refused.get(str(status.get("version")), status.get("error"))
        faults.append(f"{run} failed in {step} with exit code {code}: {reason}")
    elif state == STOPPED and (not rows or rows[0].run_id != status["run_id"]):
        faults.append(f"{run} was stopped in {step}; resume it with --run-id {status['run_id']}")
    return {"run_id": status["run_id"], "run_state": state, "run_step": step, "run_exit_code": code}


def _lists(storage: Storage, rows: list[VersionRow], faults: list[str]) -> dict[str, Any]:
    """Compare the lists of the live version with those of the version that was live before."""
    versions = list(dict.fromkeys(row.version for row in rows))[:2]
    counts: list[int | None] = []
    for version in versions:
        try:
            counts.append(read_manifest(storage, candidates_folder(version)).lists)
        except DataError as error:
            # The files of an older version may be pruned.
            counts.append(None)
            if version == versions[0]:
                faults.append(str(error))
    live, before = ([*counts, None, None])[:2]
    if live == 0:
        faults.append(f"no user has a list in version {versions[0]}")
    elif live is not None and before and live < LIST_FLOOR * before:
        faults.append(f"version {versions[0]} has lists for {live:,} users, version {versions[1]} had {before:,}")
    return {"lists": live, "lists_before": before}


def _pushes(database: VersionDatabase, live: str | None, now: datetime, faults: list[str]) -> dict[str, Any]:
    holder = database.lock_holder()
    held = _lock_fault(holder, now)
    if held:
        faults.append(held)
    unfinished = [version for version in database.pushed_since_live() if version != live]
    if unfinished and (holder is None or held):
        faults.append(
            f"version {unfinished[0]} was pushed in part and is not live; run: rec-ray publish {unfinished[0]}"
        )
    return {"unfinished": unfinished, "lock": None if holder is None else holder.age}


def _lock_fault(holder: LockHolder | None, now: datetime) -> str | None:
    if holder is None:
        return None
    remedy = "rec-ray versions unlock shows it"
    if holder.expires_at < now:
        return f"the publishing lock of {holder.owner} ran out and was not released, so its publisher died; {remedy}"
    if holder.age is not None and holder.age > LOCK_HOURS * 3600:
        return f"the publishing lock is held by {holder.owner} for {holder.age / 3600:.0f} h; {remedy}"
    return None


def _canary(settings: Settings, storage: Storage, live: str, faults: list[str]) -> dict[str, Any]:
    """Read the lists of a few users in the online store and compare them with the stored ones."""
    # Lazy: Feast takes seconds to import.
    from rec_ray.cli.online_canary import read_canary

    found = read_canary(settings, storage, live, CANARY_USERS)
    if found.fault is not None:
        faults.append(found.fault)
    return {"online": f"{found.same} of {found.read} lists as stored"}


def _hours(span: timedelta) -> float:
    return span.total_seconds() / 3600
