"""Arrow columns of raw features as arrays: numbers, bags of strings, bags of hashed n-grams, vectors.

Input: a column and its declaration. Output: flat numpy arrays, ragged ones as counts and flat values; a column that
cannot be read as declared raises a `SchemaError`. Nothing here is fitted.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rec_ray.errors import SchemaError, list_names
from rec_ray.retrieval.ragged import ragged_positions
from rec_ray.schema import FeatureDeclaration

Array = npt.NDArray[Any]

LARGEST = float(np.finfo(np.float32).max)


def index_of(values: pa.Array | pa.ChunkedArray, known: pa.Array) -> Array:
    """Return the position of each value in `known` as [n] int32, -1 for an unknown or null value."""
    values = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    index = pc.index_in(pc.cast(values, pa.string()), value_set=known, skip_nulls=True)
    return pc.fill_null(index, -1).to_numpy(zero_copy_only=False)


def _column(table: pa.Table, name: str) -> pa.Array:
    if name not in table.column_names:
        raise SchemaError(f"there is no feature {name!r}; the table has {list_names(table.column_names)}")
    column = table.column(name)
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def is_list(kind: pa.DataType) -> bool:
    """Return True for an Arrow list type of any layout."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _read_as(column: pa.Array, kind: pa.DataType, name: str, declaration: FeatureDeclaration) -> pa.Array:
    try:
        # Numbers may lose digits; bytes must be text.
        return pc.cast(column, kind, safe=pa.types.is_string(kind))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise SchemaError(
            f"feature {name!r} is declared as {declaration.kind}, but its values are {column.type}: {error}"
        ) from None


def as_numbers(table: pa.Table, name: str, declaration: FeatureDeclaration) -> Array:
    """Return a column as [n] float64; null, NaN and values beyond float32 are NaN. Timestamps are days since 1970."""
    column = _column(table, name)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_null(column.type):
        return np.full(len(column), np.nan)
    if declaration.kind == "timestamp":
        if not (pa.types.is_timestamp(column.type) or pa.types.is_date(column.type)):
            raise SchemaError(f"feature {name!r} is declared as timestamp, but its values are {column.type}")
        micros = pc.cast(pc.cast(column, pa.timestamp("us", getattr(column.type, "tz", None)), safe=False), pa.int64())
        values = pc.cast(micros, pa.float64(), safe=False).to_numpy(zero_copy_only=False) / 86_400e6
    else:
        kind = column.type
        readable = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
        if not (readable or pa.types.is_decimal(kind)):
            raise SchemaError(f"feature {name!r} is declared as numeric, but its values are {kind}")
        values = pc.cast(column, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return np.where(np.abs(values) <= LARGEST, values, np.nan)


def as_values(table: pa.Table, name: str, declaration: FeatureDeclaration) -> tuple[Array, pa.Array]:
    """Return a column as bags of strings: the number per row [n], and the flat strings of all rows."""
    column = _column(table, name)
    listlike = is_list(column.type)
    if listlike and declaration.kind in ("categories", "category_path"):
        lists = column
    elif listlike:
        raise SchemaError(f"feature {name!r} is declared as {declaration.kind}, but its values are lists")
    else:
        strings = _read_as(column, pa.string(), name, declaration)
        if declaration.kind == "text":
            # Unicode composition, so that both encodings of an accented letter are equal.
            lowered = pc.utf8_lower(pc.utf8_normalize(strings, form="NFKC"))
            lists = pc.split_pattern_regex(lowered, pattern=r"[^\pL\pM\pN]+")
        elif declaration.kind == "categorical" or declaration.separator is None:
            lists = pa.ListArray.from_arrays(_unit_offsets(strings), strings.drop_null())
        else:
            lists = pc.split_pattern(strings, pattern=declaration.separator)
    counts = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    values = _read_as(pc.list_flatten(lists), pa.string(), name, declaration)
    if declaration.kind in ("categories", "category_path"):
        values = pc.utf8_trim_whitespace(values)
    if declaration.kind == "category_path":
        values = _prefixes(counts, values, declaration.separator or "|")
    keep = pc.and_(pc.is_valid(values), pc.fill_null(pc.not_equal(values, ""), False))
    kept = keep.to_numpy(zero_copy_only=False)
    if not kept.all():
        row = np.repeat(np.arange(len(counts)), counts)
        counts = np.bincount(row[kept], minlength=len(counts))
        values = values.filter(keep)
    return counts.astype(np.int32), values


def _unit_offsets(strings: pa.Array) -> pa.Array:
    """Return the offsets of a list array with one element for each valid string and none for a null."""
    valid = pc.is_valid(strings).to_numpy(zero_copy_only=False)
    return pa.array(np.concatenate([[0], np.cumsum(valid)]), pa.int32())


def _prefixes(counts: Array, values: pa.Array, separator: str) -> pa.Array:
    """Turn the parts of each path into its prefixes: a, b, c -> a, a|b, a|b|c; an empty part stays empty."""
    parts = values.to_pylist()
    prefixes: list[str] = []
    place = 0
    for count in counts.tolist():
        prefix = ""
        for part in parts[place : place + count]:
            if part:
                prefix = f"{prefix}{separator}{part}" if prefix else part
            prefixes.append(prefix if part else "")
        place += count
    return pa.array(prefixes, pa.string())


def hash_words(counts: Array, words: pa.Array, buckets: int, offset: int) -> tuple[Array, Array]:
    """Hash each word and its character trigrams into buckets: bags of words -> bags of tokens (fastText's idea)."""
    if len(words) == 0:
        return counts, np.zeros(0, np.int32)
    encoded = words.dictionary_encode()
    per_word = []
    for word in encoded.dictionary.to_pylist():
        padded = f"<{word}>"
        grams = {word, *(padded[i : i + 3] for i in range(len(padded) - 2))} if len(word) > 3 else {word}
        per_word.append(sorted(offset + zlib.crc32(gram.encode()) % buckets for gram in grams))
    lengths = np.array([len(grams) for grams in per_word])
    flat = np.array([token for grams in per_word for token in grams], np.int32)
    index = encoded.indices.to_numpy(zero_copy_only=False)
    tokens = flat[ragged_positions(np.cumsum(lengths)[index] - lengths[index], lengths[index])]
    row = np.repeat(np.arange(len(counts)), counts)
    return np.bincount(row, weights=lengths[index], minlength=len(counts)).astype(np.int32), tokens


def as_vectors(table: pa.Table, name: str, declaration: FeatureDeclaration) -> Array:
    """Return a column of lists as [n, length] float32; a null vector is zero, and so is a value that is not finite."""
    column = _column(table, name)
    length = declaration.length
    if length is None:
        raise SchemaError(f"feature {name!r} is declared as vector without a length; add `length:`")
    lists = _read_as(column, pa.list_(pa.float32()), name, declaration)
    lengths = pc.list_value_length(lists)
    wrong = pc.filter(lengths, pc.fill_null(pc.not_equal(lengths, length), False))
    if len(wrong):
        raise SchemaError(f"feature {name!r} is declared as a vector of {length}, but one has {wrong[0]} values")
    out = np.zeros((table.num_rows, length), np.float32)
    valid = pc.is_valid(lists).to_numpy(zero_copy_only=False)
    flat = pc.fill_null(pc.list_flatten(lists), 0.0).to_numpy(zero_copy_only=False)
    out[valid] = np.nan_to_num(flat.reshape(-1, length), nan=0.0, posinf=0.0, neginf=0.0)
    return out


def interleave(bags: list[tuple[Array, Array]], n: int) -> tuple[Array, Array]:
    """Interleave the bags of several fields row by row: [T] tokens and [n, fields] counts."""
    if not bags:
        return np.zeros(0, np.int32), np.zeros((n, 0), np.int32)
    counts = np.stack([bag_counts for bag_counts, _ in bags], axis=1).astype(np.int32)
    if len(bags) == 1:
        return bags[0][1], counts
    ends = np.cumsum(counts.reshape(-1)).reshape(counts.shape)
    tokens = np.empty(int(counts.sum()), np.int32)
    for j, (bag_counts, bag) in enumerate(bags):
        tokens[ragged_positions(ends[:, j] - bag_counts, bag_counts)] = bag
    return tokens, counts
