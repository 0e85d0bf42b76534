"""Features that are known today and were not when events happened: left out on both sides, or the run stops."""

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rec_ray.config.loading import load_settings
from rec_ray.errors import DataError

pytestmark = [pytest.mark.usefixtures("processes"), pytest.mark.usefixtures("local_ray")]

START = datetime(2024, 1, 1, tzinfo=UTC)
AFTER = START + timedelta(days=200)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, make_project: Callable[..., Path], tiny_tables: Any) -> Path:
    return make_project(tmp_path_factory.mktemp("late"), **tiny_tables)


@pytest.fixture
def export(project: Path) -> Any:
    """Give `export(name, table)`, which replaces a file of the project as a nightly job does; undone after the test."""
    kept: dict[Path, bytes] = {}

    def replace(name: str, table: pa.Table) -> None:
        path = project / "feature_repo" / "data" / f"{name}.parquet"
        kept.setdefault(path, path.read_bytes())
        pq.write_table(table, path)

    yield replace
    for path, data in kept.items():
        path.write_bytes(data)


def table_of(project: Path, name: str) -> pa.Table:
    return pq.read_table(project / "feature_repo" / "data" / f"{name}.parquet")


def dated(table: pa.Table, when: datetime) -> pa.Table:
    times = pa.array([when] * table.num_rows, pa.timestamp("us", "UTC"))
    return table.set_column(table.schema.get_field_index("event_timestamp"), "event_timestamp", times)


def prepare(project: Path, folder: Path, *changes: str) -> Any:
    from rec_ray.data.load_features import load_features
    from rec_ray.data.training_data import prepare_training_data
    from rec_ray.runs.context import open_feature_store
    from rec_ray.storage.object_store import open_storage

    settings = load_settings(project / "rec_ray.yaml", list(changes), environ={})
    tables = load_features(
        open_feature_store(settings),
        settings.feast,
        settings.features,
        settings.evaluation,
        START + timedelta(days=300),
    )
    return prepare_training_data(tables, settings.features, "time", open_storage(str(folder)), "data")


def test_a_side_whose_rows_are_all_later_stops_the_run_and_names_the_view(
    project: Path, export: Any, tmp_path: Path
) -> None:
    export("users", dated(table_of(project, "users"), AFTER))
    with pytest.raises(DataError, match="every declared user feature is missing") as caught:
        prepare(project, tmp_path)
    assert caught.value.exit_code == 4
    for part in ("'age' (100%), 'taste' (100%)", "view 'users' has no row before 2024-07-19", "as_of_now"):
        assert part in str(caught.value)


def test_items_whose_rows_are_all_later_stop_the_run_too(project: Path, export: Any, tmp_path: Path) -> None:
    export("items", dated(table_of(project, "items"), AFTER))
    with pytest.raises(DataError, match=r"every declared item feature is missing .*view 'items' .*item_history"):
        prepare(project, tmp_path)


def test_one_late_feature_is_left_out_on_both_sides_and_named(
    project: Path, export: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Ages come with the second row of each user, after all events; tastes are known all the time."""
    users = table_of(project, "users")
    unknown = users.set_column(users.schema.get_field_index("age"), "age", pa.nulls(users.num_rows, pa.int64()))
    export("users", pa.concat_tables([unknown, dated(users, AFTER)]))
    caplog.set_level(logging.WARNING, "rec_ray")
    data = prepare(project, tmp_path)
    assert data.preprocessor.users.names == ["taste"], "a model without the feature cannot meet it at publication"
    assert set(data.preprocessor.items.names) == {"name", "category", "price"}
    (said,) = data.notes
    assert said.startswith("left out of the model: user features") and "'age' (100%)" in said and "taste" not in said
    assert said in caplog.messages


def test_as_of_now_takes_the_values_of_today_for_all_rows_and_warns(
    project: Path, export: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Files dated after all events give the same numbers as the same files dated before them."""
    before = prepare(project, tmp_path / "before")
    for name in ("users", "items"):
        export(name, dated(table_of(project, name), AFTER))
    caplog.set_level(logging.WARNING, "rec_ray")
    now = prepare(project, tmp_path / "now", "features.user_history=as_of_now", "features.item_history=as_of_now")
    assert now.preprocessor == before.preprocessor
    for folder, key in (("timelines", "user_id"), ("catalogue", "item_id"), ("catalogue_now", "item_id")):
        old, new = (pq.read_table(getattr(data, folder)).sort_by(key) for data in (before, now))
        assert new.equals(old), folder
    known = pq.read_table(now.catalogue)
    assert np.all(known["known"].to_numpy(zero_copy_only=False)), "a row of today says nothing of when an item came"
    assert len([message for message in caplog.messages if "leaks into training" in message]) == 2
    assert len(now.notes) == 2 and before.notes == ()


def test_ids_written_in_two_ways_are_said_with_one_of_each(
    project: Path, export: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    users = table_of(project, "users")
    ids = pa.array([f"0{name}" for name in users["user_id"].to_pylist()])
    export("users", users.set_column(0, "user_id", ids))
    items = table_of(project, "items")
    floats = pa.array([f"{name}.0" if place > 1 else name for place, name in enumerate(items["item_id"].to_pylist())])
    export("items", items.set_column(0, "item_id", floats))
    caplog.set_level(logging.WARNING, "rec_ray")
    data = prepare(project, tmp_path)
    users_said, items_said = data.notes
    assert "72 of 72 user ids in the events have nothing" in users_said
    assert "events have 'u0', the feature store has '0u0'" in users_said
    assert "58 of 60 item ids in the events have nothing" in items_said
    assert "events have 'i10', the feature store has 'i10.0'" in items_said
    assert {users_said, items_said} <= set(caplog.messages)


def test_an_empty_result_says_that_the_ids_differ(project: Path, export: Any, tmp_path: Path) -> None:
    items = table_of(project, "items")
    export("items", items.set_column(0, "item_id", pa.array([f"{name}.0" for name in items["item_id"].to_pylist()])))
    with pytest.raises(DataError, match=r"no positive event .* 60 of 60 item ids .*'i0'.*'i0\.0'"):
        prepare(project, tmp_path)


def test_the_report_shows_warnings_in_amber() -> None:
    from rec_ray.reports.page.facts import ReportFacts
    from rec_ray.reports.page.page import render_report

    assert '<p class="caution">Data: 3 &lt; 4 ids.</p>' in render_report(ReportFacts("7", notes=["3 < 4 ids"]))
    assert 'class="caution"' not in render_report(ReportFacts("7"))
