"""Copies the CSV files of a table to Parquet with every value as text, and infers column types from all values.

Input: files with a header. Output: one Parquet file and a schema. A malformed line is an error and is never skipped;
ids such as `0007` keep their zeros, because values are stored as text.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from rec_ray.errors import SchemaError, list_names
from rec_ray.sample.survey import fetch_one, query_files, quoted
from rec_ray.schema import TIMESTAMP

WORDS_FOR_NULL = ("", "null", "none", "nan", "nat", "na", "n/a")
"""Texts in a CSV file, in any case, that mean null in a column of numbers or times."""
DELIMITERS = ",;\t|"
BLOCK_BYTES = 16 << 20


def copy_csv(files: Sequence[Path], target: Path, shown: str) -> None:
    """Copy CSV files into one Parquet file, every value as text; an empty value is null.

    Raises:
        SchemaError: a file is not CSV in UTF-8 with a header, or a line has other columns than the header.
    """
    try:
        written = [_open(file, {}).schema.names for file in files]
        # pandas writes the index of a frame with an empty name.
        headers = [[name or f"Unnamed: {place}" for place, name in enumerate(names)] for names in written]
        names = list(dict.fromkeys(name for header in headers for name in header))
        twice = sorted({name for header in headers for name in header if header.count(name) > 1})
        if twice:
            raise SchemaError(f"{shown} has the columns {list_names(twice)} twice; rename them")
        schema = pa.schema([(name, pa.string()) for name in names])
        with pq.ParquetWriter(target, schema) as writer:
            for file, own, header in zip(files, written, headers, strict=True):
                for batch in _open(file, dict.fromkeys(own, pa.string())):
                    columns = [
                        batch.column(header.index(name)) if name in header else pa.nulls(batch.num_rows, pa.string())
                        for name in names
                    ]
                    writer.write_table(pa.table(columns, schema=schema))
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
        raise SchemaError(f"{shown} cannot be read as CSV with a header in UTF-8: {error}") from None


def _open(file: Path, types: dict[str, pa.DataType]) -> pyarrow.csv.CSVStreamingReader:
    """Open a file as a stream of batches. types: of some columns; the others are inferred."""
    return pyarrow.csv.open_csv(
        pa.input_stream(str(file), compression="detect"),
        read_options=pyarrow.csv.ReadOptions(block_size=BLOCK_BYTES),
        parse_options=pyarrow.csv.ParseOptions(delimiter=_delimiter(file), newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(column_types=types, strings_can_be_null=True, null_values=[""]),
    )


def _delimiter(file: Path) -> str:
    """Return the most frequent delimiter in the first line of a file."""
    with gzip.open(file, "rb") if file.name.endswith(".gz") else file.open("rb") as handle:
        line = handle.readline(BLOCK_BYTES)
    return max(DELIMITERS, key=lambda delimiter: line.count(delimiter.encode()))


def infer_types(schema: pa.Schema, paths: Sequence[str]) -> pa.Schema:
    """Return the common type of all values of each column: whole number, number, true or false, time, or text.

    A number with a leading zero, such as a postal code, is text.
    """
    with query_files(paths) as connection:
        return pa.schema([pa.field(name, _type_of(connection, name)) for name in schema.names])


def _type_of(connection: duckdb.DuckDBPyConnection, name: str) -> pa.DataType:
    words = ", ".join(f"'{word}'" for word in WORDS_FOR_NULL)
    column = f"trim({quoted(name)})"
    known, whole, number, led, truth, time = fetch_one(
        connection,
        f"SELECT count(v), count(TRY_CAST(v AS BIGINT)) FILTER (regexp_full_match(v, '-?\\d+')), "
        "count(TRY_CAST(v AS DOUBLE)), count(*) FILTER (regexp_matches(v, '^[+-]?0\\d|^\\+')), "
        "count(*) FILTER (lower(v) IN ('true', 'false')), "
        "count(TRY_CAST(v AS TIMESTAMP)) FILTER (regexp_matches(v, '^\\d{4}-\\d\\d-\\d\\d')) "
        f"FROM (SELECT CASE WHEN lower({column}) IN ({words}) THEN NULL ELSE {column} END AS v FROM t)",
    )
    kinds: list[tuple[Any, pa.DataType]] = [
        (whole == known and not led, pa.int64()),
        (number == known and not led, pa.float64()),
        (truth == known, pa.bool_()),
        (time == known, TIMESTAMP),
    ]
    return next((kind for fits, kind in kinds if known and fits), pa.string())
