"""Events that are negative by their value, such as a rating of -1 or one star of five.

Input: the values of events and the lowest value of a positive. Output: a mask, and separate event types for negative
events, so that likes and dislikes differ in a history.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Array = npt.NDArray[Any]

DISLIKED = "(disliked)"
"""Suffix of the event type of an event that is negative by its value; a type declared negative keeps its name."""


def is_disliked(values: Array, min_positive_value: float | None) -> Array:
    """Return [n] bool: the event is negative by its value.

    values: [n], NaN where an event has none. min_positive_value: None makes values at or below zero negative.
    """
    disliked: Array = values <= 0 if min_positive_value is None else values < min_positive_value
    return disliked


def rename_disliked(types: pa.Array, disliked: Array, negative_types: Sequence[str]) -> pa.Array:
    """Return the event types, those of disliked events with the suffix `DISLIKED`. types: [n] strings or nulls."""
    known = pc.fill_null(types, "")
    declared = pc.is_in(known, value_set=pa.array(list(negative_types), pa.string()))
    renamed = pc.utf8_trim_whitespace(pc.binary_join_element_wise(known, DISLIKED, " "))
    return pc.if_else(pc.and_(pa.array(disliked), pc.invert(declared)), renamed, types)


def with_disliked(types: Iterable[str]) -> list[str]:
    """Return event types and their renamed forms of `rename_disliked`; both belong to the declared type."""
    return [name for event_type in types for name in (event_type, f"{event_type} {DISLIKED}".strip())]
