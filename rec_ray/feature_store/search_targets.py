"""The views that are searched by text or image: found behind their push sources, and checked against the vectors.

A store, settings or the manifest of candidates come in; a `PushTarget` for each folder of vectors goes out, or words on
what is missing. It does not know how vectors are made or pushed.
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
    """Return the target of each folder of vectors that the settings ask for.

    Raises:
        ConfigError: there is no such push source, or no view is fed by it.
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
    """Return the target of each folder of vectors that candidates have, whatever made them.

    What the repository no longer has and the settings do not ask for is said and left out, and so is what the settings
    ask for and the candidates lack.

    Raises:
        ConfigError, SchemaError: a view that is asked for is missing, or one does not fit.
    """
    stored = stored_dimensions(manifest)
    find_search_targets(store, settings)
    there = push_sources(store)
    version = manifest.version
    for source in sorted(set(settings.vectors) - set(stored)):
        LOGGER.warning("version %s has no vectors to push to %s; run `rec-ray candidates`", version, source)
    for source in sorted(set(stored) - set(there)):
        LOGGER.warning("the vectors of version %s for %s are not pushed: no view is fed by it", version, source)
    wanted = {source: fields for source, fields in stored.items() if source in there}
    targets = {source: find_push_target(store, source, ITEM_ID, list(fields)) for source, fields in wanted.items()}
    for source, target in targets.items():
        require_fitting(target, wanted[source])
    return {search_folder(source): target for source, target in targets.items()}


def stored_dimensions(manifest: CandidatesManifest) -> Dimensions:
    """Return what the manifest of candidates says of vectors of search views; none of older candidates."""
    return {source: made.vectors for source, made in manifest.search.items()}


def check_search_targets(store: FeatureStore, settings: SearchSettings, dimensions: Dimensions) -> None:
    """Check that the views that the settings ask for are there and take such vectors.

    Raises:
        ConfigError, SchemaError: as `find_search_targets`, or a view takes vectors of another length or metric.
    """
    targets = find_search_targets(store, settings)
    for source, fields in dimensions.items():
        require_fitting(targets[search_folder(source)], fields)


def list_unfed_views(store: FeatureStore, settings: SearchSettings) -> list[str]:
    """Say of each view that the repository has and no encoder feeds which setting would."""
    there = push_sources(store)
    return [
        f"the search view behind push source {source} is not fed; set {setting} to the model that its readers use"
        for source, setting in settings.without_encoder.items()
        if source in there
    ]


def require_fitting(target: PushTarget, dimensions: Mapping[str, int]) -> None:
    """Check that a view searches vectors of unit length, and of such lengths.

    Raises:
        SchemaError: it names another metric, or another length.
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
