"""Appends new events to the data of a project that `rec-ray init` made: checked, without repeats, in one rename.

Input: the data folder of the project and a file of events, Parquet or CSV, with the columns of the first files. Output:
counts. Tables of users and items that `init` made from the ids of the events get the new ids too.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rec_ray.errors import ConfigError, RecRayError, SchemaError, list_names
from rec_ray.sample.own_tables import KEYS, PLACEHOLDER, read_own_tables
from rec_ray.sample.roles import ColumnNames
from rec_ray.sample.survey import quoted
from rec_ray.sample.tables import write_own_table
from rec_ray.schema import EVENT_TIMESTAMP, ITEM_ID, USER_ID

EVENTS = "interactions.parquet"


@dataclass(frozen=True)
class Appended:
    """Result of an append: rows of the file, rows added, rows that were there already, new ids by table.

    unknown: table -> number of ids that its file does not have; add their rows there.
    """

    read: int
    added: int
    repeated: int
    new_ids: dict[str, int] = field(default_factory=dict)
    unknown: dict[str, int] = field(default_factory=dict)


def append_events(data: Path, file: Path, names: ColumnNames | None = None) -> Appended:
    """Append the events of a file to those of a project. data: folder with interactions.parquet.

    Readers see all new rows or none: the complete file is written beside the present one, and renamed.

    Raises:
        ConfigError: the project has no such folder, or the file does not exist.
        SchemaError: a column is missing or has another type.
    """
    if not (data / EVENTS).is_file():
        raise ConfigError(f"{data} has no {EVENTS}; only projects made by `rec-ray init` without --feast have it")
    if not file.is_file():
        raise ConfigError(f"there is no file {file}")
    with _locked(data), tempfile.TemporaryDirectory(prefix="rec_ray_append_") as folder:
        read = _convert(file, Path(folder), names)
        fresh = _without_repeats(read, data / EVENTS)
        new_ids: dict[str, int] = {}
        unknown: dict[str, int] = {}
        for table, key in (("users", USER_ID), ("items", ITEM_ID)):
            count, is_made = _add_ids(data / f"{table}.parquet", key, fresh)
            if count:
                (new_ids if is_made else unknown)[table] = count
        if fresh.num_rows:
            _append(data / EVENTS, fresh)
    return Appended(read.num_rows, fresh.num_rows, read.num_rows - fresh.num_rows, new_ids, unknown)


@contextlib.contextmanager
def _locked(data: Path) -> Iterator[None]:
    """Let one append at a time read and replace the files."""
    with (data / ".append.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _convert(file: Path, folder: Path, names: ColumnNames | None) -> pa.Table:
    """Return the rows of the file as `init` writes them."""
    suffix = ".csv.gz" if file.name.endswith(".csv.gz") else file.suffix
    link = folder / f"interactions{suffix}"
    link.symlink_to(file.resolve())
    (folder / "scratch").mkdir()
    try:
        own = read_own_tables(folder, folder / "scratch", names)
        return pq.read_table(write_own_table(own.interactions, folder / "converted.parquet").path)
    except RecRayError as error:
        raise type(error)(str(error).replace(str(link), str(file))) from None


def _without_repeats(read: pa.Table, events: Path) -> pa.Table:
    """Return the rows that the present events do not have, each once, with their columns and types.

    Raises:
        SchemaError: the columns differ, or a type cannot be converted.
    """
    schema = pq.read_schema(events)
    missing, further = set(schema.names) - set(read.column_names), set(read.column_names) - set(schema.names)
    if further == {PLACEHOLDER}:
        further = set()
    if missing or further:
        found = f"lack {list_names(sorted(missing))}" if missing else f"have {list_names(sorted(further))} too"
        raise SchemaError(f"the new events {found}; expected the columns {list_names(schema.names)}")
    try:
        read = read.select(schema.names).cast(schema)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise SchemaError(f"the new events do not fit the present ones: {error}") from None
    same = " AND ".join(f"n.{quoted(name)} IS NOT DISTINCT FROM o.{quoted(name)}" for name in schema.names)
    numbered = read.append_column("rec_ray_row", pa.array(range(read.num_rows)))
    with contextlib.closing(duckdb.connect(config={"memory_limit": "1GB"})) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.register("fresh", numbered)
        connection.read_parquet(str(events)).create_view("o")
        group = ", ".join(quoted(name) for name in schema.names)
        rows = connection.sql(
            f"SELECT min(rec_ray_row) FROM (SELECT n.* FROM fresh n ANTI JOIN o ON {same}) GROUP BY {group}"
        ).fetchall()
    return read.take(pa.array(sorted(row[0] for row in rows), pa.int64()))


def _add_ids(path: Path, key: str, fresh: pa.Table) -> tuple[int, bool]:
    """Return the number of ids that a table lacks, and whether `init` made it from ids; then they are added to it."""
    if not fresh.num_rows or not path.is_file():
        return 0, False
    file = pq.read_schema(path)
    is_made = set(file.names) == {KEYS["users" if key == USER_ID else "items"][0], EVENT_TIMESTAMP, PLACEHOLDER}
    known = pq.read_table(path, columns=[key])[key].cast(pa.string()).combine_chunks()
    first = fresh.group_by(key).aggregate([(EVENT_TIMESTAMP, "min")])
    ids = first[key].cast(pa.string()).combine_chunks()
    first = first.filter(pc.invert(pc.is_in(ids, value_set=known)))
    if is_made and first.num_rows:
        columns = {
            key: first[key],
            EVENT_TIMESTAMP: first[f"{EVENT_TIMESTAMP}_min"],
            PLACEHOLDER: pa.array([True] * first.num_rows),
        }
        _append(path, pa.table({name: columns[name] for name in file.names}).cast(file))
    return first.num_rows, is_made


def _append(path: Path, rows: pa.Table) -> None:
    """Replace a Parquet file by one with further rows, in one rename."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with pq.ParquetFile(path) as present, pq.ParquetWriter(partial, present.schema_arrow) as writer:
            for group in range(present.num_row_groups):
                writer.write_table(present.read_row_group(group))
            writer.write_table(rows.cast(present.schema_arrow))
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
