"""The share of one user in the events: a crawler or a shared account may have most of them.

Events that lie together by user come in. Those beyond the newest of a user go out as a mask, so that no user teaches
more than others by mere number, and the user with the most events, so that a person can look at it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Array = npt.NDArray[Any]


def beyond_newest(user: Array, split: Array, most: int | None) -> Array:
    """Return [n] bool: the event is older than the newest `most` of its user with the same label of the split.

    user, split: [n], the events of a user lie together in the order of time, and so do those of a label. most: None
    bounds nothing.
    """
    n = len(user)
    if most is None or n <= most:
        return np.zeros(n, bool)
    begins = np.ones(n, bool)
    begins[1:] = (user[1:] != user[:-1]) | (split[1:] != split[:-1])
    ends = np.append(np.flatnonzero(begins)[1:], n)
    beyond: Array = ends[np.cumsum(begins) - 1] - np.arange(n) > most
    return beyond


def largest_user(user: Array, user_ids: pa.Array) -> tuple[str, int]:
    """Return the id and the number of events of the user with the most; without events an empty id and 0.

    user: [n] places in `user_ids`.
    """
    if not len(user):
        return "", 0
    counts = np.bincount(user)
    place = int(counts.argmax())
    return user_ids[place].as_py(), int(counts[place])
