"""Frames of the caller as encoded timelines and catalogues, in the memory of one process.

Input: interactions, users and items, and settings. Output: the Parquet files that a training reads, with the fitted
preprocessor. Blocks of events are surveyed and encoded by the functions of the pipeline; user and item features are
those of today for every event.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rec_ray.api.frames import Frame, id_column, require_names, time_column, to_table
from rec_ray.config import Settings
from rec_ray.data.block_survey import encode_items, encode_users, fit_preprocessor, require_positives, survey_block
from rec_ray.data.event_notes import log_events
from rec_ray.data.events import as_events, as_query_markers, count_rows, split_times, survey_events, with_query_rows
from rec_ray.data.feature_coverage import MOST
from rec_ray.errors import DataError, SchemaError, list_names
from rec_ray.logs import LOGGER
from rec_ray.retrieval.features.encoding import Labelling
from rec_ray.retrieval.features.preprocessing import Preprocessor, collect_statistics
from rec_ray.retrieval.features.user_share import usual_bound
from rec_ray.sample.declarations import declare_features, declare_interactions
from rec_ray.sample.tables import WrittenTable
from rec_ray.schema import (
    AS_OF,
    EVENT_TIMESTAMP,
    EVENT_TYPE,
    EVENT_VALUE,
    FIRST_SEEN,
    INTERACTIONS,
    ITEM_ID,
    TIMESTAMP,
    USER_ID,
    SplitTimes,
)

TYPES = ("interaction_type", "event_type")
"""Default names of the column with the type of an event."""
VALUE = "rating"
READABLE = (
    pa.types.is_boolean,
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_string,
    pa.types.is_timestamp,
    pa.types.is_list,
)


@dataclass(frozen=True)
class Columns:
    """Names of the columns in the frames of the caller, and the zone of times without one."""

    user: str = USER_ID
    item: str = ITEM_ID
    time: str = EVENT_TIMESTAMP
    type: str | None = None
    value: str | None = None
    timezone: str | None = None


@dataclass(frozen=True)
class Tables:
    """Checked tables, with the program's names for ids and time; `users` and `items` have one row each."""

    interactions: pa.Table
    users: pa.Table
    items: pa.Table


@dataclass(frozen=True)
class EncodedTables:
    """Encoded data of a training.

    timelines, catalogue, catalogue_now: Arrow tables as the pipeline stores them. raw: the user's features.
    positives: training positives of each item of the catalogue, [n].
    """

    timelines: pa.Table
    catalogue: pa.Table
    catalogue_now: pa.Table
    preprocessor: Preprocessor
    times: SplitTimes
    facts: Mapping[str, int]
    rows: Mapping[str, int]


def read_tables(interactions: Frame, users: Frame | None, items: Frame | None, columns: Columns) -> Tables:
    """Check the frames and rename their ids and times.

    Raises:
        SchemaError: a column is missing or has another type than it needs.
        DataError: an id or a time is null, or an id of users or items occurs twice.
    """
    events = to_table(interactions, "interactions")
    wanted = {columns.user: "user_column", columns.item: "item_column", columns.time: "time_column"}
    further = {columns.type: "type_column", columns.value: "value_column"}
    wanted |= {name: argument for name, argument in further.items() if name is not None}
    require_names(events, wanted, "interactions")
    if len({columns.user, columns.item, columns.time}) < 3:
        raise SchemaError("user_column, item_column and time_column must be three columns")
    if not events.num_rows:
        raise DataError("interactions is empty; fit needs events")
    named = {
        USER_ID: id_column(events, columns.user, "interactions"),
        ITEM_ID: id_column(events, columns.item, "interactions"),
        EVENT_TIMESTAMP: time_column(events, columns.time, "interactions", columns.timezone),
    }
    rest = [name for name in events.column_names if name not in (columns.user, columns.item, columns.time, *named)]
    return Tables(
        pa.table({**named, **{name: events[name] for name in rest}}),
        _one_row_each(users, columns.user, "user_column", USER_ID, "users"),
        _one_row_each(items, columns.item, "item_column", ITEM_ID, "items"),
    )


def _one_row_each(frame: Frame | None, key: str, argument: str, name: str, what: str) -> pa.Table:
    if frame is None:
        return pa.table({name: pa.array([], pa.string())})
    table = to_table(frame, what)
    require_names(table, {key: argument}, what)
    ids = id_column(table, key, what)
    repeated = len(ids) - len(pc.unique(ids))
    if repeated:
        raise DataError(f"{what}: {repeated:,} of {len(ids):,} rows repeat an id of {key!r}; keep one row per id")
    kept = {name: ids}
    left_out = []
    for column in table.column_names:
        values = table[column].combine_chunks()
        if pa.types.is_date(values.type):
            values = values.cast(pa.timestamp("us"))
        if column in (key, name):
            continue
        if any(test(values.type) for test in READABLE):
            kept[column] = values
        else:
            left_out.append(f"{column} ({values.type})")
    if left_out:
        LOGGER.warning("%s: columns of unreadable types are left out: %s", what, list_names(left_out))
    return pa.table(kept)


def declare_tables(tables: Tables, columns: Columns, folder: Path) -> dict[str, Any]:
    """Return the section `features` for the tables, declared by the rules of `rec-ray init`.

    folder: place for files, because the rules query Parquet files.
    """

    def written(name: str, table: pa.Table) -> WrittenTable:
        path = folder / f"{name}.parquet"
        pq.write_table(table, path)
        return WrittenTable(name, path, table.num_rows, table.schema)

    declared: dict[str, Any] = {}
    for side, name, table in (("user", "users", tables.users), ("item", "items", tables.items)):
        declared[side] = declare_features(written(name, table)).features if table.num_rows else {}
    events = written("interactions", tables.interactions)
    names = tables.interactions.column_names
    of_type = columns.type or next((name for name in TYPES if name in names), None)
    of_value = columns.value or (VALUE if VALUE in names else None)
    meaning, notes = declare_interactions(events, of_type, of_value, use_value=columns.value is not None)
    if columns.type is not None and meaning["type_field"] is None:
        found = tables.interactions.schema.field(columns.type).type
        raise SchemaError(f"interactions: type_column {columns.type!r} holds {found}; expected strings")
    for said in notes.values():
        LOGGER.info("interactions: %s", said.replace("\n", " "))
    declared["interaction"] = meaning
    return declared


def encode_frames(tables: Tables, settings: Settings, as_of: datetime) -> EncodedTables:
    """Split, survey and encode the tables. as_of: later events are left out with a warning.

    Raises:
        DataError: no event remains for training, or a feature cannot be read as its kind.
    """
    features, split = settings.features, settings.evaluation.split
    exclude = features.interaction.exclude_users
    events = tables.interactions.select([USER_ID, ITEM_ID, EVENT_TIMESTAMP])
    for name, field in (
        (EVENT_TYPE, features.interaction.type_field),
        (EVENT_VALUE, features.interaction.value_field),
    ):
        if field is not None:
            if field not in tables.interactions.column_names:
                names = list_names(tables.interactions.column_names, 20)
                raise SchemaError(f"features.interaction names the column {field!r}; interactions has {names}")
            events = events.append_column(name, tables.interactions[field])
    survey = survey_events(events, as_of, exclude)
    rows = count_rows([survey])
    if rows.in_the_future:
        LOGGER.warning("%s interactions after %s are left out", f"{rows.in_the_future:,}", as_of.isoformat())
    if not rows.kept:
        raise DataError(f"no usable interaction among {rows.read:,} rows; are their times after {as_of.isoformat()}?")
    times = split_times([survey], settings.evaluation, as_of)
    block = as_events(events, 0, as_of, exclude)
    most = features.interaction.events_per_user
    if most == "auto":
        most = usual_bound(np.bincount(pc.value_counts(block[USER_ID]).field("counts").to_numpy()))
    for table, key, what in ((tables.users, USER_ID, "users"), (tables.items, ITEM_ID, "items")):
        _warn_of_unmatched(block[key], table[key], what)
    catalogue = _item_rows(block, tables.items, times)
    if tables.users.num_rows:
        block = pa.concat_tables([block, as_query_markers(tables.users, 0, exclude)])
    block = with_query_rows(block, [times.validation_start, times.test_start, times.as_of])
    raw_users = _raw_schema(tables.users, settings.candidates.user_fields)
    joined = {**dict.fromkeys(features.user, "features.user"), **settings.candidates.user_fields}
    block = _joined(block, tables.users, USER_ID, joined, INTERACTIONS.names, "users")

    item_ids = pc.unique(catalogue[ITEM_ID])
    item_ids = item_ids.take(pc.sort_indices(item_ids))
    wanted = dict.fromkeys(features.item, "features.item")
    catalogue = _joined(catalogue, tables.items, ITEM_ID, wanted, [ITEM_ID, FIRST_SEEN, AS_OF], "items")
    labelling = Labelling.of(features.interaction, split, times).with_events_per_user(most)
    found = survey_block(block, item_ids, labelling, features)
    log_events(found.facts, found.event_facts, features.interaction, most)
    require_positives(found, features, times)
    then = catalogue.slice(0, len(item_ids))
    statistics = collect_statistics(then, features.item)
    preprocessor = fit_preprocessor(found, statistics, features, refit=settings.train.refit != "off")
    labelling = labelling.with_value_maximum(found.value_maximum)
    counts = (found.item_positives, found.items_before_test)

    def encode(instant: datetime, other: datetime, *, first: bool) -> pa.Table:
        return encode_items(catalogue, item_ids, preprocessor, counts, instant, other, first, pa.schema([]))

    return EncodedTables(
        timelines=encode_users(block, item_ids, preprocessor, labelling, raw_users),
        catalogue=encode(times.test_start, times.as_of, first=True),
        catalogue_now=encode(times.as_of, times.test_start, first=False),
        preprocessor=preprocessor,
        times=times,
        facts=dict(found.facts),
        rows={"read": rows.read, "kept": rows.kept, "in_the_future": rows.in_the_future},
    )


def _warn_of_unmatched(in_events: pa.ChunkedArray, in_table: pa.ChunkedArray, what: str) -> None:
    """Warn if most ids of the events have no row in a table of features, with an id of each side."""
    ids = pc.unique(in_events)
    unmatched = ids.filter(pc.invert(pc.is_in(ids, value_set=pc.unique(in_table))))
    if len(in_table) and len(unmatched) > MOST * len(ids):
        LOGGER.warning(
            "%s of %s ids in the interactions have no row in %s: the interactions have %r, %s has %r; write the ids in "
            "one way in both",
            f"{len(unmatched):,}",
            f"{len(ids):,}",
            what,
            pc.min(unmatched).as_py(),
            what,
            pc.min(in_table).as_py(),
        )


def _item_rows(events: pa.Table, items: pa.Table, times: SplitTimes) -> pa.Table:
    """Return the items of the events and of the table, for the test start and then for now.

    All items exist at the test start, because the tables do not date them.
    """
    ids = pc.unique(pa.chunked_array([*events[ITEM_ID].chunks, *items[ITEM_ID].chunks], pa.string()))
    ids = ids.take(pc.sort_indices(ids))
    n = len(ids)
    first = pa.array([times.test_start] * n, TIMESTAMP)
    now = pa.array([times.as_of] * n, TIMESTAMP)
    return pa.table(
        {
            ITEM_ID: pa.concat_arrays([ids, ids]),
            FIRST_SEEN: pa.concat_arrays([first, first]),
            AS_OF: pa.concat_arrays([first, now]),
        }
    )


def _raw_schema(users: pa.Table, fields: Mapping[str, str]) -> pa.Schema:
    return pa.schema([users.schema.field(name) for name in fields if name in users.column_names])


def _joined(
    rows: pa.Table, features: pa.Table, key: str, fields: Mapping[str, str], taken: list[str], what: str
) -> pa.Table:
    """Append fields of the entity to each row, null for an entity without a row. fields: name -> setting."""
    for name, setting in fields.items():
        if name not in features.column_names or name == key:
            names = list_names(features.column_names, 20)
            raise SchemaError(f"{setting} names the field {name!r}, which {what} lacks; it has {names}")
        if name in taken:
            raise SchemaError(f"{what}: the feature {name!r} has the name of a column of the program; rename it")
    if fields:
        place = pc.index_in(rows[key].combine_chunks(), value_set=features[key].combine_chunks())
        for name in fields:
            rows = rows.append_column(name, features[name].combine_chunks().take(place))
    return rows
