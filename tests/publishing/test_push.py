"""What a push leaves in a real Feast online store (SQLite), and what is said when it cannot be done or breaks off."""

import json
import sqlite3
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rec_ray.candidate_store.manifest import parse_manifest
from rec_ray.candidate_store.parts import StoredCandidates
from rec_ray.config import PublishSettings
from rec_ray.config.loading import load_settings
from rec_ray.errors import ConfigError, PartlyPublishedError, SchemaError
from rec_ray.schema import ITEM_EMBEDDINGS, RECOMMENDATIONS, USER_EMBEDDINGS
from rec_ray.storage.object_store import open_storage

pytestmark = [pytest.mark.usefixtures("processes"), pytest.mark.usefixtures("local_ray")]

START = datetime(2024, 1, 1, tzinfo=UTC)
ITEMS = {"1": [1.0, 0.0], "2": [0.0, 1.0], "30": [0.6, 0.8]}
USERS = {"7": [0.8, 0.6], "8": [0.0, -1.0], "9": [0.5, 0.5], "10": [0.25, 0.125]}
LISTS = {"7": (["30", "1"], [0.96, 0.8]), "8": ([], []), "9": (["2"], [0.5]), "10": (["1", "2", "30"], [0.3, 0.2, 0.1])}
"""User 8 has seen everything; the rows of users lie in two parts."""


def write_candidates(storage, prefix):
    """Write candidates as a run does and return their manifest."""
    tables = {
        "item_embeddings": [pa.table([list(ITEMS), list(ITEMS.values())], schema=ITEM_EMBEDDINGS)],
        "user_embeddings": [pa.table([list(USERS), list(USERS.values())], schema=USER_EMBEDDINGS)],
        "recommendations": [
            pa.table(
                [
                    users,
                    [LISTS[user][0] for user in users],
                    [LISTS[user][1] for user in users],
                    ["model"] * len(users),
                ],
                schema=RECOMMENDATIONS,
            )
            for users in (["7", "8", "9"], ["10"])
        ],
    }
    parts = {folder: [] for folder in tables}
    for folder, pieces in tables.items():
        storage.filesystem.create_dir(storage.path(prefix, folder), recursive=True)
        for number, table in enumerate(pieces):
            name = f"part-{number:06d}-000.parquet"
            pq.write_table(table, storage.path(prefix, folder, name), filesystem=storage.filesystem)
            parts[folder].append({"name": name, "rows": table.num_rows})
    return {"version": "1", "k": 3, "items": len(ITEMS), "users": len(USERS), "parts": parts}


def update(store, folder, **settings):
    from rec_ray.publishing.push import PushLock, update_feature_store

    storage = open_storage(str(folder))
    manifest = parse_manifest(json.dumps(write_candidates(storage, "made")).encode(), "made")
    candidates = StoredCandidates("made", manifest)
    return update_feature_store(
        store, storage, candidates, PublishSettings(**settings), PushLock(lambda: datetime.now(UTC))
    )


@pytest.fixture(scope="module")
def shop(make_repo, tmp_path_factory):
    """A repository unlike the generated one: numbers as keys and item ids, other time columns, no optional fields."""
    from feast import Entity, FeatureView, Field, FileSource, PushSource, ValueType
    from feast.types import Array, Float32, Float64, Int64, String, from_feast_to_pyarrow_type

    folder = tmp_path_factory.mktemp("pushed")
    user = Entity(name="user", join_keys=["customer"], value_type=ValueType.INT64)
    item = Entity(name="item", join_keys=["article"], value_type=ValueType.INT64)

    def view(name, entity, source, fields):
        kinds = {entity.join_key: pa.int64(), "at": pa.timestamp("us", "UTC"), "made": pa.timestamp("us", "UTC")}
        kinds |= {field: from_feast_to_pyarrow_type(kind) for field, kind in fields.items()}
        path = folder / f"{name}.parquet"
        pq.write_table(pa.schema(kinds.items()).empty_table(), path)
        batch = FileSource(name=f"{name}_file", path=str(path), timestamp_field="at", created_timestamp_column="made")
        schema = [Field(name=entity.join_key, dtype=Int64), *(Field(name=n, dtype=kind) for n, kind in fields.items())]
        return FeatureView(
            name=name,
            entities=[entity],
            ttl=timedelta(0),
            schema=schema,
            source=PushSource(name=source, batch_source=batch),
        )

    views = [
        view("item_vectors", item, "item_embed_push_source", {"embedding": Array(Float64)}),
        view("user_vectors", user, "user_embed_push_source", {"embedding": Array(Float32)}),
        view("lists", user, "user_items_push_source", {"top_k_item_ids": Array(Int64)}),
        view("no_lists", user, "lists_of_others", {"top_k_scores": Array(Float32)}),
        view("more", user, "source_of_more", {"embedding": Array(Float32), "age": Int64, "name": String}),
    ]
    return make_repo(folder / "repo", [user, item, *views])


@pytest.mark.parametrize("single_writers", [("sqlite",), ()])
def test_a_repository_of_other_types_and_times_gets_every_row(shop, tmp_path, monkeypatch, single_writers):
    """By this process, and by tasks of Ray side by side, as a store for many writers gets them."""
    monkeypatch.setattr("rec_ray.publishing.push.SINGLE_WRITERS", single_writers)
    before = datetime.now(UTC)
    report = update(shop, tmp_path, batch_rows=2)
    assert report.version == "1"
    assert report.rows == {"item_embed_push_source": 3, "user_embed_push_source": 4, "user_items_push_source": 4}
    found = shop.get_online_features(
        features=["item_vectors:embedding"], entity_rows=[{"article": int(item)} for item in ITEMS]
    ).to_dict()
    assert found["embedding"] == [pytest.approx(vector) for vector in ITEMS.values()]
    answer = shop.get_online_features(
        features=["user_vectors:embedding", "lists:top_k_item_ids"],
        entity_rows=[{"customer": int(user)} for user in [*USERS, "11"]],
    )
    found = answer.to_dict(include_event_timestamps=True)
    assert found["embedding"] == [*(pytest.approx(vector) for vector in USERS.values()), None]
    assert found["top_k_item_ids"] == [[30, 1], [], [2], [1, 2, 30], None]
    assert before.timestamp() - 1 < found["top_k_item_ids__ts"][0] < datetime.now(UTC).timestamp() + 1


@pytest.mark.parametrize(
    ("rows", "writers", "batch_rows", "expected"),
    [
        (7, 2, 1000, 4),
        (1000, 3, 100, 84),  # four batches for each writer, of equal size
        (1000, 6, 100, 84),  # two
        (8000, 2, 1000, 1000),
        (5000, 3, 100, 500),  # four pieces of whole batches, not of 417 rows
        (5000, 6, 100, 300),
    ],
)
def test_every_writer_gets_as_many_batches(rows, writers, batch_rows, expected):
    from rec_ray.publishing.push import rows_per_piece

    assert rows_per_piece(rows, writers, batch_rows) == expected


def test_a_push_may_go_to_the_offline_store_too(shop, tmp_path):
    files = [shop.config.repo_path.parent / f"{view}.parquet" for view in ("item_vectors", "user_vectors", "lists")]
    before = [pq.read_table(file).num_rows for file in files]
    update(shop, tmp_path, push_mode="online_and_offline")
    after = [pq.read_table(file) for file in files]
    assert [table.num_rows - rows for table, rows in zip(after, before, strict=True)] == [3, 4, 4]
    assert sorted(after[1]["customer"].to_pylist())[-4:] == [7, 8, 9, 10]


def test_ids_that_are_no_numbers_are_named_where_the_view_has_numbers(shop):
    from rec_ray.feature_store.push_targets import find_push_target, push_frame, read_online

    target = find_push_target(shop, "user_items_push_source", "user_id", ["item_ids", "scores"])
    named = r"'lists' has 'customer' as int64.*'seven'"
    batch = pa.table([["seven"], [["1"]], [[0.5]], ["model"]], schema=RECOMMENDATIONS)
    with pytest.raises(SchemaError, match=named):
        push_frame(batch, target, "1", datetime.now(UTC))
    with pytest.raises(SchemaError, match=named):
        read_online(shop, target, ["seven"])
    batch = pa.table([["7"], [["one"]], [[0.5]], ["model"]], schema=RECOMMENDATIONS)
    with pytest.raises(SchemaError, match=r"'top_k_item_ids' as list<.*'one'"):
        push_frame(batch, target, "1", datetime.now(UTC))


@pytest.mark.parametrize(
    "source, error, said",
    [
        (
            "user_items",
            ConfigError,
            r"push source 'user_items'; .*'item_embed_push_source'.*section `publish`",
        ),
        ("lists_of_others", SchemaError, r"'no_lists' has no field 'top_k_item_ids'; it has 'top_k_scores'"),
    ],
)
def test_a_push_source_that_does_not_fit_is_named_before_anything_is_pushed(shop, tmp_path, source, error, said):
    from rec_ray.feature_store.push_targets import find_push_target

    with pytest.raises(error, match=said):
        find_push_target(shop, source, "user_id", ["item_ids", "scores"])
    path = shop.config.repo_path / "online_store.db"
    rows = dump(path)
    with pytest.raises(error, match=said):
        update(shop, tmp_path, recommendation_push_source=source)
    assert dump(path) == rows


def test_a_view_with_fields_of_others_is_named(shop):
    from rec_ray.feature_store.push_targets import find_push_target

    with pytest.raises(SchemaError, match=r"'more' has the fields 'age', 'name', which candidates do not have"):
        find_push_target(shop, "source_of_more", "user_id", ["embedding"])


def dump(path):
    with sqlite3.connect(path) as connection:
        return sorted(connection.iterdump())


def test_a_push_that_breaks_off_is_partly_published_and_goes_on_later(tiny_data, make_project, tmp_path):
    """The table of recommendations is away: items and users arrive, nothing is made live; then it is back."""
    from rec_ray.pipeline import run_publishing
    from rec_ray.runs.context import open_feature_store
    from rec_ray.runs.stores import open_object_store, open_version_database
    from rec_ray.storage.model_store import save_model

    numbers = range(40)
    interactions = {
        "user_id": [f"{7 + number % 3}" for number in numbers],
        "item_id": [f"{1 + number % 2}" for number in numbers],
        "event_timestamp": [START + timedelta(hours=number) for number in numbers],
    }
    project = make_project(tmp_path, interactions=interactions)
    settings = load_settings(project / "rec_ray.yaml", environ={})
    storage, database, store = (
        open_object_store(settings),
        open_version_database(settings),
        open_feature_store(settings),
    )
    save_model(tiny_data.bundle, "1", storage)
    manifest = write_candidates(storage, "two-tower/1/candidates")
    storage.write_bytes("two-tower/1/candidates/manifest.json", json.dumps(manifest).encode())
    (online,) = (project / "feature_repo").rglob("online_store.db")

    def rename(old, new):
        with sqlite3.connect(online) as connection:
            connection.execute(f'ALTER TABLE "{store.project}_{old}" RENAME TO "{store.project}_{new}"')

    rename("user_items", "away")
    with pytest.raises(
        PartlyPublishedError, match=r"0 of 4 rows reached 'user_items_push_source'.*no such table"
    ) as caught:
        run_publishing(settings, "1")
    assert caught.value.exit_code == 6
    assert "rec-ray publish 1" in str(caught.value)
    assert database.live() is None
    assert database.list_versions() == []
    rename("away", "user_items")

    report = run_publishing(settings, "1")
    assert database.live() == "1"
    assert {name: rows for name, rows in report.counts.items() if name.startswith("rows pushed")} == {
        "rows pushed to item_embed_push_source": 3,
        "rows pushed to user_embed_push_source": 4,
        "rows pushed to user_items_push_source": 4,
    }
    found = store.get_online_features(
        features=[f"user_items:{name}" for name in ("top_k_item_ids", "top_k_scores", "model_version")]
        + ["user_embedding:embedding"],
        entity_rows=[{"user_id": user} for user in USERS],
    ).to_dict()
    assert found["top_k_item_ids"] == [ids for ids, _ in LISTS.values()]
    assert found["top_k_scores"] == [pytest.approx(scores) for _, scores in LISTS.values()]
    assert found["embedding"] == [pytest.approx(vector) for vector in USERS.values()]
    assert found["model_version"] == ["1"] * 4
    found = store.get_online_features(
        features=["item_embedding:embedding", "item_embedding:model_version"],
        entity_rows=[{"item_id": item} for item in ITEMS],
    ).to_dict()
    assert found["embedding"] == [pytest.approx(vector) for vector in ITEMS.values()]
    assert found["model_version"] == ["1"] * 3


@pytest.mark.parametrize("size", [2, 3])
def test_vectors_of_another_publisher_are_noticed(shop, tmp_path, size):
    """The sample that is read back is compared, also when the other model has vectors of another length."""
    from rec_ray.feature_store.push_targets import find_push_target, push_frame
    from rec_ray.publishing.push import check_pushed_sample

    def push(table, version):
        shop.push(target.source, push_frame(table, target, version, datetime.now(UTC)))

    storage = open_storage(str(tmp_path))
    target = find_push_target(shop, "user_embed_push_source", "user_id", ["embedding"])
    own = pa.table([["7"], [[0.8, 0.6]]], schema=USER_EMBEDDINGS)
    pq.write_table(own, tmp_path / "own.parquet")
    push(own, "1")
    check_pushed_sample(shop, storage, [storage.path("own.parquet")], target, "1")
    other = pa.table([["7"], [np.full(size, 0.1).tolist()]], schema=USER_EMBEDDINGS)
    push(other, "2")
    with pytest.raises(PartlyPublishedError, match=r"'user_vectors' returns other values .* another publisher"):
        check_pushed_sample(shop, storage, [storage.path("own.parquet")], target, "1")
