"""Statistics of the Parquet tables of a project, of any size, computed with DuckDB.

Input: paths of tables. Output: plain numbers: the first event, distinct ids, shares of newcomers and of matched ids.
Memory is bounded, and larger work spills to disk.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb

from rec_ray.errors import EmptyDataError
from rec_ray.schema import EVENT_TIMESTAMP, ITEM_ID, USER_ID

LAST_SHARE = 0.1


def query_table(path: Path) -> contextlib.AbstractContextManager[duckdb.DuckDBPyConnection]:
    """Open a DuckDB connection with the view `t` over a Parquet file (with file_row_number), bounded in memory."""
    return query_files([str(path)], file_row_number=True)


@contextlib.contextmanager
def query_files(paths: Sequence[str], *, file_row_number: bool = False) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a DuckDB connection over several files of one table; their columns are matched by name."""
    with tempfile.TemporaryDirectory(prefix="rec_ray_") as folder:
        connection = duckdb.connect(config={"memory_limit": "1GB", "temp_directory": folder})
        try:
            connection.read_parquet(list(paths), file_row_number=file_row_number, union_by_name=True).create_view("t")
            yield connection
        finally:
            connection.close()


def fetch_one(connection: duckdb.DuckDBPyConnection, sql: str) -> tuple[Any, ...]:
    """Return the only row of a query."""
    row = connection.execute(sql).fetchone()
    return tuple(row) if row else ()


def quoted(name: str) -> str:
    """Return a column name quoted for SQL."""
    return '"' + name.replace('"', '""') + '"'


def earliest_time(path: Path) -> datetime:
    """Return the earliest event time.

    Raises:
        EmptyDataError: no row has a time.
    """
    with query_table(path) as connection:
        row = connection.execute(f"SELECT epoch_us(min({EVENT_TIMESTAMP})) FROM t").fetchone()
    if row is None or row[0] is None:
        raise EmptyDataError(f"no row of {path.stem} has a time: every {EVENT_TIMESTAMP} is null")
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=int(row[0]))


def count_distinct(path: Path, key: str) -> int:
    """Return the number of distinct ids in a table; an id has a row for each version of its features."""
    with query_table(path) as connection:
        return int(fetch_one(connection, f"SELECT count(DISTINCT {quoted(key)}) FROM t")[0])


@dataclass(frozen=True)
class KeyMatch:
    """Match of the ids of events with those of a table.

    ids: distinct ids in the events. matched: those of them in the table. in_events: the smallest that is not.
    in_table: the smallest id of the table that no event has. remedy: description of a change that would match more.
    """

    ids: int
    matched: int
    in_events: str | None
    in_table: str | None
    remedy: str | None


SPELLINGS = {
    "without leading zeros": "ltrim({}, '0')",
    "without '.0' at the end": "regexp_replace({}, '\\.0+$', '')",
    "in lower case": "lower({})",
    "without blanks around them": "trim({})",
}
"""Common differences between the id spellings of two tables."""


def match_keys(events: Path, table: Path, key: str) -> KeyMatch:
    """Compare the ids of the events with those of a users or items table."""
    column = quoted(key)
    with query_table(events) as connection:
        connection.read_parquet(str(table)).create_view("o")
        for view, source in (("e", "t"), ("d", "o")):
            connection.execute(
                f"CREATE TABLE {view} AS SELECT DISTINCT {column} AS k FROM {source} WHERE {column} <> ''"
            )
        ids, matched, in_events = fetch_one(
            connection,
            "SELECT count(*), count(d.k), min(e.k) FILTER (d.k IS NULL) FROM e LEFT JOIN d ON e.k = d.k",
        )
        in_table = fetch_one(connection, "SELECT min(k) FROM d WHERE k NOT IN (SELECT k FROM e)")[0]
        remedy = None
        if matched < ids:
            for words, spelt in SPELLINGS.items():
                one, other = spelt.format("k"), spelt.format("d.k")
                better = fetch_one(connection, f"SELECT count(*) FROM e WHERE {one} IN (SELECT {other} FROM d)")[0]
                if better > max(2 * matched, matched + (ids - matched) // 2):
                    remedy = words
                    break
    return KeyMatch(int(ids), int(matched), in_events, in_table, remedy)


def share_with_row(events: Path, table: Path, key: str, time: str = EVENT_TIMESTAMP) -> float | None:
    """Return the share of events with a row of their user or item dated at or before the event.

    Events of ids without any row do not count; None if there are no others. time: column with the date of a row.
    """
    column = quoted(key)
    with query_table(events) as connection:
        connection.read_parquet(str(table)).create_view("o")
        seen, of = fetch_one(
            connection,
            f"WITH first AS (SELECT {column} AS k, min(epoch_us({quoted(time)})) AS begun FROM o GROUP BY 1) "
            f"SELECT count(*) FILTER (begun <= epoch_us(t.{EVENT_TIMESTAMP})), count(*) FROM t JOIN first "
            f"ON t.{column} = first.k WHERE t.{EVENT_TIMESTAMP} IS NOT NULL",
        )
    return float(seen) / float(of) if of else None


def count_nulls(path: Path, column: str) -> int:
    """Return the number of nulls in a column."""
    with query_table(path) as connection:
        return int(fetch_one(connection, f"SELECT count(*) FILTER ({quoted(column)} IS NULL) FROM t")[0])


def count_times(path: Path) -> int:
    """Return the number of distinct event times: 0, 1 or 2, where 2 means at least two."""
    with query_table(path) as connection:
        low, high = fetch_one(connection, f"SELECT min({EVENT_TIMESTAMP}), max({EVENT_TIMESTAMP}) FROM t")
    return 0 if low is None else 1 if low == high else 2


def share_of_newcomers(path: Path) -> float:
    """Return the share of users without earlier events among the users in the last 10 % of the events."""
    with query_table(path) as connection:
        time = f"epoch_us({EVENT_TIMESTAMP})"
        new, active = fetch_one(
            connection,
            f"WITH cut AS (SELECT approx_quantile({time}, {1 - LAST_SHARE}) AS cut_time FROM t), "
            f"spans AS (SELECT min({time}) AS first, max({time}) AS last FROM t "
            f"WHERE {USER_ID} <> '' GROUP BY {USER_ID}) "
            "SELECT count(*) FILTER (WHERE first >= cut_time), count(*) FROM spans, cut WHERE last >= cut_time",
        )
    return float(new) / float(active) if active else 0.0


def share_of_repeats(path: Path) -> float:
    """Return the share of users whose last item is one that they had before, of those with two events or more."""
    with query_table(path) as connection:
        repeats, users = fetch_one(
            connection,
            f"WITH numbered AS (SELECT {USER_ID} AS u, {ITEM_ID} AS i, row_number() OVER (PARTITION BY {USER_ID} "
            f"ORDER BY {EVENT_TIMESTAMP} DESC, file_row_number DESC) AS back FROM t WHERE {USER_ID} <> ''), "
            "last AS (SELECT u, i FROM numbered WHERE back = 1) "
            "SELECT count(DISTINCT u) FILTER (WHERE numbered.i = last.i), count(DISTINCT u) "
            "FROM numbered JOIN last USING (u) WHERE back > 1",
        )
    return float(repeats) / float(users) if users else 0.0
