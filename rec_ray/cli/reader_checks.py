"""Checks of `rec-ray doctor` for readers of published results: online features, and the replaced system's backend.

Input: an open store or the object store, and settings. Output: one line for each, with the setting that fills a gap.
Nothing is changed, and a gap is no fault, because another job may fill it or no reader may ask for it.
"""

from __future__ import annotations

from datetime import UTC, datetime

import pyarrow.fs as pafs

from rec_ray.config import Settings
from rec_ray.feature_store.api import FeatureStore
from rec_ray.feature_store.online_features import OnlineView, compare_online, find_online_views, source_ids
from rec_ray.publishing.backend_bucket import BUCKET, backend_bucket, legacy_names
from rec_ray.publishing.materialize_features import wanted_views
from rec_ray.publishing.user_encoder import check_user_encoder
from rec_ray.storage.object_store import Storage

SAMPLED = 100
"""Ids that are looked up online in each view."""


def check_online_features(store: FeatureStore, settings: Settings) -> str:
    """Return for each view that is served online how many of some ids have a row, and how many an outdated one.

    Raises:
        ConfigError: `publish.materialize` names a view that cannot be materialised.
        FeatureStoreError: the offline or the online store does not respond.
    """
    wanted = {view.name for view in wanted_views(store, settings.feast, settings.publish)}
    views = find_online_views(store, settings.feast)
    said = [_describe(store, settings, view, view.name in wanted) for view in views]
    return "; ".join(said) or "no view of users or items is served online"


def _describe(store: FeatureStore, settings: Settings, view: OnlineView, is_wanted: bool) -> str:
    ids = _some_ids(store, settings, view)
    state = compare_online(store, view, ids, datetime.now(UTC))
    said = f"{view.name}: {state.there} of {state.ids} ids have a row online"
    if state.there == state.ids and not state.differing:
        return said
    if state.there and state.differing:
        said += f", {state.differing} differ from the offline store"
    if is_wanted:
        return f"{said}; the next publication writes them (publish.materialize)"
    return (
        f"{said}; a reader that asks for the others gets nulls: set publish.materialize: [{view.name}], or run `feast "
        "materialize-incremental` before each publication"
    )


def _some_ids(store: FeatureStore, settings: Settings, view: OnlineView) -> list[str]:
    """Return some ids of the rows behind a view."""
    found: list[str] = []
    for ids in source_ids(store, view, settings.feast.join_rows):
        found = list(dict.fromkeys([*found, *ids.slice(0, SAMPLED).to_pylist()]))[:SAMPLED]
        if len(found) == SAMPLED:
            break
    return found


def check_user_encoder_objects(storage: Storage, settings: Settings, live: str | None) -> str:
    """Return whether the replaced system's backend finds the user encoder that it loads at each start.

    Raises:
        ConfigError: as `check_user_encoder`.
        StorageError: the store does not respond.
    """
    check_user_encoder(settings)
    bucket = backend_bucket(storage)
    if settings.publish.legacy_user_encoder:
        if live is not None and not bucket.exists(legacy_names(live)[0]):
            return (
                f"{bucket.uri()} has no {legacy_names(live)[0]} for the live version, so a backend that loads it fails "
                f"at its start: rec-ray candidates {live} --publish"
            )
        kind = "fitted to new users" if settings.search.text_encoder else "one vector for all new users"
        return f"each publication stores a user encoder in {bucket.uri()}: {kind}" + (
            "" if settings.search.text_encoder else "; search.text_encoder makes it depend on their preferences"
        )
    if live is not None and _has_encoders(bucket):
        return (
            f"{bucket.uri()} has user encoders and publish.legacy_user_encoder is off; a backend of the replaced "
            "system loads one at each start and fails with the next version: set it to true"
        )
    return "no backend of the replaced system is known"


def _has_encoders(bucket: Storage) -> bool:
    """Return whether a store of objects has a bucket with encoders of any version."""
    if bucket.is_folder:
        return False
    try:
        infos = bucket.filesystem.get_file_info(pafs.FileSelector(BUCKET, recursive=False, allow_not_found=True))
    except OSError:
        return False
    return any(info.base_name.startswith("user-encoder-") and info.base_name.endswith(".pth") for info in infos)
