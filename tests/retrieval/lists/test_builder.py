"""Lists are those of a loop over users that looks at every item, whatever is filtered, grouped or taken from deeper."""

import numpy as np
import pyarrow as pa
import pytest
from test_item_filters import NOW

from rec_ray.config import FilterSettings
from rec_ray.retrieval.lists import builder as recommending
from rec_ray.retrieval.lists.builder import ListBuilder
from rec_ray.retrieval.lists.item_filters import evaluate_item_filters
from rec_ray.retrieval.lists.user_rules import Bags
from rec_ray.retrieval.search import ExactTopK

USERS, ITEMS = 300, 700
AGES = {"item": "age_limit", "must_be": "at_most", "user": "age"}


@pytest.fixture(scope="module")
def shop():
    """Vectors of users and items, raw fields of both, and what users have seen."""
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(ITEMS, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries = rng.normal(size=(USERS, 8)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    fields = pa.table(
        {
            "available": rng.random(ITEMS) < 0.8,
            "category": [f"c{number}" for number in rng.integers(0, 12, ITEMS)],
            "age_limit": rng.choice([0.0, 12.0, 16.0, 18.0], ITEMS),
            "price": rng.random(ITEMS),
            "first_seen": pa.array([NOW] * 50 + [None] * (ITEMS - 50), pa.timestamp("us", "UTC")),
        }
    )
    users = {"age": pa.array(rng.integers(8, 30, USERS)), "budget": pa.array(rng.random(USERS))}
    lengths = rng.integers(0, 30, USERS)
    seen = rng.integers(0, ITEMS, int(lengths.sum()))
    return vectors, queries, fields, users, (seen, np.concatenate([[0], np.cumsum(lengths)]))


def build(shop, k, *, exclude=True, diversity=0.0, fresh_share=0.0, **declared):
    vectors, queries, fields, users, seen = shop
    ids = pa.array([f"i{number:03d}" for number in range(ITEMS)])
    filters = evaluate_item_filters(
        FilterSettings(**declared),
        fields,
        ids,
        NOW,
        item_features={},
        user_features={},
        fresh_days=1 if fresh_share else None,
    )
    rows = vectors.__getitem__
    builder = ListBuilder(ExactTopK(vectors, threads=1), rows, rows, filters, diversity, fresh_share, True)
    lists = builder.build(queries, k, seen if exclude else None, users)
    scores = queries @ vectors.T
    for row, score, own in zip(lists.indices, lists.scores, scores, strict=True):
        kept = row >= 0
        assert score[kept] == pytest.approx(own[row[kept]], abs=1e-5)
        assert kept.all() or (np.isneginf(score[~kept]).all() and not kept[np.argmin(kept) :].any())
    return [row[row >= 0].tolist() for row in lists.indices], lists.emptied_by.to_pylist()


def ranking(shop, user, fits, exclude=True):
    """Return all items that fit a user, best first."""
    vectors, queries, _, _, (seen, offsets) = shop
    own = set(seen[offsets[user] : offsets[user + 1]].tolist()) if exclude else set()
    order = np.argsort(-(vectors @ queries[user]), kind="stable")
    return [int(item) for item in order if fits[item] and int(item) not in own]


def test_without_filters_lists_are_the_best_items_that_were_not_seen(shop):
    found, emptied = build(shop, 20)
    everything = np.ones(ITEMS, bool)
    assert found == [ranking(shop, user, everything)[:20] for user in range(USERS)]
    assert emptied == [None] * USERS


@pytest.mark.parametrize("small_group", [1, 16, 10_000])
def test_a_rule_between_items_and_users_acts_before_the_cut(shop, small_group, monkeypatch):
    """Searched for a group at a time, small groups together, and everybody together."""
    monkeypatch.setattr(recommending, "SMALL_GROUP", small_group)
    fields, users = shop[2].to_pydict(), {name: values.to_pylist() for name, values in shop[3].items()}
    found, _ = build(shop, 15, available="available", rules=[AGES])
    limits, available = np.array(fields["age_limit"]), np.array(fields["available"])
    for user in range(USERS):
        assert found[user] == ranking(shop, user, available & (limits <= users["age"][user]))[:15], user


@pytest.mark.parametrize("exclude", [True, False])
def test_a_rule_with_as_many_groups_as_users_gives_the_same(shop, exclude):
    fields, users = shop[2].to_pydict(), {name: values.to_pylist() for name, values in shop[3].items()}
    rules = [AGES, {"item": "price", "must_be": "at_most", "user": "budget"}]
    found, emptied = build(shop, 15, exclude=exclude, rules=rules)
    limits, prices = np.array(fields["age_limit"]), np.array(fields["price"])
    for user in range(USERS):
        fits = (limits <= users["age"][user]) & (prices <= users["budget"][user])
        assert found[user] == ranking(shop, user, fits, exclude)[:15], user
        assert (emptied[user] is not None) == (not fits.any())


def test_a_list_is_filled_from_deeper_when_a_category_is_full(shop):
    """12 categories with 2 items each at most: of 24 places all are filled, some from far down the ranking."""
    category = shop[2]["category"].to_pylist()
    deepest = 0
    found, _ = build(shop, 24, category="category", most_per_category=2)
    for user in range(USERS):
        counts, expected = {}, []
        order = ranking(shop, user, np.ones(ITEMS, bool))
        for place, item in enumerate(order):
            if len(expected) == 24:
                break
            if counts.get(category[item], 0) < 2:
                counts[category[item]] = counts.get(category[item], 0) + 1
                expected.append(item)
                deepest = max(deepest, place)
        assert found[user] == expected and len(expected) == 24
    assert deepest > 4 * 24, "a pool of the usual depth does not do"


def test_a_list_that_cannot_be_filled_ends_with_what_there_is(shop):
    found, _ = build(shop, 40, category="category", most_per_category=2, always_include=["i003"])
    assert {len(items) for items in found} <= {24, 25}
    assert all(3 in items for items in found if 3 not in seen_by(shop, found.index(items)))


def seen_by(shop, user):
    seen, offsets = shop[4]
    return set(seen[offsets[user] : offsets[user + 1]].tolist())


def test_items_that_are_always_included_are_in_every_list_unless_seen_or_against_a_rule(shop):
    ages = shop[3]["age"].to_pylist()
    limits = shop[2]["age_limit"].to_pylist()
    chosen = [5, 6, 7, 8, 9, 10]
    found, _ = build(shop, 12, rules=[AGES], always_include=[f"i{number:03d}" for number in chosen])
    for user in range(USERS):
        fits = np.array(limits) <= ages[user]
        order = ranking(shop, user, fits)
        must = [item for item in chosen if fits[item] and item not in seen_by(shop, user)]
        others = [item for item in order if item not in must][: 12 - len(must)]
        assert found[user] == [item for item in order if item in must or item in others], user


def test_a_share_of_new_items_comes_from_the_best_new_ones(shop):
    fresh = np.arange(ITEMS) < 50
    found, _ = build(shop, 20, fresh_share=0.2)
    for user in range(USERS):
        order = ranking(shop, user, np.ones(ITEMS, bool))
        new = [item for item in found[user] if fresh[item]]
        assert new == [item for item in order if fresh[item]][: len(new)], "the best of the new ones, in order"
        others = [item for item in found[user] if not fresh[item]]
        assert others == [item for item in order if not fresh[item]][: len(others)]
        for length in range(1, 21):
            assert sum(fresh[item] for item in found[user][:length]) >= length // 5


def test_diversity_lowers_the_likeness_within_lists(shop):
    vectors = shop[0]

    def likeness(lists):
        return np.mean([(vectors[items] @ vectors[items].T).mean() for items in lists])

    plain, diverse = build(shop, 10)[0], build(shop, 10, diversity=0.4)[0]
    assert [items[0] for items in diverse] == [items[0] for items in plain], "the best item stays first"
    assert likeness(diverse) < likeness(plain) - 0.03


def test_bags_are_padded_in_front():
    assert Bags(np.array([2, 0, 1]), np.array([4, 1, 7])).padded().tolist() == [[1, 4], [-1, -1], [-1, 7]]
