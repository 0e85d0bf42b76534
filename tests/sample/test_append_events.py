"""Appended events are the ones that were not there, with the types of the present ones, and readers see all or none."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rec_ray.errors import ConfigError, SchemaError
from rec_ray.sample.append_events import Appended, append_events
from rec_ray.sample.own_tables import read_own_tables
from rec_ray.sample.roles import ColumnNames
from rec_ray.sample.survey import earliest_time
from rec_ray.sample.tables import write_ids, write_own_table

START = datetime(2024, 1, 1, tzinfo=UTC)
NAMES = ColumnNames(("customer_id",), ("sku",))


def csv(path: Path, *rows: tuple[str, str, int, float | None]) -> Path:
    lines = [
        f"{user},{item},{(START + timedelta(hours=hour)).isoformat()},{'' if value is None else value}"
        for user, item, hour, value in rows
    ]
    path.write_text("\n".join(["customer_id,sku,bought_at,price", *lines]) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The data folder that `init` writes for three events; users and items are made from their ids."""
    (tmp_path / "own").mkdir()
    (tmp_path / "data").mkdir()
    csv(tmp_path / "own" / "interactions.csv", ("u1", "i1", 1, 1.5), ("u1", "i2", 2, 2.5), ("u2", "i1", 3, None))
    (tmp_path / "scratch").mkdir()
    own = read_own_tables(tmp_path / "own", tmp_path / "scratch", NAMES)
    events = write_own_table(own.interactions, tmp_path / "data" / "interactions.parquet")
    for table in ("users", "items"):
        write_ids(table, events, tmp_path / "data" / f"{table}.parquet", earliest_time(events.path))
    return tmp_path / "data"


def rows_of(data: Path) -> list[tuple[object, ...]]:
    table = pq.read_table(data / "interactions.parquet")
    return [tuple(row.values()) for row in table.to_pylist()]


def test_only_new_rows_are_added_each_once(data: Path, tmp_path: Path) -> None:
    before, schema = rows_of(data), pq.read_schema(data / "interactions.parquet")
    new = csv(
        tmp_path / "new.csv",
        ("u1", "i2", 2, 2.5),
        ("u2", "i1", 3, None),
        ("u3", "i1", 4, 3),
        ("u3", "i1", 4, 3),
        ("u1", "i9", 0, 1.0),
    )
    done = append_events(data, new, NAMES)
    assert done == Appended(read=5, added=2, repeated=3, new_ids={"users": 1, "items": 1})
    assert rows_of(data)[:3] == before and len(rows_of(data)) == 5
    assert [(row[0], row[1]) for row in rows_of(data)[3:]] == [("u3", "i1"), ("u1", "i9")]
    assert pq.read_schema(data / "interactions.parquet").equals(schema)
    users = pq.read_table(data / "users.parquet").to_pylist()
    assert [row["user_id"] for row in users] == ["u1", "u2", "u3"]
    assert users[2]["event_timestamp"] == START + timedelta(hours=4)
    assert append_events(data, new, NAMES) == Appended(read=5, added=0, repeated=5)
    assert sorted(path.name for path in data.iterdir() if not path.name.startswith(".append")) == [
        "interactions.parquet",
        "items.parquet",
        "users.parquet",
    ], "nothing is left behind"


def test_ids_that_a_table_of_the_user_lacks_are_counted_and_not_invented(data: Path, tmp_path: Path) -> None:
    items = pq.read_table(data / "items.parquet")
    pq.write_table(items.append_column("colour", pa.array(["red"] * items.num_rows)), data / "items.parquet")
    done = append_events(data, csv(tmp_path / "new.csv", ("u1", "i9", 5, 1.0)), NAMES)
    assert (done.new_ids, done.unknown) == ({}, {"items": 1})
    assert pq.read_table(data / "items.parquet").num_rows == items.num_rows


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("customer_id,sku,bought_at\nu1,i1,2024-01-05\n", SchemaError, "the new events lack 'price'"),
        ("customer_id,sku,bought_at,price\nu1,i1,2024-01-05,cheap\n", SchemaError, "do not fit the present ones"),
        (
            "sku,bought_at,price\ni1,2024-01-05,1.0\n",
            SchemaError,
            "new.csv lacks the columns 'customer_id'; it has 'sku'",
        ),
    ],
)
def test_a_file_that_does_not_fit_changes_nothing(
    data: Path, tmp_path: Path, text: str, error: type[Exception], said: str
) -> None:
    before = rows_of(data)
    (tmp_path / "new.csv").write_text(text, encoding="utf-8")
    with pytest.raises(error, match=said):
        append_events(data, tmp_path / "new.csv", NAMES)
    assert rows_of(data) == before


def test_only_projects_of_init_are_appended(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="only projects made by `rec-ray init`"):
        append_events(tmp_path, tmp_path / "new.csv")
