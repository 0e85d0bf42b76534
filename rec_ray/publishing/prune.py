"""Removal of the files of old versions and of replaced candidates, except those that a reader, run or rollback needs.

Input: a store, the version database and the publishing lock. Output: removed and kept versions, with reasons. Rows of
the database stay.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rec_ray.candidate_store.manifest import MANIFEST, PENDING, read_manifest
from rec_ray.errors import DataError
from rec_ray.logs import LOGGER
from rec_ray.publishing.backend_bucket import remove_user_encoder
from rec_ray.runs.ledger import is_unfinished
from rec_ray.storage.model_store import candidates_folder, model_folder, remove_version, stored_versions
from rec_ray.storage.object_store import Storage
from rec_ray.versions.lock import PublishingLock
from rec_ray.versions.registry import VersionDatabase

GENERATION = re.compile(r"\d{8}T\d{6}\.\d{6}Z")


@dataclass(frozen=True)
class Pruned:
    """Versions whose files were removed, and versions that were kept, with the reason.

    replaced_parts: Parquet parts of replaced candidates that were removed from kept versions.
    """

    removed: list[str]
    kept: dict[str, str]
    replaced_parts: int = 0


def prune_versions(storage: Storage, database: VersionDatabase, lock: PublishingLock, keep: int) -> Pruned:
    """Remove the files of all versions but the newest `keep`, and the parts that no manifest lists any more.

    Always kept: the live version and its parent, every version of a run that has not ended, and versions pushed since
    the live version was published (a failed push). lock: the caller holds it.

    Raises:
        LockedError: the lock was lost.
        StorageError: the store cannot be written; files removed before the error stay removed.
    """
    versions = stored_versions(storage)
    kept = _reasons_to_keep(storage, database, versions, keep)
    removed = []
    for version in versions:
        if version in kept:
            continue
        database.mark(version, "pruned", lock)
        remove_user_encoder(storage, version)
        remove_version(version, storage)
        removed.append(version)
    replaced = sum(_remove_replaced_parts(storage, version, lock) for version in versions if version in kept)
    return Pruned(removed, {version: kept[version] for version in versions if version in kept}, replaced)


def _reasons_to_keep(storage: Storage, database: VersionDatabase, versions: list[str], keep: int) -> dict[str, str]:
    """Return the reason to keep each version; if several apply, the last one wins, as it is the strongest."""
    rows = database.list_versions()
    kept = dict.fromkeys(versions[:keep], "among the newest")
    kept |= {
        version: "a symbolic link, which is never removed"
        for version in versions
        if storage.is_link(model_folder(version))
    }
    kept |= dict.fromkeys(database.running(), "its run may continue")
    kept |= dict.fromkeys(database.pushed_since_live(), "pushed, in part at least, since the live one")
    if rows:
        if rows[0].parent is not None:
            kept[rows[0].parent] = "parent of the live one"
        kept[rows[0].version] = "live"
    # Last, because it reads one ledger per version that would be removed.
    going = set(versions) - set(kept)
    for each in database.reservations():
        if each.version in going and each.state != "refused" and is_unfinished(storage, each.run_id):
            kept[each.version] = f"run {each.run_id} has not ended; if it never will, delete runs/{each.run_id}"
    return kept


def _remove_replaced_parts(storage: Storage, version: str, lock: PublishingLock) -> int:
    """Remove the parts of earlier generations of candidates; return their number.

    Parts of a later generation than that of the manifest belong to candidates that are being computed.
    """
    prefix = candidates_folder(version)
    if not storage.exists(f"{prefix}/{MANIFEST}"):
        return 0
    try:
        manifest = read_manifest(storage, prefix)
    except DataError as error:
        LOGGER.warning("replaced candidates of version %s are not removed: %s", version, error)
        return 0
    if not manifest.generation:
        return 0
    list_names = {f"{prefix}/{folder}/{part.name}" for folder, parts in manifest.parts.items() for part in parts}
    old = [
        key
        for key in storage.list(prefix)
        if key not in list_names and key not in (f"{prefix}/{MANIFEST}", f"{prefix}/{PENDING}")
        if _generation_of(key) < manifest.generation
    ]
    for key in old:
        lock.check()
        storage.delete_prefix(key)
    return len(old)


def _generation_of(key: str) -> str:
    """Return the generation of a part; empty for parts of format 1, which sorts before all others."""
    folder = key.split("/")[-2]
    return folder if GENERATION.fullmatch(folder) else ""
