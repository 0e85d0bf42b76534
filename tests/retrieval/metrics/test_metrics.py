"""Ranking metrics against numbers worked by hand, ranks against sorting, sums against one pass over all users."""

from __future__ import annotations

import numpy as np
import pytest

from rec_ray.retrieval.metrics.metrics import (
    MetricSums,
    list_diversity,
    ndcg_at_k,
    novelty,
    poisson_draws,
    recall_at_k,
    reciprocal_rank,
    target_ranks_from_lists,
    target_ranks_from_scores,
)
from rec_ray.retrieval.search import ExactTopK, Exclusions

# four users: targets at 1 and 4; at 3; none; at 2 and one that is not in the ranking
RANKS = np.array([1, 4, 3, 2, 0])
OFFSETS = np.array([0, 2, 3, 3, 5])


def test_recall_divides_by_the_number_of_targets():
    np.testing.assert_array_equal(recall_at_k(RANKS, OFFSETS, 1), [0.5, 0, np.nan, 0])
    np.testing.assert_array_equal(recall_at_k(RANKS, OFFSETS, 3), [0.5, 1, np.nan, 0.5])
    np.testing.assert_array_equal(recall_at_k(RANKS, OFFSETS, 100), [1, 1, np.nan, 0.5])


def test_ndcg_by_hand():
    # user 0: (1/log2 2 + 1/log2 5) / (1/log2 2 + 1/log2 3) = (1 + 0.43068) / 1.63093 = 0.87722; user 1: 1/log2 4 = 0.5
    # user 3: 1/log2 3 / 1.63093 = 0.38685
    np.testing.assert_allclose(ndcg_at_k(RANKS, OFFSETS, 5), [0.87722, 0.5, np.nan, 0.38685], atol=1e-5)
    # k = 1: the ideal is one target at the first place
    np.testing.assert_array_equal(ndcg_at_k(RANKS, OFFSETS, 1), [1, 0, np.nan, 0])
    np.testing.assert_array_equal(ndcg_at_k(np.array([1, 2, 3]), np.array([0, 3]), 3), [1])


def test_reciprocal_rank_is_that_of_the_best_target():
    np.testing.assert_array_equal(reciprocal_rank(RANKS, OFFSETS), [1, 1 / 3, np.nan, 0.5])
    np.testing.assert_array_equal(reciprocal_rank(RANKS, OFFSETS, 2), [1, 0, np.nan, 0.5])
    np.testing.assert_array_equal(reciprocal_rank(np.array([7, 3, 0]), np.array([0, 3, 3])), [1 / 3, np.nan])


def test_no_users():
    none, offsets = np.zeros(0, np.int64), np.zeros(1, np.int64)
    for metric in (recall_at_k, ndcg_at_k, reciprocal_rank):
        assert metric(none, offsets, 10).shape == (0,)


def sorted_ranks(scores, targets, offsets):
    ranks = []
    for user in range(len(scores)):
        order = np.argsort(-scores[user], kind="stable")
        for target in targets[offsets[user] : offsets[user + 1]]:
            gone = np.isneginf(scores[user, target])
            ranks.append(0 if gone else int(np.flatnonzero(order == target)[0]) + 1)
    return np.array(ranks, np.int64)


@pytest.mark.parametrize("kind", ["spread", "ties"])
@pytest.mark.parametrize("item_count, user_count", [(1, 1), (50, 3), (4500, 40), (9001, 150)])
def test_target_ranks_equal_those_of_sorting(item_count, user_count, kind):
    rng = np.random.default_rng(item_count)
    draw = (lambda *shape: rng.standard_normal(shape)) if kind == "spread" else (lambda *s: rng.integers(-1, 2, s))
    items, queries = (draw(count, 8).astype(np.float32) for count in (item_count, user_count))
    lengths = rng.integers(0, 4, user_count)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    targets = rng.integers(0, item_count, offsets[-1])
    gone = np.concatenate([[0], np.cumsum(rng.integers(0, 30, user_count))])
    exclude = Exclusions(rng.integers(0, item_count, gone[-1]).astype(np.int32), gone)
    allowed = rng.random(item_count) < 0.9
    score = np.zeros((user_count, item_count), np.float32)
    for i in range(8):
        score = (score + queries[:, i, None].astype(float) * items[None, :, i]).astype(np.float32)

    search = ExactTopK(items)
    ranks = search.target_ranks(queries, targets, offsets)
    np.testing.assert_array_equal(ranks, sorted_ranks(score, targets, offsets))
    np.testing.assert_array_equal(ranks, target_ranks_from_scores(score, targets, offsets))
    lists = search.search(queries, item_count)[0]
    np.testing.assert_array_equal(ranks, target_ranks_from_lists(lists, targets, offsets))

    score[:, ~allowed] = -np.inf
    score[np.repeat(np.arange(user_count), np.diff(gone)), exclude.values] = -np.inf
    expected = target_ranks_from_scores(score, targets, offsets)
    np.testing.assert_array_equal(expected, sorted_ranks(score, targets, offsets))
    ranks = search.target_ranks(queries, targets, offsets, exclude, allowed)
    np.testing.assert_array_equal(ranks, expected)


def test_ranks_from_lists():
    lists = np.array([[5, 2, 9], [1, -1, -1]])
    ranks = target_ranks_from_lists(lists, np.array([9, 3, 1]), np.array([0, 2, 3]))
    np.testing.assert_array_equal(ranks, [3, 0, 1])


def test_novelty_in_bits():
    # counts 3, 1, 0 with one added to each: p = 4/7, 2/7, 1/7
    value = novelty(np.array([[0, 1], [2, -1], [-1, -1]]), np.array([3, 1, 0]), 4)
    np.testing.assert_allclose(value, [(np.log2(7 / 4) + np.log2(7 / 2)) / 2, np.log2(7), np.nan])


def test_sums_of_blocks_equal_one_pass():
    rng = np.random.default_rng(0)
    users, values = rng.permutation(1000), {"recall@10": rng.random(1000), "mrr": rng.random(1000)}
    values["mrr"][::7] = np.nan
    whole = MetricSums(["recall@10", "mrr"], seed=3)
    whole.add(users, values)
    merged = MetricSums(["recall@10", "mrr"], seed=3)
    for block in np.array_split(rng.permutation(1000), 4):
        merged.add(users[block], {name: column[block] for name, column in values.items()})
    assert merged.users() == {"recall@10": 1000, "mrr": 857}
    assert merged.means() == pytest.approx({name: np.nanmean(column) for name, column in values.items()})
    for name, interval in whole.intervals().items():
        assert merged.intervals()[name] == pytest.approx(interval)


def test_intervals_have_the_width_of_the_standard_error():
    values = (np.arange(4000) % 10 == 0).astype(float)
    sums = MetricSums(["hit"], replicates=1000)
    sums.add(np.arange(4000), {"hit": values})
    low, high = sums.intervals()["hit"]
    error = 1.96 * values.std() / np.sqrt(4000)
    assert low < 0.1 < high
    assert (high - low) / 2 == pytest.approx(error, rel=0.12)


def test_paired_difference_is_narrower_than_two_intervals():
    rng = np.random.default_rng(1)
    base = rng.random(2000)
    one, two = MetricSums(["m"]), MetricSums(["m"])
    one.add(np.arange(2000), {"m": base + 0.01 + rng.normal(0, 0.01, 2000)})
    two.add(np.arange(2000), {"m": base})
    low, high = one.interval_of_difference(two, "m")
    assert 0.009 < low < 0.01 < high < 0.011


def test_poisson_draws_are_poisson_and_do_not_depend_on_the_block():
    draws = poisson_draws(np.arange(5000), 50, seed=0)
    assert draws.mean() == pytest.approx(1, abs=0.01)
    assert draws.var() == pytest.approx(1, abs=0.02)
    assert np.abs(np.corrcoef(draws)[np.triu_indices(50, 1)]).max() < 0.1
    np.testing.assert_array_equal(poisson_draws(np.arange(100, 200), 50, seed=0), draws[:, 100:200])
    assert (poisson_draws(np.arange(5000), 50, seed=1) != draws).mean() > 0.5


def test_sums_refuse_what_does_not_fit():
    sums = MetricSums(["a"])
    with pytest.raises(ValueError, match="expected the metrics"):
        sums.add(np.arange(2), {"b": np.zeros(2)})
    with pytest.raises(ValueError, match="same replicates"):
        sums.interval_of_difference(MetricSums(["a"], seed=1), "a")
    assert np.isnan(sums.means()["a"]) and np.isnan(sums.intervals()["a"]).all()


def test_diversity_is_one_less_the_mean_cosine_of_two_items():
    vectors = np.array([[2, 0], [0, 3], [1, 0], [-1, 0], [1, 1]], np.float32)
    lists = np.array([[0, 2, -1], [0, 1, -1], [0, 1, 2], [0, 3, -1], [0, 4, -1], [1, -1, -1], [-1, -1, -1]])
    found = list_diversity(lists, vectors)
    assert found[:5] == pytest.approx([0, 1, 1 - 1 / 3, 2, 1 - 0.5**0.5])
    assert np.isnan(found[5:]).all()
