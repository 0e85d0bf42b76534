"""Lookup of a user's recommendations and of an item's neighbours, as `rec-ray recommend` and `similar` show them.

Reads from the same places as a serving backend: Feast online store, version table and object store. Starts no Ray,
imports no torch and changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rec_ray.candidate_store.manifest import ITEM_FOLDER, read_manifest, read_parts
from rec_ray.candidate_store.parts import StoredCandidates
from rec_ray.candidate_store.stored_lists import any_user, newest_candidates, read_list
from rec_ray.config import Settings
from rec_ray.config.decided_features import with_stored_features
from rec_ray.errors import DataError
from rec_ray.feature_store.api import FeatureStore
from rec_ray.feature_store.point_in_time import read_items
from rec_ray.feature_store.push_targets import find_push_target, is_published, read_online
from rec_ray.feature_store.repository import open_store
from rec_ray.runs.stores import open_object_store, open_version_database
from rec_ray.schema import EMBEDDING, ITEM_ID, ITEM_IDS, MODEL_VERSION, SCORES, SIMILAR_IDS, SIMILAR_SCORES, USER_ID
from rec_ray.storage.model_store import candidates_folder, newest_version, read_metadata
from rec_ray.storage.object_store import Storage


@dataclass(frozen=True)
class RankedItems:
    """Ranked list of items. names: item id -> name, if `features.item_name` is set."""

    title: str
    version: str | None
    item_ids: list[str]
    scores: list[float]
    names: dict[str, str] = field(default_factory=dict)


def find_recommendations(settings: Settings, user_id: str | None, count: int) -> RankedItems:
    """Return the first `count` items of a user's list in the online store; None picks a user of the live version.

    Raises:
        DataError: the user is unknown, or no version is live.
    """
    store = open_store(settings.feast.repo)
    if not is_published(store, settings.publish):
        return _stored_recommendations(store, settings, user_id, count)
    if user_id is None:
        user_id = _any_user(settings)
    target = find_push_target(store, settings.publish.recommendation_push_source, USER_ID, [ITEM_IDS, SCORES])
    answer = read_online(store, target, [user_id])
    item_ids = answer[target.fields[ITEM_IDS]][0]
    if item_ids is None:
        raise DataError(
            f"the online store has no recommendations for user {user_id!r}; a new user gets some with the next run: "
            "rec-ray run"
        )
    scores = answer[target.fields[SCORES]][0] if SCORES in target.fields else []
    version = answer[target.fields[MODEL_VERSION]][0] if MODEL_VERSION in target.fields else None
    first = [str(item_id) for item_id in list(item_ids)[:count]]
    title = f"Recommendations for user {user_id}" + (f", version {version}" if version else "")
    return RankedItems(
        title, version, first, [float(s) for s in list(scores or [])[:count]], read_item_names(store, settings, first)
    )


def _stored_recommendations(store: FeatureStore, settings: Settings, user_id: str | None, count: int) -> RankedItems:
    """Return the list in the newest stored candidates, for projects without a view of recommendations."""
    storage = open_object_store(settings)
    candidates = newest_candidates(storage)
    found = read_list(storage, candidates, user_id if user_id is not None else any_user(storage, candidates))
    title = f"Recommendations for user {found.user_id}, version {found.version} (stored, not published)"
    shown = found.item_ids[:count]
    return RankedItems(title, found.version, shown, found.scores[:count], read_item_names(store, settings, shown))


def _any_user(settings: Settings) -> str:
    storage, folder = open_object_store(settings), candidates_folder(_live(settings))
    return any_user(storage, StoredCandidates(folder, read_manifest(storage, folder)))


def _live(settings: Settings) -> str:
    version = open_version_database(settings).live()
    if version is None:
        raise DataError("no version is live yet; run: rec-ray run")
    return version


def similar_items(settings: Settings, item_id: str, count: int) -> RankedItems:
    """Return the items most similar to an item: the published ones, else the nearest vectors of the live version.

    Raises:
        DataError: the live version has no such item, or no version is live.
    """
    store = open_store(settings.feast.repo)
    published = is_published(store, settings.publish)
    version = _live(settings) if published else newest_candidates(open_object_store(settings)).version
    if published and settings.publish.similar_push_source is not None:
        answer = _published_similar_items(store, settings, settings.publish.similar_push_source, item_id, count)
        if answer is not None:
            return answer
    storage = open_object_store(settings)
    item_ids, vectors = _item_vectors(storage, candidates_folder(version))
    places = np.flatnonzero(item_ids == item_id)
    if not len(places):
        raise DataError(f"version {version} has no item {item_id!r}")
    scores = vectors @ vectors[places[0]]
    nearest = np.setdiff1d(np.lexsort((np.arange(len(scores)), -scores))[: count + len(places)], places)
    nearest = nearest[np.lexsort((nearest, -scores[nearest]))][:count]
    ids = [str(item_ids[place]) for place in nearest]
    names = read_item_names(store, settings, [item_id, *ids])
    title = f"Items like {names.get(item_id, item_id)}, version {version}"
    return RankedItems(title, version, ids, [float(scores[place]) for place in nearest], names)


def _published_similar_items(
    store: FeatureStore, settings: Settings, source: str, item_id: str, count: int
) -> RankedItems | None:
    """Return the similar items of an item in the online store; None if it has no row for the item."""
    target = find_push_target(store, source, ITEM_ID, [SIMILAR_IDS, SIMILAR_SCORES])
    found = {column: values[0] for column, values in read_online(store, target, [item_id]).items()}
    if found[target.fields[SIMILAR_IDS]] is None:
        return None
    ids = [str(similar) for similar in found[target.fields[SIMILAR_IDS]]][:count]
    scores = found[target.fields[SIMILAR_SCORES]] if SIMILAR_SCORES in target.fields else []
    version = found[target.fields[MODEL_VERSION]] if MODEL_VERSION in target.fields else None
    names = read_item_names(store, settings, [item_id, *ids])
    title = f"Items like {names.get(item_id, item_id)}" + (f", version {version}" if version else "")
    return RankedItems(title, version, ids, [float(score) for score in list(scores or [])[:count]], names)


def _item_vectors(storage: Storage, folder: str) -> tuple[Any, Any]:
    table = read_parts(storage, folder, read_manifest(storage, folder), ITEM_FOLDER)
    vectors = table[EMBEDDING].combine_chunks().flatten().to_numpy()
    return table[ITEM_ID].to_numpy(), vectors.reshape(table.num_rows, -1)


def read_item_names(store: FeatureStore, settings: Settings, item_ids: list[str]) -> dict[str, str]:
    """Read the current names of items from Feast's offline store; empty unless `features.item_name` is set."""
    if settings.features.auto and item_ids:
        storage = open_object_store(settings)
        settings = with_stored_features(settings, read_metadata(newest_version(storage), storage))
    name = settings.features.item_name
    if name is None or not item_ids:
        return {}
    found = read_items(store, settings.feast, item_ids, [name])
    return {item_id: str(text) for item_id, text in found[name].items() if text is not None}
