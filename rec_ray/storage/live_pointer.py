"""Name of the live version in the object store, for readers that have no access to the version database.

Input: a storage and a version. Output: a small JSON object, replaced in one write, and beside each version the items
that its publication left out. The version database decides which version is live; publishing writes this copy of it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from rec_ray.errors import DataError
from rec_ray.storage.model_store import MODELS, model_folder
from rec_ray.storage.object_store import Storage

FORMAT_VERSION = 1
LIVE = f"{MODELS}/live.json"
WITHDRAWN = "withdrawn.json"


def write_live(storage: Storage, version: str) -> None:
    """Name the live version.

    Raises:
        StorageError: the store cannot be written.
    """
    storage.write_checked(LIVE, json.dumps({"format_version": FORMAT_VERSION, "version": version}).encode())


def read_live(storage: Storage) -> str:
    """Return the live version.

    Raises:
        DataError: the store names none, or the object is damaged.
        StorageError: the store cannot be read.
    """
    where = storage.uri(LIVE)
    if storage.size(LIVE) is None:
        raise DataError(
            f"{where} does not exist, so no version is known as live; publish one, or open a version number"
        )
    try:
        values = json.loads(storage.read_bytes(LIVE))
        found, version = values["format_version"], str(values["version"])
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{where} is damaged; run rec-ray publish VERSION again") from None
    if found != FORMAT_VERSION:
        raise DataError(f"{where} has format version {found!r}, this program reads {FORMAT_VERSION}; upgrade rec_ray")
    return version


def write_withdrawn(storage: Storage, version: str, item_ids: Sequence[str]) -> None:
    """Record the items that the publication of a version leaves out. item_ids: none removes an earlier record.

    Raises:
        StorageError: the store cannot be written.
    """
    key = f"{model_folder(version)}/{WITHDRAWN}"
    if item_ids:
        storage.write_checked(key, json.dumps(sorted(item_ids)).encode())
    else:
        storage.delete_prefix(key)


def read_withdrawn(storage: Storage, version: str) -> tuple[str, ...]:
    """Return the items that the last publication of a version left out.

    Raises:
        DataError: the record is damaged.
        StorageError: the store cannot be read.
    """
    key = f"{model_folder(version)}/{WITHDRAWN}"
    if storage.size(key) is None:
        return ()
    try:
        return tuple(str(each) for each in json.loads(storage.read_bytes(key)))
    except (ValueError, TypeError):
        raise DataError(f"{storage.uri(key)} is damaged; run rec-ray rollback {version} again") from None
