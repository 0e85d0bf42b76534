"""Checks that refuse a command before Ray, Feast and torch are imported and started.

Input: settings and the arguments of a command. Each function returns, or raises the error with the command to try. They
read the version database and the object store only; the commands repeat the checks that guard published data.
"""

from __future__ import annotations

from datetime import UTC, datetime

from rec_ray.candidate_store.increments import find_increment, increments_folder, start_of_increment
from rec_ray.candidate_store.manifest import read_manifest, require_complete
from rec_ray.config import Settings
from rec_ray.errors import ConfigError, DataError, list_names
from rec_ray.runs.ledger import run_folder
from rec_ray.runs.stores import open_object_store, open_version_database
from rec_ray.storage.model_store import candidates_folder, find_model, newest_version


def require_run_id(run_id: str | None) -> None:
    """Raise a ConfigError if the text is no run id."""
    if run_id is not None:
        run_folder(run_id)


def require_stored(settings: Settings, version: str | None) -> None:
    """Raise a DataError if the version, by default the newest one, is not stored completely."""
    storage = open_object_store(settings)
    find_model(version or newest_version(storage), storage)


def require_candidates(settings: Settings, version: str | None) -> None:
    """Check that a version can be published.

    Raises:
        DataError: the version is not stored, was pruned, or has no complete candidates.
    """
    storage = open_object_store(settings)
    version = version or newest_version(storage)
    find_model(version, storage)
    database = open_version_database(settings)
    states = {each.version: each.state for each in database.reservations()}
    if states.get(version) == "pruned":
        raise DataError(f"version {version} was pruned, its files may be removed at any time; see: rec-ray versions")
    folder = candidates_folder(version)
    if not storage.exists(f"{folder}/manifest.json"):
        raise DataError(f"no candidates for version {version}; run: rec-ray candidates {version}")
    require_complete(storage, folder, read_manifest(storage, folder))


def require_increment(settings: Settings, version: str | None, name: str) -> None:
    """Check that an increment of the live version can be published.

    Raises:
        DataError: there is no such increment, a newer one was published, or another version is live.
    """
    storage, live = open_object_store(settings), open_version_database(settings).live()
    version = version or live or newest_version(storage)
    find_increment(storage, increments_folder(version), name)
    if live != version:
        said = f"version {live} is live" if live else "no version is live"
        raise DataError(
            f"increment {name} is of version {version}, but {said}; to publish all its lists: rec-ray publish {version}"
        )


def require_since(settings: Settings, version: str | None, since: str) -> None:
    """Check the time from which an increment counts events. Raises: as `increments.start_of_increment`."""
    storage = open_object_store(settings)
    version = version or open_version_database(settings).live() or newest_version(storage)
    find_model(version, storage)
    start_of_increment(since, storage, candidates_folder(version), increments_folder(version), datetime.now(UTC))


def is_live(settings: Settings, version: str) -> bool:
    """Return whether a rollback to a version changes nothing: it is live, and no other one was partly pushed since.

    Raises:
        ConfigError: the version was never live.
        DataError: it is not stored, or has no complete candidates.
    """
    database = open_version_database(settings)
    rows = database.list_versions()
    known = list(dict.fromkeys(row.version for row in rows))
    if version not in known:
        find_model(version, open_object_store(settings))
        raise ConfigError(
            f"version {version} was never live, so a rollback to it is impossible; live were {list_names(known)}. "
            f"To make it live for the first time: rec-ray publish {version}"
        )
    if known[0] == version and database.pushed_since_live() == [version]:
        return True
    require_candidates(settings, version)
    return False


def check_new_run(settings: Settings, run_id: str | None) -> None:
    """Check id and definitions before importing the pipeline; a finished run of a given id needs no registry."""
    require_run_id(run_id)
    if run_id is None:
        from rec_ray.preflight import check_early

        check_early(settings)
