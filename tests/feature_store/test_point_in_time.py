import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Int64, String

from rec_ray.config import FeastSettings
from rec_ray.errors import ConfigError, FeatureStoreError, SchemaError
from rec_ray.feature_store.definitions import find_side, require_fields
from rec_ray.feature_store.point_in_time import point_in_time, portable_config
from rec_ray.feature_store.registry import read_registry

DAY = timedelta(days=1)
START = datetime(2024, 1, 1, tzinfo=UTC)
UTC_TIME = pa.timestamp("us", "UTC")


def day(number):
    return START + number * DAY


def user_view(path, name="profile", fields=("city",), ttl=timedelta(0), kind=ValueType.STRING, created=None):
    user = Entity(name="user", join_keys=["user_id"], value_type=kind)
    source = FileSource(
        name=f"{name}_source",
        path=str(path),
        timestamp_field="event_timestamp",
        created_timestamp_column=created or "",
    )
    schema = [Field(name=field, dtype=String if field != "plan" else Int64) for field in fields]
    view = FeatureView(name=name, entities=[user], ttl=ttl, schema=schema, source=source)
    return user, view


def write(path, rows, names, time=UTC_TIME):
    columns = {name: [row[at] for row in rows] for at, name in enumerate(names)}
    columns["event_timestamp"] = pa.array(columns["event_timestamp"], UTC_TIME).cast(time)
    pq.write_table(pa.table(columns), path)
    return path


@pytest.fixture
def shop(tmp_path, make_repo):
    """Two users; `city` never expires and has ties that `created` decides, `plan` expires after 10 days."""
    city = [
        ("a", "Rome", day(0), day(0)),
        ("a", "Oslo", day(5), day(5)),
        # Corrected twice: the row that was written last counts, wherever it lies in the file.
        ("a", "Bern", day(8), day(9)),
        ("a", "Wien", day(8), day(8)),
        ("b", None, day(1), day(1)),
        ("b", "Riga", day(7), day(7)),
    ]
    plan = [("a", 1, day(0)), ("a", 2, day(6)), ("b", 3, day(2))]
    data = tmp_path / "data"
    data.mkdir()
    user, profile = user_view(
        write(data / "city.parquet", city, ["user_id", "city", "event_timestamp", "created"]), created="created"
    )
    _, plans = user_view(
        write(data / "plan.parquet", plan, ["user_id", "plan", "event_timestamp"]), "plans", ("plan",), 10 * DAY
    )
    service = FeatureService(name="user_service", features=[profile, plans])
    return make_repo(tmp_path / "repo", [user, profile, plans, service])


def user_side(store, **settings):
    return find_side(read_registry(store), FeastSettings(**settings), "user")


def asked(store, pairs, fields):
    ids, times = zip(*pairs, strict=True)
    join = user_side(store).join(fields)
    found = point_in_time(portable_config(store), join, pa.array(ids), pa.array(times, UTC_TIME))
    assert found.column_names == list(fields)
    return list(zip(*(found[field].to_pylist() for field in fields), strict=True))


HAND_WORKED = [
    (("a", day(-1)), (None, None)),
    (("a", day(0)), ("Rome", 1)),
    (("b", day(2)), (None, 3)),
    (("a", day(5) - timedelta(microseconds=1)), ("Rome", 1)),
    (("a", day(5)), ("Oslo", 1)),
    (("a", day(8)), ("Bern", 2)),
    (("a", day(16)), ("Bern", 2)),
    (("a", day(16) + timedelta(microseconds=1)), ("Bern", None)),
    (("nobody", day(8)), (None, None)),
    (("b", day(7)), ("Riga", 3)),
    (("b", day(12)), ("Riga", 3)),
    (("b", day(13)), ("Riga", None)),
    (("a", day(5)), ("Oslo", 1)),
    (("a", day(5)), ("Oslo", 1)),
]
"""Who as of when, and their city and plan; the same question three times, on purpose."""


def test_features_are_as_of_each_row_with_versions_expiry_and_ties(shop):
    pairs, answers = zip(*HAND_WORKED, strict=True)
    assert asked(shop, pairs, ["city", "plan"]) == list(answers)
    assert asked(shop, pairs[::-1], ["plan", "city"]) == [answer[::-1] for answer in answers[::-1]]


def test_every_row_comes_back_in_its_place_among_many_that_are_alike(shop):
    pairs = [HAND_WORKED[number % len(HAND_WORKED)][0] for number in range(20_000)]
    answers = [HAND_WORKED[number % len(HAND_WORKED)][1] for number in range(20_000)]
    assert asked(shop, pairs, ["city", "plan"]) == answers


def test_a_field_that_the_service_does_not_return_is_an_error_that_lists_what_it_does(shop):
    with pytest.raises(ConfigError, match=r"'user_service' has no field 'shoe_size'; there are 'city', 'plan'"):
        asked(shop, [("a", day(1))], ["city", "shoe_size"])


def test_views_keyed_by_numbers_answer_for_ids_that_came_as_text(tmp_path, make_repo):
    rows = [(7, "Rome", day(0)), (10**12, "Oslo", day(0))]
    path = write(tmp_path / "city.parquet", rows, ["user_id", "city", "event_timestamp"])
    user, view = user_view(path, kind=ValueType.INT64)
    store = make_repo(tmp_path / "repo", [user, view, FeatureService(name="user_service", features=[view])])
    pairs = [("1000000000000", day(1)), ("7", day(1)), ("8", day(1))]
    assert asked(store, pairs, ["city"]) == [("Oslo",), ("Rome",), (None,)]
    with pytest.raises(SchemaError, match="user_id as int64"):
        asked(store, [("seven", day(1))], ["city"])


@pytest.mark.parametrize("stored", [pa.timestamp("ms"), pa.timestamp("ns"), pa.timestamp("ns", "UTC")])
def test_times_without_a_zone_are_utc_for_feast_too_wherever_the_machine_is(tmp_path, make_repo, monkeypatch, stored):
    path = write(tmp_path / "city.parquet", [("a", "Rome", day(1))], ["user_id", "city", "event_timestamp"], stored)
    user, view = user_view(path)
    store = make_repo(tmp_path / "repo", [user, view, FeatureService(name="user_service", features=[view])])
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    time.tzset()
    try:
        found = asked(store, [("a", day(1) - timedelta(microseconds=1)), ("a", day(1))], ["city"])
    finally:
        monkeypatch.undo()
        time.tzset()
    assert found == [(None,), ("Rome",)]


def test_the_folder_a_process_works_in_does_not_matter(tmp_path, make_repo, monkeypatch):
    """The registry and the file are named relative to the repository."""
    repo = tmp_path / "repo"
    repo.mkdir()
    write(repo / "city.parquet", [("a", "Rome", day(0))], ["user_id", "city", "event_timestamp"])
    user, view = user_view("city.parquet")
    monkeypatch.chdir(repo)
    make_repo(repo, [user, view, FeatureService(name="user_service", features=[view])])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    from feast import FeatureStore

    assert asked(FeatureStore(repo_path="../repo"), [("a", day(1))], ["city"]) == [("Rome",)]
    assert not list(Path().iterdir()), "nothing may be made where the process happens to work"


def test_feasts_default_store_answers_each_row_although_feast_itself_drops_some(tmp_path, make_repo):
    """Dask; three questions about one user and instant, one that is too early."""
    path = write(tmp_path / "city.parquet", [("a", "Rome", day(0))], ["user_id", "city", "event_timestamp"])
    user, view = user_view(path, ttl=10 * DAY)
    objects = [user, view, FeatureService(name="user_service", features=[view])]
    store = make_repo(tmp_path / "repo", objects, offline="dask")
    pairs = [("a", day(1)), ("a", day(1)), ("a", day(1)), ("a", day(-1)), ("a", day(11))]
    assert asked(store, pairs, ["city"]) == [("Rome",), ("Rome",), ("Rome",), (None,), (None,)]


def test_on_demand_views_of_a_service_answer_too(shop, tmp_path, make_repo):
    """They have no rows of their own; Feast computes them from those of others."""
    profile = shop.get_feature_view("profile")

    @on_demand_feature_view(sources=[profile], schema=[Field(name="loud", dtype=String)], mode="pandas")
    def shouted(rows: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"loud": rows["city"].str.upper()})

    shop.apply([profile, shouted, FeatureService(name="user_service", features=[profile, shouted])])
    assert asked(shop, [("a", day(5)), ("b", day(7))], ["loud", "city"]) == [("OSLO", "Oslo"), ("RIGA", "Riga")]
    assert [view.name for view in user_side(shop).views] == ["profile"]


def test_a_missing_file_is_named_at_the_join(shop, tmp_path):
    (tmp_path / "data" / "city.parquet").unlink()
    with pytest.raises(FeatureStoreError, match=r"view 'profile': there is no file .*city\.parquet"):
        asked(shop, [("a", day(1))], ["city"])


def test_a_service_that_does_not_exist_is_an_error_that_lists_those_there_are(shop):
    with pytest.raises(ConfigError, match=r"no feature service 'usr_service' .*; it has 'user_service'.*'profile'"):
        user_side(shop, user_service="usr_service")


def test_fields_that_a_service_lacks_or_that_clash_are_named(shop):
    side = user_side(shop)
    require_fields(side, {"city": "features.user", "plan": "features.user"}, ["event_type"])
    with pytest.raises(ConfigError, match=r"features\.user: .* has no field 'plane'; did you mean 'plan'"):
        require_fields(side, {"plane": "features.user"}, [])
    with pytest.raises(ConfigError, match=r"rec_ray uses the name 'plan' itself; write plans__plan"):
        require_fields(side, {"plan": "features.user"}, ["plan", "event_type"])
    require_fields(side, {"plans__plan": "features.user"}, ["plan", "event_type"])


def test_views_are_named_without_a_service_and_one_field_of_a_view_too(shop):
    side = user_side(shop, user_views=["plans", "profile:city"])
    assert side.field_names == ["plan", "city"]
    with pytest.raises(ConfigError, match=r"feast\.user_views names the view 'plan', .*did you mean 'plans'"):
        user_side(shop, user_views=["plan"])
    with pytest.raises(
        ConfigError, match=r"names profile:town, but view 'profile' has no such field; there are 'city'"
    ):
        user_side(shop, user_views=["profile:town"])
    with pytest.raises(ConfigError, match=r"feast\.user_views names 'plans': .* keyed by 'user_id', not by 'client'"):
        user_side(shop, user_views=["plans"], user_key="client")


def test_a_service_whose_view_was_deleted_is_an_error_that_names_the_view(shop):
    shop.delete_feature_view("plans")
    with pytest.raises(ConfigError, match="'user_service' names the view 'plans', which is not in the registry"):
        user_side(shop)


def test_a_registry_that_nothing_was_applied_to_or_that_is_down_is_one_line(tmp_path, shop):
    from feast import FeatureStore

    yaml = (tmp_path / "repo" / "feature_store.yaml").read_text()
    for folder, registry in (("empty", "registry.db"), ("down", "{registry_type: remote, path: 'localhost:1'}")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "feature_store.yaml").write_text(yaml.replace("registry.db", registry))
    with pytest.raises(ConfigError, match=r"run `feast apply` in .*empty"):
        read_registry(FeatureStore(repo_path=str(tmp_path / "empty")))
    with pytest.raises(FeatureStoreError, match=r"registry of project 'shop' cannot be read: .*; is it up") as caught:
        read_registry(FeatureStore(repo_path=str(tmp_path / "down")))
    assert "\n" not in str(caught.value)


def test_a_sql_registry_with_a_relative_path_is_found_from_any_folder(tmp_path, shop, monkeypatch):
    from feast import FeatureStore

    repo = tmp_path / "sql"
    repo.mkdir()
    yaml = (tmp_path / "repo" / "feature_store.yaml").read_text()
    sql = "{registry_type: sql, path: 'sqlite:///registry.db'}"
    (repo / "feature_store.yaml").write_text(yaml.replace("registry.db", sql))
    monkeypatch.chdir(repo)
    FeatureStore(repo_path=str(repo)).apply([shop.get_entity("user"), shop.get_feature_view("profile")])
    monkeypatch.chdir(tmp_path)
    config = portable_config(FeatureStore(repo_path=str(repo)))
    assert list(read_registry(FeatureStore(config=config)).views) == ["profile"]
    assert not (tmp_path / "registry.db").exists()


def test_secrets_of_a_feature_store_are_found_to_be_hidden():
    from types import SimpleNamespace

    from rec_ray.feature_store.point_in_time import secrets_in

    config = SimpleNamespace(
        registry={"registry_type": "sql", "path": "postgresql+psycopg://me:hunter1@db:5432/x"},
        offline_store={"type": "duckdb"},
        online_store={
            "type": "redis",
            "connection_string": "redis:6379,ssl=true,password=hunter2",
            "password": "hunter3",
        },
    )
    assert sorted(secrets_in(config)) == ["hunter1", "hunter2", "hunter3"]
