"""Files that a job replaces every night: read right in another layout, else refused with file, column and types."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from rec_ray.config.loading import load_settings
from rec_ray.data.feature_sample import examine_features
from rec_ray.errors import SchemaError
from rec_ray.feature_store.definitions import find_side
from rec_ray.feature_store.offline_source import event_source, read_slice, slice_source
from rec_ray.feature_store.point_in_time import point_in_time, portable_config
from rec_ray.feature_store.registry import read_registry
from rec_ray.runs.context import open_feature_store

pytestmark = pytest.mark.usefixtures("processes")

START = datetime(2024, 1, 1, tzinfo=UTC)
STAMP = pa.timestamp("us", "UTC")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, make_project: Callable[..., Path]) -> Path:
    """Users `1` to `30` with an age and a city, ten events each."""
    users = [str(number) for number in range(1, 31)]
    rows = [(user, f"i{number}", START + timedelta(days=number)) for user in users for number in range(10)]
    user, item, when = zip(*rows, strict=True)
    return make_project(
        tmp_path_factory.mktemp("nightly"),
        interactions={"user_id": user, "item_id": item, "timestamp": pa.array(when, STAMP)},
        users={
            "user_id": users,
            "age": pa.array(range(30), pa.int64()),
            "city": [f"c{number % 3}" for number in range(30)],
            "event_timestamp": pa.array([START] * 30, STAMP),
        },
    )


@pytest.fixture
def export(project: Path) -> Iterator[Callable[[str, Callable[[pa.Table], pa.Table]], Path]]:
    """Give `export(name, change)`, which writes a changed file over one of the project; undone after the test."""
    kept: dict[Path, bytes] = {}

    def replace(name: str, change: Callable[[pa.Table], pa.Table]) -> Path:
        path = project / "feature_repo" / "data" / f"{name}.parquet"
        kept.setdefault(path, path.read_bytes())
        pq.write_table(change(pq.read_table(path)), path)
        return path

    yield replace
    for path, data in kept.items():
        path.write_bytes(data)


def with_column(name: str, change: Callable[[Any], Any]) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.set_column(table.schema.get_field_index(name), name, change(table[name]))


def ages_and_examination(project: Path) -> tuple[list[Any], list[str]]:
    settings = load_settings(project / "rec_ray.yaml", environ={})
    store = open_feature_store(settings)
    join = find_side(read_registry(store), settings.feast, "user").join(["age", "city"])
    ids = pa.array(["1", "30", "nobody"])
    found = point_in_time(portable_config(store), join, ids, pa.array([START + timedelta(days=5)] * 3, STAMP))
    notes = examine_features(store, settings.feast, settings.features, settings.evaluation)
    return list(zip(found["age"].to_pylist(), found["city"].to_pylist(), strict=True)), notes


RIGHT = [(0, "c0"), (29, "c2"), (None, None)]


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.append_column("extra", pa.nulls(table.num_rows, pa.string())),
        lambda table: table.select(table.column_names[::-1]),
        with_column("event_timestamp", lambda column: pc.cast(column, pa.timestamp("us"))),
        with_column("event_timestamp", lambda column: pc.cast(column, pa.timestamp("ns", "Europe/Berlin"))),
        with_column("age", lambda column: pc.cast(column, pa.int32())),
        with_column("age", lambda column: pc.cast(column, pa.float64())),
        with_column("city", lambda column: column.dictionary_encode()),
        with_column("user_id", lambda column: pc.cast(column, pa.large_string())),
    ],
)
def test_another_layout_gives_the_same_values(project: Path, export: Any, change: Any) -> None:
    export("users", change)
    assert ages_and_examination(project) == (RIGHT, [])


@pytest.mark.parametrize(
    ("column", "kind", "declared"),
    [("age", pa.string(), "int64"), ("user_id", pa.int64(), "string"), ("city", pa.binary(), "string")],
)
def test_another_kind_of_type_is_refused_with_file_column_and_both_types(
    project: Path, export: Any, column: str, kind: pa.DataType, declared: str
) -> None:
    path = export("users", with_column(column, lambda values: pc.cast(values, kind)))
    with pytest.raises(SchemaError) as caught:
        ages_and_examination(project)
    assert f"column {column!r} of {path} is {kind}, but the view declares {declared}" in str(caught.value)


def test_a_column_that_is_gone_is_refused_with_what_there_is(project: Path, export: Any) -> None:
    path = export("users", lambda table: table.drop_columns(["age"]))
    with pytest.raises(SchemaError, match=rf"{path} lacks the columns 'age'; it has 'user_id'"):
        ages_and_examination(project)


@pytest.mark.parametrize("kind", [pa.int64(), pa.int32(), pa.large_string()])
def test_ids_of_events_are_text_whatever_the_file_has(project: Path, export: Any, kind: pa.DataType) -> None:
    export("interactions", with_column("user_id", lambda column: pc.cast(column, kind)))
    assert ages_and_examination(project) == (RIGHT, [])
    settings = load_settings(project / "rec_ray.yaml", environ={})
    store = open_feature_store(settings)
    source = event_source(read_registry(store), settings.feast, settings.features)
    (part,) = slice_source(store, source, settings.feast.join_rows)
    assert read_slice(portable_config(store), part)["user_id"].to_pylist()[::10] == [str(n) for n in range(1, 31)]


def test_int96_times_of_events_keep_their_year(project: Path, export: Any) -> None:
    """The year 9999 as nanoseconds was 1816: an event of the past, and so was learned from."""

    def never(column: Any) -> Any:
        return pa.array([datetime(9999, 12, 31, tzinfo=UTC), *column.to_pylist()[1:]], pa.timestamp("us"))

    path = project / "feature_repo" / "data" / "interactions.parquet"
    export("interactions", lambda table: table)
    table = with_column("event_timestamp", never)(pq.read_table(path))
    pq.write_table(table, path, use_deprecated_int96_timestamps=True)
    settings = load_settings(project / "rec_ray.yaml", environ={})
    store = open_feature_store(settings)
    source = event_source(read_registry(store), settings.feast, settings.features)
    (part,) = slice_source(store, source, settings.feast.join_rows)
    times = read_slice(portable_config(store), part)["event_timestamp"].to_pylist()
    assert times[0] == datetime(9999, 12, 31, tzinfo=UTC) and times[1] == START + timedelta(days=1)
