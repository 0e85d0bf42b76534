"""Plans the columns of a user's own tables to write into a project: name, type, and the reason of each decision.

Input: the files of a folder (see `own_files`) and column names from the options. Output: an `OwnTable` for each, with a
decision for every column that is not a feature. `tables` writes the rows, `declarations` decides on features.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from rec_ray.errors import ConfigError, EmptyDataError, SchemaError, list_names
from rec_ray.logs import LOGGER
from rec_ray.sample.csv_files import WORDS_FOR_NULL
from rec_ray.sample.names import is_index, written_names
from rec_ray.sample.own_files import OwnFiles, Problems, find_tables
from rec_ray.sample.roles import (
    OPTIONS,
    TIME_NAMES,
    ColumnNames,
    Prompt,
    TimeColumn,
    choose_event_time,
    choose_key,
    choose_row_time,
    find_arrival,
    find_dates,
    is_called,
    snake,
    why_no_date,
)
from rec_ray.sample.survey import fetch_one, query_files, quoted
from rec_ray.sample.times import is_time
from rec_ray.schema import EVENT_TIMESTAMP, ITEM_ID, TIMESTAMP, USER_ID

PLACEHOLDER = "is_known"
"""Only field of a table without features, because Feast requires a field in every view."""
KEYS = {"users": (USER_ID,), "items": (ITEM_ID,), "interactions": (USER_ID, ITEM_ID)}
TYPE, VALUE = "interaction_type", "rating"
"""Default names of the columns with the type and the value of an event."""
LEFT_OUT, ROW_TIME = "left out", "time of a row"
NO_ROLE = "events have ids, a time, a type and a value"
LIKE_TYPE = re.compile(r"(^|_)(type|event|action|behaviou?r|kind|verb|interaction)(_|$)")
LIKE_VALUE = re.compile(r"(^|_)(rating|score|stars?|quantity|qty|amount|value|weight|liked?s?|thumbs?)(_|$)")


@dataclass(frozen=True)
class Decision:
    """The role of one column of a file, and why."""

    table: str
    column: str
    role: str
    why: str

    def __str__(self) -> str:
        return f"{self.column}: {self.role}, {self.why}"


@dataclass(frozen=True)
class OwnColumn:
    """A column to write: its name and type, and the source column of the file.

    unit: time unit of numbers that are times.
    """

    name: str
    type: pa.DataType
    origin: str
    unit: str | None = None


@dataclass(frozen=True)
class OwnTable:
    """A checked table of the user.

    columns: the columns to write, keys first; without `event_timestamp` if the file has no time.
    time: the column with the time of a row, or None. arrival: a candidate for it, if the events are later.
    type, value: written names of the columns with the type and the value of an event.
    """

    files: OwnFiles
    columns: tuple[OwnColumn, ...]
    time: TimeColumn | None
    decisions: tuple[Decision, ...]
    arrival: str | None = None
    type: str | None = None
    value: str | None = None

    @property
    def name(self) -> str:
        """users, items or interactions."""
        return self.files.name

    @property
    def rows(self) -> int:
        """Rows of the files."""
        return self.files.rows

    def dated_by(self, column: str) -> OwnTable:
        """Return the table with a time column as the time from which a row counts; it remains a feature too."""
        time = TimeColumn(column, None, "")
        keys = len(KEYS[self.name])
        unit = next(each.unit for each in self.columns if each.origin == column)
        stamp = OwnColumn(EVENT_TIMESTAMP, TIMESTAMP, column, unit)
        return replace(self, time=time, columns=(*self.columns[:keys], stamp, *self.columns[keys:]))

    def undated(self, why: str) -> OwnTable:
        """Return the table without a row time. why: reason for the decision on its former time column."""
        columns = tuple(column for column in self.columns if column.name != EVENT_TIMESTAMP)
        decisions = tuple(
            Decision(made.table, made.column, LEFT_OUT, why) if made.role == ROW_TIME else made
            for made in self.decisions
        )
        return replace(self, time=None, columns=columns, decisions=decisions)


@dataclass(frozen=True)
class OwnTables:
    """The tables of a folder; users and items may be missing."""

    users: OwnTable | None
    items: OwnTable | None
    interactions: OwnTable


def read_own_tables(
    source: str | Path, scratch: Path, names: ColumnNames | None = None, prompt: Prompt | None = None
) -> OwnTables:
    """Read the tables of a folder or an address and plan their columns.

    Args:
        source: folder with interactions and, optionally, users and items.
        scratch: an empty folder for copies of files that are not local Parquet; it must exist until the tables are
            written.
        names: columns that the user names.
        prompt: called with a question that only the user can answer; with None it becomes a fault.

    Raises:
        ConfigError: the folder or its interactions are missing, or a table has several possible event times.
        SchemaError: a file cannot be read, or lacks its ids or times, or has them with a wrong type.
        EmptyDataError: a table has no rows.
        UnavailableError: the address does not respond.
        All faults of all files are in one error, of the kind of the first.
    """
    names, problems = names or ColumnNames(), Problems()
    files = find_tables(source, scratch, problems)
    tables = {name: _plan(found, names, prompt, problems) for name, found in files.items()}
    have = {column for found in files.values() for column in found.schema.names}
    for key in (USER_ID, ITEM_ID):
        for name in names.of_key(key):
            if name not in have:
                problems.add(ConfigError(f"no file has the column {name!r} that {OPTIONS[key]} names"))
    problems.raise_all()
    naive = [
        f"{name}.{column.name}"
        for name, found in files.items()
        for column in found.schema
        if pa.types.is_timestamp(column.type) and column.type.tz is None
    ]
    if naive:
        LOGGER.info("timestamps without a zone are read as UTC: %s", ", ".join(naive))
    interactions = tables["interactions"]
    if interactions is None:
        raise EmptyDataError("the interactions could not be planned")
    return OwnTables(tables.get("users"), tables.get("items"), interactions)


def _plan(files: OwnFiles, names: ColumnNames, prompt: Prompt | None, problems: Problems) -> OwnTable | None:
    lower = [column.lower() for column in files.schema.names]
    twice = sorted({column for column in files.schema.names if lower.count(column.lower()) > 1})
    if twice:
        fault = f"{files.shown} has columns that differ in case only, or not at all: {list_names(twice)}; rename them"
        problems.add(SchemaError(fault))
        return None
    decisions: list[Decision] = []

    def decide(column: str, role: str, why: str) -> None:
        decisions.append(Decision(files.name, column, role, why))

    origins: dict[str, str] = {}
    for key in KEYS[files.name]:
        origin = choose_key(files, key, names, prompt, problems)
        if origin is None or not _can_be_id(files, origin, problems):
            continue
        origins[key] = origin
        decide(origin, f"id of {key.removesuffix('_id')}s", "its name" if origin == key else f"written as {key}")
    if len(set(origins.values())) < len(origins):
        fault = f"{files.shown}: column {origins[USER_ID]!r} cannot be the id of the user and of the item"
        problems.add(ConfigError(fault), "--user-column NAME --item-column NAME")
    is_event = files.name == "interactions"
    time = choose_event_time(files, names, prompt, problems) if is_event else choose_row_time(files, names, problems)
    columns = [OwnColumn(key, pa.string(), origin) for key, origin in origins.items()]
    if time is not None:
        columns.append(OwnColumn(EVENT_TIMESTAMP, TIMESTAMP, time.column, time.unit))
        decide(time.column, "time of an event" if is_event else ROW_TIME, time.why)
    own = [
        name for name in files.schema.names if name not in origins.values() and not _is_time_only(name, time, is_event)
    ]
    written = written_names(
        files.name, [name for name in own if not is_index(name)], [column.name for column in columns]
    )
    special, unused = _special_columns(files, names, problems, decide) if is_event else ({}, {})
    dates = {} if is_event else find_dates(files)
    for name in own:
        kind = special[name].type if name in special else _written_type(files.schema.field(name).type)
        unit = None
        if name in dates:
            kind, unit = TIMESTAMP, dates[name].unit
            decide(name, "a date", dates[name].why)
        elif not is_event and (why := why_no_date(files, name)):
            decide(name, "not read as a date", why)
        if is_index(name):
            decide(name, LEFT_OUT, "the index of a data frame")
        elif kind is None:
            decide(name, LEFT_OUT, f"Feast has no field type for {files.schema.field(name).type}")
        else:
            if written[name] != name:
                decide(
                    name,
                    f"written as {written[name]}",
                    "letters, digits and underscores only, and no name that rec_ray uses itself",
                )
            columns.append(OwnColumn(written[name], kind, name, unit))
            if is_event and name not in special:
                decide(name, "unused", unused.get(name) or _why_unused(name))
    if len(columns) == len(origins) + (time is not None):
        decide(PLACEHOLDER, "placeholder", "no features, and Feast has no view without fields")
    arrival = find_arrival(files, list(dates)) if not is_event and time is None else None
    roles = {role.role: written[name] for name, role in special.items()}
    return OwnTable(files, tuple(columns), time, tuple(decisions), arrival, roles.get("type"), roles.get("value"))


@dataclass(frozen=True)
class _Special:
    """A column with the type or the value of events, and the Arrow type to write."""

    role: str
    type: pa.DataType


def _special_columns(
    files: OwnFiles, names: ColumnNames, problems: Problems, decide: Callable[[str, str, str], None]
) -> tuple[dict[str, _Special], dict[str, str]]:
    """Find the type and the value of events: the columns named by options, or `interaction_type` and `rating`.

    Also returns the reason why a column of those names is not used.
    """
    found: dict[str, _Special] = {}
    unused: dict[str, str] = {}
    for role, named, usual in (("type", names.type, TYPE), ("value", names.value, VALUE)):
        column = named or usual
        if column not in files.schema.names:
            if named is not None:
                fault = f"{files.shown} has no column {named!r}; it has {list_names(files.schema.names, 30)}"
                problems.add(ConfigError(fault), f"--{role}-column NAME")
            continue
        kind = _decoded(files.schema.field(column).type)
        why = "its name" if named is None else f"named by --{role}-column"
        if role == "type" and (_is_text(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
            found[column] = _Special(role, pa.string())
            why += "" if _is_text(kind) else f"; its values of type {kind} are names of types"
        elif role == "value" and _is_number(kind):
            found[column] = _Special(role, _written_type(kind) or pa.float64())
        elif role == "value" and pa.types.is_boolean(kind):
            found[column] = _Special(role, pa.float64())
            why += "; true is 1, false is 0"
        elif role == "value" and _is_text(kind) and not (odd := _first_odd(files, column)):
            found[column] = _Special(role, pa.float64())
            why += "; its texts are numbers"
        else:
            example = f", such as {odd!r}" if role == "value" and _is_text(kind) else ""
            expected = "a text or a whole number" if role == "type" else "a number"
            fault = f"{column!r} is {kind}{example}; expected {expected} for the {role} of an event"
            if named is not None:
                problems.add(SchemaError(f"{files.shown}: column {fault}"))
            else:
                LOGGER.warning("%s: column %s; it is not used", files.shown, fault)
                # Its decision is made with those of the other columns without a role.
                unused[column] = f"{kind}{example}; expected {expected} for the {role} of an event"
            continue
        decide(column, f"{role} of an event", why)
    return found, unused


def _first_odd(files: OwnFiles, column: str) -> str | None:
    """Return a text that is not a number, or None."""
    name = quoted(column)
    absent = ", ".join(f"'{word}'" for word in WORDS_FOR_NULL)
    with query_files(files.paths) as connection:
        return fetch_one(
            connection,
            f"SELECT min({name}::VARCHAR) FROM t WHERE lower(trim({name})) NOT IN ({absent}) "
            f"AND TRY_CAST({name} AS DOUBLE) IS NULL",
        )[0]


def _why_unused(name: str) -> str:
    if snake(name).endswith("_id"):
        return NO_ROLE
    if LIKE_TYPE.search(snake(name)):
        return f"no role; if it is the type of an event, add --type-column {name}"
    if LIKE_VALUE.search(snake(name)):
        return f"no role; if it is the value of an event, add --value-column {name}"
    return NO_ROLE


def _is_time_only(name: str, time: TimeColumn | None, is_event: bool) -> bool:
    """Return True for a column that is the time of a row and not also a feature."""
    return time is not None and name == time.column and (is_event or is_called(name, *TIME_NAMES))


def _can_be_id(files: OwnFiles, column: str, problems: Problems) -> bool:
    kind = _decoded(files.schema.field(column).type)
    if _is_text(kind) or pa.types.is_integer(kind) or (pa.types.is_decimal(kind) and kind.scale == 0):
        return True
    if pa.types.is_floating(kind):
        number = f"TRY_CAST({quoted(column)} AS DOUBLE)"
        with query_files(files.paths) as connection:
            broken = fetch_one(connection, f"SELECT count(*) FROM t WHERE isfinite({number}) AND {number} % 1 <> 0")
        if not broken[0]:
            return True
    problems.add(SchemaError(f"{files.shown}: column {column!r} is {kind}; an id must be a string or a whole number"))
    return False


def _decoded(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _written_type(kind: pa.DataType) -> pa.DataType | None:
    """Return the type in which a column is written, or None if Feast has no field type for it."""
    kind = _decoded(kind)
    if _is_text(kind):
        return pa.string()
    if is_time(kind):
        return TIMESTAMP
    if pa.types.is_boolean(kind):
        return pa.bool_()
    if pa.types.is_uint64(kind):
        # Hashes do not fit a signed number.
        return pa.float64()
    if pa.types.is_integer(kind):
        return pa.int64()
    if pa.types.is_float16(kind) or pa.types.is_float32(kind):
        return pa.float32()
    if pa.types.is_float64(kind) or pa.types.is_decimal(kind):
        return pa.float64()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        value = pa.int64() if pa.types.is_uint64(kind.value_type) else _written_type(kind.value_type)
        if value in (pa.string(), pa.float32(), pa.float64()):
            return pa.list_(value)
        if value == pa.int64():
            return pa.list_(pa.string())
    return None
