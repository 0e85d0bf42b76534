"""Search views for text and image vectors, found by their push sources and checked against the vectors.

Input: a store, and the settings or the manifest of candidates. Output: a `PushTarget` for each folder of vectors, or
messages about missing views and encoders.
"""

from __future__ import annotations

from collections.abc import Mapping

from rec_ray.candidate_store.manifest import CandidatesManifest, search_folder
from rec_ray.config import SearchSettings
from rec_ray.errors import ConfigError, SchemaError
from rec_ray.feature_store.api import FeatureStore
from rec_ray.feature_store.push_targets import METRICS, PushTarget, find_push_target, push_sources
from rec_ray.logs import LOGGER
from rec_ray.schema import ITEM_ID

Dimensions = Mapping[str, Mapping[str, int]]
"""Push source -> field of its view -> numbers of a vector."""


def find_search_targets(store: FeatureStore, settings: SearchSettings) -> dict[str, PushTarget]:
    """Return the target of each folder of vectors that the settings enable.

    Raises:
        ConfigError: a push source is missing or feeds no view.
        SchemaError: its view has other fields.
    """
    there = push_sources(store)
    for source, fields in settings.vectors.items():
        if source not in there:
            kind = "text" if source in settings.text_views else "image"
            raise ConfigError(
                f"search.{kind}_encoder is set, but no feature view of project {store.project!r} is fed by a push "
                f"source {source!r}; declare a view with the fields {', '.join(fields)} and run `feast apply`, correct "
                f"search.{kind}_views, or set search.{kind}_encoder: null"
            )
    return {
        search_folder(source): find_push_target(store, source, ITEM_ID, fields)
        for source, fields in settings.vectors.items()
    }


def stored_search_targets(
    store: FeatureStore, settings: SearchSettings, manifest: CandidatesManifest
) -> dict[str, PushTarget]:
    """Return the target of each folder of vectors that the candidates contain, also those of earlier settings.

    Two cases are logged and left out: folders whose view is gone from the repository and not enabled in the settings,
    and views that the settings enable but for which the candidates have no vectors.

    Raises:
        ConfigError, SchemaError: an enabled view is missing, or a view does not match.
    """
    stored = stored_dimensions(manifest)
    find_search_targets(store, settings)
    there = push_sources(store)
    version = manifest.version
    for source in sorted(set(settings.vectors) - set(stored)):
        LOGGER.warning("version %s has no vectors to push to %s; run `rec-ray candidates`", version, source)
    for source in sorted(set(stored) - set(there)):
        LOGGER.warning("the vectors of version %s are not pushed: push source %s feeds no view", version, source)
    wanted = {source: fields for source, fields in stored.items() if source in there}
    targets = {source: find_push_target(store, source, ITEM_ID, list(fields)) for source, fields in wanted.items()}
    for source, target in targets.items():
        require_fitting(target, wanted[source])
    return {search_folder(source): target for source, target in targets.items()}


def stored_dimensions(manifest: CandidatesManifest) -> Dimensions:
    """Return the vector dimensions of search views from the manifest of candidates; none for older candidates."""
    return {source: made.vectors for source, made in manifest.search.items()}


def check_search_targets(store: FeatureStore, settings: SearchSettings, dimensions: Dimensions) -> None:
    """Check that the views that the settings enable exist and accept the vectors.

    Raises:
        ConfigError, SchemaError: as `find_search_targets`, or a view declares another vector length or metric.
    """
    targets = find_search_targets(store, settings)
    for source, fields in dimensions.items():
        require_fitting(targets[search_folder(source)], fields)


def list_unfed_views(store: FeatureStore, settings: SearchSettings) -> list[str]:
    """Return a message for each search view without an encoder, with the setting that enables it."""
    there = push_sources(store)
    return [
        f"the search view behind push source {source} has no encoder; set {setting} to the model that its readers use"
        for source, setting in settings.without_encoder.items()
        if source in there
    ]


def require_fitting(target: PushTarget, dimensions: Mapping[str, int]) -> None:
    """Check that a view declares cosine similarity and these vector dimensions.

    Raises:
        SchemaError: it declares another metric or another length.
    """
    for column, declared in target.vectors.items():
        name, kinds = target.fields[column], METRICS["cosine"] | METRICS["dot"]
        if declared.metric is not None and declared.metric.lower() not in kinds:
            raise SchemaError(
                f"feature view {target.view!r} has the vector metric {declared.metric!r} for {name!r}, but models of "
                "texts and images compare by cosine; set vector_search_metric='cosine' and run `feast apply`"
            )
        if declared.length is not None and declared.length != dimensions[column]:
            raise SchemaError(
                f"feature view {target.view!r} takes vectors of {declared.length} numbers as {name!r}, the encoder "
                f"makes {dimensions[column]}; set vector_length of the view, or another encoder in section `search`"
            )
