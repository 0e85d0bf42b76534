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

from rec_ray.errors import ConfigError, FeatureStoreError, SchemaError
from rec_ray.feature_store.point_in_time import find_service, point_in_time, portable_config, require_fields, views_of

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


def asked(store, pairs, fields):
    ids, times = zip(*pairs, strict=True)
    found = point_in_time(
        portable_config(store), "user_service", "user_id", pa.array(ids), pa.array(times, UTC_TIME), fields
    )
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
    with pytest.raises(SchemaError, match=r"'user_service' returned no 'shoe_size'; it returned .*'city'"):
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


def test_feasts_dask_store_loses_rows_and_the_join_says_so(tmp_path, make_repo):
    """Feast's default store; three questions about one user and instant, one that is too early."""
    path = write(tmp_path / "city.parquet", [("a", "Rome", day(0))], ["user_id", "city", "event_timestamp"])
    user, view = user_view(path, ttl=10 * DAY)
    objects = [user, view, FeatureService(name="user_service", features=[view])]
    store = make_repo(tmp_path / "repo", objects, offline="dask")
    pairs = [("a", day(1)), ("a", day(1)), ("a", day(1)), ("a", day(-1))]
    with pytest.raises(FeatureStoreError, match=r"returned \d rows for 4 of service 'user_service'.*type: duckdb"):
        asked(store, pairs, ["city"])


def test_on_demand_views_of_a_service_answer_too(shop, tmp_path, make_repo):
    """They have no rows of their own; Feast computes them from those of others."""
    profile = shop.get_feature_view("profile")

    @on_demand_feature_view(sources=[profile], schema=[Field(name="loud", dtype=String)], mode="pandas")
    def shouted(rows: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"loud": rows["city"].str.upper()})

    shop.apply([profile, shouted, FeatureService(name="user_service", features=[profile, shouted])])
    assert asked(shop, [("a", day(5)), ("b", day(7))], ["loud", "city"]) == [("OSLO", "Oslo"), ("RIGA", "Riga")]
    assert [view.name for view in views_of(shop, find_service(shop, "user_service"))] == ["profile"]


def test_a_missing_file_is_named_at_the_join(shop, tmp_path):
    (tmp_path / "data" / "city.parquet").unlink()
    with pytest.raises(FeatureStoreError, match=r"'user_service' could not be joined for 1 rows: .*city\.parquet"):
        asked(shop, [("a", day(1))], ["city"])


def test_a_service_that_does_not_exist_is_an_error_that_lists_those_there_are(shop):
    assert find_service(shop, "user_service").name == "user_service"
    with pytest.raises(ConfigError, match=r"no feature service 'usr_service' .*; it has 'user_service'"):
        find_service(shop, "usr_service")


def test_fields_that_a_service_lacks_or_that_clash_are_named(shop):
    service = find_service(shop, "user_service")
    require_fields(service, {"city", "plan"}, "user_id", ["event_type"])
    with pytest.raises(SchemaError, match=r"has no field 'age', 'size'; it returns 'user_id', 'city', 'plan'"):
        require_fields(service, ["size", "city", "age"], "user_id", [])
    with pytest.raises(SchemaError, match=r"feature 'plan' of service 'user_service' has a name that rec_ray uses"):
        require_fields(service, ["plan", "city"], "user_id", ["plan", "event_type"])


def test_a_service_whose_view_was_deleted_is_an_error_that_names_the_view(shop):
    service = find_service(shop, "user_service")
    assert [view.name for view in views_of(shop, service)] == ["profile", "plans"]
    shop.delete_feature_view("plans")
    with pytest.raises(
        FeatureStoreError, match="'user_service' reads the views 'plans', which are not in the registry"
    ):
        views_of(shop, service)


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
