"""The whole line with several filters on at once, and the everyday job between two trainings, on real Feast."""

import sqlite3
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rec_ray.config.loading import load_settings
from rec_ray.errors import ConfigError, DataError, SchemaError
from rec_ray.storage.object_store import open_storage

pytestmark = [pytest.mark.usefixtures("processes"), pytest.mark.usefixtures("local_ray")]

START = datetime(2024, 1, 1, tzinfo=UTC)
COUNTRIES = ["DE", "FR", "US"]
K = 8
FILTERS = {
    "available": "in_stock",
    "available_from": "on_sale",
    "category": "category",
    "blocked_categories": ["group 3"],
    "most_per_category": 4,
    "rules": [
        {"item": "age_limit", "must_be": "at_most", "user": "age"},
        {"item": "countries", "must_be": "contains", "user": "country"},
    ],
    "always_include": ["i3"],
}


@pytest.fixture(scope="module")
def shop(make_project, tiny_tables, tmp_path_factory):
    """The tiny tables with fields to filter by: (folder of the project, users, items)."""
    users, items = tiny_tables["users"], tiny_tables["items"]
    place = np.arange(items.num_rows)
    items = items.append_column("in_stock", pa.array(place % 5 != 0))
    on_sale = [START + timedelta(days=0 if number % 7 else 100_000) for number in place]
    items = items.append_column("on_sale", pa.array(on_sale, pa.timestamp("us", "UTC")))
    items = items.append_column("age_limit", pa.array(np.where(place % 3 == 0, 18.0, 0.0), mask=place % 4 == 0))
    sold = [COUNTRIES[:2] if number % 6 == 1 else None for number in place]
    items = items.append_column("countries", pa.array(sold, pa.list_(pa.string())))
    number = np.arange(users.num_rows)
    users = users.set_column(users.schema.get_field_index("age"), "age", pa.array(np.where(number % 9 == 0, 12, 40)))
    users = users.append_column("country", pa.array([COUNTRIES[each % 3] for each in number]))
    tables = {"users": users, "items": items, "interactions": tiny_tables["interactions"]}
    project = make_project(
        tmp_path_factory.mktemp("filtered"),
        **tables,
        settings={
            "model": {"history": "mean", "embedding_size": 16},
            "train": {"epochs": 1},
            "candidates": {"k": K, "filters": FILTERS, "similar_items": 5},
            "publish": {"similar_push_source": "item_items_push_source"},
        },
    )
    return project, users.to_pylist(), items.to_pylist()


@pytest.fixture(scope="module")
def settings(shop):
    return load_settings(shop[0] / "rec_ray.yaml", environ={})


@pytest.fixture(scope="module")
def report(settings):
    from rec_ray.pipeline import run_pipeline

    return run_pipeline(settings)


def lists_at(settings, folder):
    """Return user -> item ids of stored candidates."""
    storage = open_storage(settings.storage.url)
    table = pq.read_table(storage.path(folder, "recommendations"), filesystem=storage.filesystem)
    return {row["user_id"]: row["item_ids"] for row in table.to_pylist()}


def seen_of(shop):
    seen = {}
    interactions = pq.read_table(shop[0] / "feature_repo" / "data" / "interactions.parquet")
    for user, item in zip(interactions["user_id"].to_pylist(), interactions["item_id"].to_pylist(), strict=True):
        seen.setdefault(user, set()).add(item)
    return seen


def may_get(user, item):
    for_sale = item["in_stock"] and item["on_sale"] < datetime.now(UTC)
    old_enough = item["age_limit"] is None or item["age_limit"] <= user["age"]
    return for_sale and old_enough and (item["countries"] is None or user["country"] in item["countries"])


def test_every_list_keeps_to_every_filter_and_is_as_long_as_it_can_be(shop, settings, report):
    _, users, items = shop
    lists, seen = lists_at(settings, f"two-tower/{report.version}/candidates"), seen_of(shop)
    by_id = {item["item_id"]: item for item in items}
    assert len(lists) == 200
    for user in users:
        own, known = lists[user["user_id"]], seen.get(user["user_id"], set())
        there = [i for i in by_id if may_get(user, by_id[i]) and i not in known]
        usual = [i for i in there if by_id[i]["category"] != "group 3"]
        assert set(own) <= set(there)
        assert set(own) - {"i3"} <= set(usual)
        per_group = {}
        for item in own:
            per_group.setdefault(by_id[item]["category"], []).append(item)
        assert all(len(group) <= 4 for group in per_group.values())
        room = sum(min(4, sum(by_id[i]["category"] == f"group {number}" for i in usual)) for number in range(3))
        assert len(own) == min(K, room + ("i3" in there)), user
        assert ("i3" in own) == ("i3" in there)


def test_the_lists_as_recommended_are_judged_beside_the_model(shop, report):
    metrics = report.evaluation.metrics
    assert list(metrics)[:2] == ["model", "model_as_recommended"]
    for_sale = [item for item in shop[2] if item["in_stock"] and item["on_sale"] == START]
    usual = [item for item in for_sale if item["category"] != "group 3" or item["item_id"] == "i3"]
    assert 0 < metrics["model_as_recommended"]["coverage@10"] <= len(usual) / 60
    assert len(usual) / 60 < metrics["model"]["coverage@10"], "the model itself knows no filter"
    assert set(metrics["model"]) == set(metrics["model_as_recommended"]) == set(metrics["popularity"])
    lists = report.evaluation.facts.lists
    assert set(lists) == set(metrics) - {"model_refitted"}
    assert all(0 < figures["diversity@10"] < 2 for figures in lists.values())


def test_similar_items_reach_feast_and_are_what_is_shown(settings, report):
    from rec_ray.cli.lookup import similar_items

    assert report.counts["rows pushed to item_items_push_source"] == 60
    answer = similar_items(settings, "i7", 3)
    storage = open_storage(settings.storage.url)
    table = pq.read_table(
        storage.path(f"two-tower/{report.version}/candidates/similar_items"), filesystem=storage.filesystem
    )
    (stored,) = [row for row in table.to_pylist() if row["item_id"] == "i7"]
    assert len(stored["similar_item_ids"]) == 5
    assert answer.item_ids == stored["similar_item_ids"][:3]
    assert answer.scores == pytest.approx(stored["similar_scores"][:3])
    assert answer.version == report.version and "i7" not in answer.item_ids


def online(settings, users):
    from rec_ray.runs.context import open_feature_store

    answer = open_feature_store(settings).get_online_features(
        features=["user_items:top_k_item_ids", "user_items:model_version"],
        entity_rows=[{"user_id": user} for user in users],
    )
    found = answer.to_dict()
    return found["top_k_item_ids"], found["model_version"]


def versions_of(shop):
    with sqlite3.connect(shop[0] / "versions.db") as database:
        return database.execute("SELECT * FROM model_version ORDER BY id").fetchall()


def test_an_increment_changes_the_lists_of_active_users_only_and_the_version_stays(shop, settings, report):
    from rec_ray.pipeline import run_increment, run_publishing

    users = [user["user_id"] for user in shop[1]]
    before, _ = online(settings, users)
    rows = versions_of(shop)
    quiet = run_increment(settings, None, "last", publish=True)
    assert quiet.counts == {"users with changed events": 0}

    path = shop[0] / "feature_repo" / "data" / "interactions.parquet"
    table = pq.read_table(path)
    now = datetime.now(UTC)
    old = now - timedelta(days=3)
    events = [("u0", before[0][0], now), ("u0", before[0][1], now), ("u5", before[5][0], now), ("u9", "i1", old)]
    more = [
        {"user_id": user, "item_id": item, "interaction_type": "view", "event_timestamp": at}
        for user, item, at in events
    ]
    pq.write_table(pa.concat_tables([table, pa.Table.from_pylist(more, schema=table.schema)]), path)

    made = run_increment(settings, None, "last")
    assert made.version == report.version
    # The event of u9 is three days old: it arrived after the lists were computed, and counts.
    assert made.counts["users with changed events"] == 3 == made.counts["users with recommendations"]
    assert run_increment(settings, None, "last").counts == {"users with changed events": 0}
    assert online(settings, users)[0] == before, "stored, not published"
    pushed = run_publishing(settings, None, increment="newest")
    assert pushed.counts == {
        "rows pushed to user_embed_push_source": 3,
        "rows pushed to user_items_push_source": 3,
    }
    after, versions = online(settings, users)
    assert versions == [report.version] * len(users)
    assert versions_of(shop) == rows
    changed = [user for user, old, new in zip(users, before, after, strict=True) if old != new]
    assert {"u0", "u5"} <= set(changed) <= {"u0", "u5", "u9"}
    assert not {before[0][0], before[0][1]} & set(after[0]) and before[5][0] not in after[5]
    (folder,) = open_storage(settings.storage.url).folders(f"two-tower/{report.version}/increments")
    assert lists_at(settings, f"two-tower/{report.version}/increments/{folder}") == {
        user: after[users.index(user)] for user in ("u0", "u5", "u9")
    }


def test_an_increment_of_a_version_that_is_not_live_is_not_pushed(shop, settings, report):
    from rec_ray.pipeline import run_publishing

    storage = open_storage(settings.storage.url)
    storage.write_bytes("two-tower/77/increments/x/manifest.json", b"{}")
    before = online(settings, ["u0"])
    with pytest.raises(DataError, match=f"of version 77, but version {report.version} is live: nothing was pushed"):
        run_publishing(settings, "77", increment="x")
    storage.delete_prefix("two-tower/77")
    assert online(settings, ["u0"]) == before


@pytest.mark.parametrize(
    ("filters", "error", "said"),
    [
        (
            {"available": "in_stok"},
            ConfigError,
            r"candidates\.filters\.available: .* has no field 'in_stok'; did you mean 'in_stock'",
        ),
        ({"available": "name"}, SchemaError, r"filters\.available: field 'name' holds string; expected true or false"),
        (
            {"rules": [{"item": "age_limit", "must_be": "at_most", "user": "country"}]},
            SchemaError,
            "age_limit at_most country needs numbers or times, found string",
        ),
    ],
)
def test_a_filter_that_cannot_be_is_refused_before_anything_is_trained(settings, filters, error, said):
    from rec_ray.config import CandidateSettings, FilterSettings
    from rec_ray.data.load_features import load_features
    from rec_ray.runs.context import open_feature_store

    candidates = CandidateSettings(filters=FilterSettings(**filters))
    with pytest.raises(error, match=said):
        load_features(
            open_feature_store(settings),
            settings.feast,
            settings.features,
            settings.evaluation,
            as_of=datetime.now(UTC),
            candidates=candidates,
        )
