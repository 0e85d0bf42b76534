"""Ragged arrays against rows written by hand."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from rec_ray.retrieval.ragged import filter_values, flat_values, lists_of, row_offsets, take_rows, value_rows

VALUES, OFFSETS = np.array([10, 11, 12, 13, 14]), np.array([0, 2, 2, 5])
NO_VALUES, NO_ROWS = np.zeros(0, np.int64), np.zeros(1, np.int64)


def test_offsets_and_rows_of_lengths() -> None:
    assert row_offsets(np.array([2, 0, 3])).tolist() == OFFSETS.tolist()
    assert row_offsets(NO_VALUES).tolist() == [0] and row_offsets(NO_VALUES).dtype == np.int64
    assert value_rows(OFFSETS).tolist() == [0, 0, 2, 2, 2] and value_rows(NO_ROWS).tolist() == []


def test_rows_are_taken_in_the_order_of_their_places_and_may_be_repeated() -> None:
    values, offsets = take_rows(VALUES, OFFSETS, np.array([2, 1, 0, 2]))
    assert values.tolist() == [12, 13, 14, 10, 11, 12, 13, 14] and offsets.tolist() == [0, 3, 3, 5, 8]
    values, offsets = take_rows(VALUES, OFFSETS, NO_VALUES)
    assert values.tolist() == [] and offsets.tolist() == [0]


def test_values_are_filtered_within_their_rows() -> None:
    values, offsets = filter_values(VALUES, OFFSETS, VALUES % 2 == 0)
    assert values.tolist() == [10, 12, 14] and offsets.tolist() == [0, 1, 1, 3]
    values, offsets = filter_values(VALUES, OFFSETS, np.zeros(5, bool))
    assert values.tolist() == [] and offsets.tolist() == [0, 0, 0, 0]
    values, offsets = filter_values(NO_VALUES, NO_ROWS, np.zeros(0, bool))
    assert values.tolist() == [] and offsets.tolist() == [0]


def test_lists_of_and_flat_values_are_inverse() -> None:
    lists = lists_of(np.array([2, 0, 1]), np.array([7, 8, 9]), pa.int32())
    assert lists.to_pylist() == [[7, 8], [], [9]]
    assert flat_values(pa.chunked_array([lists, lists.slice(2)])).tolist() == [7, 8, 9, 9]
    assert flat_values(lists.slice(1)).tolist() == [9]
    assert lists_of(np.zeros(0, np.int64), np.zeros(0), pa.float32()).to_pylist() == []


def test_lists_beyond_32_bit_offsets_are_refused() -> None:
    with pytest.raises(pa.ArrowInvalid, match="not in range"):
        lists_of(np.array([2**31]), np.zeros(0), pa.float32())
