"""Test of the order of events: does the previous item predict the next one better than another item of the user?

Input: histories as flat arrays. Output: hit rates of two tables of pairs: one counts neighbours in time, the other
neighbours after shuffling each user's events, with the same number of pairs. If order has no influence, both rates are
equal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LISTED = 10
"""Number of followers of an item among which the next item counts as a hit."""
LEAST_GAIN, LEAST_DEVIATIONS = 1.1, 3.0
"""Minimum ratio of the two hit rates, and minimum difference in standard errors, from which order matters."""

Array = NDArray[Any]


@dataclass(frozen=True)
class EventOrder:
    """Hits of both tables on the same number of test events; results of several parts of the users add up."""

    questions: int
    in_order: int
    shuffled: int

    @property
    def matters(self) -> bool:
        """True if neighbours in time predict clearly better than shuffled ones."""
        if not self.questions:
            return False
        first, second = self.in_order / self.questions, self.shuffled / self.questions
        error = math.sqrt((first * (1 - first) + second * (1 - second)) / self.questions)
        return first > LEAST_GAIN * second and first - second > LEAST_DEVIATIONS * error

    def describe(self) -> str:
        """Return a phrase with the figures."""
        first, second = (hits / max(1, self.questions) for hits in (self.in_order, self.shuffled))
        word = "more than" if self.matters else "no better than"
        return f"the event before predicts the next one {word} any other of the user does ({first:.3f}, {second:.3f})"


def measure_order(items: Array, offsets: Array, item_count: int, *, seed: int = 0) -> EventOrder:
    """Fit both tables on half of the users and test them on one event of each user of the other half.

    items: [events] in the order of time within a user; offsets: [users + 1]; item_count: above every item.
    """
    generator = np.random.default_rng(seed)
    counts = np.diff(offsets)
    user = np.repeat(np.arange(len(counts)), counts)
    item = np.asarray(items, np.int64)
    shuffled = item[np.lexsort((generator.random(len(item)), user))]
    asked_users = generator.random(len(counts)) < 0.5
    follows = user[1:] == user[:-1]
    learned = np.flatnonzero(follows & ~asked_users[user[1:]])
    tables = [_followers(values[learned] * item_count + values[learned + 1], item_count) for values in (item, shuffled)]
    able = np.flatnonzero(asked_users & (counts >= 2))
    # One test event per user, so that they are independent: a random event and the previous one.
    place = offsets[able] + 1 + (generator.random(len(able)) * (counts[able] - 1)).astype(np.int64)
    hits = [
        int(np.isin(values[place - 1] * item_count + values[place], table).sum())
        for values, table in zip((item, shuffled), tables, strict=True)
    ]
    return EventOrder(len(able), *hits)


def _followers(pairs: Array, item_count: int) -> Array:
    """Return the pairs whose second item is among the `LISTED` most frequent followers of the first, ascending."""
    distinct, counts = np.unique(pairs, return_counts=True)
    first = distinct // item_count
    order = np.lexsort((-counts, first))
    begin = np.searchsorted(first[order], first[order])
    return np.sort(distinct[order][np.arange(len(order)) - begin < LISTED])
