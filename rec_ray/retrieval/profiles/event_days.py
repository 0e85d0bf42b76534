"""Comparison of the events of single days: days of both nights, and new days against the usual ones.

A day of both nights must have the same events in both, because the past does not change. A new day is compared with the
range of the live version's days, so that weekends and campaigns of the last weeks count as usual.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from rec_ray.retrieval.profiles.checks import WARNED, Check, at_least, at_most
from rec_ray.retrieval.profiles.data_profile import DataProfile
from rec_ray.retrieval.profiles.day_profile import DAYS, SECONDS_A_DAY, DayProfile
from rec_ray.retrieval.profiles.feature_profile import LEAST_ROWS, index_of_counts

MANY = 20
"""Minimum events of a day for a comparison of single days: below it a day may have half as many by chance."""
LATE_DAYS = 2
"""Days before the newest event of the live version in which events may still have been missing."""
USUAL = 1.5
"""Factor over the largest deviation among the live version's own days that counts as usual."""


@dataclass(frozen=True)
class EventDays:
    """Days of two nights. old: complete days of the live version. past: those that the new night must have too.

    now: days of the new night. fresh: complete days that the live version had not completely.
    """

    old: Mapping[int, DayProfile]
    past: list[int]
    now: Mapping[int, DayProfile]
    fresh: list[int]

    @classmethod
    def of(cls, new: DataProfile, live: DataProfile) -> EventDays:
        """Divide the days of two profiles."""
        last = max(live.days, default=0)
        if (last + 1) * SECONDS_A_DAY > live.as_of:
            last -= 1  # The live version was made during its last day.
        newest = max(new.days, default=0)
        first = max(newest - DAYS + 1, new.oldest // SECONDS_A_DAY + 1)
        old = {day: profile for day, profile in live.days.items() if day <= last}
        complete = min(newest, new.as_of // SECONDS_A_DAY - 1)
        # Without any new event the last day of both nights is the same part of a day.
        fresh = range(max(last + 1, first), complete + 1) if new.newest > live.newest else range(0)
        return cls(old, [day for day in old if day >= first], new.days, list(fresh))

    def new_events(self) -> DayProfile:
        """Return all fresh days as one."""
        total = DayProfile()
        for day in self.fresh:
            total.merge(self.now.get(day, DayProfile()))
        return total


def compare_days(days: EventDays, *, loss: float, shift: float) -> list[Check]:
    """Return the checks of single days. loss, shift: as in `compare_profiles`."""
    return [*_past(days, loss), *_amounts(days, loss), *_shares(days, loss), *_distributions(days, shift)]


def _past(days: EventDays, loss: float) -> Iterator[Check]:
    last = max(days.old, default=0)
    lowest, highest, low_day, high_day = 1.0, 1.0, last, last
    for day in days.past:
        before, now = days.old[day].events, days.now.get(day, DayProfile()).events
        if before < MANY:
            continue
        if now / before < lowest:
            lowest, low_day = now / before, day
        if now / before > highest and day <= last - LATE_DAYS:
            highest, high_day = now / before, day
    if days.past:
        said = f"{_date(low_day)} has {lowest:.0%} of the events that it had for the live version"
        yield at_least("data.past_days_missing", lowest, 1 - loss, said)
        said = f"{_date(high_day)} has {highest:.0%} of the events that it had for the live version"
        # A source that was completed later looks the same, and learning from it does no harm.
        yield at_most("data.past_days_doubled", highest, 1 + loss, said, WARNED)


def _amounts(days: EventDays, loss: float) -> Iterator[Check]:
    if not days.old or not days.fresh:
        return
    usual = [days.old.get(day, DayProfile()).events for day in range(min(days.old), max(days.old) + 1)]
    counts = {day: days.now.get(day, DayProfile()).events for day in days.fresh}
    expected, found = float(np.median(usual)) * len(counts), sum(counts.values())
    if expected >= MANY:
        said = f"{found:,} events on {len(counts)} new days, {expected:,.0f} at the usual rate"
        yield at_least("data.events_a_day", found / expected, loss, said)
    if min(usual) >= MANY:
        day = min(counts, key=lambda each: counts[each])
        said = f"{_date(day)} has {counts[day]:,} events; the day with the fewest before had {min(usual):,}"
        yield at_least("data.lowest_day", counts[day] / min(usual), 0.5, said)
    if max(usual) >= MANY:
        day = max(counts, key=lambda each: counts[each])
        said = f"{_date(day)} has {counts[day]:,} events; the day with the most before had {max(usual):,}"
        yield at_most("data.highest_day", counts[day] / max(usual), 3.0, said, WARNED)


def _shares(days: EventDays, loss: float) -> Iterator[Check]:
    new, old = days.new_events(), list(days.old.values())
    total = sum(day.events for day in old)
    if new.events < LEAST_ROWS or total < LEAST_ROWS:
        return
    for name, said in (
        ("negatives", "of negative types or values"),
        ("unknown_items", "of items that are not in the catalogue"),
        ("repeats", "repetitions of another event"),
    ):
        share, before = getattr(new, name) / new.events, sum(getattr(day, name) for day in old) / total
        what = f"{share:.1%} of the new events are {said}, {before:.1%} before"
        yield at_most(f"data.{name}", share - before, loss, what)
    many = [day for day in days.fresh if days.now.get(day, DayProfile()).events >= LEAST_ROWS]
    if many:
        share = max(days.now[day].top_user / days.now[day].events for day in many)
        before = max((day.top_user / day.events for day in old if day.events >= LEAST_ROWS), default=0.0)
        what = f"one user has {share:.0%} of the events of a new day, at most {before:.0%} before"
        yield at_most("data.top_user", share, max(loss, USUAL * before), what)


def _distributions(days: EventDays, shift: float) -> Iterator[Check]:
    """Compare event types and hours of the new days with the days before, by the largest deviation of one of those."""
    new, old = days.new_events(), [day for day in days.old.values() if day.events >= LEAST_ROWS]
    if new.events < LEAST_ROWS or len(old) < 2:
        return
    names = sorted({*new.types, *(name for day in old for name in day.types)})
    views: tuple[tuple[str, str, Any], ...] = (
        ("event_types", "types", lambda day: np.array([day.types[name] for name in names], np.float64)),
        ("hours", "hours of the day", lambda day: np.array(day.hours, np.float64)),
    )
    for name, said, counts_of in views:
        rows = np.array([counts_of(day) for day in old])
        own = max(index_of_counts(row, rows.sum(0) - row) for row in rows)
        index = index_of_counts(counts_of(new), rows.sum(0))
        what = f"the {said} of the new events have a stability index of {index:.2f}; days before had up to {own:.2f}"
        yield at_most(f"data.{name}", index, max(shift, USUAL * own), what)


def _date(day: int) -> str:
    return f"{datetime.fromtimestamp(day * SECONDS_A_DAY, UTC):%Y-%m-%d}"
