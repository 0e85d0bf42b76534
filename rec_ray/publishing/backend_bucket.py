"""Bucket of the replaced system's backend, which loads two objects of the live version at each start.

Input: a store and a version. Output: the objects `user-encoder-{version}.pth` and `user-encoder-config-{version}.json`
of the version, copied there or removed. Objects of other systems stay.
"""

from __future__ import annotations

import dataclasses

from rec_ray.logs import LOGGER
from rec_ray.storage.model_store import model_folder
from rec_ray.storage.object_store import Storage

BUCKET = "user-encoder"
"""Bucket of the backend; in a store that is a folder, a folder of this name."""
FOLDER = "legacy"
"""Folder below a version with its two objects."""


def legacy_names(version: str) -> tuple[str, str]:
    """Return the names of the two objects that the backend loads."""
    return f"user-encoder-{version}.pth", f"user-encoder-config-{version}.json"


def publish_user_encoder(storage: Storage, version: str) -> None:
    """Copy the encoder of a version to the bucket of the backend, before the version becomes live.

    Raises:
        StorageError: the bucket cannot be written.
    """
    for name in legacy_names(version):
        key = f"{model_folder(version)}/{FOLDER}/{name}"
        if not storage.exists(key):
            LOGGER.warning(
                "version %s has no user encoder, so a backend that loads %s at its start fails; compute it with: "
                "rec-ray candidates %s --publish",
                version,
                name,
                version,
            )
            return
        backend_bucket(storage).write_checked(name, storage.read_bytes(key))


def remove_user_encoder(storage: Storage, version: str) -> None:
    """Remove the copies of a version's encoder from the bucket of the backend; objects of other systems stay.

    Raises:
        StorageError: the bucket cannot be written.
    """
    for name in legacy_names(version):
        if storage.exists(f"{model_folder(version)}/{FOLDER}/{name}"):
            backend_bucket(storage).delete_prefix(name)


def backend_bucket(storage: Storage) -> Storage:
    """Return the bucket of the backend on the server of the store."""
    return dataclasses.replace(storage, root=f"{storage.root}/{BUCKET}" if storage.is_folder else BUCKET)
