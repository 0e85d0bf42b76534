"""Computed candidates become those of their version: the manifest is replaced in one write, under the publishing lock.

The key of complete parts with a pending manifest comes in; afterwards `manifest.json` lists these parts, its sum is in
the version database, and the ids of the candidates before are noted for the next push. Readers of the manifest before
keep their parts until `rec-ray versions prune`.
"""

from __future__ import annotations

import contextlib
import hashlib
from contextlib import AbstractContextManager

from rec_ray.candidate_store.increments import increments_folder
from rec_ray.candidate_store.manifest import MANIFEST, PENDING, read_manifest, require_complete
from rec_ray.errors import DataError
from rec_ray.logs import LOGGER
from rec_ray.publishing.previous_ids import note_replaced
from rec_ray.storage.model_store import candidates_folder, model_folder
from rec_ray.storage.object_store import Storage
from rec_ray.versions.lock import PublishingLock
from rec_ray.versions.registry import VersionDatabase

LOCK_WAIT_SECONDS = 900
"""Least time to wait for another publisher: hours of computation stand behind complete candidates."""


def reopen_candidates(storage: Storage, prefix: str) -> None:
    """Make the present candidates the pending ones, unless some are pending, so that more can be added to them.

    An attempt of a run that died after its commit leaves none.
    """
    if not storage.exists(f"{prefix}/{PENDING}") and storage.exists(f"{prefix}/{MANIFEST}"):
        storage.write_checked(f"{prefix}/{PENDING}", storage.read_bytes(f"{prefix}/{MANIFEST}"))


def commit_candidates(
    storage: Storage,
    database: VersionDatabase,
    version: str,
    prefix: str,
    lock: AbstractContextManager[PublishingLock],
) -> None:
    """Replace the manifest of candidates by the pending one; without a pending one nothing is left to do.

    prefix: key of the candidates of the version or of an increment. lock: entered when readers may have candidates of
    this version already.

    Raises:
        DataError: a part of the new candidates is missing; the manifest before stays.
        LockedError: another run publishes, or took the lock over.
    """
    key = f"{prefix}/{PENDING}"
    if not storage.exists(key):
        return
    require_complete(storage, prefix, read_manifest(storage, prefix, PENDING))
    data = storage.read_bytes(key)
    is_base = prefix == candidates_folder(version)
    pushed = is_base and version in database.pushed_since_live()
    with lock if pushed or storage.exists(f"{prefix}/{MANIFEST}") else contextlib.nullcontext() as held:
        if pushed:
            note_replaced(storage, version)
        if held is not None:
            held.check()
        if is_base:
            # Increments are older than the new candidates; their ids were noted.
            storage.delete_prefix(increments_folder(version))
        database.record_candidates(version, candidates_name(version, prefix), hashlib.sha256(data).hexdigest())
        storage.write_checked(f"{prefix}/{MANIFEST}", data)
    storage.delete_prefix(key)


def candidates_name(version: str, prefix: str) -> str:
    """Return the folder of candidates below the folder of their version."""
    return prefix.removeprefix(f"{model_folder(version)}/")


def require_recorded(storage: Storage, database: VersionDatabase, version: str, prefix: str, sha256: str) -> None:
    """Check that this program wrote a manifest of candidates: its sum is in the version database.

    Versions of an earlier program have no sum there and are accepted with a log line.

    Raises:
        DataError: the sum is another.
    """
    recorded = database.recorded_candidates(version)
    if not recorded:
        LOGGER.info("version %s has candidates of an earlier program: their manifest is not compared", version)
    elif sha256 not in recorded.get(candidates_name(version, prefix), set()):
        raise DataError(
            f"{storage.uri(prefix, MANIFEST)} has the SHA-256 sum {sha256}, which was never recorded for version "
            f"{version}: it was changed; restore it from a backup, or run `rec-ray candidates {version}`"
        )
