"""Ragged arrays: rows of different lengths as flat values and offsets.

The values of row i are `values[offsets[i]:offsets[i + 1]]`. Functions take and return such pairs, select rows or values
of them, and convert to and from list columns of Arrow. The module depends on numpy and pyarrow only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Array = npt.NDArray[Any]
Ragged = tuple[Array, Array]
"""Values [total] and offsets [rows + 1] int64."""


def row_offsets(lengths: Array) -> Array:
    """Return the offsets [rows + 1] int64 of rows of these lengths [rows]."""
    return np.concatenate([[0], np.cumsum(lengths)])


def value_rows(offsets: Array) -> Array:
    """Return the row of each value: [total] int64."""
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))


def ragged_positions(first: Array, lengths: Array) -> Array:
    """Return the positions first[i], first[i] + 1, ... (lengths[i] of them) of all rows i, concatenated: [total]."""
    total = int(lengths.sum())
    starts = np.cumsum(lengths) - lengths
    return np.arange(total) - np.repeat(starts - first, lengths)


def take_rows(values: Array, offsets: Array, rows: Array) -> Ragged:
    """Return the rows at the places `rows` [m], in that order; a row may be taken several times."""
    lengths = offsets[rows + 1] - offsets[rows]
    taken = row_offsets(lengths)
    return values[ragged_positions(offsets[rows], lengths)], taken


def filter_values(values: Array, offsets: Array, kept: Array) -> Ragged:
    """Return the values whose flag in `kept` [total] bool is set, in the same rows."""
    return values[kept], row_offsets(kept)[offsets]


def lists_of(lengths: Array, values: Array, kind: pa.DataType) -> pa.ListArray:
    """Return a list column of Arrow. lengths: [rows]; values: [sum of lengths]; kind: type of the values.

    Raises:
        ArrowInvalid: the values are more than 32-bit offsets address.
    """
    return pa.ListArray.from_arrays(pa.array(row_offsets(lengths), pa.int32()), pa.array(values, kind))


def flat_values(column: pa.ChunkedArray | pa.ListArray) -> Array:
    """Return all values of a list column as one array [total]."""
    lists = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return lists.flatten().to_numpy(zero_copy_only=False)
