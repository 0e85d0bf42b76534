"""The questions of an evaluation: which items did each user take after the test began, asked of every method alike.

Timelines with their split and the catalogue as of the test come in; out go the users who can be asked about, their
targets, what is left out of the ranking and their histories. It knows no model, no metric and no raw id.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rec_ray.contracts import TEST
from rec_ray.retrieval.features.catalogue import Catalogue
from rec_ray.retrieval.features.timelines import Timelines
from rec_ray.retrieval.model.inference import seen_items, without
from rec_ray.retrieval.ragged import take_ragged

Array = NDArray[Any]
Ragged = tuple[Array, Array]


@dataclass(frozen=True)
class Questions:
    """Users of a block with the held-out items that can be ranked for them.

    users: [q] places in the timelines. targets: [t] items, those of question i from `offsets[i]` to `offsets[i + 1]`.
    exclude: ragged items that the ranking leaves out, or None. history: the positives before the test, ragged.
    events: [q] events of any kind before the test.
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
class HeldOut:
    """What became of the held-out positives of a block."""

    targets: int
    seen_targets: int
    unknown_targets: int


def users_with_targets(timelines: Timelines) -> Array:
    """Return the places of the users who have a held-out positive."""
    return np.flatnonzero(np.diff(timelines.positives(TEST)[1]) > 0)


def positives_before_test(timelines: Timelines) -> tuple[Array, Array, Array]:
    """Return the positives before the test: item index [E], second [E], and where each user's begin [u + 1]."""
    chosen = (timelines.split < TEST) & (timelines.weight > 0)
    user = np.repeat(np.arange(len(timelines)), np.diff(timelines.first))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(user[chosen], minlength=len(timelines)))])
    return timelines.item_index[chosen], timelines.event_seconds[chosen], offsets


def ask(timelines: Timelines, users: Array, catalogue: Catalogue, *, exclude_seen: bool) -> tuple[Questions, HeldOut]:
    """Return the questions about some users, and what became of their held-out positives.

    users: [u] places. A target is an item known before the test; with `exclude_seen` one that the user had not seen.
    Users of whom no target is left are not asked about.
    """
    targets, offsets = take_ragged(*timelines.positives(TEST), users)
    known = catalogue.known[targets]
    owner = np.repeat(np.arange(len(users)), np.diff(offsets))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owner[known], minlength=len(users)))])
    targets, offsets = without(targets[known], offsets, None)
    distinct = len(targets)
    seen = seen_items(timelines, users, TEST) if exclude_seen else None
    if seen is not None:
        targets, offsets = without(targets, offsets, seen)
    held_out = HeldOut(len(targets), distinct - len(targets), int((~known).sum()))
    asked = np.flatnonzero(np.diff(offsets) > 0)
    targets, offsets = take_ragged(targets, offsets, asked)
    items, _, begin = positives_before_test(timelines)
    chosen = users[asked]
    questions = Questions(
        timelines=timelines,
        users=chosen,
        targets=targets,
        offsets=offsets,
        exclude=None if seen is None else take_ragged(*seen, asked),
        history=take_ragged(items, begin, chosen),
        events=timelines.events_before(TEST)[1][chosen],
    )
    return questions, held_out
