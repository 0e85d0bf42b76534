"""Every fault that the registry, the footers of files and the settings alone tell, found before anything is started.

An open store and the settings come in, a list of faults goes out, each with its remedy; `check_definitions` raises them
together, so that one attempt tells all. It starts no Ray, reserves no version, and reads rows only to decide features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from rec_ray.config import FeastSettings, Settings
from rec_ray.config.decided_features import with_decisions, without_decisions
from rec_ray.data.load_items import ITEMS
from rec_ray.errors import ConfigError, DataError, RecRayError, SchemaError, list_names
from rec_ray.feature_store.api import FeatureStore
from rec_ray.feature_store.definitions import (
    Side,
    SideName,
    find_events,
    find_side,
    join_keys_only,
    raw_fields,
    require_fields,
)
from rec_ray.feature_store.feature_join import JoinedView, check_view_columns
from rec_ray.feature_store.offline_source import event_source, slice_source
from rec_ray.feature_store.push_targets import is_published
from rec_ray.feature_store.registry import Registry, read_registry
from rec_ray.feature_store.repository import open_store
from rec_ray.feature_store.search_targets import find_search_targets
from rec_ray.feature_store.source_files import find_files, is_parquet, read_footer, reads_files
from rec_ray.logs import LOGGER
from rec_ray.publishing.materialize_features import wanted_views
from rec_ray.publishing.push import check_push_target, wanted_targets
from rec_ray.retrieval.features.columns import as_numbers, as_values, as_vectors
from rec_ray.retrieval.lists.item_filters import try_filters
from rec_ray.sample.own_tables import PLACEHOLDER
from rec_ray.sample.run_features import DecidedFeatures, decide_run_features
from rec_ray.schema import INTERACTIONS, FeatureDeclaration

T = TypeVar("T")
DEFINITIONS, SOURCES, PUBLISHING = "definitions", "sources", "publishing"
"""Groups of faults: of views and settings, of the files behind views, of the views that are published to."""


class _Faults(list[RecRayError]):
    """Faults so far, each text once."""

    def attempt(self, check: Callable[..., T], *arguments: Any) -> T | None:
        """Return what a check returns, or keep its fault and return None."""
        try:
            return check(*arguments)
        except RecRayError as error:
            if str(error) not in map(str, self):
                self.append(error)
            return None


def check_early(settings: Settings) -> None:
    """Raise the faults of a new run before its modules are imported, which takes longer than the check.

    Raises:
        As `check_definitions`.
    """
    store = open_store(settings.feast.repo)
    raise_faults(find_faults(store, without_decisions(settings)))


def check_definitions(store: FeatureStore, settings: Settings) -> None:
    """Raise all faults of the definitions at once; warn where no feature is declared.

    Raises:
        ConfigError: a setting or a definition is wrong, and whatever else is wrong beside it.
        DataError: files have other columns or types than declared.
        UnavailableError: the registry or a file cannot be reached, and nothing else is wrong.
    """
    raise_faults(find_faults(store, settings))
    features = settings.features
    if not features.user and not features.item:
        LOGGER.warning("%s", _usable_fields(store, settings))


def complete_settings(
    store: FeatureStore,
    settings: Settings,
    once: Callable[[Callable[[], DecidedFeatures]], DecidedFeatures] = lambda decide: decide(),
) -> Settings:
    """Return the settings with the decisions of `features: auto`, for which rows are sampled.

    once: calls the function that decides; a run keeps its result for all its attempts.

    Raises:
        As `check_definitions`, and `decide_run_features`.
    """
    if not settings.features.auto:
        return settings
    raise_faults(find_faults(store, without_decisions(settings)))
    return with_decisions(settings, once(lambda: decide_run_features(store, settings)).values)


def raise_faults(faults: list[RecRayError]) -> None:
    """Raise faults together, as the kind of the one that most needs a change. Raises: as `check_definitions`."""
    if len(faults) == 1:
        raise faults[0]
    if faults:
        lines = "\n".join(f"  {number}. {fault}" for number, fault in enumerate(faults, 1))
        raise _worst(faults)(f"{len(faults)} faults, found before anything was started\n{lines}")


def find_faults(
    store: FeatureStore, settings: Settings, groups: Iterable[str] = (DEFINITIONS, SOURCES, PUBLISHING)
) -> list[RecRayError]:
    """Return the faults of some groups."""
    found = {name: _Faults() for name in (DEFINITIONS, SOURCES, PUBLISHING)}
    faults, sources, publishing = found.values()
    registry = faults.attempt(read_registry, store)
    if registry is not None:
        _check_events(faults, sources, store, registry, settings)
        features, candidates = settings.features, settings.candidates
        raw_items = {**settings.search.item_fields, **candidates.item_fields}
        named = {features.item_name: "features.item_name"} if features.item_name else {}
        user = _find_side(faults, registry, settings.feast, "user")
        item = _find_side(faults, registry, settings.feast, "item")
        for side, declared, raw, taken in (
            (user, features.user, candidates.user_fields, INTERACTIONS.names),
            (item, features.item, {**raw_items, **named}, ITEMS.names),
        ):
            if side is not None:
                _check_files(sources, store, side, _check_fields(faults, side, declared, raw, taken))
        if user is not None and item is not None and not faults:
            filters = candidates.filters
            schemas = raw_fields(item, raw_items, ITEMS.names), raw_fields(user, candidates.user_fields, [])
            faults.attempt(try_filters, filters, *schemas, features.item, features.user)
        model = settings.model
        if publishing.attempt(is_published, store, settings.publish):
            for wanted in wanted_targets(settings.publish).values():
                publishing.attempt(check_push_target, store, wanted, model.similarity, model.embedding_size)
            publishing.attempt(wanted_views, store, settings.feast, settings.publish)
            if settings.publish.legacy_user_encoder:
                # Imports torch, which takes longer than all other checks.
                from rec_ray.publishing.user_encoder import check_user_encoder

                publishing.attempt(check_user_encoder, settings)
        publishing.attempt(find_search_targets, store, settings.search)
    return [fault for group in found if group in set(groups) for fault in found[group]]


def _find_side(faults: _Faults, registry: Registry, feast: FeastSettings, name: SideName) -> Side | None:
    """Return the views of a side, or None after keeping the fault of each view that the settings name."""
    found = len(faults)
    for entry in getattr(feast, f"{name}_views"):
        faults.attempt(find_side, registry, feast.model_copy(update={f"{name}_views": [entry]}), name)
    return faults.attempt(find_side, registry, feast, name) if len(faults) == found else None


def _check_events(
    faults: _Faults, sources: _Faults, store: FeatureStore, registry: Registry, settings: Settings
) -> None:
    interaction = settings.features.interaction
    if faults.attempt(find_events, registry, settings.feast) is None:
        return
    found = len(faults)
    for name in ("type_field", "value_field"):
        only = {"type_field": None, "value_field": None, name: getattr(interaction, name)}
        features = settings.features.model_copy(update={"interaction": interaction.model_copy(update=only)})
        faults.attempt(event_source, registry, settings.feast, features)
    if len(faults) == found:
        source = event_source(registry, settings.feast, settings.features)
        if is_parquet(source.source) and reads_files(store.config):
            sources.attempt(slice_source, store, source, settings.feast.join_rows)


def _check_fields(
    faults: _Faults,
    side: Side,
    declared: Mapping[str, FeatureDeclaration],
    raw: Mapping[str, str],
    taken: Iterable[str],
) -> list[str]:
    """Check the fields of a side and their kinds; return those that are there."""
    taken, there = list(taken), []
    for name, setting in {**raw, **dict.fromkeys(declared, f"features.{side.side}")}.items():
        before = len(faults)
        faults.attempt(require_fields, side, {name: setting}, taken)
        if len(faults) > before:
            continue
        there.append(name)
        if name in declared:
            faults.attempt(_try_kind, side, name, declared[name])
    return there


def _check_files(sources: _Faults, store: FeatureStore, side: Side, fields: list[str]) -> None:
    """Compare the files behind the views with what the views declare."""
    joined = side.join(fields).sources
    seen = {view.name for view in joined}
    unread = [join_keys_only(view) for view in side.views if view.view.name not in seen]
    for view in [*joined, *unread]:
        if is_parquet(view.source) and reads_files(store.config):
            sources.attempt(_compare_files, Path(store.repo_path), view)


def _compare_files(repo: Path, view: JoinedView) -> None:
    filesystem, paths = find_files(view.source, repo, view.in_words)
    for path in paths:
        check_view_columns(read_footer(filesystem, path, view.in_words).schema.to_arrow_schema(), view, path)


def _try_kind(side: Side, name: str, declaration: FeatureDeclaration) -> None:
    """Read an empty column of the declared Feast type as the declared kind.

    Raises:
        ConfigError: it cannot be read so.
    """
    setting = f"features.{side.side}"
    kind = side.kind(name, setting)
    if kind is None:
        raise ConfigError(f"{setting}: field {name!r} has a Feast type that no kind of feature reads; leave it out")
    column = pa.table({name: pa.array([], kind)})
    try:
        if declaration.kind in ("numeric", "timestamp"):
            as_numbers(column, name, declaration)
        elif declaration.kind == "vector":
            as_vectors(column, name, declaration)
        else:
            as_values(column, name, declaration)
    except SchemaError as error:
        raise ConfigError(f"{setting}: {error} in Feast; declare another kind") from None


def _usable_fields(store: FeatureStore, settings: Settings) -> str:
    registry = read_registry(store)
    sides = [find_side(registry, settings.feast, "user"), find_side(registry, settings.feast, "item")]
    usable = {side.side: [name for name in side.field_names if name != PLACEHOLDER] for side in sides}
    fields = " and ".join(f"{list_names(names, 30)} of {side}s" for side, names in usable.items() if names)
    if not fields:
        return "there are no features of users and items, so the model learns from ids alone"
    return (
        f"no feature is declared, so the model learns from ids alone; there are {fields}. Declare them in "
        "section `features`, or write `features: auto`, or let `rec-ray init --feast` do it"
    )


def _worst(faults: Iterable[RecRayError]) -> type[RecRayError]:
    """Return the class to raise: what has to be changed before what may go away by itself."""
    for kind in (ConfigError, DataError):
        if any(isinstance(fault, kind) for fault in faults):
            return kind
    return type(next(iter(faults)))
