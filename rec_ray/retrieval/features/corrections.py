"""Corrected events: of several rows with the same keys and time, only the one with the latest creation time counts.

Feast applies the same rule to a view whose source has a `created_timestamp_column`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def is_superseded(user: Array, key: Array, time: Array, created: Array, order: Array) -> Array:
    """Return [n] bool: another row of the same user, key and time was created later, or at the same time and follows.

    user, key, time, created, order: [n] integers.
    """
    by_revision = np.lexsort((order, created, key, time, user))
    same = np.ones(max(len(user) - 1, 0), bool)
    for values in (user, key, time):
        ordered = values[by_revision]
        same &= ordered[1:] == ordered[:-1]
    superseded = np.zeros(len(user), bool)
    superseded[by_revision[:-1]] = same
    return superseded
