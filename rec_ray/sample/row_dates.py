"""Decides from which time the rows of users and items count, by comparing their dates with the events.

Input: a planned users or items table and the written events. Output: the written table, settings and messages. In a
table that was exported once each entity has one row dated after the events; an as-of join would find no features.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from rec_ray.errors import SchemaError
from rec_ray.logs import LOGGER
from rec_ray.sample.own_tables import KEYS, OwnTable
from rec_ray.sample.roles import TIME_NAMES, is_called
from rec_ray.sample.survey import count_distinct, count_nulls, count_times, match_keys, share_with_row
from rec_ray.sample.tables import WrittenTable, write_own_table
from rec_ray.schema import EVENT_TIMESTAMP

SEEN = 0.5
"""Minimum share of events with an earlier row of their entity for which row dates are used unchanged."""
ARRIVED = 0.99
"""Minimum share of events after the date of their user or item for which the date is an arrival time."""
MATCHED = 0.5
FEW = 20
"""Maximum number of rows for which one common time does not indicate a load time."""


@dataclass(frozen=True)
class DatedTable:
    """A written table, settings that match its dates, and the reason for both."""

    table: WrittenTable
    why: str
    settings: dict[str, str] = field(default_factory=dict)


def write_dated(table: OwnTable, path: Path, interactions: WrittenTable, earliest: datetime) -> DatedTable:
    """Write a users or items table with dates that training can use.

    earliest: time of the first event; the date of rows without another one.
    """
    key = KEYS[table.name][0]
    unknown = 0
    if table.time is not None:
        written = write_own_table(table, path)
        unknown = count_nulls(path, EVENT_TIMESTAMP)
    if table.time is None or unknown:
        written = write_own_table(table, path, earliest)
    if table.time is None:
        repeats = written.rows - count_distinct(path, key)
        twice = f"; {repeats:,} rows repeat an id, of which the last one in the file counts" if repeats else ""
        if table.arrival is None:
            return DatedTable(written, _undated(table) + twice)
        column = next(column.name for column in table.columns if column.origin == table.arrival)
        share = share_with_row(interactions.path, path, key, column)
        if share is None or share < ARRIVED:
            return DatedTable(written, _undated(table) + twice)
        dated = write_own_table(table.dated_by(table.arrival), path, earliest)
        return DatedTable(dated, f"the column {table.arrival}; {share:.0%} of the events of {table.name} are later")
    share = share_with_row(interactions.path, path, key)
    if share is None or share >= SEEN:
        less = (
            "" if share is None or share == 1 else f"; {1 - share:.0%} of the events precede all rows of their entity"
        )
        less += (
            f"; {unknown:,} of {written.rows:,} rows have no time there and count from the first event"
            if unknown
            else ""
        )
        return DatedTable(written, f"the column {table.time.column}{less}")
    older = f"the column {table.time.column} dates them later than {1 - share:.0%} of their events"
    if count_distinct(path, key) == written.rows:
        stamped = write_own_table(table.undated(older), path, earliest)
        why = f"the earliest event, {earliest:%Y-%m-%d %H:%M}: one row each, and {older}, which suggests one export"
        return DatedTable(stamped, f"{why}; values that changed since then leak into training")
    side = key.removesuffix("_id")
    why = f"{older}: features.{side}_history is as_of_now, so that the newest row counts for all events"
    return DatedTable(
        written, f"{why}; values that changed since then leak into training", {f"{side}_history": "as_of_now"}
    )


def _undated(table: OwnTable) -> str:
    dates = [column.origin for column in table.columns if str(column.type).startswith("timestamp")]
    known = f"the earliest event, as no column is named {' or '.join(TIME_NAMES)}: today's values count for all events"
    if not dates:
        return known
    moved = "one that events change, such as a last login, leaks the future into training: remove it from the features"
    return f"{known}; not used as the time of a row: {', '.join(dates)} ({moved})"


def check_event_times(table: OwnTable, written: WrittenTable, *, named: bool) -> list[str]:
    """Log and return warnings about events without a time and about a single time for all events.

    Raises:
        SchemaError: all events have one time, and neither an option nor its name makes the column the event time.
    """
    said: list[str] = []
    if table.time is None:
        return said
    if unknown := count_nulls(written.path, EVENT_TIMESTAMP):
        said.append(
            f"{unknown:,} of {written.rows:,} events have no time in {table.time.column!r}: a run leaves them out"
        )
    if written.rows > FEW and count_times(written.path) == 1:
        said.append(_one_time(table, table.time.column, named=named))
    for sentence in said:
        LOGGER.warning("%s: %s", table.files.shown, sentence)
    return said


def _one_time(table: OwnTable, column: str, *, named: bool) -> str:
    if not named and not is_called(column, *TIME_NAMES):
        raise SchemaError(
            f"{table.files.shown}: every row has the same time in {column!r}, which suggests a load time; name the "
            "column with the time of an event, or this one, with --time-column"
        )
    return f"every event has the same time in {column!r}: no events can be held out by time, and no order is learned"


def describe_ids(interactions: WrittenTable, table: WrittenTable) -> list[str]:
    """Log and return a warning if most ids of the events are not in a users or items table."""
    key = KEYS[table.name][0]
    match = match_keys(interactions.path, table.path, key)
    if match.matched >= MATCHED * match.ids:
        return []
    other = f" and {table.name} have {match.in_table!r}" if match.in_table is not None else ""
    remedy = f"; {match.remedy} more of them would match" if match.remedy else ""
    said = (
        f"only {match.matched:,} of {match.ids:,} ids of {table.name} in the interactions are in {table.name}: "
        f"interactions have {match.in_events!r}{other}{remedy}; write the ids in the same way in both files"
    )
    LOGGER.warning("%s", said)
    return [said]
