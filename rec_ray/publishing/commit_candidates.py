"""Commit of computed candidates to their version: one write replaces the manifest, under the publishing lock.

Input: the key of complete parts with a pending manifest. Afterwards `manifest.json` lists these parts, the version
database has its sum, and the ids of the previous candidates are noted for the next push. Readers of the previous
manifest keep their parts until `rec-ray versions prune`.
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
"""Minimum wait for another publisher, because complete candidates may have taken hours to compute."""


def reopen_candidates(storage: Storage, prefix: str) -> None:
    """Make the present candidates the pending ones, unless some are pending, so that parts can be added to them.

    An attempt that died after its commit leaves no pending candidates.
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
    """Replace the manifest of candidates by the pending one; do nothing without a pending one.

    prefix: key of the candidates of the version or of an increment. lock: entered when readers may have candidates of
    this version already.

    Raises:
        DataError: a part of the new candidates is missing; the previous manifest stays.
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
            # Existing increments are older than the new candidates, and their ids are noted already.
            storage.delete_prefix(increments_folder(version))
        database.record_candidates(version, candidates_name(version, prefix), hashlib.sha256(data).hexdigest())
        storage.write_checked(f"{prefix}/{MANIFEST}", data)
    storage.delete_prefix(key)


def candidates_name(version: str, prefix: str) -> str:
    """Return the folder of candidates below the folder of their version."""
    return prefix.removeprefix(f"{model_folder(version)}/")


def require_recorded(storage: Storage, database: VersionDatabase, version: str, prefix: str, sha256: str) -> None:
    """Check that this program wrote a manifest of candidates, by its sum in the version database.

    Versions of an earlier program have no sum there and are accepted with a log line.

    Raises:
        DataError: the sum differs from every recorded one.
    """
    recorded = database.recorded_candidates(version)
    if not recorded:
        LOGGER.info("version %s has candidates of an earlier program: their manifest is not compared", version)
    elif sha256 not in recorded.get(candidates_name(version, prefix), set()):
        raise DataError(
            f"{storage.uri(prefix, MANIFEST)} has the SHA-256 sum {sha256}, which was never recorded for version "
            f"{version}: it was changed; restore it from a backup, or run `rec-ray candidates {version}`"
        )
