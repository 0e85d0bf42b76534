"""Feature repositories in the shapes that people have, each value compared with a computation row by row."""

from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureService, FeatureView, Field, FileSource, PushSource, RequestSource, ValueType
from feast.infra.offline_stores.contrib.postgres_offline_store.postgres_source import PostgreSQLSource
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Bytes, Float64, Int64, String, UnixTimestamp
from tiny_offline_store import TinySource

from rec_ray.config import FeastSettings
from rec_ray.errors import ConfigError
from rec_ray.feature_store.definitions import find_events, find_side
from rec_ray.feature_store.point_in_time import point_in_time, portable_config
from rec_ray.feature_store.registry import read_registry

START = pd.Timestamp("2024-01-01", tz="UTC")
USERS = [f"u{number:02d}" for number in range(12)]


@dataclass
class Told:
    """What a column must hold: which rows of which frame tell it."""

    frame: pd.DataFrame
    value: str
    key: str = "user_id"
    time: str = "event_timestamp"
    created: str | None = None
    ttl: timedelta | None = None


@dataclass
class Shape:
    """A repository: definitions, settings, and the right values of some columns."""

    objects: list[Any]
    told: dict[str, Told]
    settings: dict[str, Any] = field(default_factory=dict)
    ids: list[str] = field(default_factory=lambda: USERS)


def look_up(told, entity, time):
    """Return the value of an entity as of a time: one row after the other, as slowly as can be."""
    best = None
    for place, row in enumerate(told.frame.to_dict("records")):
        seen = pd.Timestamp(row[told.time])
        seen = seen if seen.tzinfo else seen.tz_localize("UTC")
        if str(row[told.key]) != entity or seen > time or (told.ttl and time - seen > told.ttl):
            continue
        rank = (seen, row[told.created] if told.created else seen, place)
        if best is None or rank > best[0]:
            best = (rank, row[told.value])
    return None if best is None or pd.isna(best[1]) else best[1]


def frames():
    random = np.random.default_rng(3)
    n = 5 * len(USERS)
    times = START + pd.to_timedelta(random.integers(0, 100 * 24, n), unit="h")
    users = pd.DataFrame(
        {
            "user_id": np.repeat(USERS, 5),
            "event_timestamp": times,
            "age": random.integers(18, 80, n),
            "city": random.choice(["Rome", "Oslo", None], n),
        }
    )
    # Two rows of one user and time, the second written earlier.
    users.loc[1::5, "event_timestamp"] = users.loc[0::5, "event_timestamp"].to_numpy()
    users["created"] = users.event_timestamp + pd.to_timedelta(random.permutation(n), unit="min")
    return users


@dataclass
class Folder:
    """A folder of Parquet files."""

    path: Path

    def write(self, name, frame, **more):
        frame.to_parquet(self.path / f"{name}.parquet", index=False)
        place = {"path": str(self.path / f"{name}.parquet"), "timestamp_field": "event_timestamp"}
        return FileSource(name=f"{name}_source", **place, **more)


@dataclass
class Bucket:
    """A bucket of an S3 server."""

    server: Any

    def write(self, name, frame, **more):
        place = f"{self.server.bucket}/shapes/{name}.parquet"
        pq.write_table(pa.Table.from_pandas(frame), place, filesystem=self.server.filesystem())
        source = {"path": f"s3://{place}", "s3_endpoint_override": self.server.endpoint}
        return FileSource(name=f"{name}_source", timestamp_field="event_timestamp", **source, **more)


@dataclass
class Database:
    """A schema of PostgreSQL."""

    engine: Any
    schema: str

    def write(self, name, frame, **more):
        with self.engine.begin() as connection:
            connection.exec_driver_sql(f"CREATE SCHEMA IF NOT EXISTS {self.schema}")
            frame.to_sql(name, connection, schema=self.schema, index=False)
        place = {"query": f"SELECT * FROM {self.schema}.{name}", "timestamp_field": "event_timestamp"}
        return PostgreSQLSource(name=f"{name}_source", **place, **more)


@dataclass
class TinyTables:
    """Tables that only an offline store of one's own reads."""

    path: Path

    def write(self, name, frame, **more):
        frame.to_pickle(self.path / f"{name}.table")
        return TinySource(str(self.path / f"{name}.table"), timestamp_field="event_timestamp", **more)


def view(name, source, fields, entities=None, ttl=timedelta(0)):
    entity = entities or [Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)]
    schema = [Field(name=field, dtype=kind) for field, kind in fields.items()]
    return FeatureView(name=name, entities=entity, ttl=ttl, schema=schema, source=source)


def user_entity(kind=ValueType.STRING):
    return Entity(name="user", join_keys=["user_id"], value_type=kind)


def users_view(folder, rows, **more):
    return view(
        "users",
        folder.write("users", rows, created_timestamp_column="created"),
        {"age": Int64, "city": String},
        **more,
    )


def both(rows):
    return {name: Told(rows, name, created="created") for name in ("age", "city")}


def one_service_for_a_model(folder):
    rows = frames()
    users = users_view(folder, rows)
    item = Entity(name="item", join_keys=["item_id"], value_type=ValueType.STRING)
    items = pd.DataFrame({"item_id": ["i"], "price": [1.0], "event_timestamp": [START]})
    items = view("items", folder.write("items", items), {"price": Float64}, [item])
    events = pd.DataFrame({"user_id": ["u00"], "item_id": ["i"], "event_timestamp": [START], "kind": ["buy"]})
    events = view("events", folder.write("events", events), {"kind": String}, [user_entity(), item])
    service = FeatureService(name="model_v1", features=[users, items, events])
    names = dict.fromkeys(("user_service", "item_service", "interaction_service"), "model_v1")
    return Shape([user_entity(), item, users, items, events, service], both(rows), names)


def request_data_beside(folder):
    rows = frames()
    users = users_view(folder, rows)
    asked = RequestSource(name="asked", schema=[Field(name="amount", dtype=Float64)])

    @on_demand_feature_view(sources=[users, asked], schema=[Field(name="budget", dtype=Float64)])
    def budget(inputs: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"budget": inputs["age"] * inputs["amount"]})

    return Shape(
        [user_entity(), users, budget, FeatureService(name="user_service", features=[users, budget])], both(rows)
    )


def computed(folder):
    rows = frames()
    users = users_view(folder, rows)

    @on_demand_feature_view(sources=[users], schema=[Field(name="twice", dtype=Float64)], mode="pandas")
    def doubled(inputs: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"twice": inputs["age"] * 2.0})

    told = {"city": both(rows)["city"], "twice": Told(rows.assign(twice=rows.age * 2.0), "twice", created="created")}
    return Shape([user_entity(), users, doubled, FeatureService(name="user_service", features=[doubled, users])], told)


def bytes_beside(folder):
    rows = frames().assign(picture=b"abc")
    fields = {"age": Int64, "city": String, "picture": Bytes}
    users = view("users", folder.write("users", rows, created_timestamp_column="created"), fields)
    return Shape([user_entity(), users, FeatureService(name="user_service", features=[users])], both(rows))


def one_name_in_two_views(folder):
    rows = frames()
    users, days = users_view(folder, rows), timedelta(days=20)
    stats = view("stats", folder.write("stats", rows.iloc[::2]), {"city": String}, ttl=days)
    told = {
        "users__city": both(rows)["city"],
        "stats__city": Told(rows.iloc[::2], "city", ttl=days),
        "age": both(rows)["age"],
    }
    return Shape([user_entity(), users, stats, FeatureService(name="user_service", features=[stats, users])], told)


def another_key_in_the_service(folder):
    rows = frames()
    users = users_view(folder, rows)
    service = FeatureService(name="user_service", features=[users.with_join_key_map({"user_id": "customer_id"})])
    return Shape([user_entity(), users, service], both(rows))


def an_alias_in_the_service(folder):
    rows = frames()
    users = users_view(folder, rows)
    service = FeatureService(name="user_service", features=[users.with_name("buyers")[["city"]]])
    return Shape([user_entity(), users, service], {"buyers__city": both(rows)["city"]})


def whole_numbers_as_keys(folder):
    rows = frames()
    rows["user_id"] = rows.user_id.str[1:].astype(int)
    users = users_view(folder, rows, entities=[user_entity(ValueType.INT64)])
    ids = [str(int(name[1:])) for name in USERS]
    return Shape(
        [user_entity(ValueType.INT64), users, FeatureService(name="user_service", features=[users])],
        both(rows),
        {},
        ids,
    )


def a_folder_of_parts(folder):
    rows = frames()
    folder = folder.path
    (folder / "users").mkdir()
    for number in range(3):
        rows.iloc[number::3].to_parquet(folder / "users" / f"part-{number}.parquet", index=False)
    source = FileSource(
        name="parts", path=str(folder / "users"), timestamp_field="event_timestamp", created_timestamp_column="created"
    )
    users = view("users", source, {"age": Int64, "city": String})
    return Shape([user_entity(), users, FeatureService(name="user_service", features=[users])], both(rows))


def renamed_columns_and_time(folder):
    rows = frames()
    names = {"customer": "user_id", "ts": "event_timestamp", "town": "city"}
    stored = rows.rename(columns={new: old for old, new in names.items()})
    source = folder.write("users", stored, field_mapping=names, created_timestamp_column="created")
    users = view("users", source, {"age": Int64, "city": String})
    return Shape([user_entity(), users, FeatureService(name="user_service", features=[users])], both(rows))


def naive_nanoseconds_that_expire(folder):
    rows = frames().drop(columns="created").drop_duplicates(["user_id", "event_timestamp"])
    rows["event_timestamp"] = rows.event_timestamp.dt.tz_localize(None).astype("datetime64[ns]")
    users = view("users", folder.write("users", rows), {"age": Int64, "city": String}, ttl=timedelta(days=30))
    told = {name: Told(rows, name, ttl=timedelta(days=30)) for name in ("age", "city")}
    return Shape([user_entity(), users, FeatureService(name="user_service", features=[users])], told)


def views_without_a_service(folder):
    rows = frames()
    users = users_view(folder, rows)
    since = rows.assign(since=rows.event_timestamp - pd.Timedelta("3D"))
    source = PushSource(name="pushed", batch_source=folder.write("since", since, created_timestamp_column="created"))
    pushed = view("since", source, {"since": UnixTimestamp, "age": Int64})
    told = {"age": both(rows)["age"], "since": Told(since, "since", created="created")}
    return Shape([user_entity(), users, pushed], told, {"user_views": ["users:age", "since:since"]})


SHAPES = [
    one_service_for_a_model,
    request_data_beside,
    computed,
    bytes_beside,
    one_name_in_two_views,
    another_key_in_the_service,
    an_alias_in_the_service,
    whole_numbers_as_keys,
    a_folder_of_parts,
    renamed_columns_and_time,
    naive_nanoseconds_that_expire,
    views_without_a_service,
]


def questions(ids):
    random = np.random.default_rng(5)
    asked = [*random.choice(ids, 150), "999", ids[0], ids[0]]
    times = [START + pd.Timedelta(hours=int(hour)) for hour in random.integers(-100, 4000, len(asked))]
    times[-1] = times[-2]
    return [str(each) for each in asked], times


def require_right_values(store, made):
    """Compare each column of a shape with the computation row by row."""
    ids, times = questions(made.ids)
    join = find_side(read_registry(store), FeastSettings(**made.settings), "user").join(made.told)
    found = point_in_time(portable_config(store), join, pa.array(ids), pa.array(times, pa.timestamp("us", "UTC")))
    assert found.column_names == list(made.told)
    known = 0
    for name, told in made.told.items():
        expected = [look_up(told, *question) for question in zip(ids, times, strict=True)]
        assert [None if pd.isna(value) else value for value in found[name].to_pylist()] == expected
        known += sum(value is not None for value in expected)
    assert known > 60


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
def test_each_value_is_that_of_the_newest_row_of_its_user(shape, tmp_path, make_repo):
    """In both of Feast's file stores."""
    made = shape(Folder(tmp_path))
    for offline in ("duckdb", "dask"):
        require_right_values(make_repo(tmp_path / offline, made.objects, offline=offline), made)


ON_FILES_ONLY = (a_folder_of_parts, bytes_beside)
"""A database has no folders, and Feast knows no type for its bytes."""


def test_each_value_is_right_in_an_offline_store_of_ones_own(tmp_path, make_repo):
    """Such as Snowflake or BigQuery: rows come through the two methods that every offline store has."""
    for shape in SHAPES:
        if shape in ON_FILES_ONLY:
            continue
        folder = tmp_path / shape.__name__
        folder.mkdir()
        made = shape(TinyTables(folder))
        store = make_repo(folder, made.objects, offline="tiny_offline_store.TinyOfflineStore")
        require_right_values(store, made)


@pytest.mark.usefixtures("processes")
def test_each_value_is_right_in_a_database_too(tmp_path, make_repo, postgresql):
    """PostgreSQL joins by itself: only the fields wanted may be asked for."""
    for shape in SHAPES:
        if shape in ON_FILES_ONLY:
            continue
        made = shape(Database(postgresql.engine(postgresql.database), shape.__name__))
        offline = {key: value for key, value in postgresql.online_store().items() if key != "vector_enabled"}
        require_right_values(make_repo(tmp_path / shape.__name__, made.objects, offline=offline), made)


@pytest.mark.usefixtures("processes")
def test_each_value_is_right_from_files_on_an_s3_server_too(tmp_path, make_repo, seaweedfs, monkeypatch):
    """Feast itself reads them with neither of its file stores: DuckDB drops the endpoint."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", seaweedfs.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", seaweedfs.secret_key)
    made = one_name_in_two_views(Bucket(seaweedfs))
    for offline in ("duckdb", "dask"):
        require_right_values(make_repo(tmp_path / offline, made.objects, offline=offline), made)


def test_a_field_of_two_views_must_be_named_with_its_view(tmp_path, make_repo):
    store = make_repo(tmp_path / "repo", one_name_in_two_views(Folder(tmp_path)).objects)
    side = find_side(read_registry(store), FeastSettings(), "user")
    with pytest.raises(ConfigError, match=r"'city' is a field of several views .*'stats__city', 'users__city'"):
        side.join(["city"])


def test_a_field_that_needs_request_data_is_an_error_that_says_so(tmp_path, make_repo):
    store = make_repo(tmp_path / "repo", request_data_beside(Folder(tmp_path)).objects)
    side = find_side(read_registry(store), FeastSettings(), "user")
    with pytest.raises(ConfigError, match=r"'budget' needs request data \('amount'\)"):
        side.join(["budget__budget"])


def test_events_may_be_keyed_by_their_own_id(tmp_path, make_repo):
    order = Entity(name="order", join_keys=["order_id"], value_type=ValueType.STRING)
    rows = pd.DataFrame({"order_id": ["o"], "buyer": ["u"], "sku": ["i"], "event_timestamp": [START]})
    lines = view("lines", Folder(tmp_path).write("lines", rows), {"buyer": String, "sku": String}, [order])
    service = FeatureService(name="interaction_service", features=[lines])
    registry = read_registry(make_repo(tmp_path / "repo", [order, lines, service]))
    named = FeastSettings(events_user_field="buyer", events_item_field="sku")
    found = find_events(registry, named)
    assert (found.view.name, found.user, found.item) == ("lines", "buyer", "sku")
    assert find_events(registry, named.model_copy(update={"events_view": "lines"})).user == "buyer"
    with pytest.raises(ConfigError, match=r"no view with 'user_id' and 'item_id' .*lines: order_id, buyer, sku"):
        find_events(registry, FeastSettings())
