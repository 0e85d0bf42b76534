"""Publication of a stored version: check it completely, push it to Feast, then commit; also rollback and increments.

Input: a `Publisher` with the opened stores, and a version. Afterwards the feature store has the candidates of that
version and the newest row of `model_version` names it, or readers still see the previous version. The module reads
files and candidates only and loads no model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime

from rec_ray.candidate_store.erasure import Erased
from rec_ray.candidate_store.increments import PUBLISHED, find_increment, increments_folder
from rec_ray.candidate_store.manifest import CandidatesManifest, read_manifest, read_with_sum
from rec_ray.candidate_store.parts import StoredCandidates
from rec_ray.config import FeastSettings, PublishSettings, SearchSettings
from rec_ray.contracts import StoredModel, UpdateReport
from rec_ray.errors import ConfigError, DataError, GateError, LockedError, StorageError, UnavailableError, list_names
from rec_ray.feature_store.api import FeatureStore
from rec_ray.logs import LOGGER
from rec_ray.publishing.backend_bucket import publish_user_encoder
from rec_ray.publishing.commit_candidates import candidates_name, require_recorded
from rec_ray.publishing.materialize_features import materialize_features
from rec_ray.publishing.previous_ids import pushed_candidates, replaced_folder
from rec_ray.publishing.prune import prune_versions
from rec_ray.publishing.push import PushLock, update_feature_store
from rec_ray.runs.check_records import as_values, read_checks
from rec_ray.storage.live_pointer import write_live, write_withdrawn
from rec_ray.storage.model_store import candidates_folder, read_metadata, verify_model
from rec_ray.storage.object_store import Storage
from rec_ray.versions.lock import PublishingLock
from rec_ray.versions.registry import VersionDatabase, VersionRow

FindWithdrawn = Callable[[str, str | None], Sequence[str]]
"""Maps keys of the candidates to publish and of the live ones to the items to leave out."""


@dataclass(frozen=True)
class Publisher:
    """Opened stores and settings of a publication.

    owner: description of the lock holder for waiting publishers. run_id: id of the publishing run.
    """

    store: FeatureStore
    storage: Storage
    database: VersionDatabase
    settings: PublishSettings
    search: SearchSettings
    feast: FeastSettings
    owner: str
    run_id: str

    def lock(self) -> AbstractContextManager[PublishingLock]:
        """Return the publishing lock as a context manager."""
        seconds, wait = self.settings.lock_seconds, self.settings.wait_seconds
        return self.database.publishing_lock(self.owner, seconds, wait, self.run_id)


def publish_version(publisher: Publisher, version: str, *, withdrawn: Sequence[str] = ()) -> UpdateReport:
    """Push the stored candidates of a version and make it live; return the rows by push source.

    withdrawn: items to leave out, like forgotten ones.

    Raises:
        LockedError: another run still publishes after `publish.wait_seconds`.
        PartlyPublishedError: not all rows reached the feature store; the live version is unchanged.
        GateError: too few lists, compared with the live version; nothing was pushed.
        BundleError, DataError: the version is not stored, incomplete or damaged; nothing was pushed.
        ConfigError, FeatureStoreError: as `materialize_features`; nothing was pushed.
    """
    storage, database = publisher.storage, publisher.database
    with publisher.lock() as lock:
        stored = _verified_model(publisher, version)
        metadata = read_metadata(version, storage)
        candidates, sha256 = _recorded_candidates(publisher, version, candidates_folder(version))
        require_lists(candidates.manifest, _live_manifest(database, storage, version), publisher.settings.list_floor)
        online = materialize_features(
            publisher.store,
            storage,
            candidates,
            publisher.feast,
            publisher.settings,
            check=lock.check,
            erased=database.erased(),
        )
        if publisher.settings.legacy_user_encoder:
            publish_user_encoder(storage, version)
        report = update_feature_store(
            publisher.store,
            storage,
            candidates,
            publisher.settings,
            PushLock(lambda: database.begin_push(version, lock), lock.check, database.fence(lock)),
            before=_known_before(database, storage),
            search=publisher.search,
            erased=database.erased() | Erased.of(items=withdrawn),
        )
        write_withdrawn(storage, version, withdrawn)
        row = VersionRow(
            version=version,
            run_id=str(metadata.get("run_id", publisher.run_id)),
            artifact_uri=stored.uri,
            sha256=stored.sha256,
            metrics=metadata.get("metrics"),
            settings_hash=str(metadata.get("settings_hash", "")) or None,
            data_from=_instant(metadata.get("data_from")),
            data_to=_instant(metadata.get("data_to")),
            candidates_sha256=sha256,
            checks=as_values(read_checks(storage, version)) or None,
        )
        database.publish(row, lock)
        name_live(storage, database)
        # Best-effort clean-up: a leftover only costs the next push an additional read.
        with contextlib.suppress(StorageError):
            storage.delete_prefix(replaced_folder(version))
        pruned = _retain(publisher, lock)
        return dataclasses.replace(report, pruned=pruned, withdrawn=len(withdrawn), online=online)


def name_live(storage: Storage, database: VersionDatabase) -> None:
    """Copy the live version of the database to the object store, for readers without the database.

    A publisher whose lock has expired may write late, so each checks afterwards that its version is still live.

    Raises:
        StorageError: the store cannot be written; the version is live nevertheless.
    """
    live = database.live()
    while live is not None:
        try:
            write_live(storage, live)
        except StorageError as error:
            raise StorageError(
                f"version {live} is live, but readers of the object store still open the version before: {error}; "
                f"run rec-ray publish {live} again"
            ) from None
        written, live = live, database.live()
        if live == written:
            return


def _retain(publisher: Publisher, lock: PublishingLock) -> int:
    """Remove the files of versions beyond `publish.keep_versions`; return the number of versions.

    The version is live already, so a failure is logged and left to the next publication.
    """
    keep = publisher.settings.keep_versions
    if not keep:
        return 0
    try:
        pruned = prune_versions(publisher.storage, publisher.database, lock, keep)
    except (UnavailableError, LockedError) as error:
        LOGGER.warning("publish.keep_versions %d: old versions cannot be removed: %s", keep, error)
        return 0
    if pruned.removed:
        LOGGER.info("publish.keep_versions %d: removed the files of the versions %s", keep, list_names(pruned.removed))
    return len(pruned.removed)


def publish_increment(publisher: Publisher, version: str, name: str) -> UpdateReport:
    """Push an increment of the live version, which stays live; `model_version` is only read. name: or `newest`.

    Raises:
        DataError: there is no such increment, a newer one was published, or another version is live.
        LockedError, PartlyPublishedError: as `publish_version`.
    """
    storage, database = publisher.storage, publisher.database
    name = find_increment(storage, increments_folder(version), name)
    prefix = f"{increments_folder(version)}/{name}"
    with publisher.lock() as lock:
        live = database.live()
        if live != version:
            raise DataError(f"increment {name} is of version {version}, but version {live} is live: nothing was pushed")
        increment, _ = _recorded_candidates(publisher, version, prefix)
        report = update_feature_store(
            publisher.store,
            storage,
            increment,
            publisher.settings,
            PushLock(
                lambda: database.begin_push(version, lock, candidates_name(version, prefix)),
                lock.check,
                database.fence(lock),
            ),
            erased=database.erased(),
        )
        storage.write_bytes(f"{prefix}/{PUBLISHED}", json.dumps(report.rows).encode())
    return report


def roll_back(publisher: Publisher, version: str, find_withdrawn: FindWithdrawn | None = None) -> UpdateReport:
    """Publish a previously live version again, as a new row of `model_version`.

    find_withdrawn: returns the items of the candidates of `version` that Feast no longer has.

    Raises:
        ConfigError: it was never live.
        Otherwise as `publish_version`.
    """
    known = list(dict.fromkeys(row.version for row in publisher.database.list_versions()))
    if version not in known:
        raise ConfigError(
            f"version {version} was never live, so a rollback to it is impossible; live were {list_names(known)}. "
            f"To make it live for the first time: rec-ray publish {version}"
        )
    live = publisher.database.live()
    withdrawn: Sequence[str] = ()
    if find_withdrawn is not None and live != version:
        withdrawn = find_withdrawn(candidates_folder(version), candidates_folder(live) if live else None)
    return publish_version(publisher, version, withdrawn=withdrawn)


def require_lists(new: CandidatesManifest, live: CandidatesManifest | None, floor: float) -> None:
    """Refuse candidates that would remove the lists of many users.

    new, live: the candidates to publish and those of the live version; None if there is no live version to compare.
    floor: minimum share of the live version's non-empty lists, and of the items in them.

    Raises:
        GateError: the share is lower; the message names the setting that allows it.
    """
    if live is None or floor == 0:
        return
    counted = {"users with a list": (new.lists, live.lists)}
    if "listed_items" in new.facts and "listed_items" in live.facts:
        counted["items in all lists"] = (int(new.facts["listed_items"]), int(live.facts["listed_items"]))
    for what, (now, before) in counted.items():
        if now < floor * before:
            raise GateError(
                f"version {new.version} has {now:,} {what}, the live version {live.version} has {before:,}: below "
                f"publish.list_floor {floor}, nothing was pushed; to publish it anyway: --set publish.list_floor=0"
            )


def _live_manifest(database: VersionDatabase, storage: Storage, version: str) -> CandidatesManifest | None:
    """Return the manifest of the live version if it is not `version` and can be read, else None."""
    live = database.live()
    if live is None or live == version:
        return None
    try:
        return read_manifest(storage, candidates_folder(live))
    except DataError as error:
        LOGGER.warning("the lists of version %s are not compared with the live version %s: %s", version, live, error)
        return None


def _verified_model(publisher: Publisher, version: str) -> StoredModel:
    """Return the record of a model after comparing its files with their sums and its manifest with the database."""
    stored = verify_model(version, publisher.storage)
    state = next((each.state for each in publisher.database.reservations() if each.version == version), None)
    if state == "pruned":
        raise DataError(f"version {version} was pruned: its files may be removed at any time; publish another version")
    row = publisher.database.get(version)
    if row is not None and None not in (row.sha256, stored.sha256) and row.sha256 != stored.sha256:
        raise DataError(
            f"version {version} was published with the checksum {row.sha256}, its manifest in {stored.uri} now has "
            f"{stored.sha256}; a published version never changes: restore it from a backup, or publish another version"
        )
    return stored


def _recorded_candidates(publisher: Publisher, version: str, prefix: str) -> tuple[StoredCandidates, str]:
    """Return candidates and the sum of their manifest, after checking that this sum was recorded."""
    manifest, sha256 = read_with_sum(publisher.storage, prefix)
    where = publisher.storage.uri(prefix)
    if manifest.version != version:
        raise DataError(f"the candidates in {where} are those of version {manifest.version}, not of {version}")
    is_increment = prefix != candidates_folder(version)
    if manifest.is_increment != is_increment:
        kinds = {True: "an increment", False: "all candidates of a version"}
        raise DataError(f"the manifest in {where} is of {kinds[not is_increment]}, expected {kinds[is_increment]}")
    require_recorded(publisher.storage, publisher.database, version, prefix, sha256)
    return StoredCandidates(prefix, manifest), sha256


def _known_before(database: VersionDatabase, storage: Storage) -> Sequence[StoredCandidates]:
    """Return the candidates that may have rows in the feature store."""
    versions = database.pushed_since_live()
    return [candidates for version in versions for candidates in pushed_candidates(storage, version)]


def _instant(text: object) -> datetime | None:
    return datetime.fromisoformat(text) if isinstance(text, str) else None
