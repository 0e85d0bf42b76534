"""The rows behind a Feast feature view, cut into slices that Ray tasks can read side by side.

A batch source of Feast and the wanted columns come in, slices come out; `read_slice` reads one of them as an Arrow
table with the program's own column names, ids as strings and times in UTC. Parquet files are cut by row group and
numbered row by row; every other source is asked through Feast's offline store, a stretch of time at a time.
"""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.fs
import pyarrow.parquet as pq

from rec_ray.errors import DataError, FeatureStoreError, RecRayError, SchemaError, listed
from rec_ray.feature_store.api import DeltaFormat, FileSource, PassthroughProvider, RepoConfig
from rec_ray.schema import EVENT_TIMESTAMP, TIMESTAMP
from rec_ray.storage.object_store import s3_filesystem

FIRST_TIME = datetime(1990, 1, 1, tzinfo=UTC)
"""Where the yearly stretches of a source without files begin; one stretch holds all that is older."""
STRETCH = timedelta(days=366)


@dataclass(frozen=True)
class FeatureSource:
    """A batch source of Feast and the columns wanted of it.

    columns: the program's name -> the name that the feature view uses (the source's field mapping is undone here).
    """

    source: Any
    columns: Mapping[str, str]
    what: str

    @classmethod
    def of(cls, source: Any, columns: Mapping[str, str], *, what: str) -> FeatureSource:
        """Make one from a view's batch source."""
        back = {new: old for old, new in dict(source.field_mapping or {}).items()}
        return cls(source, {name: back.get(column, column) for name, column in columns.items()}, what)


@dataclass(frozen=True)
class SourceSlice:
    """A part of a source that one task reads.

    path: a Parquet file and `row_groups` of it, or, when None, the stretch of time [start, end) of any other source;
        a bound that is None is open.
    first_row: the number of its first row within the source. rows: how many it has; None where only reading tells.
    """

    source: FeatureSource
    first_row: int
    path: str | None = None
    filesystem: pyarrow.fs.FileSystem | None = None
    row_groups: tuple[int, ...] = ()
    rows: int | None = None
    start: datetime | None = None
    end: datetime | None = None
    naive_time: bool = False


def slice_source(store: Any, source: FeatureSource, rows: int) -> list[SourceSlice]:
    """Cut a source into slices of about `rows` rows (files) or into stretches of time (anything else).

    Raises:
        FeatureStoreError: a file is missing or cannot be reached.
        DataError: a file is no Parquet file.
        SchemaError: a wanted column is missing, or the time is no timestamp.
    """
    files = isinstance(source.source, FileSource)
    # The files of a Delta table hold deleted rows too: only its log tells, and the offline store reads that.
    if files and not isinstance(source.source.file_format, DeltaFormat):
        return _slice_files(source, Path(str(store.repo_path)), rows)
    return slice_time(source, datetime.now(UTC))


def slice_time(source: FeatureSource, now: datetime) -> list[SourceSlice]:
    """Cut a source into stretches of time that together hold all rows with a time, also those to come.

    A stretch without rows costs one short query.
    """
    bounds: list[datetime | None] = [None, FIRST_TIME]
    while (start := bounds[-1]) is not None:
        bounds.append(start + STRETCH if start + STRETCH < now else None)
    # Numbers far apart keep the order of the stretches.
    return [
        SourceSlice(source, first_row=number << 40, start=start, end=end)
        for number, (start, end) in enumerate(itertools.pairwise(bounds))
    ]


def _slice_files(source: FeatureSource, repo: Path, rows: int) -> list[SourceSlice]:
    slices: list[SourceSlice] = []
    first_row = 0
    filesystem, paths = _files(source, repo)
    for path in paths:
        try:
            with filesystem.open_input_file(path) as handle:
                metadata = pq.read_metadata(handle)
        except (OSError, pa.ArrowInvalid) as error:
            raise _unreadable(source, filesystem, path, error) from None
        schema = metadata.schema.to_arrow_schema()
        naive = _check_columns(source, schema, path)
        part = SourceSlice(source, first_row, path, filesystem, naive_time=naive)
        chosen: list[int] = []
        held = 0
        for group in range(metadata.num_row_groups):
            chosen.append(group)
            held += metadata.row_group(group).num_rows
            if held >= rows or group == metadata.num_row_groups - 1:
                slices.append(replace(part, first_row=first_row, row_groups=tuple(chosen), rows=held))
                first_row += held
                chosen, held = [], 0
    return slices


def _files(source: FeatureSource, repo: Path) -> tuple[pyarrow.fs.FileSystem, list[str]]:
    """Return the Parquet files of a file source (a file, a folder or a pattern), in the order of their names."""
    uri = source.source.path
    try:
        if "://" in uri and not uri.startswith("file://"):
            endpoint = source.source.s3_endpoint_override
            if uri.startswith("s3://") and endpoint:
                # Keys and region from the environment (AWS_...), as for Feast itself.
                filesystem: Any = s3_filesystem(endpoint)[0]
                path = uri.removeprefix("s3://")
            else:
                filesystem, path = pyarrow.fs.FileSystem.from_uri(uri)
        else:
            filesystem = pyarrow.fs.LocalFileSystem()
            path = str((repo / uri.removeprefix("file://")).resolve())
        folder = path[: path.index("*")].rpartition("/")[0] if "*" in path else path
        info = filesystem.get_file_info(folder)
        if info.type == pyarrow.fs.FileType.NotFound:
            raise FeatureStoreError(f"{source.what}: there is no file {uri!r} (looked for {path})")
        if info.type == pyarrow.fs.FileType.File:
            return filesystem, [path]
        found = filesystem.get_file_info(pyarrow.fs.FileSelector(folder, recursive=True))
    except OSError as error:
        raise FeatureStoreError(f"{source.what}: {uri!r} cannot be reached: {error}") from None
    pattern = path if "*" in path else "*.parquet"
    files = sorted(entry.path for entry in found if entry.is_file and fnmatch.fnmatchcase(entry.path, pattern))
    if not files:
        raise FeatureStoreError(f"{source.what}: {uri!r} holds no Parquet file")
    return filesystem, files


def _check_columns(source: FeatureSource, schema: pa.Schema, where: str) -> bool:
    """Check names and types of the wanted columns; return whether the time has no zone."""
    time = source.source.timestamp_field
    missing = [column for column in [*source.columns.values(), time] if column not in schema.names]
    if missing:
        raise SchemaError(
            f"{source.what}: {where} lacks the columns {listed(missing)}; it has {listed(schema.names, 30)}"
        )
    kind = schema.field(time).type
    if not pa.types.is_timestamp(kind):
        raise SchemaError(f"{source.what}: column {time!r} of {where} is {kind}; expected a timestamp")
    return kind.tz is None


def _unreadable(source: FeatureSource, filesystem: Any, path: str, error: Exception) -> RecRayError:
    """Tell a damaged file from one that is gone or out of reach."""
    try:
        there = filesystem.get_file_info(path).type == pyarrow.fs.FileType.File
        filesystem.open_input_file(path).close()
    except OSError:
        there = False
    if there:
        return DataError(f"{source.what}: {path} is damaged or no Parquet file: {error}")
    return FeatureStoreError(f"{source.what}: {path} cannot be reached: {error}")


def read_slice(config: RepoConfig, part: SourceSlice) -> pa.Table:
    """Read a slice: the wanted columns by their new names, ids as strings, `event_timestamp` in UTC microseconds.

    Raises:
        DataError: a file is damaged; it is named.
        SchemaError: an id is neither text nor a whole number, or a time is out of range.
        FeatureStoreError: a file cannot be reached, or the offline store does not answer.
    """
    source = part.source
    time = source.source.timestamp_field
    columns = list(dict.fromkeys([*source.columns.values(), time]))
    if part.path is not None and part.filesystem is not None:
        try:
            with part.filesystem.open_input_file(part.path) as handle:
                table = pq.ParquetFile(handle).read_row_groups(list(part.row_groups), columns=columns)
        except (OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise _unreadable(source, part.filesystem, part.path, error) from None
    else:
        table = _pull(config, part, [column for column in source.columns.values() if column != time])
    renamed = {name: table[column] for name, column in source.columns.items()}
    for name in renamed:
        if name.endswith("_id"):
            renamed[name] = _as_ids(renamed[name], name, source.what)
    renamed[EVENT_TIMESTAMP] = _as_utc(table[time], time, source.what)
    return pa.table(renamed)


def _pull(config: RepoConfig, part: SourceSlice, columns: list[str]) -> pa.Table:
    source = part.source.source
    try:
        job = PassthroughProvider(config).offline_store.pull_all_from_table_or_query(
            config=config,
            data_source=source,
            join_key_columns=[],
            feature_name_columns=columns,
            timestamp_field=source.timestamp_field,
            created_timestamp_column=None,
            start_date=part.start,
            # Feast's bounds are both inclusive.
            end_date=part.end - timedelta(microseconds=1) if part.end else None,
        )
        return job.to_arrow()
    except Exception as error:
        raise FeatureStoreError(
            f"{part.source.what}: the offline store failed: {type(error).__name__}: {error}"
        ) from error


def _as_ids(column: pa.ChunkedArray, name: str, what: str) -> pa.ChunkedArray:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if not (text or pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise SchemaError(f"{what}: {name} is {kind}; an id must be text or a whole number")
    return pc.cast(column, pa.string())


def _as_utc(column: pa.ChunkedArray, name: str, what: str) -> pa.ChunkedArray:
    """Return a time in UTC microseconds; nanoseconds are cut, anything coarser must fit."""
    try:
        micros = pc.cast(column, pa.timestamp("us", column.type.tz), safe=column.type.unit != "ns")
    except pa.ArrowInvalid as error:
        raise SchemaError(f"{what}: column {name!r} has a time out of range: {error}") from None
    return pc.cast(micros, TIMESTAMP) if column.type.tz else pc.assume_timezone(micros, "UTC")
