"""The manifest of stored candidates: the folders, the parts that count, and counts of their rows.

A storage and a prefix go in, a manifest comes out. It does not write parts and does not push them.
"""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rec_ray.errors import DataError
from rec_ray.storage.object_store import Storage

ITEM_FOLDER, USER_FOLDER, RECOMMENDATION_FOLDER = "item_embeddings", "user_embeddings", "recommendations"
SIMILAR_FOLDER = "similar_items"
SEARCH = "search"
"""Folder of the vectors of search views, one folder a push source, and what the manifest says of them."""
MANIFEST = "manifest.json"


def search_folder(source: str) -> str:
    """Return the folder of the vectors of a search view. source: its push source."""
    return f"{SEARCH}/{source}"


def read_manifest(storage: Storage, prefix: str) -> dict[str, Any]:
    """Return the manifest of written candidates.

    Raises:
        DataError: there is none, so the candidates are incomplete or were never made.
    """
    key = f"{prefix}/{MANIFEST}"
    if not storage.exists(key):
        raise DataError(f"{storage.uri(prefix)} holds no complete candidates; run `rec-ray candidates VERSION` first")
    manifest: dict[str, Any] = json.loads(storage.read_bytes(key))
    return manifest


def read_parts(storage: Storage, prefix: str, manifest: dict[str, Any], folder: str) -> pa.Table:
    """Read all parts of a folder that is as large as the catalogue, not as the users.

    Raises:
        DataError: the candidates have no such folder.
    """
    if folder not in manifest["parts"]:
        raise DataError(f"the candidates at {storage.uri(prefix)} have no {folder}")
    paths = [storage.path(prefix, folder, part["name"]) for part in manifest["parts"][folder]]
    return pa.concat_tables([pq.read_table(path, filesystem=storage.filesystem) for path in paths])
