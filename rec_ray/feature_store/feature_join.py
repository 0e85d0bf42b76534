"""Features of one entity as of given times, joined from the Parquet files behind its views.

Input: a `FeatureJoin`, ids and times. Output: a table with one row for each, in the same order. This module reads the
files itself, on any file system, because neither file store of Feast (0.67) suffices: Dask drops rows that share entity
and time and rows without features, DuckDB supports neither a custom S3 endpoint nor a folder, and neither renames a
timestamp. The offline store reads all other kinds of sources.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rec_ray.errors import SchemaError
from rec_ray.feature_store.as_of_join import find_newest_rows
from rec_ray.feature_store.source_files import (
    as_utc,
    check_columns,
    column_in_file,
    find_files,
    is_parquet,
    read_batches,
    read_footer,
)
from rec_ray.schema import TIMESTAMP


@dataclass(frozen=True)
class JoinedView:
    """The join of one view; it is picklable and is sent to tasks.

    key: its join key. key_kind, kinds: the declared Arrow types, None for a Feast type without one.
    ttl: microseconds, 0 for no limit. fields: our column -> the view's field.
    """

    name: str
    key: str
    key_kind: pa.DataType | None
    source: Any
    ttl: int
    fields: Mapping[str, str]
    kinds: Mapping[str, pa.DataType | None]

    @property
    def in_words(self) -> str:
        """Description of the view for errors."""
        return f"view {self.name!r}"


@dataclass(frozen=True)
class ComputedView:
    """Columns that an on-demand view computes. inputs: the views that it reads, with columns named `view__field`."""

    name: str
    fields: Mapping[str, str]
    inputs: tuple[JoinedView, ...]


@dataclass(frozen=True)
class FeatureJoin:
    """Columns of one entity, in the requested order, and the views that have them."""

    what: str
    columns: tuple[str, ...]
    views: tuple[JoinedView, ...] = ()
    computed: tuple[ComputedView, ...] = ()

    @property
    def sources(self) -> list[JoinedView]:
        """All views whose rows the join reads."""
        return [*self.views, *(view for computed in self.computed for view in computed.inputs)]

    @property
    def is_on_files(self) -> bool:
        """True if all rows are stored in Parquet files."""
        return all(is_parquet(view.source) for view in self.sources)


def join_files(
    repo: Path, join: FeatureJoin, ids: pa.Array, times: pa.Array, transform: Callable[[str, pa.Table], pa.Table]
) -> pa.Table:
    """Return the columns of a join on files, one row for each id and time.

    ids: [n] strings. times: [n] UTC microseconds. transform: computes an on-demand view, by name, from its inputs.

    Raises:
        SchemaError: a file lacks a column or has it with a type that the view does not declare.
        DataError, FeatureStoreError: a file is damaged, missing or unreachable.
    """
    found: dict[str, Any] = {}
    for view in join.views:
        found |= join_view(repo, view, ids, times)
    for computed in join.computed:
        inputs: dict[str, Any] = {}
        for view in computed.inputs:
            inputs |= join_view(repo, view, ids, times)
        answer = transform(computed.name, pa.table(inputs))
        found |= {name: answer[field] for name, field in computed.fields.items()}
    return pa.table({name: found[name] for name in join.columns})


def join_view(repo: Path, view: JoinedView, ids: pa.Array, times: pa.Array) -> dict[str, pa.Array]:
    """Return the columns of one view, one row for each id and time. Raises: as `join_files`."""
    source = view.source
    key, time = column_in_file(source, view.key), column_in_file(source, source.timestamp_field)
    created = column_in_file(source, source.created_timestamp_column) if source.created_timestamp_column else None
    columns = {name: column_in_file(source, field) for name, field in view.fields.items()}
    wanted = list(dict.fromkeys([key, time, *([created] if created else []), *columns.values()]))
    filesystem, paths = find_files(source, repo, view.in_words)
    parts: list[pa.Table] = []
    keys = ids
    for path in paths:
        schema = read_footer(filesystem, path, view.in_words).schema.to_arrow_schema()
        check_view_columns(schema, view, path)
        keys = as_key(ids, _plain_type(schema.field(key).type), view)
        known = keys.drop_null().unique()
        for batch in read_batches(filesystem, path, wanted, view.in_words):
            own = pc.cast(_plain_dictionary(batch[key]), known.type)
            there = pc.is_in(own, value_set=known)
            part = pa.table(
                {
                    "key": own,
                    "time": as_utc(batch[time], time, view.in_words),
                    **({"created": as_utc(batch[created], created, view.in_words)} if created else {}),
                    **{f"field {name}": _plain(batch[column], view, name) for name, column in columns.items()},
                }
            )
            parts.append(part.filter(there))
    rows = pa.concat_tables(parts, promote_options="permissive").combine_chunks() if parts else None
    if rows is None:
        return {name: pa.nulls(len(ids), view.kinds[name] or pa.null()) for name in columns}
    rows = rows.set_column(0, "key", rows["key"].cast(keys.type))
    newest = find_newest_rows(
        keys,
        pc.cast(times, TIMESTAMP),
        _one(rows["key"]),
        _one(rows["time"]),
        created=_one(rows["created"]) if created else None,
        ttl=view.ttl,
    )
    return {name: _one(rows[f"field {name}"].take(newest)) for name in columns}


def check_view_columns(schema: pa.Schema, view: JoinedView, path: str) -> None:
    """Check that a file has the columns of a view with the declared types.

    Raises:
        SchemaError: names file, column and both types.
    """
    source = view.source
    time = column_in_file(source, source.timestamp_field)
    key = column_in_file(source, view.key)
    columns = {name: column_in_file(source, field) for name, field in view.fields.items()}
    created = [column_in_file(source, source.created_timestamp_column)] if source.created_timestamp_column else []
    check_columns(schema, [key, *columns.values(), *created], time, path, view.in_words)
    for column in created:
        if not pa.types.is_timestamp(schema.field(column).type):
            kind = schema.field(column).type
            raise SchemaError(f"{view.in_words}: column {column!r} of {path} is {kind}; expected a timestamp")
    kind = schema.field(key).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (_is_text(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise SchemaError(f"{view.in_words}: column {key!r} of {path} is {kind}; an id must be text or a whole number")
    declared = [(key, view.key_kind), *((column, view.kinds[name]) for name, column in columns.items())]
    for column, kind in declared:
        found = schema.field(column).type
        if kind is not None and _family(found) not in (_family(kind), None):
            raise SchemaError(
                f"{view.in_words}: column {column!r} of {path} is {found}, but the view declares {kind}; change the "
                "declaration and run `feast apply`, or write the file with the declared type"
            )


def as_key(ids: pa.Array, kind: pa.DataType, view: JoinedView) -> pa.Array:
    """Return ids with the type of a view's key, because text does not join with numbers.

    Raises:
        SchemaError: the key is a whole number, and an id is not.
    """
    try:
        return pc.cast(ids, kind)
    except pa.ArrowInvalid as error:
        raise SchemaError(f"{view.in_words} has {view.key} as {kind}, but an id has another type: {error}") from None


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """Return the type in which ids of a file are compared."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_integer(kind):
        return pa.uint64() if pa.types.is_uint64(kind) else pa.int64()
    return pa.string()


def _plain_dictionary(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.cast(column, column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _plain(column: pa.ChunkedArray, view: JoinedView, name: str) -> pa.ChunkedArray:
    """Return a feature as one of a few types, because the files of a view may encode the same values differently."""
    column = _plain_dictionary(column)
    kind, declared = column.type, view.kinds[name]
    if pa.types.is_timestamp(kind):
        return as_utc(column, name, view.in_words)
    if pa.types.is_date(kind):
        return as_utc(pc.cast(column, pa.timestamp("s")), name, view.in_words)
    if pa.types.is_null(kind):
        return pc.cast(column, declared) if declared is not None else column
    target = _plain_value(kind, declared)
    return column if target == kind else pc.cast(column, target)


def _plain_value(kind: pa.DataType, declared: pa.DataType | None) -> pa.DataType:
    if _is_list(kind):
        inner = declared.value_type if declared is not None and _is_list(declared) else None
        return pa.list_(_plain_value(kind.value_type, inner))
    if _is_text(kind):
        return pa.string()
    if pa.types.is_decimal(kind):
        return pa.float64()
    if declared is not None and (pa.types.is_boolean(declared) or pa.types.is_boolean(kind)):
        return declared
    return kind


def _family(kind: pa.DataType) -> str | None:
    """Return the kind of values of a type, None for a column of nulls."""
    if pa.types.is_dictionary(kind):
        return _family(kind.value_type)
    if pa.types.is_null(kind):
        return None
    if _is_list(kind):
        inner = _family(kind.value_type)
        return None if inner is None else f"list of {inner}"
    if _is_text(kind):
        return "text"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "number"
    if pa.types.is_boolean(kind):
        # Flags are often written as 0 and 1.
        return "number"
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return "time"
    return str(kind)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _one(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
