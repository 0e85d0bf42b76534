"""Planted differences between the online and the offline store are named by view, field and cause."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rec_ray.config import FeastSettings
from rec_ray.feature_store.definitions import find_side
from rec_ray.feature_store.online_skew import Skew, find_skew
from rec_ray.feature_store.registry import read_registry

NOW = datetime(2024, 5, 31, 12, tzinfo=UTC)
DAY = timedelta(days=1)
USERS = [f"u{number}" for number in range(40)]
FIELDS = ["age", "seen", "city", "tags"]


def rows(day: int) -> dict[str, Any]:
    """The rows of one day; each day has other values."""
    return {
        "user_id": USERS,
        "age": pa.array([20.0 + number + 100 * day for number in range(40)]),
        "seen": pa.array([NOW - DAY * (number + 1) for number in range(40)], pa.timestamp("us", "UTC")),
        "city": [f"city {number % 5 + day}" for number in range(40)],
        "tags": pa.array([[f"t{number}", f"d{day}"] for number in range(40)]),
        "event_timestamp": pa.array([NOW - DAY * (10 - day)] * 40, pa.timestamp("us", "UTC")),
    }


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, make_repo: Callable[..., Any]) -> Any:
    """Users with rows of day 1 and of day 9; the newest are materialised."""
    from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
    from feast.types import Array, Float64, String, UnixTimestamp

    folder = tmp_path_factory.mktemp("skew")
    pq.write_table(pa.concat_tables([pa.table(rows(1)), pa.table(rows(9))]), folder / "users.parquet")
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)
    source = FileSource(name="users", path=str(folder / "users.parquet"), timestamp_field="event_timestamp")
    fields = zip(FIELDS, [Float64, UnixTimestamp, String, Array(String)], strict=True)
    schema = [Field(name=name, dtype=kind) for name, kind in fields]
    view = FeatureView(name="profile", entities=[user], ttl=timedelta(days=30), schema=schema, source=source)
    service = FeatureService(name="user_service", features=[view])
    return make_repo(folder / "repo", [user, view, service])


def write(store: Any, table: dict[str, Any]) -> None:
    """Write rows into the online store as a materialisation does, whatever is there."""
    frame = pa.table(table).to_pandas()
    frame["event_timestamp"] = pd.Timestamp.now(tz="UTC")
    store.write_to_online_store("profile", frame)


def skews(store: Any, as_of: datetime = NOW) -> dict[str, Skew]:
    side = find_side(read_registry(store), FeastSettings(), "user")
    return {each.field: each for each in find_skew(store, side, FIELDS, USERS, as_of) if each.differ}


def test_a_store_with_the_same_rows_has_no_skew(store: Any) -> None:
    write(store, rows(9))
    assert skews(store) == {}
    assert skews(store, NOW - timedelta(minutes=5)) == {}


def test_a_zone(store: Any) -> None:
    table = rows(9)
    hours = pa.array([each.as_py() + timedelta(hours=2) for each in table["seen"]], pa.timestamp("us", "UTC"))
    write(store, {**table, "seen": hours})
    found = skews(store)
    assert set(found) == {"seen"}
    assert (found["seen"].differ, found["seen"].cause) == (40, "by +2.0 hours online")
    assert "40 of 40 values of 'seen' in view 'profile' differ online: by +2.0 hours online" in found["seen"].said


def test_a_transformation(store: Any) -> None:
    table = rows(9)
    write(store, {**table, "age": pa.array([each.as_py() * 12 for each in table["age"]])})
    found = skews(store)
    assert (set(found), found["age"].cause) == ({"age"}, "by the factor 12 online")


def test_a_stale_materialisation_which_lags(store: Any) -> None:
    write(store, rows(1))
    found = skews(store)
    assert set(found) == {"age", "city", "tags"}
    assert found["city"].cause == "the values are those of 2 days before; is it materialised?"
    assert found["tags"].differ == 40


def test_missing_rows(store: Any) -> None:
    from rec_ray.feature_store.online_deletion import delete_online_rows

    write(store, rows(9))
    delete_online_rows(store, "user_id", USERS[:10])
    found = skews(store)
    assert {name: (each.differ, each.missing) for name, each in found.items()} == dict.fromkeys(FIELDS, (10, 10))
    assert found["age"].cause == "the rows are missing online; is the view materialised?"


def test_values_that_have_expired(store: Any) -> None:
    write(store, rows(9))
    found = skews(store, NOW + 40 * DAY)
    assert found["age"].cause == "the values have expired offline (ttl) and are still served online"


def test_a_type_is_compared_too() -> None:
    from rec_ray.feature_store.online_skew import compare_values

    found = compare_values("profile", "age", ["a", "b"], [7, 8], ["7", "8"])
    assert (found.differ, found.cause) == (2, "the type is int offline and str online")


def test_a_few_other_values_have_no_common_cause(store: Any) -> None:
    table = rows(9)
    cities = [*table["city"]]
    cities[3] = "elsewhere"
    write(store, {**table, "city": cities})
    found = skews(store)
    assert (found["city"].differ, found["city"].cause) == (1, "")
    assert found["city"].example == ("u3", "city 12", "elsewhere")
    assert found["city"].share == pytest.approx(1 / 40)
