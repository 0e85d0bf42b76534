"""Ragged arrays: values of many rows one after another, and offsets where each row begins.

Numpy arrays go in and come out. It does not know what the values are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def ragged_positions(first: Array, lengths: Array) -> Array:
    """Return the positions first[i], first[i] + 1, ... (lengths[i] of them) of all i, one after another."""
    total = int(lengths.sum())
    starts = np.cumsum(lengths) - lengths
    return np.arange(total) - np.repeat(starts - first, lengths)


def take_ragged(values: Array, first: Array, rows: Array) -> tuple[Array, Array]:
    """Return the values of the chosen rows of a ragged array, and where each row's begin, [len(rows) + 1]."""
    lengths = first[rows + 1] - first[rows]
    return values[ragged_positions(first[rows], lengths)], np.concatenate([[0], np.cumsum(lengths)])
