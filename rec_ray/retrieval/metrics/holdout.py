"""Held-out targets of an evaluation: the items that each user took after the test start, the same for every method.

Input: timelines with split labels, and the catalogue as of the test start. Output: the users who have targets, their
targets, the items excluded from their rankings, and their histories.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rec_ray.retrieval.features.catalogue import Catalogue
from rec_ray.retrieval.features.timelines import Timelines
from rec_ray.retrieval.model.inference import drop_excluded, seen_items
from rec_ray.retrieval.ragged import Ragged, take_rows
from rec_ray.schema import Split

Array = NDArray[Any]


@dataclass(frozen=True)
class Holdout:
    """Users of a block with the held-out items that can be ranked for them.

    users: [q] places in the timelines. targets: [t] items; those of user i are `targets[offsets[i]:offsets[i + 1]]`.
    exclude: ragged items that are left out of the ranking, or None. history: ragged positives before the test. events:
    [q] events of any type before the test.
    """

    timelines: Timelines
    users: Array
    targets: Array
    offsets: Array
    exclude: Ragged | None
    history: Ragged
    events: Array

    def __len__(self) -> int:
        """Number of users."""
        return len(self.users)


@dataclass(frozen=True)
class HoldoutCounts:
    """Numbers of held-out positives of a block: ranked targets, items already seen, items not in the catalogue."""

    targets: int
    seen_targets: int
    unknown_targets: int


def users_with_targets(timelines: Timelines) -> Array:
    """Return the places of the users who have a held-out positive."""
    return np.flatnonzero(np.diff(timelines.positives(Split.TEST)[1]) > 0)


def positives_before_test(timelines: Timelines) -> tuple[Array, Array, Array]:
    """Return the positives before the test: item index [E], second [E], and the offsets of users [u + 1]."""
    chosen = (timelines.split < Split.TEST) & (timelines.weight > 0)
    user = np.repeat(np.arange(len(timelines)), np.diff(timelines.first))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(user[chosen], minlength=len(timelines)))])
    return timelines.item_index[chosen], timelines.event_seconds[chosen], offsets


def collect_held_out(
    timelines: Timelines, users: Array, catalogue: Catalogue, *, exclude_seen: bool
) -> tuple[Holdout, HoldoutCounts]:
    """Return the targets of some users, and the numbers of their held-out positives.

    users: [u] places. A target is an item known before the test; with `exclude_seen` also one that the user has not
    seen before. Users without a target are left out.
    """
    targets, offsets = take_rows(*timelines.positives(Split.TEST), users)
    known = catalogue.known[targets]
    owner = np.repeat(np.arange(len(users)), np.diff(offsets))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owner[known], minlength=len(users)))])
    targets, offsets = drop_excluded(targets[known], offsets, None)
    distinct = len(targets)
    seen = seen_items(timelines, users, Split.TEST) if exclude_seen else None
    if seen is not None:
        targets, offsets = drop_excluded(targets, offsets, seen)
    held_out = HoldoutCounts(len(targets), distinct - len(targets), int((~known).sum()))
    with_target = np.flatnonzero(np.diff(offsets) > 0)
    targets, offsets = take_rows(targets, offsets, with_target)
    items, _, begin = positives_before_test(timelines)
    chosen = users[with_target]
    questions = Holdout(
        timelines=timelines,
        users=chosen,
        targets=targets,
        offsets=offsets,
        exclude=None if seen is None else take_rows(*seen, with_target),
        history=take_rows(items, begin, chosen),
        events=timelines.events_before(Split.TEST)[1][chosen],
    )
    return questions, held_out
