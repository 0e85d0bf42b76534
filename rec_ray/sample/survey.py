"""Answers questions about a Parquet file of the project, whatever its size, with DuckDB.

In goes the path of a written table, out come plain numbers: when the events begin, how many ids there are, how many
users are newcomers. Memory is bounded, larger work spills to disk; it knows nothing of settings or Feast.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb

from rec_ray.errors import EmptyDataError
from rec_ray.schema import EVENT_TIMESTAMP, ITEM_ID, USER_ID

LAST_SHARE = 0.1


@contextlib.contextmanager
def query_table(path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a DuckDB connection with the view `t` over a Parquet file (with file_row_number), bounded in memory."""
    with tempfile.TemporaryDirectory(prefix="rec_ray_") as folder:
        connection = duckdb.connect(config={"memory_limit": "1GB", "temp_directory": folder})
        try:
            connection.read_parquet(str(path), file_row_number=True).create_view("t")
            yield connection
        finally:
            connection.close()


def fetch_one(connection: duckdb.DuckDBPyConnection, sql: str) -> tuple[Any, ...]:
    """Return the one row of a query."""
    row = connection.execute(sql).fetchone()
    return tuple(row) if row else ()


def quoted(name: str) -> str:
    """Return a column name as SQL writes it."""
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
    """Return how many different ids a table holds; one may have several rows, each a version of its features."""
    with query_table(path) as connection:
        return int(fetch_one(connection, f"SELECT count(DISTINCT {quoted(key)}) FROM t")[0])


def share_of_newcomers(path: Path) -> float:
    """Return which share of the users in the last 10 % of the events has no earlier event."""
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
    """Return for which share of the users with two events or more the last one is of an item that they had before."""
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
