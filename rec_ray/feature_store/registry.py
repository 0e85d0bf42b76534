"""Definitions of a Feast registry, read once per caller: views, on-demand views, feature services.

Input: an open store. Output: a `Registry`; an unreachable or empty registry raises an error of one line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rec_ray.errors import ConfigError, FeatureStoreError, list_names
from rec_ray.feature_store.api import FeatureService, FeatureStore

MESSAGE_LENGTH = 300
"""Characters of a foreign error message that are shown, because gRPC messages fill pages."""


@dataclass(frozen=True)
class Registry:
    """The definitions of one project, by name.

    views: views with rows of their own, stream views included. computed: on-demand views. entities: join key -> name.
    """

    project: str
    views: Mapping[str, Any]
    computed: Mapping[str, Any]
    services: Mapping[str, FeatureService]
    entities: Mapping[str, str]


def read_registry(store: FeatureStore) -> Registry:
    """Read the definitions of the store's project.

    Raises:
        ConfigError: nothing was applied to the registry.
        FeatureStoreError: the registry does not respond.
    """
    try:
        found = {view.name: view for view in store.list_all_feature_views()}
        entities = {entity.join_key: entity.name for entity in store.list_entities()}
        services = {service.name: service for service in store.list_feature_services()}
    except FileNotFoundError as error:
        raise ConfigError(
            f"there is no registry {error.filename or error}; run `feast apply` in {store.repo_path}"
        ) from None
    except Exception as error:
        raise FeatureStoreError(
            f"the Feast registry of project {store.project!r} cannot be read: {first_line(error)}; is it up, and was "
            "`feast apply` run?"
        ) from error
    if not found:
        raise ConfigError(
            f"Feast project {store.project!r} has no feature view; run `feast apply` in {store.repo_path}"
        )
    computed = {name: view for name, view in found.items() if is_computed(view)}
    views = {name: view for name, view in found.items() if name not in computed}
    return Registry(store.project, views, computed, services, entities)


def is_computed(view: Any) -> bool:
    """Return whether a view is an on-demand view, which has no rows of its own."""
    return hasattr(view, "source_feature_view_projections")


def first_line(error: Exception) -> str:
    """Return the type and the shortened first line of a foreign error."""
    details = getattr(error, "details", None)
    text = details() if callable(details) else str(error)
    text = " ".join(str(text or error).split()) or type(error).__name__
    return f"{type(error).__name__}: {text[:MESSAGE_LENGTH]}"


def hint(name: str, names: Iterable[str]) -> str:
    """Return the end of an error about a missing name: the most similar name, or all names."""
    names = list(names)
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"there are {list_names(names, 30)}"
