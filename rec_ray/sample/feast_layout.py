"""Finds users, items and events in an existing Feast repository.

Input: the definitions of a registry and command-line options. Output: a `Layout`: the events view, its two ids, the
user and item views, and a decision with its reason for each view. It reads no rows: the caller passes functions that
count them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rec_ray.config import FeastSettings
from rec_ray.errors import ConfigError, list_names
from rec_ray.feature_store.definitions import find_events, find_side, why_not_computed
from rec_ray.feature_store.registry import Registry, hint
from rec_ray.sample.roles import Prompt, Question

USER_WORDS = re.compile(
    r"user|customer|client|member|viewer|visitor|shopper|buyer|account|person|people|reader|listener|subscriber|guest"
    r"|player|student|learner|employee|donor|citizen|tenant|rider|driver|follower|patient|profile|consumer|household|session|passenger|traveller|traveler|kunde|cust"
)
ITEM_WORDS = re.compile(
    r"item|product|article|sku|film|movie|book|song|track|video|title|listing|offer|content|good|recipe|game|course"
    r"|show|episode|album|artist|post|ad$|ads$|asset|document|news|hotel|restaurant|property|job|merchandise|artikel"
)
RESULT_FIELDS = {"top_k_item_ids", "model_version", "similar_item_ids"}
SERVICES = ("user_service", "item_service", "interaction_service")


@dataclass(frozen=True)
class LayoutOptions:
    """Decisions made by the user; None lets the program decide."""

    events_view: str | None = None
    user_column: str | None = None
    item_column: str | None = None
    type_field: str | None = None
    value_field: str | None = None


@dataclass(frozen=True)
class Choice:
    """A decision: its subject, the result, the reason, and the option that overrides it."""

    what: str
    decision: str
    why: str
    option: str = ""


@dataclass(frozen=True)
class Layout:
    """Views and ids by their role. settings: values of section `feast` that differ from the defaults."""

    settings: Mapping[str, Any]
    events_view: str
    choices: tuple[Choice, ...] = field(default_factory=tuple)


def find_layout(
    registry: Registry,
    options: LayoutOptions,
    count_rows: Callable[[Any], int],
    count_ids: Callable[[Any, str], int],
    ask: Prompt | None = None,
) -> Layout:
    """Decide which view contains the events and which entity is the user.

    count_rows: rows of a view. count_ids: distinct ids in a column of a view.
    ask: prompts where several views or columns qualify; None takes the likely one.

    Raises:
        ConfigError: no view can contain the events, or an option names a missing view or column.
    """
    views = {name: view for name, view in registry.views.items() if not is_result(view)}
    results = sorted(set(registry.views) - set(views))
    choices: list[Choice] = []
    events = _find_events(registry, views, options, count_rows, choices, ask)
    ids = _ids_of(events, views, registry)
    user, item = _user_and_item(events, ids, registry, options, count_ids, choices, ask)
    user_key = _key_of(user, "user", registry, views, other=item)
    item_key = _key_of(item, "item", registry, views, other=user)
    settings: dict[str, Any] = {"user_key": user_key, "item_key": item_key}
    if user != user_key:
        settings["events_user_field"] = user
    if item != item_key:
        settings["events_item_field"] = item
    if _services_fit(registry, settings, events.name):
        choices.append(Choice("views", "those of " + ", ".join(SERVICES), "the services have the default names"))
    else:
        settings["events_view"] = events.name
        for side, key in (("user", user_key), ("item", item_key)):
            own = [name for name, view in views.items() if _is_keyed(view, key) and name != events.name]
            computed = [name for name, view in registry.computed.items() if not why_not_computed(view, registry, key)]
            settings[f"{side}_views"] = [*own, *computed]
            why = f"keyed by {key!r} alone" if own else f"no view is keyed by {key!r} alone"
            choices.append(Choice(f"views of {side}s", ", ".join([*own, *computed]) or "none", why))
        for side, key, missing in (
            ("user", user_key, "are no users to recommend to"),
            ("item", item_key, "is no catalogue of items"),
        ):
            if not settings[f"{side}_views"]:
                raise ConfigError(
                    f"no view is keyed by {key!r} alone, and without one there {missing}; add one to the repository "
                    f"(ids, a time and one field are enough), or name the column of the {side}s with --{side}-column"
                )
    used = {events.name, *settings.get("user_views", ()), *settings.get("item_views", ())}
    for name in results:
        choices.append(Choice(name, "left out", "results of a recommender, not features"))
    if "events_view" in settings:
        for name, view in {**views, **registry.computed}.items():
            if name not in used:
                choices.append(Choice(name, "left out", _why_unused(view, registry, user_key)))
    return Layout({name: value for name, value in settings.items() if value}, events.name, tuple(choices))


def is_result(view: Any) -> bool:
    """Return whether a view contains published results of a recommender."""
    names = {each.name for each in view.features}
    searched = any(getattr(each, "vector_index", False) for each in view.features)
    pushed = getattr(view, "stream_source", None) is not None
    return bool(names & RESULT_FIELDS) or (pushed and searched)


def _is_keyed(view: Any, key: str) -> bool:
    return list(view.join_keys) == [key] and getattr(view, "batch_source", None) is not None


def _why_unused(view: Any, registry: Registry, user_key: str) -> str:
    if view.name in registry.computed:
        return why_not_computed(view, registry, user_key) or "not keyed by users or items"
    keys = list_names(view.join_keys)
    return f"keyed by {keys}, neither users nor items alone, and not the events"


def _ids_of(view: Any, views: Mapping[str, Any], registry: Registry) -> list[str]:
    """Return the id columns of a view: its join keys, or fields with the names of other views' keys."""
    if len(view.join_keys) > 1:
        return list(view.join_keys)
    keys = {each.join_keys[0] for each in views.values() if len(each.join_keys) == 1 and each is not view}
    by_name = [
        each.name
        for each in view.features
        if each.name in keys or (re.search(r"(_id|_key|_no|id)$", each.name) and _side_of(each.name, registry))
    ]
    return by_name if len(by_name) > 1 else []


def _side_of(name: str, registry: Registry) -> str | None:
    """Return the side indicated by the name of an id, of its entity or of a view keyed by it alone."""
    keyed = [view for view, each in registry.views.items() if list(each.join_keys) == [name] and not is_result(each)]
    for each in (name, registry.entities.get(name, ""), " ".join(keyed)):
        user, item = USER_WORDS.search(each.lower()), ITEM_WORDS.search(each.lower())
        if bool(user) != bool(item):
            return "user" if user else "item"
    return None


def _find_events(
    registry: Registry,
    views: Mapping[str, Any],
    options: LayoutOptions,
    count_rows: Callable[[Any], int],
    choices: list[Choice],
    ask: Prompt | None,
) -> Any:
    option = "--events-view"
    if options.events_view is not None:
        if options.events_view not in registry.views:
            raise ConfigError(f"--events-view {options.events_view}: {hint(options.events_view, registry.views)}")
        choices.append(Choice("events", options.events_view, "set by the option", option))
        return registry.views[options.events_view]
    wanted = {options.user_column, options.item_column} - {None}
    found = {
        name: view
        for name, view in views.items()
        if getattr(view, "batch_source", None) is not None
        and (_ids_of(view, views, registry) or (len(wanted) == 2 and wanted <= {each.name for each in view.features}))
    }
    if not found:
        there = "; ".join(f"{name}: {', '.join(view.join_keys)}" for name, view in views.items())
        raise ConfigError(
            f"no view of project {registry.project!r} has the ids of users and items, so there are no events to learn "
            f"from; its views and their keys are {there}. If the ids are fields of a view, name them with "
            "--user-column and --item-column"
        )
    if len(found) == 1:
        name, view = next(iter(found.items()))
        choices.append(
            Choice("events", name, f"the only view with two ids: {', '.join(_ids_of(view, views, registry))}", option)
        )
        return view
    counts = {name: count_rows(view) for name, view in found.items()}
    name = max(found, key=lambda each: (counts[each], each == "interactions"))
    rows = ", ".join(f"{each} {count:,}" for each, count in counts.items())
    why = f"most rows of the views with two ids: {rows}"
    if ask is not None:
        text = f"Which view has the events to learn from? Rows: {rows}"
        name, why = ask(Question(text, option, name, tuple(found))), "your answer"
    choices.append(Choice("events", name, why, option))
    return found[name]


def _user_and_item(
    events: Any,
    ids: list[str],
    registry: Registry,
    options: LayoutOptions,
    count_ids: Callable[[Any, str], int],
    choices: list[Choice],
    ask: Prompt | None,
) -> tuple[str, str]:
    columns = [*events.join_keys, *(each.name for each in events.features)]
    for name, option in ((options.user_column, "--user-column"), (options.item_column, "--item-column")):
        if name is not None and name not in columns:
            raise ConfigError(
                f"{option} {name}: the events of view {events.name!r} have no such column; they have "
                f"{list_names(columns)}"
            )
    user, item = options.user_column, options.item_column
    ids = ids or columns
    why = {side: "set by the option" for side, name in (("user", user), ("item", item)) if name is not None}
    for side in ("user", "item"):
        named = [name for name in ids if _side_of(name, registry) == side and name not in (user, item)]
        if len(named) > 1 and ask is not None and (user if side == "user" else item) is None:
            text = f"Which id is that of the {side}s? Several names suggest {'people' if side == 'user' else 'things'}"
            named, why[side] = [ask(Question(text, f"--{side}-column", named[0], tuple(named)))], "your answer"
        if side == "user" and user is None and named:
            user, why["user"] = named[0], why.get("user", "the name suggests people")
        if side == "item" and item is None and named:
            item, why["item"] = named[0], why.get("item", "the name suggests things")
    left = [name for name in ids if name not in (user, item)]
    if user is None and item is None and len(left) > 1:
        counts = {name: count_ids(events, name) for name in left}
        left.sort(key=lambda name: -counts[name])
        user, item = left[0], left[1]
        why["user"] = why["item"] = "usually there are more users than items: " + ", ".join(
            f"{n} {c:,}" for n, c in counts.items()
        )
        if ask is not None:
            text = f"Which id is that of the users? Distinct ids: {', '.join(f'{n} {c:,}' for n, c in counts.items())}"
            user = ask(Question(text, "--user-column", user, tuple(left)))
            left.remove(user)
            item, why["user"], why["item"] = left[0], "your answer", "the other id of the events"
            if len(left) > 1:
                item = ask(Question("Which id is that of the items?", "--item-column", item, tuple(left)))
                why["item"] = "your answer"
    elif user is None and left:
        user, why["user"] = left[0], "the other id of the events"
    elif item is None and left:
        item, why["item"] = left[0], "the other id of the events"
    if user is None or item is None:
        raise ConfigError(
            f"the events of view {events.name!r} have the columns {list_names(columns)}; name the two ids with "
            "--user-column and --item-column"
        )
    choices.append(Choice("id of users", user, why["user"], "--user-column"))
    choices.append(Choice("id of items", item, why["item"], "--item-column"))
    return user, item


def _key_of(column: str, side: str, registry: Registry, views: Mapping[str, Any], other: str) -> str:
    """Return the join key of an entity's views: the column itself, or else the key with a matching name."""
    keys = list(dict.fromkeys(view.join_keys[0] for view in views.values() if len(view.join_keys) == 1))
    if column in keys:
        return column
    named = [key for key in keys if _side_of(key, registry) == side and key != other]
    return named[0] if named else column


def _services_fit(registry: Registry, settings: Mapping[str, Any], events: str) -> bool:
    """Return whether the services with the default names yield the same events and have features."""
    if not set(SERVICES) <= set(registry.services):
        return False
    feast = FeastSettings.model_validate({name: value for name, value in settings.items() if value})
    try:
        sides = [find_side(registry, feast, "user"), find_side(registry, feast, "item")]
        return find_events(registry, feast).view.name == events and all(side.views for side in sides)
    except ConfigError:
        return False
