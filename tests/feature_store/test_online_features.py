"""Online features: materialised through Feast, with the newest values, also of rows that Feast's own start omits."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from feast import Entity, FeatureService, FeatureView, Field, FileSource, PushSource, ValueType
from feast.types import Float32, Int64, String

from rec_ray.candidate_store.erasure import Erased
from rec_ray.config import FeastSettings
from rec_ray.errors import ConfigError, FeatureStoreError
from rec_ray.feature_store.online_features import (
    OnlineState,
    OnlineView,
    compare_online,
    delete_forgotten_rows,
    find_online_views,
    materialize_view,
    read_online_fields,
)

NOW = datetime(2026, 6, 1, tzinfo=UTC)
ITEMS = [
    # Older than a year: Feast's first incremental materialisation of a view without TTL omits such rows.
    {"item_id": 1, "name": "old", "price": 1.5, "event_timestamp": datetime(2019, 1, 1, tzinfo=UTC)},
    {"item_id": 2, "name": "new", "price": 2.5, "event_timestamp": datetime(2026, 5, 1, tzinfo=UTC)},
    # The newest row comes first in the file.
    {"item_id": 2, "name": "before", "price": 9.0, "event_timestamp": datetime(2025, 1, 1, tzinfo=UTC)},
    {"item_id": 3, "name": None, "price": float("nan"), "event_timestamp": datetime(2026, 5, 1, tzinfo=UTC)},
]


@pytest.fixture
def repo(tmp_path: Path, make_repo: Callable[..., Any]) -> Any:
    """Items with a number as key, on Feast's default offline store; users with a TTL of 30 days."""
    folder = tmp_path / "repo"
    folder.mkdir()
    write_items(folder, ITEMS)
    pd.DataFrame(
        {
            "user_id": ["a", "b"],
            "city": ["Rome", "Oslo"],
            "event_timestamp": [NOW - timedelta(days=3), NOW - timedelta(days=60)],
        }
    ).to_parquet(folder / "users.parquet")
    item = Entity(name="item", join_keys=["item_id"], value_type=ValueType.INT64)
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)

    def view(name: str, entity: Any, file: str, fields: dict[str, Any], **more: Any) -> Any:
        source = FileSource(name=f"{name}_source", path=file, timestamp_field="event_timestamp")
        source = PushSource(name="pushed", batch_source=source) if more.pop("pushed", False) else source
        schema = [Field(name=field, dtype=kind) for field, kind in fields.items()]
        return FeatureView(name=name, entities=[entity], schema=schema, source=source, **more)

    never, key = timedelta(0), {"item_id": Int64}
    items = view("items", item, "items.parquet", {**key, "name": String, "price": Float32}, ttl=never)
    pushed = view("pushed_items", item, "items.parquet", {**key, "name": String}, ttl=never, pushed=True)
    hidden = view("hidden", item, "items.parquet", {**key, "price": Float32}, ttl=never, online=False)
    users = view("users", user, "users.parquet", {"user_id": String, "city": String}, ttl=timedelta(days=30))
    services = [
        FeatureService(name="item_service", features=[items, pushed, hidden]),
        FeatureService(name="user_service", features=[users]),
    ]
    return make_repo(folder, [item, user, items, pushed, hidden, users, *services], offline="dask")


def write_items(folder: Path, rows: list[dict[str, Any]]) -> None:
    pd.DataFrame(rows).astype({"price": "float32"}).to_parquet(folder / "items.parquet")


def view_of(store: Any, name: str) -> OnlineView:
    """Return a view as the registry has it now, with its last materialisation."""
    return next(each for each in find_online_views(store, FeastSettings()) if each.name == name)


def test_only_views_with_rows_of_their_own_that_are_served(repo: Any) -> None:
    assert [view.name for view in find_online_views(repo, FeastSettings())] == ["users", "items"]
    assert [view.name for view in find_online_views(repo, FeastSettings(), ["items"])] == ["items"]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("pushed_items", "push source 'pushed' feeds it"),
        ("hidden", "online=False"),
        ("nothing", "no such view; views that qualify are 'users', 'items'"),
    ],
)
def test_a_view_that_cannot_be_materialised_is_refused(repo: Any, name: str, why: str) -> None:
    with pytest.raises(ConfigError, match=f"publish.materialize names '{name}'.*{why}"):
        find_online_views(repo, FeastSettings(), [name])


def test_all_rows_come_first_and_then_the_newer_ones(repo: Any) -> None:
    ids = ["1", "2", "3", "4"]
    assert compare_online(repo, view_of(repo, "items"), ids, NOW) == OnlineState(4, 0, 2)

    materialize_view(repo, view_of(repo, "items"), NOW)
    found = read_online_fields(repo, view_of(repo, "items"), ids)
    assert found["name"] == ["old", "new", None, None]
    assert found["price"][:2] == [1.5, 2.5]
    assert compare_online(repo, view_of(repo, "items"), ids, NOW).differing == 0

    later = NOW + timedelta(days=2)
    row = {"item_id": 4, "name": "fourth", "price": 4.0, "event_timestamp": NOW + timedelta(days=1)}
    corrected = [{**ITEMS[0], "price": 1.75}, *ITEMS[1:], row]
    write_items(Path(repo.repo_path), corrected)
    materialize_view(repo, view_of(repo, "items"), later)
    found = read_online_fields(repo, view_of(repo, "items"), ids)
    assert found["name"][3] == "fourth" and found["price"][0] == 1.5, "its time is before the last materialisation"
    assert compare_online(repo, view_of(repo, "items"), ids, later) == OnlineState(4, 3, 1)

    materialize_view(repo, view_of(repo, "items"), later, again=True)
    assert read_online_fields(repo, view_of(repo, "items"), ids)["price"][0] == 1.75
    assert compare_online(repo, view_of(repo, "items"), ids, later) == OnlineState(4, 3, 0)


def test_rows_older_than_the_ttl_stay_away_and_do_not_count_as_different(repo: Any) -> None:
    materialize_view(repo, view_of(repo, "users"), NOW)
    assert read_online_fields(repo, view_of(repo, "users"), ["a", "b"])["city"] == ["Rome", None]
    assert compare_online(repo, view_of(repo, "users"), ["a", "b"], NOW) == OnlineState(2, 1, 0)


def test_a_file_that_is_gone_is_an_error_of_one_line(repo: Any) -> None:
    (Path(repo.repo_path) / "items.parquet").unlink()
    with pytest.raises(FeatureStoreError, match=r"view 'items' could not be materialised: .*is the online store up"):
        materialize_view(repo, view_of(repo, "items"), NOW)


def test_forgotten_items_do_not_come_back(repo: Any) -> None:
    view = view_of(repo, "items")
    materialize_view(repo, view, NOW)
    assert delete_forgotten_rows(repo, view, Erased.of(users=["1"]), 100) == 0
    assert delete_forgotten_rows(repo, view, Erased.of(items=["1", "77"]), 100) == 1
    assert read_online_fields(repo, view, ["1", "2"])["name"] == [None, "new"]
