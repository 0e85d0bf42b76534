"""Old versions removed from the object store, except those that a reader or a run still needs.

A storage, a database and the publishing lock go in, the removed and the kept versions come out. It does not push.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

from rec_ray.storage.model_store import remove_version, stored_versions
from rec_ray.storage.object_store import Storage
from rec_ray.versions.lock import PublishingLock
from rec_ray.versions.registry import VersionDatabase


@dataclass(frozen=True)
class Pruned:
    """Versions whose files were removed, and versions that were kept, with the reason."""

    removed: list[str]
    kept: dict[str, str]


def prune_versions(
    storage: Storage, database: VersionDatabase, lock: AbstractContextManager[PublishingLock], keep: int
) -> Pruned:
    """Remove the files of all versions but the newest `keep`; rows of the database stay.

    Always kept: the live version and its parent, what a run may still be making, and what was pushed to the feature
    store since the live version was (a push that failed).

    Raises:
        LockedError: another run publishes.
        StorageError: the store cannot be written; what was removed by then is gone.
    """
    with lock as held:
        rows = database.list_versions()
        versions = stored_versions(storage)
        kept = dict.fromkeys(versions[:keep], "among the newest")
        kept |= dict.fromkeys(database.running(), "its run may go on")
        kept |= dict.fromkeys(database.pushed_since_live(), "pushed, in part at least, since the live one")
        if rows:
            if rows[0].parent is not None:
                kept[rows[0].parent] = "parent of the live one"
            kept[rows[0].version] = "live"
        removed = []
        for version in versions:
            if version in kept:
                continue
            held.check()
            database.mark(version, "pruned")
            remove_version(version, storage)
            removed.append(version)
    return Pruned(removed, {version: kept[version] for version in versions if version in kept})
