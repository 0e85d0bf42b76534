"""A stored version made live: pushed to Feast whole, then committed; also rolled back to, and older ones pruned.

An open world and a version come in; afterwards the feature store holds that version's candidates and the newest row of
`model_version` names it, or neither has changed for a reader. It reads files and candidates only: no model is loaded.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import datetime

from rec_ray.candidate_store.increments import PUBLISHED, find_increment, increments_folder
from rec_ray.candidate_store.manifest import read_manifest
from rec_ray.candidate_store.parts import StoredCandidates
from rec_ray.contracts import UpdateReport
from rec_ray.errors import ConfigError, DataError, StorageError, listed
from rec_ray.publishing.previous_ids import pushed_candidates, replaced_folder
from rec_ray.publishing.push import update_feature_store
from rec_ray.runs.context import RunContext, describe_owner
from rec_ray.step_events import step
from rec_ray.storage.model_store import candidates_folder, find_model, read_metadata
from rec_ray.storage.object_store import Storage
from rec_ray.versions.lock import PublishingLock
from rec_ray.versions.registry import VersionDatabase, VersionRow


def publish_version(context: RunContext, version: str) -> UpdateReport:
    """Push the stored candidates of a version and make it live; return the rows by push source.

    Raises:
        LockedError: another run publishes, still after `publish.wait_seconds`.
        PartlyPublishedError: not everything reached the feature store; the live version is as before.
        BundleError, DataError: the version is not stored, incomplete or damaged.
    """
    settings, storage, database = context.settings, context.storage, context.database
    stored = find_model(version, storage)
    metadata = read_metadata(version, storage)
    candidates = _stored_candidates(version, storage)
    if candidates.version != version:
        raise DataError(f"the candidates in {storage.uri(candidates.prefix)} are those of version {candidates.version}")
    with step("update_features", context.seconds, publishes=True, version=version) as log, _lock(context) as lock:
        before = _known_before(database, storage)
        report = update_feature_store(
            context.store,
            storage,
            candidates,
            settings.publish,
            published_at=database.begin_push(version, lock),
            before=before,
            search=settings.search,
            check=lock.check,
        )
        log.add(**report.rows, departed=sum(report.departed.values()))
        log.result = report
        row = VersionRow(
            version=version,
            run_id=str(metadata.get("run_id", context.run_id)),
            artifact_uri=stored.uri,
            sha256=stored.sha256,
            metrics=metadata.get("metrics"),
            settings_hash=str(metadata.get("settings_hash", "")) or None,
            data_from=_instant(metadata.get("data_from")),
            data_to=_instant(metadata.get("data_to")),
        )
        database.publish(row, lock)
        # It is live; what is left here is only looked at once more by the next push.
        with contextlib.suppress(StorageError):
            storage.delete_prefix(replaced_folder(version))
    return report


def publish_increment(context: RunContext, version: str, name: str) -> UpdateReport:
    """Push an increment of the live version, which stays the live one; `model_version` is only read. name: or `newest`.

    Raises:
        DataError: there is no such increment, a newer one was published, or another version is live.
        LockedError, PartlyPublishedError: as `publish_version`.
    """
    storage, database = context.storage, context.database
    name = find_increment(storage, increments_folder(version), name)
    prefix = f"{increments_folder(version)}/{name}"
    increment = StoredCandidates(prefix, read_manifest(storage, prefix))
    with (
        step("update_features", context.seconds, publishes=True, version=version, increment=name) as log,
        _lock(context) as lock,
    ):
        live = database.live()
        if live != version:
            raise DataError(f"increment {name} is of version {version}, but version {live} is live: nothing was pushed")
        report = update_feature_store(
            context.store,
            storage,
            increment,
            context.settings.publish,
            published_at=database.begin_push(version, lock),
            check=lock.check,
        )
        storage.write_bytes(f"{prefix}/{PUBLISHED}", json.dumps(report.rows).encode())
        log.add(**report.rows)
        log.result = report
    return report


def roll_back(context: RunContext, version: str) -> UpdateReport:
    """Publish a version once more that was live before; the row that makes it live again is a new one.

    Raises:
        ConfigError: it was never live.
        Otherwise as `publish_version`.
    """
    known = list(dict.fromkeys(row.version for row in context.database.list_versions()))
    if version not in known:
        raise ConfigError(
            f"version {version} was never live, so there is nothing to go back to; live were {listed(known)}. "
            f"To make it live for the first time: rec-ray publish {version}"
        )
    return publish_version(context, version)


def _lock(context: RunContext) -> AbstractContextManager[PublishingLock]:
    publish = context.settings.publish
    owner = describe_owner(context.run_id)
    return context.database.publishing_lock(owner, publish.lock_seconds, publish.wait_seconds)


def _stored_candidates(version: str, storage: Storage) -> StoredCandidates:
    prefix = candidates_folder(version)
    return StoredCandidates(prefix, read_manifest(storage, prefix))


def _known_before(database: VersionDatabase, storage: Storage) -> Sequence[StoredCandidates]:
    """Return the candidates of which the feature store may hold rows."""
    versions = database.pushed_since_live()
    return [candidates for version in versions for candidates in pushed_candidates(storage, version)]


def _instant(text: object) -> datetime | None:
    return datetime.fromisoformat(text) if isinstance(text, str) else None
