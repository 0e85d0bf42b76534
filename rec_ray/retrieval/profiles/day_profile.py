"""Counts of the events of each of the last days: types, hours, negatives, unknown items, repeats, the busiest user.

Input: arrays over the events of a block. Days are those of UTC. Blocks add up with `merge_days`, which keeps the last
`DAYS` days of all blocks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

DAYS = 35
"""Days that are kept: five weeks, so that each weekday occurs five times."""
SECONDS_A_DAY = 86_400
HOURS = 24


@dataclass
class DayProfile:
    """Events of one day. top_user: events of the busiest user. types: type -> events; an empty name for no type."""

    events: int = 0
    negatives: int = 0
    unknown_items: int = 0
    repeats: int = 0
    top_user: int = 0
    types: Counter[str] = field(default_factory=Counter)
    hours: list[int] = field(default_factory=lambda: [0] * HOURS)

    def merge(self, other: DayProfile) -> DayProfile:
        """Add the events of other users."""
        for name in ("events", "negatives", "unknown_items", "repeats"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.top_user = max(self.top_user, other.top_user)
        self.types.update(other.types)
        self.hours = [mine + theirs for mine, theirs in zip(self.hours, other.hours, strict=True)]
        return self


def merge_days(mine: dict[int, DayProfile], theirs: Mapping[int, DayProfile]) -> dict[int, DayProfile]:
    """Return the days of both, by days since 1970, without those that are too old."""
    for day, profile in theirs.items():
        mine[day] = mine[day].merge(profile) if day in mine else profile
    newest = max(mine, default=0)
    return {day: mine[day] for day in sorted(mine) if day > newest - DAYS}


def profile_days(
    seconds: Array,
    user: Array,
    type_index: Array,
    type_names: list[str],
    *,
    negative: Array,
    unknown: Array,
    repeated: Array,
) -> dict[int, DayProfile]:
    """Return the profile of each of the last days of a block.

    seconds: [E] since 1970. user: [E] index. type_index: [E] index in `type_names`, -1 for none. negative, unknown,
    repeated: [E] bool.
    """
    if not len(seconds):
        return {}
    days = seconds // SECONDS_A_DAY
    newest = int(days.max())
    recent = np.flatnonzero(days > newest - DAYS)
    place = days[recent] - (newest - DAYS + 1)
    types = len(type_names) + 1
    by_type = _table(place, type_index[recent] + 1, types)
    by_hour = _table(place, seconds[recent] % SECONDS_A_DAY // 3600, HOURS)
    pairs, counts = np.unique(place * (int(user.max()) + 1) + user[recent], return_counts=True)
    top = np.zeros(DAYS, np.int64)
    np.maximum.at(top, pairs // (int(user.max()) + 1), counts)
    counted = [np.bincount(place[flag[recent]], minlength=DAYS).tolist() for flag in (negative, unknown, repeated)]
    names = ["", *type_names]
    found = {}
    for number in np.unique(place).tolist():
        of_types = Counter({name: int(n) for name, n in zip(names, by_type[number], strict=True) if n})
        negatives, unknowns, repeats = (each[number] for each in counted)
        hours = by_hour[number].tolist()
        profile = DayProfile(sum(hours), negatives, unknowns, repeats, int(top[number]), of_types, hours)
        found[newest - DAYS + 1 + number] = profile
    return found


def _table(place: Array, column: Array, columns: int) -> Array:
    return np.bincount(place * columns + column, minlength=DAYS * columns).reshape(DAYS, columns)
