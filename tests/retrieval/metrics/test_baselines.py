"""Counting recommenders on histories small enough to count by hand, and blocks against the whole."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from rec_ray.errors import EmptyDataError
from rec_ray.retrieval.metrics import baselines
from rec_ray.retrieval.metrics.baselines import (
    Popularity,
    count_cooccurrences,
    count_popularity,
    count_transitions,
    fit_item_knn,
    fit_random_walk,
    fit_transitions,
)

# users: 0 1 2 | 0 1 | 3 1 1 | nothing
ITEMS = np.array([0, 1, 2, 0, 1, 3, 1, 1], np.int32)
OFFSETS = np.array([0, 3, 5, 8, 8])


def dense(counts):
    table = np.zeros(counts.item_count**2)
    table[counts.pairs] = counts.weights
    return table.reshape(counts.item_count, -1)


def random_timelines(seed, users, item_count):
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(0, 12, users))])
    return rng.integers(0, item_count, offsets[-1]).astype(np.int32), offsets


def test_popularity():
    weights = count_popularity(ITEMS, 5)
    np.testing.assert_array_equal(weights, [2, 4, 1, 1, 0])
    np.testing.assert_array_equal(Popularity(weights).scores(ITEMS, OFFSETS), np.tile(weights, (4, 1)))


def test_recent_popularity_halves_with_each_half_life():
    weights = count_popularity(np.array([0, 0, 1]), 2, times=np.array([100, 90, 80]), now=100, half_life=10)
    np.testing.assert_allclose(weights, [1.5, 0.25])
    with pytest.raises(ValueError, match="half_life"):
        count_popularity(np.array([0]), 1, half_life=3)


def test_transitions_by_hand():
    counts = count_transitions(ITEMS, OFFSETS, 4)
    np.testing.assert_array_equal(dense(counts), [[0, 2, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0]])
    np.testing.assert_array_equal(counts.users_per_item, [2, 3, 1, 1])
    farther = count_transitions(ITEMS, OFFSETS, 4, reach=2)
    np.testing.assert_array_equal(dense(farther), [[0, 2, 0.5, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 1.5, 0, 0]])


def test_transition_scores_follow_the_last_item_then_popularity():
    model = fit_transitions(count_transitions(ITEMS, OFFSETS, 4))
    scores = model.scores(np.array([1, 0, 2]), np.array([0, 2, 3, 3]))
    assert scores[0, 1] == pytest.approx(2) and (scores[0, [0, 2, 3]] < 0).all()
    assert scores[1].argmax() == scores[2].argmax() == 1  # nothing followed item 2; an empty history
    assert scores[2, 1] > scores[2, 0] > scores[2, 2] == scores[2, 3]


def test_the_more_popular_item_wins_a_tie():
    items, offsets = np.array([0, 1, 0, 2, 2]), np.array([0, 2, 4, 5])  # 1 and 2 followed 0 once each
    scores = fit_transitions(count_transitions(items, offsets, 3)).scores(np.array([0]), np.array([0, 1]))
    np.testing.assert_array_equal(np.argsort(-scores[0]), [2, 1, 0])


def test_more_history_fades():
    model = fit_transitions(count_transitions(ITEMS, OFFSETS, 4), history=2, decay=0.5)
    scores = model.scores(np.array([3, 0, 1]), np.array([0, 3]))
    np.testing.assert_allclose(scores[0, [2, 1]], [1, 0.5 * 2])


def test_item_knn_by_hand():
    counts = count_cooccurrences(ITEMS, OFFSETS, 4)
    np.testing.assert_array_equal(dense(counts), [[0, 2, 1, 0], [2, 0, 1, 1], [1, 1, 0, 0], [0, 1, 0, 0]])
    model = fit_item_knn(counts, decay=0.5)
    scores = model.scores(np.array([3, 0]), np.array([0, 2]))
    # cosines: (0, 1) 2 / sqrt(2 * 3); (0, 2) 1 / sqrt(2); (3, 1) 1 / sqrt(3)
    assert scores[0, 1] == pytest.approx(2 / np.sqrt(6) + 0.5 / np.sqrt(3))
    assert scores[0, 2] == pytest.approx(1 / np.sqrt(2))


def test_random_walk_by_hand():
    """Users have 3, 2 and 2 items: from 0 to 1 by both of its users, 1/2 (1/3 + 1/2), over the root of 3 users."""
    counts = count_cooccurrences(ITEMS, OFFSETS, 4)
    scores = fit_random_walk(counts, beta=0.5).scores(np.array([0]), np.array([0, 1]))[0]
    assert scores[1] == pytest.approx((1 / 3 + 1 / 2) / 2 / np.sqrt(3), rel=1e-6)
    assert scores[2] == pytest.approx(1 / 3 / 2 / 1, rel=1e-6)
    with pytest.raises(ValueError, match="no steps"):
        fit_random_walk(count_transitions(ITEMS, OFFSETS, 4))


def test_the_steps_of_blocks_add_up_exactly_in_any_order():
    items, offsets = random_timelines(7, 300, 40)
    cuts = [0, 90, 200, 300]
    blocks = [
        count_cooccurrences(items[offsets[a] : offsets[b]], offsets[a : b + 1] - offsets[a], 40)
        for a, b in itertools.pairwise(cuts)
    ]
    whole = count_cooccurrences(items, offsets, 40)
    for order in ([0, 1, 2], [2, 0, 1]):
        merged = blocks[order[0]].merge(blocks[order[1]]).merge(blocks[order[2]])
        np.testing.assert_array_equal(merged.steps, whole.steps)
        np.testing.assert_array_equal(merged.pairs, whole.pairs)


def test_cooccurrences_look_at_the_last_distinct_items():
    items, offsets = np.array([0, 1, 2, 1]), np.array([0, 4])
    counts = count_cooccurrences(items, offsets, 3, history=2)
    np.testing.assert_array_equal(dense(counts), [[0, 0, 0], [0, 0, 1], [0, 1, 0]])


def test_only_the_strongest_neighbours_are_kept():
    items, offsets = random_timelines(0, 300, 40)
    counts = count_cooccurrences(items, offsets, 40)
    full, short = (fit_item_knn(counts, neighbours=size) for size in (1000, 3))
    for item in range(40):
        weights = np.sort(full.weights[full.offsets[item] : full.offsets[item + 1]])[::-1]
        np.testing.assert_array_equal(short.weights[short.offsets[item] : short.offsets[item + 1]], weights[:3])


@pytest.mark.parametrize("count", [count_transitions, count_cooccurrences])
def test_blocks_of_users_merge_to_the_whole(count):
    items, offsets = random_timelines(1, 400, 60)
    whole = count(items, offsets, 60)
    merged = count(items[: offsets[150]], offsets[:151], 60).merge(
        count(items[offsets[150] :], offsets[150:] - offsets[150], 60)
    )
    np.testing.assert_array_equal(dense(merged), dense(whole))
    np.testing.assert_array_equal(merged.users_per_item, whole.users_per_item)
    np.testing.assert_array_equal(merged.events_per_item, whole.events_per_item)


def test_counts_do_not_depend_on_how_much_waits(monkeypatch):
    items, offsets = random_timelines(4, 100, 30)
    whole = count_cooccurrences(items, offsets, 30)
    monkeypatch.setattr(baselines._Sums, "most_waiting", 50)
    np.testing.assert_array_equal(dense(count_cooccurrences(items, offsets, 30)), dense(whole))


def test_a_limit_on_pairs_drops_the_weakest_and_says_so():
    items, offsets = random_timelines(2, 400, 60)
    whole = count_transitions(items, offsets, 60)
    empty = count_transitions(items[:0], np.array([0]), 60)
    cut = whole.merge(empty, most_pairs=100)
    assert len(cut.pairs) == 100 and cut.dropped == len(whole.pairs) - 100
    assert cut.weights.min() >= np.sort(whole.weights)[-100]
    assert (np.diff(cut.pairs) > 0).all()


def test_a_world_of_steps_is_learned():
    rng = np.random.default_rng(3)
    starts = rng.integers(0, 50, 200)
    items = ((starts[:, None] + np.arange(6)) % 50).reshape(-1)
    offsets = np.arange(0, 1201, 6)
    model = fit_transitions(count_transitions(items, offsets, 50))
    scores = model.scores(np.arange(50), np.arange(51))
    np.testing.assert_array_equal(scores.argmax(axis=1), (np.arange(50) + 1) % 50)


def test_no_events_are_refused():
    with pytest.raises(EmptyDataError):
        fit_transitions(count_transitions(np.zeros(0, np.int32), np.array([0, 0]), 3))
