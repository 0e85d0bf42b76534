"""Items that an older version recommends and Feast no longer has.

Input: candidates of the older and of the live version, and an open feature store. Output: the ids that only the older
version has and that have no features as of now.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from rec_ray.candidate_store.manifest import ITEM_FOLDER, parts_of, read_manifest, read_parts
from rec_ray.config import FeastSettings
from rec_ray.errors import ConfigError, DataError
from rec_ray.feature_store.api import FeatureStore
from rec_ray.feature_store.definitions import find_side
from rec_ray.feature_store.point_in_time import read_items
from rec_ray.feature_store.registry import read_registry
from rec_ray.logs import LOGGER
from rec_ray.schema import ITEM_ID
from rec_ray.storage.object_store import Storage


def find_withdrawn_items(
    store: FeatureStore, storage: Storage, feast: FeastSettings, older: str, live: str | None
) -> list[str]:
    """Return the items of older candidates that Feast no longer has. older, live: keys of candidates.

    Only items that the live version lacks are looked up; without an item view none are, which is logged.

    Raises:
        DataError: the older candidates are missing or damaged.
        FeatureStoreError: the offline store does not respond.
    """
    ids = _item_ids(storage, older)
    if live is not None:
        try:
            ids = ids.filter(pc.invert(pc.is_in(ids, value_set=_item_ids(storage, live))))
        except (DataError, OSError, pa.ArrowException) as error:
            LOGGER.warning("all items are looked up in Feast, as those of the live version cannot be read: %s", error)
    if not len(ids):
        return []
    try:
        fields = find_side(read_registry(store), feast, "item").field_names
    except ConfigError as error:
        LOGGER.warning("withdrawn items are not looked up: %s", error)
        return []
    if not fields:
        LOGGER.warning("withdrawn items are not looked up: the item views have no fields")
        return []
    values = read_items(store, feast, ids.to_pylist(), fields)
    return [each for each in ids.to_pylist() if all(_is_nothing(values[field][each]) for field in fields)]


def _item_ids(storage: Storage, prefix: str) -> pa.Array:
    manifest = read_manifest(storage, prefix)
    if not parts_of(manifest, ITEM_FOLDER):
        return pa.array([], pa.string())
    return read_parts(storage, prefix, manifest, ITEM_FOLDER)[ITEM_ID].combine_chunks()


def _is_nothing(value: object) -> bool:
    return value is None or (isinstance(value, Sequence) and not isinstance(value, str) and not value)
