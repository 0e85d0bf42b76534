"""Segments worked out by hand."""

import numpy as np
import pytest

from rec_ray.retrieval.metrics.segments import (
    activity_bounds,
    describe_segment,
    segment_items,
    segment_users,
)


@pytest.mark.parametrize(
    ("events", "bounds"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 8], (2, 4, 6)),
        ([0, 0, 0, 1, 2, 3, 4], (1, 2, 3)),
        ([5, 5, 5, 5], (5, 5, 5)),
        ([1, 1, 1, 1, 1, 1, 9, 9], (1, 1, 1)),
        ([0, 0], (0, 0, 0)),
        ([3], (3, 3, 3)),
    ],
)
def test_bounds_cut_the_users_who_have_events_into_quarters(events, bounds):
    assert activity_bounds(np.bincount(events)) == bounds


def test_without_users_there_are_bounds_all_the_same():
    assert activity_bounds(np.zeros(0, np.int64)) == (0, 0, 0)


def test_each_user_is_cold_or_in_one_quarter():
    events = np.array([0, 1, 2, 3, 4, 5, 6, 100])
    masks = segment_users(events, (2, 4, 6))
    assert {name: np.flatnonzero(mask).tolist() for name, mask in masks.items()} == {
        "cold_users": [0],
        "warm_users": [1, 2, 3, 4, 5, 6, 7],
        "activity_1": [1, 2],
        "activity_2": [3, 4],
        "activity_3": [5, 6],
        "activity_4": [7],
    }
    quarters = np.stack([masks[f"activity_{number}"] for number in range(1, 5)])
    assert (quarters.sum(axis=0) == masks["warm_users"]).all()


def test_users_with_equal_numbers_are_together():
    masks = segment_users(np.array([5, 5, 6]), (5, 5, 5))
    assert [name for name, mask in masks.items() if mask.any()] == ["warm_users", "activity_1", "activity_4"]


def test_items_are_cold_when_nothing_was_learned_from_them():
    masks = segment_items(np.array([0, 3, 1]))
    assert list(masks) == ["cold_items", "warm_items"]
    assert masks["cold_items"].tolist() == [True, False, False]
    assert masks["warm_items"].tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("segment", "bounds", "words"),
    [
        ("cold_users", (2, 4, 6), "users without history"),
        ("warm_items", (2, 4, 6), "items learned from"),
        ("activity_1", (1, 4, 6), "users with 1 event"),
        ("activity_1", (2, 4, 6), "users with 1 to 2 events"),
        ("activity_2", (2, 3, 6), "users with 3 events"),
        ("activity_3", (2, 4, 1600), "users with 5 to 1,600 events"),
        ("activity_4", (2, 4, 6), "users with 7 events or more"),
    ],
)
def test_a_quarter_is_called_by_its_numbers(segment, bounds, words):
    assert describe_segment(segment, bounds) == words
