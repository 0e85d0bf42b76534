"""Proposes settings for the values of events, such as ratings: use them or not, and which values are negative.

Input: the distinct values of a column with their counts. Output: a `ValueProposal` with a sentence that `init` prints.
Only `init` uses it; a run follows the settings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

RATING_NAMES = ("rating", "rate", "star", "score", "grade", "review")
"""Parts of column names that indicate a rating; values alone do not, because quantities are small whole numbers too."""
NO_RATING_NAMES = ("quantity", "qty", "count", "amount", "price", "number", "second", "duration")
RATING_TOPS = (5.0, 10.0)
"""Best values of the common rating scales, which begin at 1."""
MANY_TIMES = 20.0
"""Maximum ratio of the largest value to the median; a greater one would give most events a tiny weight."""


@dataclass(frozen=True)
class ValueProposal:
    """The settings `value_field` (used or null) and `min_positive_value`, and the reason in one sentence."""

    use: bool
    min_positive_value: float | None
    reason: str


def propose_values(column: str, counts: Mapping[float, int]) -> ValueProposal:
    """Propose settings for the values of events.

    column: name of the column in the data. counts: finite value -> number of events.
    """
    values = sorted(float(value) for value, count in counts.items() if count and math.isfinite(value))
    if not values:
        return ValueProposal(False, None, f"{column}: no event has a value, so it is not used")
    total = sum(counts[value] for value in values)
    low, high, zeros = values[0], values[-1], counts.get(0.0, 0)
    span = f"{column} {low:g} to {high:g}"
    if low < 0 or values == [0.0, 1.0]:
        below = sum(counts[value] for value in values if value <= 0)
        return ValueProposal(True, None, f"{span}: values at or below 0 count as negative ({_share(below, total)})")
    if high <= 0:
        return ValueProposal(False, None, f"{column}: every value is 0, so it is not used")
    if zeros * 2 > total:
        reason = f"{span}: {_share(zeros, total)} are 0, which probably means no value, so the column is not used"
        return ValueProposal(False, None, reason)
    if _is_rating(column, values):
        least = (1 + high) / 2
        below = sum(counts[value] for value in values if value < least)
        reason = f"{span}, a rating of 1 to {high:g}: weight = value / {high:g}"
        return ValueProposal(True, least, f"{reason}; below {least:g} counts as negative ({_share(below, total)})")
    if high > MANY_TIMES * _median(values, counts, total):
        reason = f"{span}: a few values are far above the others, which would all get a tiny weight; not used"
        return ValueProposal(False, None, reason)
    negative = f"; 0 counts as negative ({_share(zeros, total)})" if zeros else ""
    return ValueProposal(True, None, f"{span}: weight = value / {high:g}{negative}")


def _is_rating(column: str, values: list[float]) -> bool:
    name = column.lower()
    named = any(part in name for part in RATING_NAMES) and not any(part in name for part in NO_RATING_NAMES)
    return named and values[-1] in RATING_TOPS and all((value * 2).is_integer() for value in values)


def _median(values: list[float], counts: Mapping[float, int], total: int) -> float:
    passed = 0
    for value in values:
        passed += counts[value]
        if passed * 2 >= total:
            return value
    return values[-1]


def _share(part: int, total: int) -> str:
    return f"{part / total:.0%} of {total:,} values"
