"""Chooses which columns of a user's files are ids and times; where it cannot, it asks a person or names the remedy.

Opened files and the options of the command line come in, names of columns with the reason go out; faults are collected.
A column of another name is never taken for an id or a time without a question or an option.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from rec_ray.errors import ConfigError, SchemaError, list_names
from rec_ray.sample.own_files import OwnFiles, Problems
from rec_ray.sample.survey import fetch_one, query_files, quoted
from rec_ray.sample.times import ISO, UNITS, is_time, unit_of
from rec_ray.schema import EVENT_TIMESTAMP, ITEM_ID, USER_ID

TIME_NAMES = (EVENT_TIMESTAMP, "timestamp")
OPTIONS = {USER_ID: "--user-column", ITEM_ID: "--item-column"}
GUESSES = {
    USER_ID: "user customer visitor member client account buyer shopper person profile reviewer uid cust session",
    ITEM_ID: "item product article sku asin movie song track book video content offer goods material listing isbn ean",
}
"""Words with which people call the two ids, the likeliest first; `id`, `number` or `code` may follow."""
LIKE_TIME = re.compile(
    r"(^|_)(time|timestamp|ts|date|datetime|at|when|day|epoch|created|occurred|happened|bought)(_|$)"
)
LIKE_LOAD = re.compile(r"(^|_)(ingest|load|insert|update|modif|export|import|process|etl|sync|extract|dump)[a-z]*(_|$)")
"""Words in the name of a time at which a row was written, not at which something happened."""
LIKE_ARRIVAL = re.compile(r"creat|sign_?up|regist|joined|arriv|added|launch|introduc|first_seen|valid_from|listed_at")
"""Words in the name of a time from which a user or an item is there."""


@dataclass(frozen=True)
class ColumnNames:
    """Columns that the user names; of several names for an id the first that a file has counts."""

    user: tuple[str, ...] = ()
    item: tuple[str, ...] = ()
    time: str | None = None
    time_unit: str | None = None
    type: str | None = None
    value: str | None = None

    def of_key(self, key: str) -> tuple[str, ...]:
        """Return the names of the column with the ids of users or of items."""
        return self.user if key == USER_ID else self.item


@dataclass(frozen=True)
class Question:
    """A column that only a person knows. guess: the likeliest, or None. choices: the columns of the file."""

    text: str
    option: str
    guess: str | None
    choices: tuple[str, ...]


Ask = Callable[[Question], str]


@dataclass(frozen=True)
class TimeColumn:
    """The column with the time of a row. unit: of an epoch, or None. why: in words."""

    column: str
    unit: str | None
    why: str


def snake(name: str) -> str:
    """Return a name in small letters with underscores between words: `CustomerID` -> `customer_id`."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return re.sub(r"[^a-z0-9]+", "_", spaced.lower()).strip("_")


def is_called(name: str, *known: str) -> bool:
    """Return True if a column has one of the names in any spelling: `UserID`, `user id` and `user_id` are one name."""
    return snake(name).replace("_", "") in {each.replace("_", "") for each in known}


def choose_key(files: OwnFiles, key: str, names: ColumnNames, ask: Ask | None, problems: Problems) -> str | None:
    """Return the column with the ids of users or items, or None after adding a problem."""
    have = files.schema.names
    for name in (*names.of_key(key), key):
        if name in have:
            return name
    spelt = [name for name in have if is_called(name, key)]
    if len(spelt) == 1:
        return spelt[0]
    guess = _guess(key, have, files.name)
    if ask is not None:
        text = f"Which column of {files.shown} has the id of the {key.removesuffix('_id')}?"
        answer = ask(Question(text, OPTIONS[key], guess, tuple(have)))
        if answer in have:
            return answer
    wanted = names.of_key(key) or (key,)
    problems.add(
        SchemaError(f"{files.shown} lacks the columns {list_names(wanted)}; it has {list_names(have, 30)}"),
        f"{OPTIONS[key]} {_shell(guess or 'NAME')}",
    )
    return None


def _guess(key: str, have: Sequence[str], table: str) -> str | None:
    plain = {snake(name).replace("_", ""): name for name in reversed(have)}
    for word in GUESSES[key].split():
        for end in ("id", "", "number", "no", "code", "key"):
            if word + end in plain:
                return plain[word + end]
    # In a table of one kind the id of a row is its id.
    return plain.get("id") if table == {USER_ID: "users", ITEM_ID: "items"}[key] else None


def choose_event_time(files: OwnFiles, names: ColumnNames, ask: Ask | None, problems: Problems) -> TimeColumn | None:
    """Return the column with the time of an event, or None after adding a problem."""
    if names.time is not None:
        if names.time in files.schema.names:
            return _read_as_time(files, names.time, names.time_unit, "named by --time-column", problems)
        problems.add(
            ConfigError(f"{files.shown} has no column {names.time!r}; it has {list_names(files.schema.names, 30)}"),
            "--time-column NAME",
        )
        return None
    if (known := _named_time(files)) is not None:
        return _read_as_time(files, known, names.time_unit, "the time of an event by its name", problems)
    times = [column.name for column in files.schema if is_time(column.type)]
    readable = [
        column.name
        for column in files.schema
        if not is_time(column.type) and LIKE_TIME.search(snake(column.name)) and _reading(files, column.name)
    ]
    candidates = [*times, *readable]
    if not candidates:
        have = list_names((f"{column.name}: {column.type}" for column in files.schema), 30)
        problems.add(
            SchemaError(f"{files.shown} has no timestamp column for the time of an event; it has {have}"),
            "--time-column NAME",
        )
        return None
    happened = [name for name in candidates if not LIKE_LOAD.search(snake(name))]
    if len(candidates) == 1 and happened:
        why = "the only column with times" if times else "the only column that can be read as times"
        return _read_as_time(files, candidates[0], names.time_unit, why, problems)
    guess = (happened or candidates)[0]
    if ask is not None:
        text = f"Which column of {files.shown} has the time of an event? Columns with times: {', '.join(candidates)}."
        answer = ask(Question(text, "--time-column", guess, tuple(files.schema.names)))
        if answer in files.schema.names:
            return _read_as_time(files, answer, names.time_unit, "your answer", problems)
    if happened:
        several = f"{files.shown} has several timestamp columns: {list_names(candidates)}"
        fault = f"{several}; name the one that is the time of an event"
    else:
        fault = f"the name of {list_names(candidates)} in {files.shown} is that of the time of a load, not of an event"
    problems.add(ConfigError(fault), f"--time-column {_shell(guess)}")
    return None


def choose_row_time(files: OwnFiles, names: ColumnNames, problems: Problems) -> TimeColumn | None:
    """Return the column from which on a row of a user or an item counts: one that is called so, or none."""
    if (known := _named_time(files)) is not None:
        return _read_as_time(files, known, names.time_unit, "the time from which a row counts by its name", problems)
    return None


def _named_time(files: OwnFiles) -> str | None:
    """Return the column that is called as the time of a row, in any spelling."""
    for known in TIME_NAMES:
        for name in files.schema.names:
            if is_called(name, known):
                return name
    return None


def find_arrival(files: OwnFiles) -> str | None:
    """Return the only time of a users or items table if its name says that they are there from then on."""
    times = [column.name for column in files.schema if is_time(column.type)]
    return times[0] if len(times) == 1 and LIKE_ARRIVAL.search(snake(times[0])) else None


def _read_as_time(files: OwnFiles, column: str, unit: str | None, why: str, problems: Problems) -> TimeColumn | None:
    kind = files.schema.field(column).type
    if is_time(kind):
        return TimeColumn(column, None, why)
    if unit is not None:
        return TimeColumn(column, unit, f"{why}, in {unit} since 1970")
    reading = _reading(files, column)
    if reading is None:
        problems.add(
            SchemaError(
                f"{files.shown}: column {column!r} is {kind}; expected a timestamp, ISO text such as "
                "2024-05-31T12:00:00Z, or whole seconds, ms, us or ns since 1970 that lie in 1990 to 2100"
            ),
            "--time-unit s|ms|us|ns",
        )
        return None
    unit, said = reading
    return TimeColumn(column, unit, f"{why}, {said}")


def _reading(files: OwnFiles, column: str) -> tuple[str | None, str] | None:
    """Return how a column of numbers or texts is read as times: the unit of an epoch and words, or None."""
    kind = files.schema.field(column).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    if not (number or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return None
    name = quoted(column)
    with query_files(files.paths) as connection:
        known, as_number, low, high, iso = fetch_one(
            connection,
            f"SELECT count(v), count(n), min(n), max(n), count(*) FILTER (regexp_matches(v, '{ISO}')) "
            f"FROM (SELECT v, TRY_CAST(v AS DOUBLE) AS n FROM (SELECT nullif(trim({name}::VARCHAR), '') AS v FROM t)) "
            "WHERE v IS NOT NULL AND NOT coalesce(isnan(n), false)",
        )
    if not known:
        return None
    if known == as_number:
        unit = unit_of(float(low), float(high))
        return None if unit is None else (unit, f"read as {unit} since 1970, which its values are by their range")
    return (None, "ISO text") if iso == known and not number else None


def unit_named(unit: str | None) -> str | None:
    """Check a unit of the command line.

    Raises:
        ConfigError: it is none.
    """
    if unit is not None and unit not in UNITS:
        raise ConfigError(f"--time-unit {unit!r} is no unit; expected {list_names(UNITS)}")
    return unit


def _shell(name: str) -> str:
    return name if re.fullmatch(r"[\w.\-]+", name) else "'" + name.replace("'", "'\\''") + "'"
