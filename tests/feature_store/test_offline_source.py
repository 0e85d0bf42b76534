import itertools
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import FileSource
from feast.data_format import DeltaFormat, ParquetFormat
from feast.repo_config import RepoConfig

from rec_ray.errors import DataError, FeatureStoreError, SchemaError
from rec_ray.feature_store.offline_source import FIRST_TIME, FeatureSource, read_slice, slice_source, slice_time

START = datetime(2024, 1, 1, 12, tzinfo=UTC)
NOON = 1_704_110_400_000_000
"""START in microseconds since 1970."""


@pytest.fixture
def config(tmp_path):
    return RepoConfig(
        project="shop",
        provider="local",
        registry=str(tmp_path / "registry.db"),
        offline_store={"type": "duckdb"},
        entity_key_serialization_version=3,
        repo_path=tmp_path,
    )


UTC_TIME = pa.timestamp("us", "UTC")


def events(count, first=0, time=UTC_TIME):
    numbers = range(first, first + count)
    times = pa.array([NOON + number * 1_000_000 for number in numbers], pa.int64()).cast(pa.timestamp("us", "UTC"))
    return pa.table(
        {
            "user_id": [f"u{number % 3}" for number in numbers],
            "item_id": [f"i{number}" for number in numbers],
            "event_timestamp": times.cast(time),
        }
    )


def source_of(path, columns=None, **more):
    file = FileSource(name="events", path=str(path), timestamp_field=more.pop("time", "event_timestamp"), **more)
    return FeatureSource.of(file, columns or {"user_id": "user_id", "item_id": "item_id"}, what="the events")


def store_at(folder, offline="duckdb"):
    return SimpleNamespace(repo_path=folder, config=SimpleNamespace(offline_store=SimpleNamespace(type=offline)))


def slices_of(path, rows=1000, **more):
    source = source_of(path, **more)
    return slice_source(store_at(Path(path).parent), source, rows)


def read_all(config, slices):
    return pa.concat_tables([read_slice(config, part) for part in slices])


def test_row_groups_of_several_files_are_numbered_through_in_the_order_of_the_names(tmp_path, config):
    folder = tmp_path / "events"
    (folder / "deeper").mkdir(parents=True)
    pq.write_table(events(10, 0), folder / "a.parquet", row_group_size=3)
    pq.write_table(events(0), folder / "b.parquet")
    pq.write_table(events(5, 10), folder / "deeper" / "c.parquet", row_group_size=2)
    (folder / "_SUCCESS").write_text("")
    slices = slices_of(folder, rows=4)
    assert [(Path(part.path).name, part.row_groups, part.first_row) for part in slices] == [
        ("a.parquet", (0, 1), 0),
        ("a.parquet", (2, 3), 6),
        ("b.parquet", (0,), 10),
        ("c.parquet", (0, 1), 10),
        ("c.parquet", (2,), 14),
    ]
    assert read_all(config, slices)["item_id"].to_pylist() == [f"i{number}" for number in range(15)]


def test_a_source_is_a_file_a_folder_or_a_pattern_as_feast_takes_them(tmp_path, config):
    for number in range(3):
        pq.write_table(events(2, 2 * number), tmp_path / f"part-{number}.parquet")
    pq.write_table(events(1, 99), tmp_path / "other.parquet")
    for path, count in (("part-1.parquet", 2), ("part-*.parquet", 6), (".", 7)):
        relative = source_of(path, file_format=ParquetFormat())
        slices = slice_source(store_at(tmp_path), relative, 1000)
        assert read_all(config, slices).num_rows == count


@pytest.mark.parametrize(
    ("stored", "naive"),
    [
        (pa.timestamp("s"), True),
        (pa.timestamp("ms"), True),
        (pa.timestamp("ns"), True),
        (pa.timestamp("ms", "UTC"), False),
        (pa.timestamp("ns", "UTC"), False),
        (pa.timestamp("us", "Asia/Kolkata"), False),
    ],
)
def test_times_of_any_unit_and_zone_become_utc_microseconds(tmp_path, config, stored, naive):
    pq.write_table(events(3, time=stored), tmp_path / "e.parquet")
    slices = slices_of(tmp_path / "e.parquet")
    assert [part.naive_time for part in slices] == [naive]
    times = read_all(config, slices)["event_timestamp"]
    assert times.type == pa.timestamp("us", "UTC")
    assert times.to_pylist() == [START + timedelta(seconds=second) for second in range(3)]


def test_nanoseconds_below_a_microsecond_are_cut(tmp_path, config):
    fine = pa.array([NOON * 1000 + 999], pa.timestamp("ns"))
    pq.write_table(events(1).set_column(2, "event_timestamp", fine), tmp_path / "e.parquet")
    assert read_all(config, slices_of(tmp_path / "e.parquet"))["event_timestamp"].to_pylist() == [START]


def test_a_time_that_no_microsecond_can_tell_is_an_error_with_the_column(tmp_path, config):
    table = events(1).set_column(2, "event_timestamp", pa.array([9 * 10**16], pa.timestamp("ms")))
    pq.write_table(table, tmp_path / "e.parquet")
    with pytest.raises(SchemaError, match="'event_timestamp' has a time out of range"):
        read_all(config, slices_of(tmp_path / "e.parquet"))


LONG = "ß" * 5000
IDS = {
    "dictionary of strings": (pa.array(["a", "a", None]).dictionary_encode(), ["a", "a", None]),
    "dictionary of numbers": (pa.array([7, 7, None]).dictionary_encode(), ["7", "7", None]),
    "large strings": (pa.array(["a", "", None], pa.large_string()), ["a", "", None]),
    "string views": (pa.array(["a", "a string of more than twelve", None], pa.string_view()), None),
    "numbers": (pa.array([-1, 2**62, None]), ["-1", str(2**62), None]),
    "unsigned numbers": (pa.array([0, 2**64 - 1, None], pa.uint64()), ["0", str(2**64 - 1), None]),
    "all null": (pa.nulls(3), [None] * 3),
    "unicode and long": (pa.array(["日本 🛒", "e\u0301|é", LONG]), ["日本 🛒", "e\u0301|é", LONG]),
}


@pytest.mark.parametrize("kind", IDS)
def test_ids_are_text_or_whole_numbers_and_come_as_strings(tmp_path, config, kind):
    ids, expected = IDS[kind]
    pq.write_table(events(3).set_column(0, "user_id", ids), tmp_path / "e.parquet")
    found = read_all(config, slices_of(tmp_path / "e.parquet"))["user_id"]
    assert found.type == pa.string()
    assert found.to_pylist() == (expected or ids.to_pylist())


@pytest.mark.parametrize("ids", [pa.array([1.0, 2.5]), pa.array([True, False]), pa.array([["a"], ["b"]])])
def test_ids_of_other_types_are_an_error_that_names_column_and_type(tmp_path, config, ids):
    pq.write_table(events(2).set_column(1, "item_id", ids), tmp_path / "e.parquet")
    with pytest.raises(SchemaError, match=r"the events: item_id is (double|bool|list).*text or a whole number"):
        read_all(config, slices_of(tmp_path / "e.parquet"))


def test_a_missing_column_is_named_beside_those_there_are(tmp_path):
    pq.write_table(events(2).drop_columns(["item_id", "event_timestamp"]), tmp_path / "e.parquet")
    with pytest.raises(
        SchemaError, match=r"e\.parquet lacks the columns 'item_id', 'event_timestamp'; it has 'user_id'"
    ):
        slices_of(tmp_path / "e.parquet")


@pytest.mark.parametrize("times", [pa.array(["2024-01-01"] * 2), pa.array([1, 2]), pa.array([1, 2], pa.date32())])
def test_a_time_of_another_type_is_an_error_that_names_column_and_type(tmp_path, times):
    pq.write_table(events(2).set_column(2, "event_timestamp", times), tmp_path / "e.parquet")
    with pytest.raises(
        SchemaError, match=r"'event_timestamp' of .*e\.parquet is (string|int64|date32\S*); expected a timestamp"
    ):
        slices_of(tmp_path / "e.parquet")


def test_a_missing_file_or_an_empty_folder_is_the_stores_fault_and_named(tmp_path):
    with pytest.raises(FeatureStoreError, match=r"no file .*gone\.parquet"):
        slices_of(tmp_path / "gone.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FeatureStoreError, match="holds no Parquet file"):
        slices_of(tmp_path / "empty")


def test_a_file_that_is_no_parquet_is_unusable_data_and_named(tmp_path):
    (tmp_path / "e.parquet").write_text("user_id,item_id\n1,2\n")
    with pytest.raises(DataError, match=r"e\.parquet is damaged or not a Parquet file"):
        slices_of(tmp_path / "e.parquet")


def test_a_damaged_part_of_a_folder_is_unusable_data_and_named(tmp_path, config):
    folder = tmp_path / "events"
    folder.mkdir()
    for number in range(2):
        pq.write_table(events(1000, 1000 * number), folder / f"part-{number}.parquet")
    whole = (folder / "part-1.parquet").read_bytes()
    # The footer is left, so that only reading the rows shows it.
    (folder / "part-1.parquet").write_bytes(whole[:4] + b"\xff" * 2000 + whole[2004:])
    slices = slices_of(folder)
    assert read_slice(config, slices[0]).num_rows == 1000
    with pytest.raises(DataError, match=r"part-1\.parquet is damaged"):
        read_slice(config, slices[1])


def test_a_file_that_went_away_while_reading_is_the_stores_fault(tmp_path, config):
    pq.write_table(events(3), tmp_path / "e.parquet")
    slices = slices_of(tmp_path / "e.parquet")
    (tmp_path / "e.parquet").unlink()
    with pytest.raises(FeatureStoreError, match=r"e\.parquet cannot be reached"):
        read_slice(config, slices[0])


def test_the_field_mapping_of_a_source_is_undone(tmp_path, config):
    table = events(2).rename_columns(["customer", "sku", "ts"])
    pq.write_table(table, tmp_path / "e.parquet")
    slices = slices_of(tmp_path / "e.parquet", time="ts", field_mapping={"customer": "user_id", "sku": "item_id"})
    read = read_all(config, slices)
    assert read.column_names == ["user_id", "item_id", "event_timestamp"]
    assert read["item_id"].to_pylist() == ["i0", "i1"]


def test_stretches_of_time_hold_every_row_once(tmp_path, config):
    """The way of all sources that are no Parquet files, through Feast and its DuckDB store."""
    now = datetime(2026, 6, 1, tzinfo=UTC)
    source = source_of(tmp_path / "e.parquet")
    slices = slice_time(source, now)
    bounds = [part.start for part in slices[1:]]
    assert slices[0].start is None
    assert slices[-1].end is None
    assert bounds[0] == FIRST_TIME
    assert all(part.end == after for part, after in zip(slices, bounds, strict=False))
    edges = [bounds[-2], bounds[-2] - timedelta(microseconds=1), bounds[-1]]
    times = [datetime(1971, 3, 1, tzinfo=UTC), *edges, now, now + timedelta(days=400)]
    table = pa.table(
        {
            "user_id": [f"u{number}" for number in range(6)],
            "item_id": list(range(6)),
            "event_timestamp": pa.array(times, pa.timestamp("us", "UTC")),
        }
    )
    pq.write_table(table, tmp_path / "e.parquet")
    parts = [read_slice(config, part) for part in slices]
    read = pa.concat_tables(parts).sort_by("user_id")
    assert read["item_id"].to_pylist() == ["0", "1", "2", "3", "4", "5"]
    assert read["event_timestamp"].to_pylist() == times
    # The numbers of the rows go up with the stretches, far enough apart for all the rows of one.
    assert [part.num_rows for part in (parts[0], parts[-2], parts[-1])] == [1, 1, 3]
    assert all(after.first_row - part.first_row > 10**12 for part, after in itertools.pairwise(slices))


def test_the_files_of_a_delta_table_are_left_to_the_offline_store(tmp_path):
    """Beside the rows that count they hold deleted ones; only the table's log tells which is which."""
    (tmp_path / "table").mkdir()
    pq.write_table(events(3), tmp_path / "table" / "part-0.parquet")
    slices = slices_of(tmp_path / "table", file_format=DeltaFormat())
    assert {part.path for part in slices} == {None}


def test_an_offline_store_that_fails_is_named_with_its_cause(tmp_path, config):
    part = slice_time(source_of(tmp_path / "gone.parquet"), datetime(2024, 1, 1, tzinfo=UTC))[0]
    with pytest.raises(FeatureStoreError, match=r"the events: the offline store failed: .*gone\.parquet"):
        read_slice(config, part)


def test_the_files_of_a_remote_offline_store_are_left_to_its_server(tmp_path):
    assert {part.path for part in slice_source(store_at(tmp_path, "remote"), source_of("/theirs/e.parquet"), 10)} == {
        None
    }
