"""List of all versions, and the facts of one version.

Input: settings. Output: plain values from the version table and the object store. The module uses neither Feast nor Ray
and changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rec_ray.candidate_store.manifest import read_manifest, require_complete
from rec_ray.config import Settings
from rec_ray.errors import DataError
from rec_ray.runs.stores import open_object_store, open_version_database
from rec_ray.storage.model_store import (
    candidates_folder,
    find_model,
    has_model_files,
    model_folder,
    read_metadata,
    stored_versions,
)
from rec_ray.storage.object_store import Storage
from rec_ray.versions.registry import Reservation


def list_versions(settings: Settings) -> list[dict[str, Any]]:
    """Return every version that is stored or was published, the live one first."""
    database, storage = open_version_database(settings), open_object_store(settings)
    rows = database.list_versions()
    reserved = {each.version: each for each in database.reservations()}
    published = [
        {
            "version": row.version,
            "state": "live" if place == 0 else _state(reserved.get(row.version), "published"),
            "updated_at": row.updated_at.isoformat() if row.updated_at else None,
            "run_id": row.run_id,
            "metrics": row.metrics,
            "artifact": row.artifact_uri,
            "parent": row.parent,
        }
        for place, row in enumerate(rows)
    ]
    known = {row.version for row in rows}
    # A run writes the checks of its data before it trains; such a folder is no version until the upload begins.
    stored = [
        version
        for version in stored_versions(storage)
        if version not in known
        and (_state(reserved.get(version), "stored") != "reserved" or has_model_files(version, storage))
    ]
    return published + [
        {
            "version": version,
            "state": _state(reserved.get(version), "stored"),
            "artifact": storage.uri(model_folder(version)),
            "run_id": reserved[version].run_id if version in reserved else None,
            "metrics": (_metadata_of(version, storage)[0] or {}).get("metrics"),
        }
        for version in stored
    ]


def next_for(version: Mapping[str, Any]) -> str:
    """Return the command to try after looking at a version. version: as `show_version` returns it."""
    name = version["version"]
    if version["state"] == "live":
        return "rec-ray recommend --any"
    if version["files"] != "complete":
        return "rec-ray versions"
    if version["candidates"] != "complete":
        return f"rec-ray candidates {name}"
    return f"rec-ray versions rollback {name}" if version["published"] else f"rec-ray publish {name}"


def _state(reservation: Reservation | None, otherwise: str) -> str:
    """Return the state of a number; `otherwise` if the object store is ahead of the database."""
    if reservation is None or reservation.state == "published":
        return otherwise
    return reservation.state


def show_version(settings: Settings, version: str) -> dict[str, Any]:
    """Return all facts of one version: its publications, its number, its files.

    Raises:
        DataError: there is no such version.
    """
    database, storage = open_version_database(settings), open_object_store(settings)
    rows = database.list_versions()
    mine = [row for row in rows if row.version == version]
    reservation = next((each for each in database.reservations() if each.version == version), None)
    metadata, fault = _metadata_of(version, storage)
    if not mine and reservation is None and metadata is None:
        raise DataError(f"there is no version {version!r}; see `rec-ray versions`")
    newest = mine[0] if mine else None
    live = bool(rows) and rows[0].version == version
    return {
        "version": version,
        "state": "live" if live else _state(reservation, "published" if mine else "stored"),
        "published": [row.updated_at.isoformat() for row in mine if row.updated_at],
        "parent": newest.parent if newest else None,
        "run_id": newest.run_id if newest else reservation.run_id if reservation else None,
        "reserved_at": reservation.reserved_at.isoformat() if reservation else None,
        "artifact": newest.artifact_uri if newest else storage.uri(model_folder(version)),
        "sha256": newest.sha256 if newest else None,
        "settings_hash": newest.settings_hash if newest else None,
        "data_from": newest.data_from.isoformat() if newest and newest.data_from else None,
        "data_to": newest.data_to.isoformat() if newest and newest.data_to else None,
        "metrics": newest.metrics if newest else (metadata or {}).get("metrics"),
        "files": fault or "complete",
        "candidates": _candidates_of(version, storage),
    }


def _candidates_of(version: str, storage: Storage) -> str:
    """Return "complete", or the fault of the candidates of a version; only sizes are compared."""
    prefix = candidates_folder(version)
    try:
        require_complete(storage, prefix, read_manifest(storage, prefix))
    except DataError as error:
        return str(error)
    return "complete"


def _metadata_of(version: str, storage: Storage) -> tuple[dict[str, Any] | None, str | None]:
    """Return the metadata of a stored model, or the fault that prevents reading them."""
    try:
        find_model(version, storage)
        return read_metadata(version, storage), None
    except DataError as error:
        return None, str(error)
