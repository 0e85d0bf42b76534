"""Share of one user in the events: a crawler or a shared account may have most of them.

Input: events grouped by user. Output: a mask of events beyond the newest ones of a user, so that no user dominates the
training, and the user with the most events, for a person to check.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Array = npt.NDArray[Any]


def beyond_newest(user: Array, split: Array, most: int | None) -> Array:
    """Return [n] bool: the event is older than the newest `most` of its user with the same label of the split.

    user, split: [n], grouped by user in the order of time, with the events of a label adjacent. most: None means no
    bound.
    """
    n = len(user)
    if most is None or n <= most:
        return np.zeros(n, bool)
    begins = np.ones(n, bool)
    begins[1:] = (user[1:] != user[:-1]) | (split[1:] != split[:-1])
    ends = np.append(np.flatnonzero(begins)[1:], n)
    beyond: Array = ends[np.cumsum(begins) - 1] - np.arange(n) > most
    return beyond


USUAL_SHARE, TIMES_USUAL, LEAST_BOUND = 0.9, 10, 100
"""Bound: TIMES_USUAL times the number of events that USUAL_SHARE of the users do not exceed; at least LEAST_BOUND."""


def usual_bound(users_by_events: Array) -> int:
    """Return a bound on the events of one user that only outliers exceed.

    users_by_events: [m] number of users with 0, 1, 2, ... events; users without any do not count.
    """
    users = np.array(users_by_events, np.int64)
    users[:1] = 0
    through = np.cumsum(users)
    if not len(through) or not through[-1]:
        return LEAST_BOUND
    usual = int(np.searchsorted(through, USUAL_SHARE * through[-1]))
    return max(LEAST_BOUND, TIMES_USUAL * usual)


def largest_user(user: Array, user_ids: pa.Array) -> tuple[str, int]:
    """Return the id and the number of events of the user with the most; without events an empty id and 0.

    user: [n] indices of `user_ids`.
    """
    if not len(user):
        return "", 0
    counts = np.bincount(user)
    place = int(counts.argmax())
    return user_ids[place].as_py(), int(counts[place])
