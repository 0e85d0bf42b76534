"""The definitions in a Feast registry, read once for a caller: views, on-demand views, feature services.

An open store comes in, a `Registry` goes out; a registry that does not answer, or that nothing was applied to, is an
error in one line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rec_ray.errors import ConfigError, FeatureStoreError, list_names
from rec_ray.feature_store.api import FeatureService, FeatureStore

MESSAGE_LENGTH = 300
"""Characters of somebody else's error that are shown; gRPC repeats itself over pages."""


@dataclass(frozen=True)
class Registry:
    """The definitions of one project, by name.

    views: those with rows of their own, stream views included. computed: on-demand views.
    """

    project: str
    views: Mapping[str, Any]
    computed: Mapping[str, Any]
    services: Mapping[str, FeatureService]


def read_registry(store: FeatureStore) -> Registry:
    """Read the definitions of the store's project.

    Raises:
        ConfigError: nothing was applied to the registry.
        FeatureStoreError: the registry does not answer.
    """
    try:
        found = {view.name: view for view in store.list_all_feature_views()}
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
    return Registry(store.project, views, computed, services)


def is_computed(view: Any) -> bool:
    """Return whether a view is an on-demand view, which has no rows of its own."""
    return hasattr(view, "source_feature_view_projections")


def first_line(error: Exception) -> str:
    """Return somebody else's error in one short line."""
    details = getattr(error, "details", None)
    text = details() if callable(details) else str(error)
    text = " ".join(str(text or error).split()) or type(error).__name__
    return f"{type(error).__name__}: {text[:MESSAGE_LENGTH]}"


def hint(name: str, names: Iterable[str]) -> str:
    """Return words for an error about a name that is not there: the nearest one, or all."""
    names = list(names)
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"there are {list_names(names, 30)}"
