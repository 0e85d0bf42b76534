"""Segments of users and items with metrics of their own: new ones, known ones, and users by activity.

Input: numbers of events. Output: one mask per segment name; a user or a held-out item may be in several segments.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

QUARTERS = 4

Mask = NDArray[np.bool_]
Counts = NDArray[np.integer[Any]]


def activity_bounds(users_by_events: Counts) -> tuple[int, int, int]:
    """Return the largest number of events in each of the three lower quarters of the users who have any event.

    users_by_events: [m] number of users with 0, 1, 2, ... events. Users with equal numbers are in one quarter, so a
    quarter may be larger than the others or empty: if all users have five events, all are in the first quarter.
    """
    users = np.array(users_by_events, np.int64)
    users[:1] = 0
    through = np.cumsum(users)
    total = int(through[-1]) if len(through) else 0
    if not total:
        return (0, 0, 0)
    first, second, third = (int(np.searchsorted(through, total * part / QUARTERS)) for part in (1, 2, 3))
    return (first, second, third)


def segment_users(events: Counts, bounds: tuple[int, int, int]) -> dict[str, Mask]:
    """Return the mask of each segment: cold_users, warm_users and activity_1 to activity_4; [users].

    events: [users] events before the test. A user without events is cold; the others are in a quarter by `bounds`.
    """
    quarter = np.searchsorted(np.array(bounds), events, side="left")
    warm = events > 0
    return {"cold_users": ~warm, "warm_users": warm} | {
        f"activity_{number + 1}": warm & (quarter == number) for number in range(QUARTERS)
    }


def segment_items(learned: Counts) -> dict[str, Mask]:
    """Return the mask of each segment: cold_items and warm_items; [targets].

    learned: [targets] training positives of the item; an item without any is cold.
    """
    return {"cold_items": learned == 0, "warm_items": learned > 0}


def describe_segment(name: str, bounds: tuple[int, int, int]) -> str:
    """Return the display name of a segment; a quarter is named by its numbers of events."""
    names = {
        "cold_users": "users without history",
        "warm_users": "users with history",
        "cold_items": "items never learned from",
        "warm_items": "items learned from",
    }
    if name in names:
        return names[name]
    quarter = int(name.rpartition("_")[2])
    least = 1 if quarter == 1 else bounds[quarter - 2] + 1
    if quarter == QUARTERS:
        return f"users with {least:,} events or more"
    most = bounds[quarter - 1]
    return (
        f"users with {least:,} event{'s' if most > 1 else ''}"
        if most <= least
        else f"users with {least:,} to {most:,} events"
    )
