"""Lists chosen from pools where the right choice can be read off, and from random ones against a loop."""

import math

import numpy as np
import pytest

from rec_ray.retrieval.lists.rerank import CandidatePool, RerankOptions, rerank


def choose(scores, k, **options):
    """Rerank pools that hold item i at place i; return the chosen items of each user, as lists."""
    scores = np.atleast_2d(np.array(scores, np.float32))
    items = np.tile(np.arange(scores.shape[1]), (len(scores), 1))
    places = rerank(CandidatePool(np.where(np.isfinite(scores), items, -1), scores), k, RerankOptions(**options))
    return [row[row >= 0].tolist() for row in places]


def flags(count, *places):
    return np.isin(np.arange(count), places)


DOWN = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]


def test_without_options_the_order_stays_and_holes_are_skipped():
    assert choose([DOWN, [0.9, -np.inf, 0.7, 0.6, -np.inf, 0.4, 0.3, 0.2]], 3) == [[0, 1, 2], [0, 2, 3]]
    assert choose([DOWN[:2]], 5) == [[0, 1]]


def test_at_most_n_of_a_category_and_the_rest_in_order():
    categories = np.array([0, 0, 0, 1, 1, 2, 0, 1]).reshape(-1, 1)
    assert choose(DOWN, 4, categories=categories, most_per_category=1) == [[0, 3, 5]]
    assert choose(DOWN, 5, categories=categories, most_per_category=2) == [[0, 1, 3, 4, 5]]
    none = np.array([0, 0, 0, -1, -1, -1, 0, -1]).reshape(-1, 1)
    assert choose(DOWN, 5, categories=none, most_per_category=1) == [[0, 3, 4, 5, 7]]


def test_an_item_of_two_categories_needs_room_in_both():
    categories = np.array([[0, -1], [0, 1], [1, -1], [2, 1], [-1, -1], [2, -1], [1, 0], [0, -1]])
    assert choose(DOWN, 8, categories=categories, most_per_category=1) == [[0, 2, 4, 5]]


def test_new_items_have_their_share_of_every_beginning():
    assert choose(DOWN, 4, fresh=flags(8, 5, 7), fresh_share=0.5) == [[0, 5, 1, 7]]
    assert choose(DOWN, 6, fresh=flags(8, 5, 7), fresh_share=0.25) == [[0, 1, 2, 5, 3, 4]]
    assert choose(DOWN, 4, fresh=flags(8, 0, 1), fresh_share=0.5) == [[0, 1, 2, 3]], "there are enough by themselves"
    assert choose(DOWN, 4, fresh=flags(8, 6), fresh_share=0.9) == [[0, 6, 1, 2]], "as long as there are any"


def test_items_that_must_be_there_take_the_last_places_or_better_ones_of_their_own():
    assert choose(DOWN, 3, always=flags(8, 1, 7)) == [[0, 1, 7]]
    assert choose(DOWN, 3, always=flags(8, 5, 6, 7)) == [[5, 6, 7]]
    assert choose(DOWN, 2, always=flags(8, 5, 6, 7)) == [[5, 6]], "more than there is room for: the best"
    assert choose([DOWN, [*DOWN[:7], -np.inf]], 2, always=flags(8, 7)) == [[0, 7], [0, 1]], "not in the pool"


def test_items_that_must_be_there_count_in_their_category_and_are_there_though_it_is_full():
    categories = np.zeros((8, 1), np.int64)
    categories[[2, 3]] = 1
    found = choose(DOWN, 4, categories=categories, most_per_category=1, always=flags(8, 6))
    assert found == [[2, 6]], "0 and 1 would be a second of category 0"
    found = choose(DOWN, 4, categories=categories, most_per_category=1, always=flags(8, 6, 7))
    assert found == [[2, 6, 7]]


def test_maximal_marginal_relevance_prefers_the_unlike():
    vectors = np.array([[1, 0], [1, 0], [0, 1], [1, 0]], np.float32)
    scores = [0.9, 0.8, 0.5, 0.4]
    assert choose(scores, 3, diversity=0.0, vectors=vectors.__getitem__) == [[0, 1, 2]]
    # After item 0: 0.7 * 0.8 - 0.3 * 1 = 0.26 against 0.7 * 0.5 - 0.3 * 0 = 0.35.
    assert choose(scores, 3, diversity=0.3, vectors=vectors.__getitem__) == [[0, 2, 1]]
    # 0.9 * 0.8 - 0.1 = 0.62 against 0.45.
    assert choose(scores, 3, diversity=0.1, vectors=vectors.__getitem__) == [[0, 1, 2]]


def by_loop(scores, k, categories, most, always, fresh, share, diversity, vectors):
    """Choose for one user, an item after the other."""
    chosen = []
    counts = {}
    for item in np.flatnonzero(always & np.isfinite(scores)):
        for code in set(categories[item]) - {-1}:
            counts[code] = counts.get(code, 0) + 1
    while len(chosen) < k:
        left = [i for i in range(len(scores)) if np.isfinite(scores[i]) and i not in chosen]
        fits = [i for i in left if always[i] or all(counts.get(c, 0) < most for c in set(categories[i]) - {-1})]
        new = [i for i in fits if fresh[i]]
        if new and sum(fresh[i] for i in chosen) < math.floor(share * (len(chosen) + 1) + 1e-9):
            fits = new
        waiting = [i for i in fits if always[i]]
        if waiting and sum(always[i] for i in left) >= k - len(chosen):
            fits = waiting
        if not fits:
            break
        worth = [
            (1 - diversity) * float(scores[i])
            - (diversity * max(float(vectors[i] @ vectors[j]) for j in chosen) if chosen else 0)
            for i in fits
        ]
        best = fits[int(np.argmax(np.round(worth, 6)))]
        chosen.append(best)
        if not always[best]:
            for code in set(categories[best]) - {-1}:
                counts[code] = counts.get(code, 0) + 1
    return chosen


@pytest.mark.parametrize("diversity", [0.0, 0.5])
def test_all_options_at_once_are_those_of_a_loop(diversity):
    rng = np.random.default_rng(5)
    users, items, k = 70, 60, 20
    scores = np.sort(rng.normal(size=(users, items)).astype(np.float32), axis=1)[:, ::-1].copy()
    scores[rng.random(scores.shape) < 0.2] = -np.inf
    vectors = rng.normal(size=(items, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    categories = np.sort(rng.integers(-1, 9, size=(items, 2)), axis=1)
    categories[categories[:, 0] == categories[:, 1], 0] = -1
    options = {
        "categories": categories,
        "most_per_category": 3,
        "always": flags(items, 3, 40, 59),
        "fresh": rng.random(items) < 0.1,
        "fresh_share": 0.3,
        "diversity": diversity,
        "vectors": vectors.__getitem__,
    }
    found = choose(scores, k, **options)
    for user in range(users):
        expected = by_loop(scores[user], k, categories, 3, options["always"], options["fresh"], 0.3, diversity, vectors)
        assert found[user] == expected, user
    assert {len(chosen) for chosen in found} != {k}, "some lists are short"
