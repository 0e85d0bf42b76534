"""Finds and opens the tables of a user: Parquet files, folders of Parquet, CSV, in a local folder or behind a URL.

Input: a folder or an address that fsspec reads. Output: one `OwnFiles` per table with one schema and rows in the order
of the files. CSV is copied to Parquet with every value as text, so that `0007` stays `0007`; its types are inferred
from all rows. `own_tables` assigns roles to columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs
import pyarrow.parquet as pq

from rec_ray.errors import ConfigError, EmptyDataError, RecRayError, SchemaError, UnavailableError, list_names
from rec_ray.sample.csv_files import copy_csv, infer_types

TABLES = ("users", "items", "interactions")
CSV_SUFFIXES = (".csv", ".csv.gz")
FORMAT = ds.ParquetFileFormat(read_options=ds.ParquetReadOptions(coerce_int96_timestamp_unit="us"))
"""Unit of INT96 times, which Spark writes; in nanoseconds the year 9999 would overflow to 1816."""


@dataclass(frozen=True)
class OwnFiles:
    """Rows of a table in the user's files.

    shown: the file or folder in error messages. schema: names and types; those of CSV are inferred, its stored values
    are text. paths: local Parquet files, in order.
    """

    name: str
    shown: str
    dataset: ds.Dataset
    schema: pa.Schema
    rows: int
    paths: tuple[str, ...]
    is_text: bool = False

    def batches(self, columns: Sequence[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows in order, with the requested columns in their stored types.

        Raises:
            SchemaError: a file is damaged.
        """
        try:
            yield from self.dataset.to_batches(columns=list(columns), batch_size=batch_rows)
        except (OSError, pa.ArrowInvalid) as error:
            raise SchemaError(f"{self.shown} is damaged: {error}") from None


@dataclass
class Problems:
    """Collected faults of all files, so that one error lists them all."""

    found: list[RecRayError] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    """Options that would fix them, with their values."""

    def add(self, error: RecRayError, flag: str | None = None) -> None:
        """Add a fault and, if there is one, the option that fixes it."""
        self.found.append(error)
        if flag is not None and flag not in self.flags:
            self.flags.append(flag)

    def raise_all(self) -> None:
        """Raise one error with all faults, if there are any.

        Raises:
            RecRayError: of the type of the first fault.
        """
        if not self.found:
            return
        try_ = f"; try: {' '.join(self.flags)}" if self.flags else ""
        raise type(self.found[0])("; ".join(map(str, self.found)) + try_)


def find_tables(source: str | Path, scratch: Path, problems: Problems) -> dict[str, OwnFiles]:
    """Open the tables of a folder. scratch: an empty folder for copies, which must exist until the rows are read.

    Raises:
        ConfigError: the folder or its interactions are missing.
        UnavailableError: the address does not respond.
    """
    text = str(source)
    folder = _fetch(text, scratch) if "://" in text else Path(text)
    entries = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    found: dict[str, OwnFiles] = {}
    for name in TABLES:
        names = [entry for entry in entries if _table_of(entry) == name]
        if len(names) > 1:
            problems.add(ConfigError(f"{text} contains {list_names(names)}, which are the same table; keep one"))
        elif names:
            shown = f"{text.rstrip('/')}/{names[0]}"
            try:
                found[name] = _open(name, folder / names[0], shown, scratch)
            except (SchemaError, EmptyDataError) as error:
                problems.add(error)
    if not any(_table_of(entry) == "interactions" for entry in entries):
        have = list_names(entries) if folder.is_dir() else "no such folder"
        raise ConfigError(
            f"no file interactions.parquet in {text} ({have}); a folder for --from holds interactions and, optionally, "
            "users and items, each as .parquet, .csv, .csv.gz or a folder of Parquet files"
        )
    return found


def _table_of(entry: str) -> str | None:
    """Return the table name of a file or folder name."""
    stem = next(
        (entry.removesuffix(end) for end in (".parquet", *reversed(CSV_SUFFIXES)) if entry.endswith(end)), entry
    )
    return stem if stem in TABLES else None


def _fetch(address: str, scratch: Path) -> Path:
    """Copy the tables behind a URL into a local folder."""
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(address)
        entries = [entry.rstrip("/") for entry in filesystem.ls(path, detail=False)]
    except FileNotFoundError:
        raise ConfigError(f"there is no folder {address}") from None
    except (ImportError, ValueError) as error:
        raise ConfigError(f"--from {address} cannot be read: {error}") from None
    except Exception as error:
        raise UnavailableError(
            f"{address} cannot be listed: {type(error).__name__}: {error}; keys and endpoint of S3 come from "
            "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL"
        ) from None
    folder = scratch / "fetched"
    folder.mkdir()
    for entry in entries:
        name = entry.rpartition("/")[2]
        if _table_of(name) is None:
            continue
        try:
            filesystem.get(entry, str(folder / name), recursive=bool(filesystem.isdir(entry)))
        except Exception as error:
            raise UnavailableError(f"{address}/{name} cannot be fetched: {type(error).__name__}: {error}") from None
    return folder


def _open(name: str, path: Path, shown: str, scratch: Path) -> OwnFiles:
    files = [path] if path.is_file() else _files_in(path)
    kinds = {_is_csv(file) for file in files}
    if not files or len(kinds) > 1:
        raise SchemaError(
            f"{shown} is a folder without Parquet or CSV files, or with both; keep files of one kind in it"
        )
    is_text = kinds == {True}
    if is_text:
        copy = scratch / f"{name}.parquet"
        copy_csv(files, copy, shown)
        files = [copy]
    dataset = _open_parquet(files, path if path.is_dir() and not is_text else None, shown)
    paths = tuple(map(str, files))
    schema = infer_types(dataset.schema, paths) if is_text else dataset.schema
    try:
        rows = int(dataset.count_rows())
    except (OSError, pa.ArrowInvalid) as error:
        raise SchemaError(f"{shown} cannot be read as a Parquet file: {error}") from None
    if not rows:
        raise EmptyDataError(f"{shown} has no rows" + ("" if name == "interactions" else "; remove it or fill it"))
    return OwnFiles(name, shown, dataset, schema.remove_metadata(), rows, paths, is_text)


def _files_in(folder: Path) -> list[Path]:
    """Return the data files below a folder, without Spark's `_SUCCESS`, checksums and hidden files."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not any(part.startswith(("_", ".")) for part in path.relative_to(folder).parts)
        and (_is_csv(path) or _is_parquet(path))
    ]


def _is_parquet(path: Path) -> bool:
    """Return True for a Parquet file, by its name or its first bytes, because Hive writes names such as `000000_0`."""
    if path.suffix == ".parquet":
        return True
    with path.open("rb") as handle:
        return handle.read(4) == b"PAR1"


def _is_csv(path: Path) -> bool:
    return path.name.endswith(CSV_SUFFIXES)


def _open_parquet(files: Sequence[Path], folder: Path | None, shown: str) -> ds.Dataset:
    """Open Parquet files as one table; folder names such as `day=2024-01-01` become a column."""
    _require_one_schema(files, shown)
    options = ds.FileSystemFactoryOptions(
        partition_base_dir=None if folder is None else str(folder.resolve()),
        partitioning=ds.HivePartitioning.discover() if folder is not None else ds.partitioning(pa.schema([])),
    )
    paths = [str(file.resolve()) for file in files]
    try:
        factory = ds.FileSystemDatasetFactory(pyarrow.fs.LocalFileSystem(), paths, FORMAT, options)
        return factory.finish(factory.inspect(promote_options="permissive"))
    except (OSError, pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise SchemaError(f"{shown} cannot be read as a Parquet file: {error}") from None


def _require_one_schema(files: Sequence[Path], shown: str) -> None:
    """Check that the files of a folder have compatible column types; the error names the column and both files."""
    seen: dict[str, tuple[pa.DataType, Path]] = {}
    for file in files:
        try:
            schema = pq.read_schema(file)
        except (OSError, pa.ArrowInvalid) as error:
            of = "" if len(files) == 1 else f" ({file.name})"
            raise SchemaError(f"{shown}{of} cannot be read as a Parquet file: {error}") from None
        for column in schema:
            kind, first = seen.setdefault(column.name, (column.type, file))
            try:
                pa.unify_schemas(
                    [pa.schema([("c", kind)]), pa.schema([("c", column.type)])], promote_options="permissive"
                )
            except (pa.ArrowInvalid, pa.ArrowTypeError):
                raise SchemaError(
                    f"{shown}: column {column.name!r} is {kind} in {first.name} and {column.type} in {file.name}; "
                    "write it with one type"
                ) from None
