"""Parallel counts of the events before the test, from which baselines and segments are fitted.

Input: encoded timelines as a Ray dataset. Output: the fitted baselines as a reference into Ray's object store, the
bounds of user activity, and the periods of the split. Blocks are counted concurrently.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import ray.data

from rec_ray.contracts import KNN, POPULARITY, RANDOM_WALK, RECENT, TRANSITIONS
from rec_ray.logs import LOGGER
from rec_ray.retrieval.features.batch import FeatureShape
from rec_ray.retrieval.features.timelines import Timelines
from rec_ray.retrieval.metrics.baselines import (
    Neighbours,
    PairCounts,
    Popularity,
    count_cooccurrences,
    count_popularity,
    count_transitions,
    fit_item_knn,
    fit_random_walk,
    fit_transitions,
)
from rec_ray.retrieval.metrics.holdout import positives_before_test, users_with_targets
from rec_ray.retrieval.metrics.segments import activity_bounds
from rec_ray.schema import Split

HALF_LIVES = 20
"""Number of half-lives of recent popularity in the period before the test."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Counted:
    """Baselines and counts for the ranking.

    baselines: reference to the fitted baselines by name. bounds: activity bounds of the evaluated users.
    periods: `train`, `validation` and `test` -> number of events, and the seconds since 1970 of the first and the last.
    """

    baselines: ray.ObjectRef
    bounds: tuple[int, int, int]
    periods: dict[str, tuple[int, int, int]]


def fit_baselines(timelines: ray.data.Dataset, shape: FeatureShape, items: int) -> Counted:
    """Count the events before the test, block by block.

    shape: shape of the user features in the timelines. items: size of the catalogue.
    """
    blocks = timelines.materialize().to_arrow_refs()
    surveys = ray.get([_survey.remote(block, shape) for block in blocks])
    firsts = [survey.first for survey in surveys if survey.first is not None]
    lasts = [survey.last for survey in surveys if survey.last is not None]
    first, last = (min(firsts), max(lasts)) if firsts else (0, 1)
    users = np.zeros(max((len(survey.users_by_events) for survey in surveys), default=0), np.int64)
    for survey in surveys:
        users[: len(survey.users_by_events)] += survey.users_by_events
    counts = [_count.remote(block, shape, items + 1, last, (last - first) / HALF_LIVES) for block in blocks]
    while len(counts) > 1:
        counts = [_merge.remote(*counts[i : i + 8]) for i in range(0, len(counts), 8)]
    periods = {}
    for label, name in ((Split.TRAIN, "train"), (Split.VALIDATION, "validation"), (Split.TEST, "test")):
        parts = [survey.periods[label] for survey in surveys if label in survey.periods]
        if parts:
            numbers, begins, ends = zip(*parts, strict=True)
            periods[name] = (sum(numbers), min(begins), max(ends))
    fitted, dropped = _fit.remote(counts[0])
    if pairs := ray.get(dropped):
        LOGGER.warning(
            "the rarest %s pairs of items are left out of item-kNN, the random walk and transitions, to bound memory: "
            "these figures may be a little too low",
            f"{pairs:,}",
        )
    return Counted(fitted, activity_bounds(users), periods)


@dataclass(frozen=True)
class _Survey:
    """Survey of a block, which counting needs first.

    first, last: seconds of the positives before the test. users_by_events: of the users with a target.
    periods: label of the split -> its number of events, and the seconds of the first and last event.
    """

    first: int | None
    last: int | None
    users_by_events: Array
    periods: dict[int, tuple[int, int, int]]


@dataclass(frozen=True)
class _Counts:
    together: PairCounts
    following: PairCounts
    popularity: Array
    recent: Array


@ray.remote(num_cpus=1)
def _survey(block: pa.Table, shape: FeatureShape) -> _Survey:
    timelines = Timelines.from_table(block, shape)
    seconds = positives_before_test(timelines)[1]
    events = timelines.events_before(Split.TEST)[1][users_with_targets(timelines)]
    first, last = (int(seconds.min()), int(seconds.max())) if len(seconds) else (None, None)
    periods = {}
    for label in np.unique(timelines.split).tolist():
        own = timelines.event_seconds[timelines.split == label]
        periods[label] = (len(own), int(own.min()), int(own.max()))
    return _Survey(first, last, np.bincount(events), periods)


@ray.remote(num_cpus=1)
def _count(block: pa.Table, shape: FeatureShape, item_count: int, now: int, half_life: float) -> _Counts:
    items, seconds, offsets = positives_before_test(Timelines.from_table(block, shape))
    return _Counts(
        count_cooccurrences(items, offsets, item_count),
        count_transitions(items, offsets, item_count),
        count_popularity(items, item_count),
        count_popularity(items, item_count, times=seconds, now=now, half_life=max(half_life, 1.0)),
    )


@ray.remote(num_cpus=1)
def _merge(first: _Counts, *others: _Counts) -> _Counts:
    merged = first
    for other in others:
        merged = _Counts(
            merged.together.merge(other.together),
            merged.following.merge(other.following),
            merged.popularity + other.popularity,
            merged.recent + other.recent,
        )
    return merged


@ray.remote(num_cpus=1, num_returns=2)
def _fit(counts: _Counts) -> tuple[dict[str, Popularity | Neighbours], int]:
    """Return the baselines, and the number of pairs that did not fit into memory."""
    baselines: dict[str, Popularity | Neighbours] = {
        POPULARITY: Popularity(counts.popularity),
        RECENT: Popularity(counts.recent),
        KNN: fit_item_knn(counts.together),
        RANDOM_WALK: fit_random_walk(counts.together),
        TRANSITIONS: fit_transitions(counts.following),
    }
    return baselines, counts.together.dropped + counts.following.dropped
