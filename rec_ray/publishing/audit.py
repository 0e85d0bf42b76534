"""Audit of a published version: features of a sample of users and items, online as the model is served and offline.

Input: an open store and the candidates of the version. Output: one `Skew` per field that the model reads. Vectors and
lists are compared by the push itself, which reads a sample of its rows back.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import pyarrow.parquet as pq

from rec_ray.candidate_store.manifest import ITEM_FOLDER, USER_FOLDER, read_manifest
from rec_ray.candidate_store.parts import StoredCandidates
from rec_ray.config import Settings
from rec_ray.feature_store.api import FeatureStore
from rec_ray.feature_store.definitions import SideName, find_side
from rec_ray.feature_store.online_skew import Skew, find_skew
from rec_ray.feature_store.registry import read_registry
from rec_ray.logs import LOGGER
from rec_ray.retrieval.profiles.checks import PASSED, WARNED, Check
from rec_ray.schema import ITEM_ID, USER_ID
from rec_ray.storage.model_store import candidates_folder
from rec_ray.storage.object_store import Storage

SAMPLE = 100
"""Users, and items, that are read."""
LIMIT = 0.05
"""Share of values that may differ: rows may have arrived between the instant of the data and the audit."""


def audit_features(
    store: FeatureStore, storage: Storage, settings: Settings, version: str, as_of: datetime
) -> list[Skew]:
    """Compare the declared features of a sample of the users and items of a version in both stores.

    Raises:
        DataError: the candidates of the version are missing or damaged.
        FeatureStoreError: a store does not respond.
    """
    registry = read_registry(store)
    prefix = candidates_folder(version)
    candidates = StoredCandidates(prefix, read_manifest(storage, prefix))
    sides: tuple[tuple[SideName, str, str, Sequence[str]], ...] = (
        ("user", USER_FOLDER, USER_ID, list(settings.features.user)),
        ("item", ITEM_FOLDER, ITEM_ID, list(settings.features.item)),
    )
    found: list[Skew] = []
    for side, folder, column, fields in sides:
        if fields:
            ids = _first_ids(storage, candidates.paths(storage, folder), column)
            found += find_skew(store, find_side(registry, settings.feast, side), fields, ids, as_of)
    return found


def check_skew(skews: Sequence[Skew]) -> list[Check]:
    """Return a check per field; a view without any row online is logged and has none, as not every view is served."""
    views: dict[str, list[Skew]] = {}
    for each in skews:
        views.setdefault(each.view, []).append(each)
    checks = []
    for view, fields in views.items():
        if all(each.missing == each.compared for each in fields):
            LOGGER.info("view %s has no row in the online store, so its features are not compared", view)
            continue
        checks += [
            Check(
                f"skew.{view}.{each.field}",
                round(each.share, 4),
                LIMIT,
                WARNED if each.share > LIMIT else PASSED,
                each.said,
            )
            for each in fields
        ]
    return checks


def _first_ids(storage: Storage, paths: Sequence[str], column: str) -> list[str]:
    """Return the first ids of some parts: rows of a part are in the order of a hash, so they are no special ones."""
    ids: list[str] = []
    for path in paths:
        with storage.filesystem.open_input_file(path) as handle:
            for batch in pq.ParquetFile(handle).iter_batches(batch_size=SAMPLE, columns=[column]):
                ids += batch[column].to_pylist()
                break
        if len(ids) >= SAMPLE:
            break
    return ids[:SAMPLE]
