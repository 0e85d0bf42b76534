"""Parquet files behind a Feast file source: a file, a folder or a pattern, on a disk or in an object store.

Input: a file source and the folder of its repository. Output: open file systems, paths and checked schemas. Damaged,
missing and unreachable files raise different errors.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs
import pyarrow.parquet as pq

from rec_ray.errors import DataError, FeatureStoreError, RecRayError, SchemaError, list_names
from rec_ray.feature_store.api import DeltaFormat, FileSource, RepoConfig
from rec_ray.schema import TIMESTAMP
from rec_ray.storage.object_store import s3_filesystem

BATCH_ROWS = 131_072
"""Rows of a file that are decoded at once."""


def is_parquet(source: Any) -> bool:
    """Return whether the rows of a source are those of its Parquet files.

    The files of a Delta table also contain deleted rows; the offline store reads the log that lists them.
    """
    return isinstance(source, FileSource) and not isinstance(source.file_format, DeltaFormat)


def reads_files(config: RepoConfig) -> bool:
    """Return whether source files are readable here; those of a remote offline store are on its server."""
    return str(config.offline_store.type) != "remote"


def column_in_file(source: Any, name: str) -> str:
    """Return the name of a view's column in the files, with the field mapping of the source undone."""
    back = {new: old for old, new in dict(source.field_mapping or {}).items()}
    return back.get(name, name)


def find_files(source: Any, repo: Path, what: str) -> tuple[pyarrow.fs.FileSystem, list[str]]:
    """Return the Parquet files of a file source in the order of their names.

    what: description of the source, for errors.

    Raises:
        FeatureStoreError: no file exists, or the location is unreachable.
    """
    uri = source.path
    try:
        if "://" in uri and not uri.startswith("file://"):
            endpoint = source.s3_endpoint_override
            if uri.startswith("s3://") and endpoint:
                # Keys and region come from the environment (AWS_...), as for Feast itself.
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
            raise FeatureStoreError(f"{what}: there is no file {uri!r} (looked for {path})")
        if info.type == pyarrow.fs.FileType.File:
            return filesystem, [path]
        found = filesystem.get_file_info(pyarrow.fs.FileSelector(folder, recursive=True))
    except OSError as error:
        raise FeatureStoreError(f"{what}: {uri!r} cannot be reached: {error}") from None
    pattern = path if "*" in path else "*.parquet"
    files = sorted(entry.path for entry in found if entry.is_file and fnmatch.fnmatchcase(entry.path, pattern))
    if not files:
        raise FeatureStoreError(f"{what}: {uri!r} holds no Parquet file")
    return filesystem, files


def read_footer(filesystem: pyarrow.fs.FileSystem, path: str, what: str) -> pq.FileMetaData:
    """Return the metadata of a Parquet file.

    Raises:
        DataError: the file is damaged or not a Parquet file.
        FeatureStoreError: it is unreachable.
    """
    try:
        with filesystem.open_input_file(path) as handle:
            return pq.read_metadata(handle)
    except (OSError, pa.ArrowInvalid) as error:
        raise unreadable(filesystem, path, what, error) from None


def check_columns(schema: pa.Schema, columns: Iterable[str], time: str, where: str, what: str) -> bool:
    """Check that a file has the columns and a timestamp; return True if the time has no zone.

    Raises:
        SchemaError: names file and columns.
    """
    missing = [column for column in [*columns, time] if column not in schema.names]
    if missing:
        raise SchemaError(
            f"{what}: {where} lacks the columns {list_names(missing)}; it has {list_names(schema.names, 30)}"
        )
    kind = schema.field(time).type
    if not pa.types.is_timestamp(kind):
        raise SchemaError(f"{what}: column {time!r} of {where} is {kind}; expected a timestamp")
    return kind.tz is None


def read_row_groups(
    filesystem: pyarrow.fs.FileSystem, path: str, columns: list[str], what: str, groups: list[int]
) -> pa.Table:
    """Return columns of some row groups of a Parquet file.

    Raises:
        DataError, FeatureStoreError: as `read_footer`.
    """
    try:
        with filesystem.open_input_file(path) as handle:
            return _open(handle).read_row_groups(groups, columns=columns)
    except (OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise unreadable(filesystem, path, what, error) from None


def read_batches(filesystem: pyarrow.fs.FileSystem, path: str, columns: list[str], what: str) -> Iterator[pa.Table]:
    """Yield columns of a Parquet file in batches of rows.

    Raises:
        DataError, FeatureStoreError: as `read_footer`.
    """
    try:
        with filesystem.open_input_file(path) as handle:
            for batch in _open(handle).iter_batches(BATCH_ROWS, columns=columns):
                yield pa.Table.from_batches([batch])
    except (OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise unreadable(filesystem, path, what, error) from None


def _open(handle: Any) -> pq.ParquetFile:
    # In nanoseconds, the default for INT96, times after 2262 overflow.
    return pq.ParquetFile(handle, coerce_int96_timestamp_unit="us")


def as_utc(column: pa.ChunkedArray, name: str, what: str) -> pa.ChunkedArray:
    """Return times in UTC microseconds; nanoseconds are truncated, coarser units must fit, a missing zone means UTC.

    Raises:
        SchemaError: a time is out of range.
    """
    try:
        micros = pc.cast(column, pa.timestamp("us", column.type.tz), safe=column.type.unit != "ns")
    except pa.ArrowInvalid as error:
        raise SchemaError(f"{what}: column {name!r} has a time out of range: {error}") from None
    return pc.cast(micros, TIMESTAMP) if column.type.tz else pc.assume_timezone(micros, "UTC")


def unreadable(filesystem: Any, path: str, what: str, error: Exception) -> RecRayError:
    """Return a DataError for a damaged file, a FeatureStoreError for a missing or unreachable one."""
    try:
        there = filesystem.get_file_info(path).type == pyarrow.fs.FileType.File
        filesystem.open_input_file(path).close()
    except OSError:
        there = False
    if there:
        return DataError(f"{what}: {path} is damaged or not a Parquet file: {error}")
    return FeatureStoreError(f"{what}: {path} cannot be reached: {error}")
