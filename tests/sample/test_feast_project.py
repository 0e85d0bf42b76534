"""`rec-ray init --feast` on repositories as people have them: what it decides, and that the settings fit."""

import re
from datetime import timedelta

import numpy as np
import pandas as pd
import pytest
import yaml
from feast import Entity, FeatureService, FeatureView, Field, FileSource, PushSource, RequestSource, ValueType
from feast.infra.offline_stores.contrib.postgres_offline_store.postgres_source import PostgreSQLSource
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Array, Bool, Bytes, Float32, Float64, Int64, String, UnixTimestamp

from rec_ray.config.loading import load_settings
from rec_ray.errors import ConfigError, SchemaError
from rec_ray.feature_store.offline_source import event_source, read_slice, slice_source
from rec_ray.feature_store.point_in_time import portable_config
from rec_ray.feature_store.push_targets import is_published
from rec_ray.feature_store.registry import read_registry
from rec_ray.feature_store.repository import open_store
from rec_ray.preflight import find_faults
from rec_ray.sample.feast_layout import LayoutOptions
from rec_ray.sample.feast_project import init_from_feast

START = pd.Timestamp("2026-01-01", tz="UTC")
N = 400


def entity(name, key, kind=ValueType.INT64):
    return Entity(name=name, join_keys=[key], value_type=kind)


class Repo:
    """Files and definitions of a repository."""

    def __init__(self, folder):
        self.folder, self.objects = folder, []
        (folder / "data").mkdir(parents=True)

    def source(self, name, frame, time="event_timestamp", **more):
        path = self.folder / "data" / f"{name}.parquet"
        frame.to_parquet(path, index=False)
        return FileSource(name=f"{name}_source", path=str(path), timestamp_field=time, **more)

    def view(self, name, entities, fields, source):
        schema = [Field(name=field, dtype=dtype) for field, dtype in fields.items()]
        view = FeatureView(name=name, entities=entities, ttl=timedelta(0), schema=schema, source=source)
        self.objects += [*entities, view]
        return view


class TableRepo(Repo):
    """The same in a schema of PostgreSQL."""

    def __init__(self, folder, engine):
        super().__init__(folder)
        self.engine = engine

    def source(self, name, frame, time="event_timestamp", **more):
        with self.engine.begin() as connection:
            connection.exec_driver_sql("CREATE SCHEMA IF NOT EXISTS theirs")
            frame.to_sql(name, connection, schema="theirs", index=False)
        table = f"SELECT * FROM theirs.{name}"
        return PostgreSQLSource(name=f"{name}_source", query=table, timestamp_field=time, **more)


def people(random, key):
    begun = START - pd.Timedelta("400D")
    return pd.DataFrame({key: np.arange(1, N + 1), "event_timestamp": begun, "age": random.integers(15, 80, N)})


def films(folder, random, repo=None):
    """Ratings without a type, three views, no service, no push source."""
    repo = repo or Repo(folder)
    viewer, film = entity("viewer", "userid"), entity("film", "movie_id")
    viewers = people(random, "userid").assign(gender=random.choice(["F", "M"], N))
    repo.view("viewer_features", [viewer], {"age": Int64, "gender": String}, repo.source("viewers", viewers))
    genres = ["|".join(random.choice(["Drama", "War", "Noir", "Comedy"], 2, replace=False)) for _ in range(N)]
    catalogue = pd.DataFrame({"movie_id": np.arange(1, N + 1), "event_timestamp": START - pd.Timedelta("400D")})
    catalogue = catalogue.assign(title=[f"The film {k}" for k in range(N)], genres=genres, poster=b"x")
    fields = {"title": String, "genres": String, "poster": Bytes}
    repo.view("film_features", [film], fields, repo.source("films", catalogue))
    rated = events(random, "userid", "movie_id").assign(rating=random.integers(1, 6, 4 * N).astype("float32"))
    rated = rated.assign(created=rated.event_timestamp)
    source = repo.source("ratings", rated, created_timestamp_column="created")
    repo.view("ratings", [viewer, film], {"rating": Float32}, source)
    return repo


def events(random, user, item):
    times = START + pd.to_timedelta(np.sort(random.integers(0, 100 * 86400, 4 * N)), unit="s")
    return pd.DataFrame(
        {user: random.integers(1, N + 1, 4 * N), item: random.integers(1, N + 1, 4 * N), "event_timestamp": times}
    )


def test_a_film_shop_is_understood_and_its_settings_fit(tmp_path, make_repo):
    repo = films(tmp_path / "theirs", np.random.default_rng(0))
    make_repo(tmp_path / "theirs" / "repo", repo.objects, offline="dask")
    before = sorted(path for path in (tmp_path / "theirs").rglob("*") if path.is_file())
    made = init_from_feast(tmp_path / "shop", tmp_path / "theirs" / "repo")
    settings = load_settings(made.settings)
    feast, features = settings.feast, settings.features
    assert (feast.user_key, feast.item_key, feast.events_view) == ("userid", "movie_id", "ratings")
    assert (feast.user_views, feast.item_views) == (["viewer_features"], ["film_features"])
    assert {name: each.kind for name, each in features.user.items()} == {"age": "numeric", "gender": "categorical"}
    assert {name: each.kind for name, each in features.item.items()} == {"title": "text", "genres": "categories"}
    assert (features.item_name, features.item["genres"].separator) == ("title", "|")
    assert (features.interaction.type_field, features.interaction.value_field) == (None, "rating")
    assert features.interaction.min_positive_value == 3
    said = {choice.what: choice for choice in made.choices}
    assert "binary is not a feature type" in said["film_features.poster"].why
    assert said["events"].option == "--events-view"
    assert find_faults(open_store(feast.repo), settings) == []
    assert not is_published(open_store(feast.repo), settings.publish)
    assert sorted(path for path in (tmp_path / "theirs").rglob("*") if path.is_file()) == before
    assert len(made.settings.read_text().splitlines()) < 90


def test_the_command_prints_each_decision_and_the_next_command(tmp_path, make_repo, capsys):
    from rec_ray.cli.main import main

    repo = films(tmp_path / "theirs", np.random.default_rng(0))
    make_repo(tmp_path / "theirs" / "repo", repo.objects)
    shop = tmp_path / "shop"
    assert main(["init", str(shop), "--feast", str(tmp_path / "theirs" / "repo"), "--value-column", "rating"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^  viewer_features\.gender +categorical +.* values in 400 rows$", said, re.M)
    rating = r"^  rating +value of an event +rating 1 to 5, a rating of 1 to 5: .*\[--value-column\]$"
    assert re.search(rating, said, re.M)
    assert said.rstrip().endswith(f"Next: rec-ray run -C {shop}")


def test_order_lines_with_several_views_of_customers_beside_other_entities(tmp_path, make_repo):
    random = np.random.default_rng(1)
    repo = Repo(tmp_path / "theirs")
    customer, product, store = entity("client", "client_no"), entity("ware", "ware_no"), entity("branch", "branch_no")
    who = people(random, "client_no")
    repo.view("master", [customer], {"age": Int64}, repo.source("master", who))
    habits = who.assign(age=1.5, vip=True, last_seen=who.event_timestamp)
    habits = repo.source("habits", habits)
    repo.view("habits", [customer], {"age": Float64, "vip": Bool, "last_seen": UnixTimestamp}, habits)
    things = (
        people(random, "ware_no")
        .assign(price=random.random(N), labels=[[a] for a in random.choice(["a", "b"], N)])
        .drop(columns="age")
    )
    things = repo.source("wares", things)
    wares = repo.view("wares", [product], {"price": Float64, "labels": Array(String)}, things)
    places = pd.DataFrame({"branch_no": [1, 2], "event_timestamp": START, "town": ["Rome", "Oslo"]})
    repo.view("branches", [store], {"town": String}, repo.source("branches", places))
    lines = events(random, "client_no", "ware_no").assign(branch_no=1, quantity=random.integers(1, 5, 4 * N))
    lines["quantity"] = lines.quantity.where(lines.index % 10 > 0, -1)
    repo.view("lines", [customer, product, store], {"quantity": Int64}, repo.source("lines", lines))
    seen = events(random, "client_no", "ware_no").head(10).assign(seconds=1.0)
    repo.view("views", [customer, product], {"seconds": Float64}, repo.source("views", seen))

    asked = RequestSource(name="asked", schema=[Field(name="amount", dtype=Float64)])

    @on_demand_feature_view(sources=[wares, asked], schema=[Field(name="total", dtype=Float64)])
    def totals(inputs: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"total": inputs["price"] * inputs["amount"]})

    @on_demand_feature_view(sources=[wares], schema=[Field(name="cents", dtype=Float64)])
    def cents(inputs: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"cents": inputs["price"] * 100})

    make_repo(tmp_path / "theirs" / "repo", [*repo.objects, totals, cents])
    made = init_from_feast(tmp_path / "shop", tmp_path / "theirs" / "repo")
    settings = load_settings(made.settings)
    said = {choice.what: choice for choice in made.choices}
    assert settings.feast.events_view == "lines" and "lines 1,600, views 10" in said["events"].why
    assert (settings.feast.user_key, settings.feast.item_key) == ("client_no", "ware_no")
    assert set(settings.features.user) == {"master__age"}, "the others have one value"
    assert settings.features.item["labels"].kind == "categories" and "cents" in settings.features.item
    assert settings.features.interaction.value_field == "quantity"
    assert said["totals"].decision == said["branches"].decision == "left out"
    assert "request data" in said["totals"].why
    assert find_faults(open_store(settings.feast.repo), settings) == []


def test_one_service_for_a_model_and_views_that_are_pushed_to(tmp_path, make_repo):
    """Text keys, a status of events, and the views of another recommender, which are no features."""
    random = np.random.default_rng(2)
    repo = Repo(tmp_path / "theirs")
    user, item = entity("user", "uid", ValueType.STRING), entity("product", "pid", ValueType.STRING)
    users = people(random, "uid").astype({"uid": str})
    users = repo.view("users", [user], {"age": Int64}, PushSource(name="p", batch_source=repo.source("users", users)))
    things = people(random, "pid").astype({"pid": str}).assign(category=random.choice(["a/b", "a/c"], N))
    things = repo.view("things", [item], {"category": String}, repo.source("things", things))
    clicks = events(random, "uid", "pid").astype({"uid": str, "pid": str})
    clicks["action"] = random.choice(["view", "buy", "return"], 4 * N)
    clicks = repo.view("clicks", [user, item], {"action": String}, repo.source("clicks", clicks))
    old = pd.DataFrame({"uid": ["1"], "event_timestamp": [START], "top_k_item_ids": [["2"]]})
    old = PushSource(name="old", batch_source=repo.source("old", old))
    repo.view("old_lists", [user], {"top_k_item_ids": Array(String)}, old)
    service = FeatureService(name="model_v1", features=[users, things, clicks])
    make_repo(tmp_path / "theirs" / "repo", [*repo.objects, service])
    made = init_from_feast(tmp_path / "shop", tmp_path / "theirs" / "repo" / "feature_store.yaml")
    settings = load_settings(made.settings)
    assert settings.feast.user_views == ["users"]
    assert settings.features.interaction.type_field == "action"
    assert settings.features.interaction.negative_types == ["return"]
    assert {choice.what: choice.decision for choice in made.choices}["old_lists"] == "left out"
    assert find_faults(open_store(tmp_path / "theirs" / "repo"), settings) == []


def test_events_keyed_by_their_own_id_and_wishes(tmp_path, make_repo):
    random = np.random.default_rng(3)
    repo = Repo(tmp_path / "theirs")
    shopper, good, order = entity("shopper", "shopper_id"), entity("good", "good_id"), entity("order", "order_no")
    repo.view("shoppers", [shopper], {"age": Int64}, repo.source("shoppers", people(random, "shopper_id")))
    repo.view("goods", [good], {"age": Int64}, repo.source("goods", people(random, "good_id")))
    orders = events(random, "shopper_id", "good_id").assign(order_no=range(4 * N), returned=random.random(4 * N) < 0.1)
    fields = {"shopper_id": Int64, "good_id": Int64, "returned": Bool}
    repo.view("orders", [order], fields, repo.source("orders", orders))
    make_repo(tmp_path / "theirs" / "repo", repo.objects)
    made = init_from_feast(tmp_path / "shop", tmp_path / "theirs" / "repo")
    settings = load_settings(made.settings)
    assert settings.feast.events_view == "orders"
    assert (settings.features.interaction.type_field, settings.features.interaction.negative_types) == (
        "returned",
        ["true"],
    )
    assert find_faults(open_store(settings.feast.repo), settings) == []
    with pytest.raises(ConfigError, match="exists already"):
        init_from_feast(tmp_path / "shop", tmp_path / "theirs" / "repo")
    turned = LayoutOptions(user_column="good_id", item_column="shopper_id")
    made = init_from_feast(tmp_path / "turned", tmp_path / "theirs" / "repo", turned)
    assert yaml.safe_load(made.settings.read_text())["feast"]["user_key"] == "good_id"
    for wishes, said in (
        (LayoutOptions(events_view="order"), "did you mean 'orders'"),
        (LayoutOptions(user_column="buyer"), "--user-column buyer: .* no such column"),
        (LayoutOptions(type_field="kind"), "--type-column kind: the events have the fields 'returned'"),
    ):
        with pytest.raises(ConfigError, match=said):
            init_from_feast(tmp_path / "wrong", tmp_path / "theirs" / "repo", wishes)


@pytest.mark.parametrize(("name", "used"), [("liked", True), ("is_mobile", False)])
def test_a_dislike_that_is_a_boolean_is_negative(tmp_path, make_repo, name, used):
    random = np.random.default_rng(8)
    repo = Repo(tmp_path / "theirs")
    viewer, film = entity("viewer", "userid"), entity("film", "movie_id")
    repo.view("viewers", [viewer], {"age": Int64}, repo.source("viewers", people(random, "userid")))
    repo.view("films", [film], {"age": Int64}, repo.source("films", people(random, "movie_id")))
    seen = events(random, "userid", "movie_id")
    repo.view(
        "seen", [viewer, film], {name: Bool}, repo.source("seen", seen.assign(**{name: random.random(4 * N) < 0.7}))
    )
    make_repo(tmp_path / "theirs" / "repo", repo.objects)
    made = init_from_feast(tmp_path / "shop", tmp_path / "theirs" / "repo")
    settings = load_settings(made.settings)
    assert settings.features.interaction.value_field == (name if used else None)
    (said,) = (choice for choice in made.choices if choice.what == name)
    assert ("values at or below 0 count as negative" in said.why) == used
    assert find_faults(open_store(settings.feast.repo), settings) == []


def test_a_corrected_event_counts_once_and_its_last_row_decides(tmp_path, make_repo):
    """Every last event of a user was corrected: counted twice, all users would end with an item that they had."""
    random = np.random.default_rng(5)
    repo = Repo(tmp_path / "theirs")
    viewer, film = entity("viewer", "userid"), entity("film", "movie_id")
    repo.view("viewers", [viewer], {"age": Int64}, repo.source("viewers", people(random, "userid")))
    repo.view("films", [film], {"age": Int64}, repo.source("films", people(random, "movie_id")))
    rated = events(random, "userid", "movie_id").drop_duplicates(["userid", "movie_id"])
    rated = rated.assign(rating=9.0, created=rated.event_timestamp + pd.Timedelta("2h"))
    older = rated.groupby("userid").tail(1).assign(rating=1.0, created=lambda rows: rows.event_timestamp)
    both = pd.concat([rated, older], ignore_index=True)
    source = repo.source("ratings", both, created_timestamp_column="created")
    repo.view("ratings", [viewer, film], {"rating": Float32}, source)
    make_repo(tmp_path / "theirs" / "repo", repo.objects)
    made = init_from_feast(tmp_path / "shop", tmp_path / "theirs" / "repo")
    settings = load_settings(made.settings)
    assert made.events == len(rated)
    assert settings.candidates.exclude_seen
    (rating,) = (choice for choice in made.choices if choice.what == "rating")
    assert rating.why.startswith("rating 9 to 9"), "no value of a corrected row counts"


def test_files_that_do_not_go_together_are_named(tmp_path, make_repo):
    repo = films(tmp_path / "theirs", np.random.default_rng(6))
    folder = tmp_path / "theirs" / "data" / "mixed"
    folder.mkdir()
    rows = people(np.random.default_rng(6), "movie_id")
    rows.to_parquet(folder / "0.parquet", index=False)
    rows.assign(age="old").to_parquet(folder / "1.parquet", index=False)
    source = FileSource(name="mixed", path=str(folder), timestamp_field="event_timestamp")
    repo.view("mixed", [entity("film", "movie_id")], {"age": Int64}, source)
    make_repo(tmp_path / "theirs" / "repo", repo.objects)
    with pytest.raises(SchemaError, match=r"column 'age' is (int64|string) in one of its files and (int64|string) in"):
        init_from_feast(tmp_path / "shop", tmp_path / "theirs" / "repo")


def test_a_repository_without_users_says_so(tmp_path, make_repo):
    repo = films(tmp_path / "theirs", np.random.default_rng(7))
    repo.objects = [each for each in repo.objects if each.name != "viewer_features"]
    make_repo(tmp_path / "theirs" / "repo", repo.objects)
    with pytest.raises(ConfigError, match="no view is keyed by 'userid' alone, and without one there are no users"):
        init_from_feast(tmp_path / "shop", tmp_path / "theirs" / "repo")


def test_a_repository_without_events_says_what_it_has(tmp_path, make_repo):
    repo = Repo(tmp_path / "theirs")
    repo.view(
        "users", [entity("user", "uid")], {"age": Int64}, repo.source("users", people(np.random.default_rng(4), "uid"))
    )
    make_repo(tmp_path / "theirs" / "repo", repo.objects)
    with pytest.raises(ConfigError, match=r"no events to learn from; its views and their keys are users: uid"):
        init_from_feast(tmp_path / "shop", tmp_path / "theirs" / "repo")
    assert not (tmp_path / "shop").exists()


@pytest.mark.usefixtures("processes")
def test_tables_of_a_database_are_understood_as_files_are(tmp_path, make_repo, postgresql):
    """Rows come through the offline store, a stretch of time at a time."""
    made_here = TableRepo(tmp_path / "theirs", postgresql.engine(postgresql.database))
    repo = films(tmp_path / "theirs", np.random.default_rng(0), made_here)
    offline = {key: value for key, value in postgresql.online_store().items() if key != "vector_enabled"}
    make_repo(tmp_path / "theirs" / "repo", repo.objects, offline=offline)
    made = init_from_feast(tmp_path / "shop", tmp_path / "theirs" / "repo")
    settings = load_settings(made.settings)
    assert (made.events, settings.feast.events_view) == (4 * N, "ratings")
    assert {name: each.kind for name, each in settings.features.user.items()} == {
        "age": "numeric",
        "gender": "categorical",
    }
    assert {name: each.kind for name, each in settings.features.item.items()} == {
        "title": "text",
        "genres": "categories",
    }
    store = open_store(settings.feast.repo)
    assert find_faults(store, settings) == []
    # As a run reads them: ids are keys of a correction too, and each column is pulled once.
    source = event_source(read_registry(store), settings.feast, settings.features)
    parts = [read_slice(portable_config(store), part) for part in slice_source(store, source, N)]
    assert sum(part.num_rows for part in parts) == 4 * N
