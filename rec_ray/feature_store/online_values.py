"""Comparison of a value of the offline store with the same value of the online store.

Online stores keep times in seconds and less precise numbers, and return null for NaN and for an empty list.
"""

from __future__ import annotations

import math
from datetime import UTC, date, datetime
from typing import Any

import numpy as np


def is_same(offline: Any, online: Any) -> bool:
    """Return whether two values are equal within the precision of online stores."""
    return is_equal(plain_value(offline), plain_value(online))


def plain_value(value: Any) -> Any:
    """Return a value in a form that both stores share: no numpy types, times in UTC, empty lists and NaN as None."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day, tzinfo=UTC)
    if isinstance(value, list | tuple | np.ndarray):
        return [plain_value(each) for each in value] or None
    return None if isinstance(value, float) and math.isnan(value) else value


def is_equal(one: Any, other: Any) -> bool:
    """Return whether two results of `plain_value` are equal; numbers of different types may be."""
    if isinstance(one, bool) or isinstance(other, bool) or one is None or other is None:
        return one is other or (one is not None and other is not None and type(one) is type(other) and one == other)
    if isinstance(one, datetime) and isinstance(other, datetime):
        # Online stores keep seconds.
        return abs((one - other).total_seconds()) < 1
    if isinstance(one, int | float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-5, abs_tol=1e-9)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(is_equal, one, other))
    return type(one) is type(other) and bool(one == other)
