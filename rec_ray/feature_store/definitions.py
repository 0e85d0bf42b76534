"""Feast views that a project reads: user views, item views, and the view whose rows are the events.

Input: the registry and section `feast`. Output: a `Side` with its fields, or the events view. The settings name the
views; the default is the views of a feature service that are keyed by the side's entity. Views of other entities and
on-demand views that need request data are ignored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa

from rec_ray.config import FeastSettings
from rec_ray.errors import ConfigError, list_names
from rec_ray.feature_store.api import from_feast_to_pyarrow_type
from rec_ray.feature_store.feature_join import ComputedView, FeatureJoin, JoinedView
from rec_ray.feature_store.registry import Registry, hint

SideName = Literal["user", "item"]


@dataclass(frozen=True)
class SideView:
    """A view with the fields that a side reads.

    name: of the view, or its alias in a service. fields: by name. sources: the views that an on-demand view reads.
    """

    name: str
    view: Any
    fields: Mapping[str, Any]
    sources: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Side:
    """The views of one entity.

    what: the service or setting that names the views, for errors. key: the join key. views: views with rows. computed:
    on-demand views over those. left_out: views that are named there but not read -> the reason.
    """

    side: SideName
    what: str
    key: str
    views: tuple[SideView, ...]
    computed: tuple[SideView, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def field_names(self) -> list[str]:
        """Names that the settings may use; a field name of two views takes its long form `view__field`."""
        pairs = [(view.name, name) for view in [*self.views, *self.computed] for name in view.fields]
        plain = [name for _, name in pairs]
        return [name if plain.count(name) == 1 else f"{view}__{name}" for view, name in pairs]

    def find(self, name: str, setting: str) -> tuple[SideView, Any]:
        """Return the view and the field of a name, `field` or `view__field`.

        setting: the setting that contains the name, for errors.

        Raises:
            ConfigError: no view has the field, or several have it.
        """
        found = [
            (view, each)
            for view in [*self.views, *self.computed]
            for each in view.fields.values()
            if name in (each.name, f"{view.name}__{each.name}")
        ]
        if len(found) > 1:
            names = list_names(f"{view.name}__{each.name}" for view, each in found)
            raise ConfigError(f"{setting}: {name!r} is a field of several views of {self.what}; write one of {names}")
        if found:
            return found[0]
        reasons = [reason for view, reason in self.left_out.items() if name.startswith(f"{view}__")]
        why = reasons[0] if reasons else hint(name, self.field_names)
        raise ConfigError(f"{setting}: {self.what} has no field {name!r}; {why} (was `feast apply` run?)")

    def kind(self, name: str, setting: str = "features") -> pa.DataType | None:
        """Return the Arrow type of a field, None for a Feast type that has none.

        Raises:
            ConfigError: as `find`.
        """
        return arrow_type(self.find(name, setting)[1])

    def join(self, names: Iterable[str], setting: str = "features") -> FeatureJoin:
        """Return the join that yields these fields.

        Raises:
            ConfigError: as `find`.
        """
        columns: dict[str, dict[str, Any]] = {}
        by_name = {view.name: view for view in [*self.views, *self.computed]}
        names = list(dict.fromkeys(names))
        for name in names:
            view, each = self.find(name, setting)
            columns.setdefault(view.name, {})[name] = each
        views = [_joined(by_name[view].view, fields) for view, fields in columns.items() if by_name[view] in self.views]
        computed = [
            ComputedView(
                by_name[view].view.name,
                {name: each.name for name, each in fields.items()},
                tuple(_inputs(by_name[view])),
            )
            for view, fields in columns.items()
            if by_name[view] in self.computed
        ]
        return FeatureJoin(self.what, tuple(names), tuple(views), tuple(computed))


def join_keys_only(view: SideView) -> JoinedView:
    """Return the join of a view without fields, to check its files."""
    return _joined(view.view, {})


@dataclass(frozen=True)
class EventsView:
    """The view whose rows are the events, and its join keys or fields with the two ids."""

    view: Any
    user: str
    item: str

    @property
    def field_names(self) -> list[str]:
        """Fields of the view except the two ids."""
        return [each.name for each in self.view.features if each.name not in (self.user, self.item)]


def find_side(registry: Registry, feast: FeastSettings, side: SideName) -> Side:
    """Return the views with the features of users, or of items.

    Raises:
        ConfigError: a service or a view is missing, or a view named in the settings has another key.
    """
    key: str = getattr(feast, f"{side}_key")
    named: list[str] = getattr(feast, f"{side}_views")
    if named:
        return _named_side(registry, side, key, named)
    service = find_service(registry, getattr(feast, f"{side}_service"), f"feast.{side}_service")
    views: list[SideView] = []
    computed: list[SideView] = []
    left_out: dict[str, str] = {}
    for projection in service.feature_view_projections:
        name = projection.name_alias or projection.name
        view = _registered(registry, projection.name, f"feature service {service.name!r}")
        fields = {each.name: each for each in projection.features}
        if projection.name in registry.computed:
            reason = why_not_computed(view, registry, key)
        else:
            reason = why_not_of(view, key, projection.join_key_map)
        if reason:
            left_out[name] = reason
        else:
            (computed if projection.name in registry.computed else views).append(
                _side_view(registry, name, view, fields)
            )
    what = f"feature service {service.name!r}"
    if side == "item" and not views:
        raise ConfigError(
            f"{what} has no view keyed by {key!r} alone, and without one there is no catalogue: "
            f"{'; '.join(left_out.values()) or 'it has no view'}. Correct feast.item_key or set feast.item_views"
        )
    return Side(side, what, key, tuple(views), tuple(computed), left_out)


def _named_side(registry: Registry, side: SideName, key: str, named: list[str]) -> Side:
    setting = f"feast.{side}_views"
    wanted: dict[str, list[str]] = {}
    for entry in named:
        name, _, chosen = entry.partition(":")
        wanted.setdefault(name, []).extend([chosen] if chosen else [])
    views: list[SideView] = []
    computed: list[SideView] = []
    for name, only in wanted.items():
        view = _registered(registry, name, setting)
        is_computed = name in registry.computed
        reason = why_not_computed(view, registry, key) if is_computed else why_not_of(view, key)
        if reason:
            raise ConfigError(f"{setting} names {name!r}: {reason}")
        have = {each.name: each for each in view.features}
        for chosen in only:
            if chosen not in have:
                raise ConfigError(
                    f"{setting} names {name}:{chosen}, but view {name!r} has no such field; {hint(chosen, have)}"
                )
        fields = {chosen: have[chosen] for chosen in only or have}
        (computed if is_computed else views).append(_side_view(registry, name, view, fields))
    return Side(side, setting, key, tuple(views), tuple(computed))


def _side_view(registry: Registry, name: str, view: Any, fields: Mapping[str, Any]) -> SideView:
    projections = getattr(view, "source_feature_view_projections", {}).values()
    return SideView(name, view, fields, {each.name: registry.views[each.name] for each in projections})


def find_service(registry: Registry, name: str, setting: str) -> Any:
    """Return a feature service.

    Raises:
        ConfigError: no feature service has that name.
    """
    if name not in registry.services:
        views = setting.replace("_service", "_views").replace("interaction_views", "events_view")
        raise ConfigError(
            f"there is no feature service {name!r} in Feast project {registry.project!r}; it has "
            f"{list_names(registry.services)}. Correct {setting}, name views in {views} (there are "
            f"{list_names(registry.views)}), or run `rec-ray init --feast`, which finds them"
        )
    return registry.services[name]


def find_events(registry: Registry, feast: FeastSettings) -> EventsView:
    """Return the view whose rows are the events.

    Raises:
        ConfigError: no view qualifies, or the view lacks one of the two ids.
    """
    user, item = feast.events_user_field or feast.user_key, feast.events_item_field or feast.item_key
    if feast.events_view is not None:
        what = "feast.events_view"
        views = [_registered(registry, feast.events_view, what)]
    else:
        service = find_service(registry, feast.interaction_service, "feast.interaction_service")
        what = f"feature service {service.name!r}"
        names = [projection.name for projection in service.feature_view_projections]
        views = [_registered(registry, name, what) for name in names if name not in registry.computed]
    views = [view for view in views if getattr(view, "batch_source", None) is not None]
    keyed = [view for view in views if {user, item} <= set(view.join_keys)]
    having = [view for view in views if {user, item} <= set(_columns(view))]
    for view in [*keyed, *having]:
        return EventsView(view, user, item)
    found = list_names(
        f"{view.name}: {', '.join([*view.join_keys, *(each.name for each in view.features)])}" for view in views
    )
    raise ConfigError(
        f"{what} has no view with {user!r} and {item!r} as join keys or fields; there is {found}. Set "
        "feast.events_view, and feast.events_user_field and feast.events_item_field where its ids are called otherwise"
    )


def require_fields(side: Side, wanted: Mapping[str, str], taken: Iterable[str]) -> None:
    """Check that a side has the wanted fields and that none has the name of a column in `taken`.

    wanted: field -> the setting that names it.

    Raises:
        ConfigError: names the first field that fails.
    """
    for name, setting in wanted.items():
        view, _ = side.find(name, setting)
        if name in taken:
            raise ConfigError(
                f"{setting}: rec_ray uses the name {name!r} itself; write {view.name}__{name}, or leave it out"
            )


def raw_fields(side: Side, wanted: Mapping[str, str], taken: Iterable[str]) -> pa.Schema:
    """Return the fields that filters read, with their types. wanted, taken: as `require_fields`.

    Raises:
        ConfigError: a field is missing, filters cannot read its type, or it has the name of another column.
    """
    require_fields(side, wanted, taken)
    kinds = {name: side.kind(name, setting) for name, setting in wanted.items()}
    for name, kind in kinds.items():
        if kind is None:
            raise ConfigError(f"{wanted[name]}: field {name!r} has a Feast type that filters cannot read")
    return pa.schema(list(kinds.items()))


def _columns(view: Any) -> list[str]:
    return [*view.join_keys, *(each.name for each in view.features)]


def arrow_type(each: Any) -> pa.DataType | None:
    """Return the Arrow type of a Feast field, None for a type that has none."""
    try:
        return from_feast_to_pyarrow_type(each.dtype)
    except (ValueError, KeyError, NotImplementedError):
        return None


def _registered(registry: Registry, name: str, who: str) -> Any:
    view = registry.views.get(name) or registry.computed.get(name)
    if view is None:
        there = hint(name, [*registry.views, *registry.computed])
        raise ConfigError(
            f"{who} names the view {name!r}, which is not in the registry of project {registry.project!r}; {there} "
            "(was `feast apply` run?)"
        )
    return view


def why_not_of(view: Any, key: str, join_key_map: Mapping[str, str] | None = None) -> str | None:
    """Return the reason why a view has no features of the entity, None if it has."""
    keys = list(view.join_keys)
    if getattr(view, "batch_source", None) is None:
        return f"view {view.name!r} has no batch source to read features from"
    if len(keys) == 1 and key in (keys[0], (join_key_map or {}).get(keys[0])):
        return None
    return f"view {view.name!r} is keyed by {list_names(keys)}, not by {key!r} alone"


def why_not_computed(view: Any, registry: Registry, key: str) -> str | None:
    """Return the reason why an on-demand view cannot be computed for the entity, None if it can."""
    if view.source_request_sources:
        fields = [each.name for source in view.source_request_sources.values() for each in source.schema]
        return f"on-demand view {view.name!r} needs request data ({list_names(fields)}), which no stored event has"
    for name in (projection.name for projection in view.source_feature_view_projections.values()):
        source = registry.views.get(name)
        reason = f"reads {name!r}, which is not a view with rows" if source is None else why_not_of(source, key)
        if reason:
            return f"on-demand view {view.name!r}: {reason}"
    return None


def _joined(view: Any, fields: Mapping[str, Any]) -> JoinedView:
    """Return the join of one view. fields: our column -> the Feast field."""
    key = view.join_keys[0]
    kinds = {each.name: arrow_type(each) for each in view.entity_columns}
    return JoinedView(
        view.name,
        key,
        kinds.get(key),
        view.batch_source,
        round(view.ttl.total_seconds() * 1_000_000) if view.ttl else 0,
        {name: each.name for name, each in fields.items()},
        {name: arrow_type(each) for name, each in fields.items()},
    )


def _inputs(computed: SideView) -> list[JoinedView]:
    """Return the joins of the inputs of an on-demand view, each column by its long name."""
    return [
        _joined(
            computed.sources[each.name], {f"{each.name_alias or each.name}__{one.name}": one for one in each.features}
        )
        for each in computed.view.source_feature_view_projections.values()
    ]
