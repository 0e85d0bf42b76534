"""Each rule on a catalogue where the right items can be read off."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

from rec_ray.config import FilterSettings
from rec_ray.errors import SchemaError
from rec_ray.retrieval.lists.item_filters import evaluate_item_filters
from rec_ray.schema import FeatureDeclaration

NOW = datetime(2024, 6, 1, tzinfo=UTC)
DAY = timedelta(days=1)
ITEMS = {
    "item_id": ["a", "b", "c", "d", "e", "f"],
    "in_stock": [True, False, True, None, True, True],
    "from": [NOW - DAY, NOW - DAY, NOW + DAY, None, NOW, NOW - DAY],
    "until": [NOW + DAY, None, None, None, NOW + DAY, NOW],
    "path": ["Clothes|Shoes", "Clothes|Shirts", "Books", None, "Clothes|Shoes|Boots", "Toys|Wood"],
    "tags": [["red", "new"], ["red"], [], None, ["blue", "red"], ["blue"]],
    "age_limit": [None, 16, 18, 0, 18, 12],
    "regions": [["DE", "FR"], None, ["US"], [], ["DE"], ["FR", "US"]],
    "language": ["de", "en", None, "de", "fr", "en"],
    "first_seen": [NOW - 3 * DAY, NOW - 20 * DAY, NOW, NOW - 7 * DAY, NOW - 8 * DAY, NOW - 400 * DAY],
}


def evaluate(items=None, features=None, user_features=None, **declared):
    """Evaluate filters of the settings on `ITEMS`, or on some other columns."""
    table = pa.table(ITEMS | (items or {}))
    fresh_days = declared.pop("fresh_days", None)
    return evaluate_item_filters(
        FilterSettings(**declared),
        table,
        table["item_id"].combine_chunks(),
        NOW,
        item_features=features or {},
        user_features=user_features or {},
        fresh_days=fresh_days,
    )


def names(mask):
    return "".join(np.array(ITEMS["item_id"])[mask])


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ({"available": "in_stock"}, "acdef"),
        ({"available_from": "from"}, "abdef"),
        ({"available_until": "until"}, "abcde"),
        ({"available_from": "from", "available_until": "until"}, "abde"),
        ({"category": "path", "separator": "|", "allowed_categories": ["Clothes|Shoes", "Books"]}, "ace"),
        ({"category": "path", "separator": "|", "blocked_categories": ["Clothes"]}, "cdf"),
        ({"category": "tags", "allowed_categories": ["blue", "new"]}, "aef"),
        ({"category": "tags", "allowed_categories": ["red"], "blocked_categories": ["blue"]}, "ab"),
        ({"category": "language", "blocked_categories": ["en", "fr"]}, "acd"),
        ({"category": "language", "allowed_categories": ["de"], "always_include": ["b", "f"]}, "abdf"),
        (
            {"category": "language", "allowed_categories": ["de"], "always_include": ["b"], "available": "in_stock"},
            "ad",
        ),
    ],
)
def test_rules_on_items_alone_are_one_mask(declared, expected):
    filters = evaluate(**declared)
    assert names(filters.allowed) == expected
    assert sum(filters.left_out.values()) + len(expected) >= 6
    assert filters.emptied_by is None


@pytest.mark.parametrize(
    "kind", [pa.timestamp("us", "UTC"), pa.timestamp("ns", "UTC"), pa.timestamp("s"), pa.date32(), pa.date64()]
)
def test_times_are_read_whatever_arrow_has_them_as(kind):
    days = [datetime(2024, 5, 31), datetime(2024, 6, 2), None, datetime(2024, 6, 1), datetime(1970, 1, 1)]
    column = pa.array([*days, datetime(2250, 1, 1)], pa.timestamp("us")).cast(kind)
    assert names(evaluate({"from": column}, available_from="from").allowed) == "acde"


def test_a_time_in_a_far_year_is_read():
    column = pa.array([datetime(9999, 12, 31), datetime(2300, 1, 1), None, NOW, NOW, NOW], pa.timestamp("us", "UTC"))
    assert names(evaluate({"from": column}, available_from="from").allowed) == "cdef"


def test_without_a_rule_there_is_no_mask():
    filters = evaluate()
    assert filters.allowed is None and filters.categories is None and filters.left_out == {}
    groups = filters.groups({}, 3)
    assert groups.group.tolist() == [0, 0, 0] and names(groups.masks[0]) == "abcdef"


def test_a_declared_path_is_read_as_declared_and_categories_may_be_counted_at_a_level():
    features = {"path": FeatureDeclaration("category_path", separator="|")}
    whole = evaluate(features=features, category="path", most_per_category=1)
    top = evaluate(features=features, category="path", most_per_category=1, category_level=1)
    codes = [filters.categories.padded()[:, 0] for filters in (whole, top)]
    assert len(set(codes[0])) == 6, "five paths and none"
    a, b, c, d, e, f = codes[1]
    assert a == b == e and len({a, c, f}) == 3 and d == -1
    everything = np.ones(6, bool)
    assert (whole.capacity(everything), top.capacity(everything)) == (6, 4)
    assert top.capacity(np.array([True, True, False, True, True, False])) == 2


def test_an_item_of_several_categories_is_counted_in_each():
    filters = evaluate(category="tags", most_per_category=2)
    assert [len(set(row) - {-1}) for row in filters.categories.padded()] == [2, 1, 0, 0, 2, 1]


def test_new_items_are_those_first_seen_within_the_days():
    assert names(evaluate(fresh_days=7.5).fresh) == "acd"
    assert names(evaluate(fresh_days=1).fresh) == "c"


def test_the_rule_that_leaves_nothing_is_named():
    nothing = evaluate(available="in_stock", items={"in_stock": [False] * 6}, always_include=["a"])
    assert (nothing.emptied_by, len(nothing.always)) == ("available", 0)
    assert nothing.groups({}, 2).emptied_by == ["available"]
    blocked = evaluate(available="in_stock", category="path", separator="|", allowed_categories=["Cars"])
    assert (blocked.emptied_by, blocked.left_out) == ("allowed_categories", {"available": 1, "allowed_categories": 5})
    assert blocked.notes == ("allowed_categories: no item has the category 'Cars'",)
    said = "always_include names item 'zz', which is not in the catalogue"
    assert evaluate(always_include=["zz", "b"]).notes == (said,)


def allowed_of(filters, **columns):
    """Return per user the names of the items and the rule that left nothing. columns: field -> values of the users."""
    arrays = {name: values if isinstance(values, pa.Array) else pa.array(values) for name, values in columns.items()}
    count = len(next(iter(arrays.values())))
    groups = filters.groups(arrays, count)
    return [(names(groups.masks[group]), groups.emptied_by[group]) for group in groups.group]


def rule(item, must_be, user, **more):
    return {"rules": [{"item": item, "must_be": must_be, "user": user, **more}]}


def test_at_most_and_at_least_compare_numbers():
    ages = [12, 15, 16, 17.5, 18, 99, None, float("nan"), -1]
    found = allowed_of(evaluate(**rule("age_limit", "at_most", "age")), age=ages)
    assert [items for items, _ in found] == ["adf", "adf", "abdf", "abdf", "abcdef", "abcdef", "a", "a", "a"]
    found = allowed_of(evaluate(**rule("age_limit", "at_least", "age")), age=ages)
    assert [items for items, _ in found] == ["abcef", "abce", "abce", "ace", "ace", "a", "a", "a", "abcdef"]
    found = allowed_of(evaluate(**rule("age_limit", "at_most", "age", unknown_user="allow")), age=[None, 17])
    assert [items for items, _ in found] == ["abcdef", "abdf"]


def test_times_are_compared_with_times_only():
    found = allowed_of(evaluate(**rule("from", "at_most", "since")), since=[NOW, NOW - 9 * DAY, None])
    assert [items for items, _ in found] == ["abdef", "d", "d"]
    with pytest.raises(SchemaError, match="from at_most age: the item field holds times, the user field numbers"):
        allowed_of(evaluate(**rule("from", "at_most", "age")), age=[3])


def test_sets_are_equal_contain_or_are_contained():
    found = allowed_of(evaluate(**rule("regions", "contains", "country")), country=["DE", "US", "XX", None, "FR"])
    assert [items for items, _ in found] == ["abde", "bcdf", "bd", "bd", "abdf"]
    likes = pa.array([["red", "blue"], ["red", "new", "odd"], ["odd"], [], None], pa.list_(pa.string()))
    found = allowed_of(evaluate(**rule("tags", "contained_in", "likes")), likes=likes)
    assert [items for items, _ in found] == ["bcdef", "abcd", "cd", "cd", "cd"]
    found = allowed_of(evaluate(**rule("tags", "equal", "likes")), likes=likes)
    assert [items for items, _ in found] == ["cde", "cd", "cd", "cd", "cd"]
    found = allowed_of(evaluate(**rule("language", "equal", "speaks")), speaks=["en", "xx", None])
    assert [items for items, _ in found] == ["bcf", "c", "c"]
    found = allowed_of(evaluate(**rule("age_limit", "equal", "age")), age=[18, 12, 3])
    assert [items for items, _ in found] == ["ace", "af", "a"]


def test_a_user_feature_is_read_as_declared():
    declared = {"likes": FeatureDeclaration("categories", separator="|")}
    filters = evaluate(**rule("tags", "contained_in", "likes"), user_features=declared)
    assert allowed_of(filters, likes=["red|blue", "blue"])[0][0] == "bcdef"


def test_users_with_the_same_items_are_one_group_whatever_their_values():
    declared = rule("age_limit", "at_most", "age")["rules"] + rule("regions", "contains", "country")["rules"]
    filters = evaluate(rules=declared, available="in_stock")
    ages = np.arange(1000) % 90
    countries = [("DE", "US", "XX", "YY")[number % 4] for number in range(1000)]
    groups = filters.groups({"age": pa.array(ages), "country": pa.array(countries)}, 1000)
    assert len(groups.masks) == 4 * 3, "below 12, 16, 18 and from there on; two regions and all others"
    for user in range(0, 1000, 7):
        mask = groups.masks[groups.group[user]]
        for place in range(6):
            limit, regions = ITEMS["age_limit"][place], ITEMS["regions"][place]
            expected = (
                ITEMS["in_stock"][place] is not False
                and (limit is None or limit <= ages[user])
                and (not regions or countries[user] in regions)
            )
            assert mask[place] == expected


def test_the_rule_that_takes_the_last_item_of_a_user_is_named():
    items = {"age_limit": [18] * 6, "regions": [["DE"]] * 6}
    declared = rule("age_limit", "at_most", "age")["rules"] + rule("regions", "contains", "country")["rules"]
    found = allowed_of(evaluate(items, rules=declared), age=[3, 20, 20], country=["DE", "US", "DE"])
    assert found == [
        ("", "age_limit at_most age"),
        ("", "regions contains country"),
        ("abcdef", None),
    ]


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ({"available": "age_limit"}, r"filters\.available: field 'age_limit' holds int64; expected true or false"),
        ({"available_from": "language"}, r"filters\.available_from: field 'language' holds string; expected a time"),
        (rule("language", "at_most", "age"), r"language at_most age needs numbers or times, found .*string"),
    ],
)
def test_a_field_that_does_not_fit_its_rule_is_named(declared, said):
    with pytest.raises(SchemaError, match=said):
        evaluate(**declared)


def test_filters_travel_to_other_processes():
    import pickle

    filters = evaluate(**rule("age_limit", "at_most", "age"))
    columns = {"age": pa.array([15, 18])}
    before = filters.groups(columns, 2)
    after = pickle.loads(pickle.dumps(filters)).groups(columns, 2)
    assert [mask.tolist() for mask in before.masks] == [mask.tolist() for mask in after.masks]
