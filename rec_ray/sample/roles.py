"""Chooses the id and time columns of a user's files; if it cannot, it prompts the user or names the option to set.

Input: opened files and the command-line options. Output: column names with reasons; faults are collected. A column with
another name is never used as an id or a time without a prompt or an option.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from rec_ray.errors import ConfigError, SchemaError, list_names
from rec_ray.sample.csv_files import WORDS_FOR_NULL
from rec_ray.sample.own_files import OwnFiles, Problems
from rec_ray.sample.survey import fetch_one, query_files, quoted
from rec_ray.sample.times import FULL_ISO, ISO, UNITS, is_calendar_date, is_time, unit_of
from rec_ray.schema import EVENT_TIMESTAMP, ITEM_ID, USER_ID

TIME_NAMES = (EVENT_TIMESTAMP, "timestamp")
OPTIONS = {USER_ID: "--user-column", ITEM_ID: "--item-column"}
GUESSES = {
    USER_ID: "user customer visitor member client account buyer shopper person profile reviewer uid cust session",
    ITEM_ID: "item product article sku asin movie song track book video content offer goods material listing isbn ean",
}
"""Common words in names of the two ids, the most likely first; `id`, `number` or `code` may follow."""
LIKE_TIME = re.compile(
    r"(^|_)(time|timestamp|ts|date|datetime|at|when|day|epoch|created|occurred|happened|bought)(_|$)"
)
LIKE_LOAD = re.compile(r"(^|_)(ingest|load|insert|update|modif|export|import|process|etl|sync|extract|dump)[a-z]*(_|$)")
"""Words in the name of a time at which a row was written, as opposed to the time of an event."""
LIKE_ARRIVAL = re.compile(r"creat|sign_?up|regist|joined|arriv|added|launch|introduc|first_seen|valid_from|listed_at")
"""Words in the name of a time from which a user or an item exists."""


@dataclass(frozen=True)
class ColumnNames:
    """Columns that the user names; of several names for an id, the first that a file has is used."""

    user: tuple[str, ...] = ()
    item: tuple[str, ...] = ()
    time: str | None = None
    time_unit: str | None = None
    type: str | None = None
    value: str | None = None

    def of_key(self, key: str) -> tuple[str, ...]:
        """Return the possible names of the column with the ids of users or of items."""
        return self.user if key == USER_ID else self.item


@dataclass(frozen=True)
class Question:
    """A prompt for a column that only the user can name. guess: the most likely, or None. choices: all columns."""

    text: str
    option: str
    guess: str | None
    choices: tuple[str, ...]


Prompt = Callable[[Question], str]


@dataclass(frozen=True)
class TimeColumn:
    """The column with the time of a row. unit: of an epoch, or None. why: the reason."""

    column: str
    unit: str | None
    why: str


def snake(name: str) -> str:
    """Return a name in lower case with underscores between words: `CustomerID` -> `customer_id`."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return re.sub(r"[^a-z0-9]+", "_", spaced.lower()).strip("_")


def is_called(name: str, *known: str) -> bool:
    """Return True if a column has one of the names in any spelling: `UserID`, `user id` and `user_id` are equal."""
    return snake(name).replace("_", "") in {each.replace("_", "") for each in known}


def choose_key(files: OwnFiles, key: str, names: ColumnNames, prompt: Prompt | None, problems: Problems) -> str | None:
    """Return the column with the ids of users or items, or None after adding a problem."""
    have = files.schema.names
    spelt = [name for name in have if is_called(name, key)]
    named = [name for name in (*names.of_key(key), key) if name in have]
    if files.name == "interactions":
        # `--user-column id` is meant for the users table; in the interactions `id` is the id of the event.
        named = [name for name in named if not is_called(name, "id")] or ([] if spelt else named)
    if named:
        return named[0]
    if len(spelt) == 1:
        return spelt[0]
    guess = _guess(key, have, files.name)
    if prompt is not None:
        text = f"Which column of {files.shown} has the id of the {key.removesuffix('_id')}?"
        answer = prompt(Question(text, OPTIONS[key], guess, tuple(have)))
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
    # In a users or items table a column `id` is the id of the entity.
    return plain.get("id") if table == {USER_ID: "users", ITEM_ID: "items"}[key] else None


def choose_event_time(
    files: OwnFiles, names: ColumnNames, prompt: Prompt | None, problems: Problems
) -> TimeColumn | None:
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
        return _read_as_time(files, known, names.time_unit, "its name is that of an event time", problems)
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
    if prompt is not None:
        text = f"Which column of {files.shown} has the time of an event? Columns with times: {', '.join(candidates)}."
        answer = prompt(Question(text, "--time-column", guess, tuple(files.schema.names)))
        if answer in files.schema.names:
            return _read_as_time(files, answer, names.time_unit, "your answer", problems)
    if happened:
        several = f"{files.shown} has several timestamp columns: {list_names(candidates)}"
        fault = f"{several}; name the one that is the time of an event"
    else:
        fault = f"{list_names(candidates)} in {files.shown} has the name of a load time, not of an event time"
    problems.add(ConfigError(fault), f"--time-column {_shell(guess)}")
    return None


def choose_row_time(files: OwnFiles, names: ColumnNames, problems: Problems) -> TimeColumn | None:
    """Return the column with the time from which a row of a user or an item counts, by its name, or None."""
    if (known := _named_time(files)) is not None:
        return _read_as_time(files, known, names.time_unit, "its name is that of a row time", problems)
    return None


def _named_time(files: OwnFiles) -> str | None:
    """Return the column with a name of a row time, in any spelling."""
    for known in TIME_NAMES:
        for name in files.schema.names:
            if is_called(name, known):
                return name
    return None


def find_dates(files: OwnFiles) -> dict[str, TimeColumn]:
    """Return the columns of a users or items table that have the name of a time and can be read as times.

    Timestamps and dates by type are not among them. Each value must be ISO text, or an epoch in one unit.
    """
    found: dict[str, TimeColumn] = {}
    for name in _called_like_times(files):
        reading = _reading(files, name)
        if reading is not None and (reading[0] is not None or _is_all_iso(files, name)):
            found[name] = TimeColumn(name, *reading)
    return found


def why_no_date(files: OwnFiles, column: str) -> str | None:
    """Return why a column with the name of a date is not read as one; None if its values do not resemble dates."""
    if column not in _called_like_times(files):
        return None
    span = _number_span(files, column)
    if span is not None and is_calendar_date(span[0]) and is_calendar_date(span[1]):
        return f"numbers such as {span[0]:.0f} are calendar dates and no epoch; write them as 2024-05-31"
    kind = files.schema.field(column).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return None
    with query_files(files.paths) as connection:
        odd, dates, known = fetch_one(
            connection,
            f"SELECT min(v) FILTER (NOT regexp_matches(v, '{FULL_ISO}')), "
            rf"count(*) FILTER (regexp_matches(v, '^\d{{1,4}}[./-]\d{{1,2}}[./-]\d{{1,4}}')), count(*) "
            f"FROM ({_texts(column)}) WHERE v IS NOT NULL",
        )
    if not known or dates < known / 2:
        return None
    return f"{odd!r} is no ISO date; write all values as 2024-05-31 or 2024-05-31T12:00:00Z"


def _called_like_times(files: OwnFiles) -> list[str]:
    """Return the columns that have the name of a time and another type."""
    return [
        column.name
        for column in files.schema
        if not is_time(column.type)
        and (LIKE_TIME.search(snake(column.name)) or LIKE_ARRIVAL.search(snake(column.name)))
    ]


def _is_all_iso(files: OwnFiles, column: str) -> bool:
    """Return whether every text of a column is a complete ISO date or time that exists."""
    with query_files(files.paths) as connection:
        known, whole = fetch_one(
            connection,
            f"SELECT count(v), count(*) FILTER (regexp_matches(v, '{FULL_ISO}') "
            "AND TRY_CAST(left(v, 10) AS DATE) IS NOT NULL) "
            f"FROM ({_texts(column)})",
        )
    return bool(known) and known == whole


def find_arrival(files: OwnFiles, dates: Sequence[str] = ()) -> str | None:
    """Return the only time column of a users or items table if its name is that of an arrival time.

    dates: columns that are read as times, though they have another type.
    """
    times = [column.name for column in files.schema if is_time(column.type) or column.name in dates]
    return times[0] if len(times) == 1 and LIKE_ARRIVAL.search(snake(times[0])) else None


def _read_as_time(files: OwnFiles, column: str, unit: str | None, why: str, problems: Problems) -> TimeColumn | None:
    kind = files.schema.field(column).type
    if is_time(kind):
        return TimeColumn(column, None, why)
    span = _number_span(files, column)
    if span is not None and is_calendar_date(span[0]) and is_calendar_date(span[1]):
        problems.add(
            SchemaError(
                f"{files.shown}: column {column!r} has numbers from {span[0]:.0f} to {span[1]:.0f}, which are calendar "
                "dates and no epoch; expected dates, or ISO text such as 2024-05-31"
            )
        )
        return None
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


def _number_span(files: OwnFiles, column: str) -> tuple[float, float] | None:
    """Return the least and the greatest of the numbers of a column; None for a column without any."""
    kind = files.schema.field(column).type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_string(kind)):
        return None
    with query_files(files.paths) as connection:
        low, high = fetch_one(
            connection,
            f"SELECT min(n), max(n) FROM (SELECT TRY_CAST({quoted(column)}::VARCHAR AS DOUBLE) AS n FROM t) "
            "WHERE NOT isnan(n)",
        )
    return None if low is None else (float(low), float(high))


def _reading(files: OwnFiles, column: str) -> tuple[str | None, str] | None:
    """Return how a column of numbers or texts is read as times: the unit of an epoch and a description, or None."""
    kind = files.schema.field(column).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    if not (number or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return None
    with query_files(files.paths) as connection:
        known, as_number, low, high, iso = fetch_one(
            connection,
            f"SELECT count(v), count(n), min(n), max(n), count(*) FILTER (regexp_matches(v, '{ISO}')) "
            f"FROM (SELECT v, TRY_CAST(v AS DOUBLE) AS n FROM ({_texts(column)})) "
            "WHERE v IS NOT NULL AND NOT coalesce(isnan(n), false)",
        )
    if not known:
        return None
    if known == as_number:
        unit = unit_of(float(low), float(high))
        return None if unit is None else (unit, f"read as {unit} since 1970 because of the range of its values")
    return (None, "ISO text") if iso == known and not number else None


def _texts(column: str) -> str:
    """Return the query of a column's values as texts `v`, with null for the words that mean null."""
    absent = ", ".join(f"'{word}'" for word in WORDS_FOR_NULL)
    text = f"trim({quoted(column)}::VARCHAR)"
    return f"SELECT CASE WHEN lower({text}) NOT IN ('', {absent}) THEN {text} END AS v FROM t"


def unit_named(unit: str | None) -> str | None:
    """Check the value of --time-unit.

    Raises:
        ConfigError: it is not a unit.
    """
    if unit is not None and unit not in UNITS:
        raise ConfigError(f"--time-unit {unit!r} is not a unit; expected {list_names(UNITS)}")
    return unit


def _shell(name: str) -> str:
    return name if re.fullmatch(r"[\w.\-]+", name) else "'" + name.replace("'", "'\\''") + "'"
