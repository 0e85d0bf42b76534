"""A user's own tables become Feast-ready files with every row, or a clear error."""

import logging
import tempfile
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rec_ray.errors import ConfigError, EmptyDataError, SchemaError
from rec_ray.sample import tables
from rec_ray.sample.own_tables import read_own_tables
from rec_ray.sample.survey import count_distinct, earliest_time, share_of_newcomers
from rec_ray.sample.tables import write_ids, write_own_table
from rec_ray.schema import TIMESTAMP

T0 = datetime(2024, 1, 1)


def write(folder, name="interactions", /, **columns):
    pq.write_table(pa.table(columns), folder / f"{name}.parquet")


def read(folder, **options):
    return read_own_tables(folder, Path(tempfile.mkdtemp(dir=folder if folder.is_dir() else None)), **options)


def interactions(folder, n=3, **more):
    times = pa.array([datetime(2024, 1, 1 + i) for i in range(n)], pa.timestamp("us"))
    write(folder, **{"user_id": [f"u{i}" for i in range(n)], "item_id": ["a"] * n, "time": times, **more})


def convert(folder, name="interactions", earliest=None):
    table = getattr(read(folder), name)
    written = write_own_table(table, folder / "out.parquet", earliest)
    result = pq.read_table(written.path)
    assert written.rows == result.num_rows == table.rows
    return result, written


def test_rows_keep_their_order_and_odd_values_stay(tmp_path):
    times = pa.array([T0, None, datetime(2099, 1, 1), T0], pa.timestamp("us"))
    write(
        tmp_path,
        user_id=["b", None, "", "b"],
        item_id=["x", "y", None, "x"],
        at=times,
        value=[1.0, None, float("nan"), float("inf")],
    )
    result, _ = convert(tmp_path)
    assert result["user_id"].to_pylist() == ["b", None, "", "b"]
    assert result["item_id"].to_pylist() == ["x", "y", None, "x"]
    assert result["event_timestamp"].to_pylist()[1] is None
    assert result["value"].to_pylist()[3] == float("inf")


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (pa.timestamp("ns"), datetime(2024, 5, 1, 12)),
        (pa.timestamp("s"), datetime(2024, 5, 1, 12)),
        (pa.timestamp("ms", "UTC"), datetime(2024, 5, 1, 12, tzinfo=UTC)),
        (pa.timestamp("us", "Europe/Berlin"), datetime(2024, 5, 1, 12, tzinfo=UTC)),
    ],
)
def test_every_kind_of_timestamp_becomes_utc_microseconds(tmp_path, kind, value):
    write(tmp_path, user_id=["u"], item_id=["i"], when=pa.array([value], kind))
    result, _ = convert(tmp_path)
    assert result.schema.field("event_timestamp").type == TIMESTAMP
    assert result["event_timestamp"].to_pylist() == [datetime(2024, 5, 1, 12, tzinfo=UTC)]
    assert "when" not in result.column_names


def test_a_date_is_a_time_too(tmp_path):
    write(tmp_path, user_id=["u"], item_id=["i"], day=pa.array([date(2024, 5, 1)]))
    assert convert(tmp_path)[0]["event_timestamp"].to_pylist() == [datetime(2024, 5, 1, tzinfo=UTC)]


def test_timestamps_without_zone_are_said_once(tmp_path, caplog):
    interactions(tmp_path)
    write(tmp_path, "users", user_id=["u"], joined=pa.array([T0], pa.timestamp("ns")))
    caplog.set_level(logging.INFO, "rec_ray")
    read(tmp_path)
    said = {record.getMessage() for record in caplog.records}
    assert said == {"timestamps without a zone are read as UTC: users.joined, interactions.time"}


def test_only_a_column_that_is_called_so_is_the_time_of_a_row(tmp_path):
    """A date alone may be anything: the end of a sale, a birthday, a last login."""
    interactions(tmp_path)
    stamp = pa.array([T0], pa.timestamp("us"))
    write(tmp_path, "users", user_id=["u"], last_login=stamp)
    write(tmp_path, "items", item_id=["i"], timestamp=stamp, released=stamp, name=["x"])
    users, _ = convert(tmp_path, "users", datetime(2024, 1, 1, tzinfo=UTC))
    items, _ = convert(tmp_path, "items")
    assert users.column_names == ["user_id", "last_login", "event_timestamp"]
    assert items.column_names == ["item_id", "event_timestamp", "released", "name"]


def test_a_table_without_time_gets_the_earliest_event(tmp_path):
    interactions(tmp_path)
    write(tmp_path, "items", item_id=["i", "j"], name=["x", "y"])
    _, events = convert(tmp_path)
    earliest = earliest_time(events.path)
    assert earliest == datetime(2024, 1, 1, tzinfo=UTC)
    items, _ = convert(tmp_path, "items", earliest)
    assert items["event_timestamp"].to_pylist() == [earliest] * 2


def test_a_table_with_ids_alone_gets_a_field_for_feast(tmp_path):
    interactions(tmp_path)
    write(tmp_path, "users", user_id=["u", "v"])
    users, written = convert(tmp_path, "users", datetime(2024, 1, 1, tzinfo=UTC))
    assert users.to_pylist()[1] == {
        "user_id": "v",
        "event_timestamp": datetime(2024, 1, 1, tzinfo=UTC),
        "is_known": True,
    }
    assert "no features" in written.notes[0]


def test_types_become_those_that_feast_has_and_the_rest_is_named(tmp_path):
    write(
        tmp_path,
        user_id=pa.array([7], pa.int32()),
        item_id=pa.array(["i"]).dictionary_encode(),
        at=pa.array([T0], pa.timestamp("us")),
        small=pa.array([1], pa.int8()),
        price=pa.array([Decimal("9.50")]),
        brand=pa.array(["b"]).dictionary_encode(),
        tags=pa.array([["a", "b"]], pa.large_list(pa.large_string())),
        numbers=pa.array([[1, 2]]),
        vector=pa.array([[0.5, 1.0]], pa.list_(pa.float32(), 2)),
        nothing=pa.nulls(1),
        nested=pa.array([{"a": 1}]),
    )
    result, written = convert(tmp_path)
    kinds = {field.name: field.type for field in result.schema}
    assert kinds == {
        "user_id": pa.string(),
        "item_id": pa.string(),
        "event_timestamp": TIMESTAMP,
        "small": pa.int64(),
        "price": pa.float64(),
        "brand": pa.string(),
        "tags": pa.list_(pa.string()),
        "numbers": pa.list_(pa.string()),
        "vector": pa.list_(pa.float32()),
    }
    assert result["user_id"].to_pylist() == ["7"] and result["price"].to_pylist() == [9.5]
    assert result["numbers"].to_pylist() == [["1", "2"]]
    assert [note.split(":")[0] for note in written.notes] == ["nothing", "nested"]


def test_tables_are_streamed_into_row_groups_of_one_size(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "ROW_GROUP_ROWS", 1000)
    n = 4321
    stamps = pa.array(range(n), pa.int64()).cast(pa.timestamp("us"))
    table = pa.table({"user_id": [str(i) for i in range(n)], "item_id": ["i"] * n, "at": stamps})
    pq.write_table(table, tmp_path / "interactions.parquet", row_group_size=130)
    result, written = convert(tmp_path)
    metadata = pq.read_metadata(written.path)
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [1000] * 4 + [321]
    assert result["user_id"].to_pylist() == [str(i) for i in range(n)]


def test_ids_come_from_the_events_in_the_order_of_their_first_row(tmp_path):
    stamps = pa.array([T0] * 5, pa.timestamp("us"))
    write(tmp_path, user_id=["z", "a", None, "z", ""], item_id=["q", "q", "p", "q", "o"], at=stamps)
    _, events = convert(tmp_path)
    users = write_ids("users", events, tmp_path / "users_out.parquet", earliest_time(events.path))
    items = write_ids("items", events, tmp_path / "items_out.parquet", earliest_time(events.path))
    assert pq.read_table(users.path)["user_id"].to_pylist() == ["z", "a"]
    assert pq.read_table(items.path)["item_id"].to_pylist() == ["q", "p", "o"]
    assert pq.read_schema(users.path).field("event_timestamp").type == TIMESTAMP
    assert count_distinct(events.path, "user_id") == 3, "the blank one counts, the null one does not"


@pytest.mark.parametrize(("users", "expected"), [(100, 1.0), (4, 0.0)])
def test_newcomers_are_users_of_the_last_events_without_an_earlier_one(tmp_path, users, expected):
    stamps = pa.array([i * 10**6 for i in range(400)], pa.int64()).cast(pa.timestamp("us"))
    ids = [str(i // 4) if users == 100 else str(i % 4) for i in range(400)]
    write(tmp_path, user_id=ids, item_id=["i"] * 400, at=stamps)
    assert share_of_newcomers(convert(tmp_path)[1].path) == pytest.approx(expected, abs=0.11)


def test_a_missing_file_names_what_is_there(tmp_path):
    write(tmp_path, "users", user_id=["u"])
    with pytest.raises(ConfigError, match=r"no file interactions\.parquet in .*users\.parquet"):
        read(tmp_path)
    with pytest.raises(ConfigError, match="no such folder"):
        read(tmp_path / "nowhere")


def test_wrong_tables_are_refused_with_what_they_have(tmp_path):
    stamp = pa.array([T0], pa.timestamp("us"))
    cases = [
        ({"user_id": ["u"], "at": stamp}, SchemaError, r"lacks the columns 'item_id'; it has 'user_id', 'at'"),
        ({"user_id": ["u"], "item_id": ["i"], "n": [1]}, SchemaError, r"no timestamp column .* 'n: int64'"),
        ({"user_id": ["u"], "item_id": ["i"], "event_timestamp": ["2024"]}, SchemaError, "'event_timestamp' is string"),
        (
            {"user_id": ["u"], "item_id": ["i"], "loaded_at": stamp},
            ConfigError,
            "'loaded_at' in .* has the name of a load time.*--time-column loaded_at",
        ),
        ({"user_id": [1.5], "item_id": ["i"], "at": stamp}, SchemaError, "'user_id' is double; an id must be"),
        (
            {"user_id": ["u"], "item_id": ["i"], "at": stamp, "till": stamp},
            ConfigError,
            "several timestamp columns: 'at', 'till'",
        ),
        (
            {"user_id": ["u"], "item_id": ["i"], "at": stamp, "Price": [1], "price": [2]},
            SchemaError,
            "'Price', 'price'",
        ),
        (
            {"user_id": pa.array([], "string"), "item_id": pa.array([], "string"), "at": stamp[:0]},
            EmptyDataError,
            "no rows",
        ),
    ]
    for columns, error, message in cases:
        write(tmp_path, **columns)
        with pytest.raises(error, match=message):
            read(tmp_path)


def test_one_named_timestamp_wins_among_several(tmp_path):
    stamp, later = (pa.array([datetime(2024, m, 1)], pa.timestamp("us")) for m in (1, 2))
    write(tmp_path, user_id=["u"], item_id=["i"], shipped=later, timestamp=stamp)
    result, _ = convert(tmp_path)
    assert result["event_timestamp"].to_pylist() == [datetime(2024, 1, 1, tzinfo=UTC)]
    assert result.column_names == ["user_id", "item_id", "event_timestamp", "shipped"]


def test_a_file_that_is_no_parquet_or_damaged_is_named(tmp_path):
    (tmp_path / "interactions.parquet").write_text("user_id,item_id\n")
    with pytest.raises(SchemaError, match=r"interactions\.parquet cannot be read as a Parquet file"):
        read(tmp_path)
    n = 50_000
    times = pa.array(range(n), pa.int64()).cast(pa.timestamp("us"))
    write(tmp_path, user_id=[str(i * 7919) for i in range(n)], item_id=["i"] * n, at=times)
    file = tmp_path / "interactions.parquet"
    content = bytearray(file.read_bytes())
    content[4:60] = bytes(56)
    file.write_bytes(content)
    with pytest.raises(SchemaError, match=r"interactions\.parquet is damaged"):
        convert(tmp_path)


def test_events_without_any_time_are_refused(tmp_path):
    write(tmp_path, user_id=["u"], item_id=["i"], at=pa.nulls(1, pa.timestamp("us")))
    with pytest.raises(EmptyDataError, match="has a time"):
        earliest_time(convert(tmp_path)[1].path)
