"""Decides the roles of the fields of an existing Feast repository: features with their kinds, and event columns.

Input: samples of rows. Output: feature declarations, event settings, and a decision with its reason for each field.
"""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rec_ray.config import FeastSettings
from rec_ray.data.event_notes import sounds_negative
from rec_ray.data.load_items import ITEMS
from rec_ray.errors import ConfigError, EmptyDataError, list_names
from rec_ray.feature_store.api import FeatureStore
from rec_ray.feature_store.definitions import Side, find_events, find_side
from rec_ray.feature_store.registry import Registry
from rec_ray.sample.declarations import ITEM_NAMES, declare_features
from rec_ray.sample.event_values import propose_values
from rec_ray.sample.feast_layout import Choice, LayoutOptions
from rec_ray.sample.feast_samples import sample_events, sample_features
from rec_ray.sample.tables import WrittenTable
from rec_ray.schema import EVENT_TIMESTAMP, INTERACTIONS, ITEM_ID, USER_ID

TYPE_NAME = re.compile(r"type|event|action|interaction|kind|behavio|activity|verb|status")
REFUSED_NAME = re.compile(r"return|refund|cancel|void|removed|deleted")
LIKING_NAME = re.compile(r"(^|_)(liked?s?|favou?rites?|thumbs?)(_|$)")
RATING_NAME = re.compile(r"rating|stars?$|score|grade|vote")
AMOUNT_NAME = re.compile(r"quantity|qty|units|count|pieces|amount")
MOST_TYPES = 50
"""Maximum number of values of a field with event types."""
LARGEST_SCALE = 10
"""Maximum value of a rating; larger numbers measure something else."""


def decide_roles(
    store: FeatureStore, registry: Registry, feast: FeastSettings, wishes: LayoutOptions, folder: Path
) -> tuple[dict[str, Any], pa.Table, list[Choice]]:
    """Return the values of section `features`, the sampled events and the decisions.

    feast: names the views. wishes: decisions made by the user. folder: receives the samples, `events.parquet` too.

    Raises:
        EmptyDataError: the events have no usable row.
        ConfigError, DataError, FeatureStoreError: a view or an option is wrong, or a source cannot be read.
    """
    view = find_events(registry, feast)
    events = sample_events(store, view, folder / "events.parquet")
    if not events.num_rows:
        raise EmptyDataError(f"the events of view {view.view.name!r} have no row with both ids and a time")
    interaction, choices = decide_events(events, wishes)
    values: dict[str, Any] = {}
    for name, reserved in (("user", INTERACTIONS.names), ("item", ITEMS.names)):
        side = find_side(registry, feast, name)  # type: ignore[arg-type]
        values[name], readable, decided = decide_features(store, side, set(reserved), folder)
        choices += decided
        if name == "item" and readable is not None:
            values["item_name"] = readable
    return {**values, "interaction": interaction}, events, choices


def decide_features(
    store: FeatureStore, side: Side, reserved: set[str], folder: Path
) -> tuple[dict[str, dict[str, Any]], str | None, list[Choice]]:
    """Return the features of a side, its display name field, and a decision on each field.

    reserved: names that rec_ray uses itself.
    """
    features: dict[str, dict[str, Any]] = {}
    choices: list[Choice] = []
    readable: str | None = None
    for number, view in enumerate([*side.views, *side.computed]):
        path = folder / f"{side.side}-{number}.parquet"
        rows = sample_features(store, side, view, path)
        for name in rows.column_names:
            what = f"{view.name}.{side.find(name, 'features')[1].name}"
            kind = rows.schema.field(name).type
            used = f"{view.name}__{name}" if name in reserved else name
            if not _is_usable(kind):
                why = "every value is null" if pa.types.is_null(kind) else f"{kind} is not a feature type"
                choices.append(Choice(what, "left out", why))
                continue
            table = WrittenTable(side.side, path, rows.num_rows, pa.schema([rows.schema.field(name)]))
            declared = declare_features(table)
            why = declared.notes[-1].partition(": ")[2].partition(", ")[2] if declared.notes else "an id or a time"
            for declaration in declared.features.values():
                features[used] = {key: value for key, value in asdict(declaration).items() if value is not None}
                choices.append(Choice(what, declaration.kind, why))
            if not declared.features:
                choices.append(Choice(what, "left out", why or "a name that rec_ray uses"))
            if pa.types.is_string(kind) and name.lower() in ITEM_NAMES and readable is None:
                readable = used
    return features, readable, choices


def _is_usable(kind: pa.DataType) -> bool:
    inner = kind.value_type if pa.types.is_list(kind) else kind
    tests = (pa.types.is_string, pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_timestamp)
    return any(test(inner) for test in tests)


def decide_events(events: pa.Table, options: LayoutOptions) -> tuple[dict[str, Any], list[Choice]]:
    """Return the settings of `features.interaction` and a decision on each field of the events.

    Raises:
        ConfigError: an option names a field that the events lack.
    """
    fields = [name for name in events.column_names if name not in (USER_ID, ITEM_ID, EVENT_TIMESTAMP)]
    for name, option in ((options.type_field, "--type-column"), (options.value_field, "--value-column")):
        if name is not None and name not in fields:
            raise ConfigError(f"{option} {name}: the events have the fields {list_names(fields)}")
    settings: dict[str, Any] = {"type_field": None, "value_field": None}
    choices: list[Choice] = []
    type_field, type_why = _find_type(events, fields, options)
    if type_field is not None:
        settings["type_field"] = type_field
        values = [str(value) for value in _texts(events[type_field]).unique().to_pylist() if value is not None]
        refused = REFUSED_NAME.search(type_field.lower())
        negative = [value for value in values if sounds_negative(value) or (refused and value in ("true", "1"))]
        settings["negative_types"] = sorted(negative)
        said = f"negatives: {', '.join(sorted(negative))}" if negative else "all are positives"
        choices.append(Choice(type_field, "type of an event", f"{type_why}; {said}", "--type-column"))
    value_field, value_why, threshold = _find_value(events, fields, options)
    if value_field is not None:
        settings["value_field"] = value_field
        if threshold is not None:
            settings["min_positive_value"] = threshold
        choices.append(Choice(value_field, "value of an event", value_why, "--value-column"))
    for name in fields:
        if name not in (type_field, value_field):
            option = "--value-column" if _is_number(events, name) else "--type-column"
            choices.append(Choice(name, "left out", _why_unused(events, name), option))
    return settings, choices


def _why_unused(events: pa.Table, name: str) -> str:
    if REFUSED_NAME.search(name.lower()):
        return "another column is the type: rows marked by this one are learned like all others"
    if AMOUNT_NAME.search(name.lower()) and _is_number(events, name):
        return "an amount: each row counts once, whatever its amount"
    return "a number that is not a rating" if _is_number(events, name) else "not a column of event types"


def _find_type(events: pa.Table, fields: list[str], options: LayoutOptions) -> tuple[str | None, str]:
    if options.type_field is not None:
        return options.type_field, "set by the option"
    for pattern, tests in (
        (TYPE_NAME, (pa.types.is_string, pa.types.is_large_string, pa.types.is_dictionary)),
        (REFUSED_NAME, (pa.types.is_boolean, pa.types.is_integer)),
    ):
        for name in fields:
            kind = events.schema.field(name).type
            if not pattern.search(name.lower()) or not any(test(kind) for test in tests):
                continue
            values = _texts(events[name]).unique().drop_null()
            if 2 <= len(values) <= (MOST_TYPES if pattern is TYPE_NAME else 2):
                return name, f"{len(values)} values: {', '.join(sorted(values.to_pylist())[:8])}"
    return None, ""


def _find_value(events: pa.Table, fields: list[str], options: LayoutOptions) -> tuple[str | None, str, float | None]:
    """Return the field, the reason, and the lowest value of a positive; None for any value above 0."""
    named = options.value_field
    for name in [named] if named is not None else fields:
        is_liking = pa.types.is_boolean(events.schema.field(name).type) and (
            named is not None or LIKING_NAME.search(name.lower())
        )
        if not (_is_number(events, name) or is_liking):
            if named is not None:
                raise ConfigError(f"--value-column {name} is {events.schema.field(name).type}; expected a number")
            continue
        values = pc.cast(events[name], pa.float64())
        bounds = pc.min_max(values).as_py()
        low, high = bounds["min"], bounds["max"]
        if low is None:
            continue
        is_rating = RATING_NAME.search(name.lower()) and high <= LARGEST_SCALE
        if named is not None or is_liking or is_rating:
            counts = {pair["values"]: pair["counts"] for pair in pc.value_counts(values.drop_null()).to_pylist()}
            proposal = propose_values(name, counts)
            if proposal.use:
                return name, proposal.reason, proposal.min_positive_value
            if named is not None:
                raise ConfigError(f"--value-column: {proposal.reason}")
        if AMOUNT_NAME.search(name.lower()) and low <= 0:
            return (
                name,
                f"amounts from {low:g} to {high:g}: 0 and below are returned goods, which are not positives",
                None,
            )
    return None, "", None


def _is_number(events: pa.Table, name: str) -> bool:
    kind = events.schema.field(name).type
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    column = pc.cast(column, column.type.value_type) if pa.types.is_dictionary(column.type) else column
    return pc.cast(column, pa.string())
