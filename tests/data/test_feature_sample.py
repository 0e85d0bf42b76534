"""The checks before a run find, in a sample, the late features and the ids that a run would report; without Ray."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rec_ray.cli.plan import plan_run
from rec_ray.config.loading import load_settings
from rec_ray.data.feature_sample import examine_features
from rec_ray.errors import DataError
from rec_ray.runs.context import open_feature_store

pytestmark = pytest.mark.usefixtures("processes")

AFTER = datetime(2024, 1, 1, tzinfo=UTC) + timedelta(days=200)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, make_project: Callable[..., Path], tiny_tables: Any) -> Path:
    return make_project(tmp_path_factory.mktemp("sample"), **tiny_tables)


@pytest.fixture
def export(project: Path) -> Iterator[Callable[[str, pa.Table], None]]:
    """Give `export(name, table)`, which replaces a file of the project; undone after the test."""
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


def examine(project: Path, *changes: str) -> list[str]:
    settings = load_settings(project / "rec_ray.yaml", list(changes), environ={})
    return examine_features(open_feature_store(settings), settings.feast, settings.features, settings.evaluation)


def test_nothing_is_said_of_data_that_fit(project: Path) -> None:
    assert examine(project) == []


@pytest.mark.parametrize(("name", "side"), [("users", "user"), ("items", "item")])
def test_a_late_side_is_a_fault_and_the_plan_names_its_view(
    project: Path, export: Callable[..., None], name: str, side: str
) -> None:
    export(name, dated(table_of(project, name), AFTER))
    with pytest.raises(DataError, match=rf"every declared {side} feature .*view '{name}' has no row before 2024-07-19"):
        examine(project)
    notes = plan_run(load_settings(project / "rec_ray.yaml", environ={})).notes
    (note,) = [note for note in notes if "has no row before" in note]
    assert note.startswith(f"view '{name}' has no row before 2024-07-19") and "as_of_now" in note
    (said,) = examine(project, f"features.{side}_history=as_of_now")
    assert said.startswith(f"features.{side}_history: as_of_now takes today's")
    settings = load_settings(project / "rec_ray.yaml", [f"features.{side}_history=as_of_now"], environ={})
    assert not [note for note in plan_run(settings).notes if "has no row before" in note]


def test_one_late_feature_is_named(project: Path, export: Callable[..., None]) -> None:
    users = table_of(project, "users")
    unknown = users.set_column(users.schema.get_field_index("age"), "age", pa.nulls(users.num_rows, pa.int64()))
    export("users", pa.concat_tables([unknown, dated(users, AFTER)]))
    (said,) = examine(project)
    assert said.startswith("left out of the model: user features") and "'age' (100%)" in said and "taste" not in said


def test_ids_that_match_nobody_are_said(project: Path, export: Callable[..., None]) -> None:
    for name in ("users", "items"):
        table = table_of(project, name)
        ids = pa.array([f"0{text}" for text in table[0].to_pylist()])
        export(name, table.set_column(0, table.column_names[0], ids))
    users, items = examine(project)
    assert "200 of 200 user ids" in users and "events have 'u0', the feature store has '0u0'" in users
    assert "60 of 60 item ids" in items
