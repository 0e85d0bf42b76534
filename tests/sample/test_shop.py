"""The generated shop has the structure that its docstring promises."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from rec_ray.errors import ConfigError
from rec_ray.sample.shop import (
    FILTER_FIELDS,
    ITEM_FEATURES,
    USER_FEATURES,
    ShopTables,
    describe_users,
    generate_interactions,
    generate_shop,
)
from rec_ray.sample.shop_truth import DAY, END, START, draw_truth
from rec_ray.sample.shop_words import DEPARTMENTS
from rec_ray.schema import TIMESTAMP


@pytest.fixture(scope="module")
def shop() -> ShopTables:
    return generate_shop()


def indices(ids: pa.Array, column: pa.ChunkedArray) -> np.ndarray:
    return pc.index_in(column, ids).to_numpy()


def microseconds(column) -> np.ndarray:
    return pc.cast(column, pa.int64()).to_numpy()


def test_same_seed_gives_the_same_shop_and_another_seed_another():
    one, two, three = generate_shop(3, 50, 60, 500), generate_shop(3, 50, 60, 500), generate_shop(4, 50, 60, 500)
    assert one.users == two.users and one.items == two.items and one.interactions == two.interactions
    assert one.interactions != three.interactions


def test_tables_have_the_promised_sizes_columns_and_order(shop):
    assert shop.interactions.num_rows == 60_000
    assert shop.items.num_rows == 1000
    assert len(pc.unique(shop.users["user_id"])) == 2000
    assert shop.interactions.column_names == ["user_id", "item_id", "event_timestamp", "interaction_type", "rating"]
    assert set(shop.items.column_names) == {"item_id", "event_timestamp", *ITEM_FEATURES, *FILTER_FIELDS}
    assert set(shop.users.column_names) == {"user_id", "event_timestamp", *USER_FEATURES}
    times = microseconds(shop.interactions["event_timestamp"])
    assert shop.interactions.schema.field("event_timestamp").type == TIMESTAMP
    assert (np.diff(times) >= 0).all() and times[0] >= START and times[-1] < END


def test_knowing_the_tastes_is_worth_five_times_popularity(shop):
    """Recall@10 on the last 10 % of the events, whole catalogue, seen items left out."""
    truth, events = shop.truth, shop.interactions
    user, item = indices(truth.user_ids, events["user_id"]), indices(truth.item_ids, events["item_id"])
    liked = pc.not_equal(events["interaction_type"], "negative_view").to_numpy()
    cut = int(len(user) * 0.9)
    seen = np.zeros((2000, 1000), dtype=bool)
    seen[user[:cut], item[:cut]] = True
    target = np.zeros_like(seen)
    late = np.arange(len(user)) >= cut
    target[user[late & liked], item[late & liked]] = True
    target &= ~seen
    users = np.flatnonzero(target.any(1))

    def recall(scores: np.ndarray) -> float:
        top = np.argpartition(-np.where(seen[users], -1.0, scores), 10, axis=1)[:, :10]
        return float((np.take_along_axis(target[users], top, 1).sum(1) / target[users].sum(1)).mean())

    counts = np.bincount(item[:cut][liked[:cut]], minlength=1000).astype(float)
    popularity = recall(np.broadcast_to(counts, (len(users), 1000)))
    oracle = recall(truth.affinity(users))
    assert popularity > 0.02
    assert oracle > 5 * popularity
    assert oracle < 0.6, "not trivial"


def test_new_items_arrive_at_the_end_and_have_no_event(shop):
    new = pa.array(shop.truth.new_items)
    assert len(new) == 50
    assert not pc.any(pc.is_in(shop.interactions["item_id"], new)).as_py()
    arrival = microseconds(shop.items.filter(pc.is_in(shop.items["item_id"], new))["event_timestamp"])
    assert (arrival >= END - 3 * DAY).all() and (arrival < END).all()


def test_most_liked_events_lie_in_the_leaves_of_a_taste(shop):
    truth, events = shop.truth, shop.interactions
    events = events.filter(pc.not_equal(events["interaction_type"], "negative_view"))
    user, item = indices(truth.user_ids, events["user_id"]), indices(truth.item_ids, events["item_id"])
    slot = truth.taste_leaf[user] == truth.item_leaf[item][:, None]
    share = slot.any(1).mean()
    assert 0.72 < share < 0.9
    own = truth.item_level[item] == truth.user_level[user]
    assert own.mean() > 0.5, "of three price levels"
    early = truth.taste_start[user] > microseconds(events["event_timestamp"])[:, None]
    assert (slot & early).sum() < 0.2 * early.any(1).sum(), "a taste that has not begun is met by chance only"


def test_users_do_not_run_out_of_items(shop):
    pairs = shop.interactions.group_by(["user_id", "item_id"]).aggregate([])
    assert pairs.num_rows > 0.97 * shop.interactions.num_rows


def test_some_products_are_out_of_stock_for_adults_or_sold_in_some_countries_only(shop):
    items = shop.items
    assert 0.04 < 1 - np.mean(items["available"].to_numpy()) < 0.13
    limits = items["age_limit"].drop_null().to_pylist()
    assert set(limits) == {16, 18} and 30 < len(limits) < 100
    sold = items["countries"].drop_null().to_pylist()
    assert 60 < len(sold) < 150 and all(len(set(countries)) == 3 for countries in sold)


def test_words_and_path_tell_the_category(shop):
    for row in shop.items.slice(0, 200).to_pylist():
        department, category, *_ = row["category"].split("|")
        words = DEPARTMENTS[department][category].split()
        assert any(word in row["name"] for word in words)
        assert sum(word in row["description"].lower() for word in words) >= 6


def test_a_new_taste_is_in_the_second_version_of_the_features(shop):
    truth = shop.truth
    drifting = np.flatnonzero(truth.taste_start.max(1) > 0)
    assert 0.2 < len(drifting) / 2000 < 0.4
    assert shop.users.num_rows == 2000 + len(drifting)
    versions: dict[str, list[dict]] = {}
    for row in shop.users.to_pylist():
        versions.setdefault(row["user_id"], []).append(row)
    told = 0
    for user in drifting:
        first, second = versions[truth.user_ids[user].as_py()]
        slot = truth.taste_start[user].argmax()
        late = truth.leaf_paths[truth.taste_leaf[user, slot]].split("|")[1]
        assert first["event_timestamp"] < second["event_timestamp"]
        assert late not in first["preferences"]
        told += late in second["preferences"]
    assert 0.7 < told / len(drifting) < 0.9


def test_department_tastes_sum_to_one(shop):
    assert np.allclose(shop.truth.department_tastes().sum(1), 1.0)
    assert np.allclose(shop.truth.affinity(np.arange(20)).sum(1), 1.0)


def test_events_come_in_chunks_of_whole_users():
    truth = draw_truth(0, 3000, 4000)
    chunks = list(generate_interactions(truth, 30_000, chunk=5_000))
    assert sum(chunk.num_rows for chunk in chunks) == 30_000
    assert len(chunks) >= 6 and max(chunk.num_rows for chunk in chunks) < 6_000
    users = [set(chunk["user_id"].to_pylist()) for chunk in chunks]
    assert sum(map(len, users)) == len(set.union(*users))
    assert len(truth.leaf_paths) == 80 and all(path.count("|") == 2 for path in truth.leaf_paths)
    assert describe_users(truth).num_rows >= 3000


@pytest.mark.parametrize(("users", "items", "events"), [(1, 10, 0), (1, 10, 5), (3, 12, 100)])
def test_tiny_shops_work(users, items, events):
    tables = generate_shop(0, users, items, events)
    assert tables.interactions.num_rows == events
    assert not set(tables.interactions["item_id"].to_pylist()) & set(tables.truth.new_items)


def test_a_shop_without_items_is_refused():
    with pytest.raises(ConfigError, match="at least 1 user and 10 items"):
        generate_shop(0, 5, 3, 10)
