"""Frames of all kinds become Arrow tables with ids as strings and times in UTC, or one line says what is wrong."""

from datetime import UTC, date, datetime
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from rec_ray.api.frames import id_column, time_column, to_table
from rec_ray.errors import DataError, SchemaError

IDS = ["ä", "𝄞", "3"]


class OfOtherLibrary:
    """As a frame of Polars: it streams Arrow batches with string views."""

    def __arrow_c_stream__(self, requested_schema=None):
        return pa.table({"id": pa.array(IDS, pa.string_view())}).__arrow_c_stream__(requested_schema)


@pytest.mark.parametrize(
    "frame",
    [
        pa.table({"id": IDS}),
        pa.table({"id": pa.array(IDS).dictionary_encode()}),
        pa.table({"id": pa.array(IDS, pa.large_string())}),
        pa.table({"id": pa.DictionaryArray.from_arrays(pa.array([0, 1, 2]), pa.array(IDS, pa.string_view()))}),
        pa.record_batch({"id": pa.array(IDS)}),
        pd.DataFrame({"id": IDS}, index=[7, 7, 7]),
        pd.DataFrame({"id": pd.Categorical(IDS)}),
        pd.DataFrame({"id": pd.array(IDS, "string")}),
        OfOtherLibrary(),
        {"id": IDS},
        {"id": np.array(IDS)},
        [{"id": each} for each in IDS],
    ],
    ids=lambda frame: type(frame).__name__,
)
def test_frames_of_every_kind(frame):
    table = to_table(frame, "items")
    assert table.schema == pa.schema([("id", pa.string())]) and table["id"].to_pylist() == IDS
    assert id_column(table, "id", "items").to_pylist() == IDS


def test_plain_types_of_columns():
    table = to_table(
        {
            "price": [Decimal("1.50"), None],
            "tags": pa.array([["a"], []], pa.large_list(pa.string_view())),
            "codes": pa.array([["a"], None], pa.list_(pa.dictionary(pa.int32(), pa.string()))),
            "vector": pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32(), 2)),
        },
        "items",
    )
    assert table.schema.types == [pa.float64(), pa.list_(pa.string()), pa.list_(pa.string()), pa.list_(pa.float32())]
    assert table.to_pylist()[0] == {"price": 1.5, "tags": ["a"], "codes": ["a"], "vector": [1.0, 2.0]}


@pytest.mark.parametrize(
    ("values", "ids"),
    [([1, 2], ["1", "2"]), (pd.array([1, 2], "Int64"), ["1", "2"]), (np.array([2**63], np.uint64), [str(2**63)])],
    ids=["int", "nullable", "unsigned"],
)
def test_whole_numbers_are_ids(values, ids):
    assert id_column(to_table(pd.DataFrame({"id": values}), "items"), "id", "items").to_pylist() == ids


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        ({"id": [1.0, 2.0]}, "the ids in 'id' are double; expected strings or whole numbers"),
        (pd.DataFrame({"id": [1, None]}), "1 of 2 ids in 'id' are null"),
        (pd.DataFrame({"id": pd.array([1, None], "Int64")}), "1 of 2 ids in 'id' are null"),
        ({"id": ["a", ""]}, "1 of 2 ids in 'id' are empty"),
        ({"id": [True]}, "the ids in 'id' are bool"),
        (pd.DataFrame({"id": [1, "a"]}), "items cannot be read as a table"),
        (pd.Series(["a"]), "items cannot be read as a table"),
        (pd.DataFrame([["a", "b"]], columns=["id", "id"]), "items"),
        ({"id": ["a"], "other": [1, 2]}, "items cannot be read as a table"),
        (3, "items is a int; expected a pandas, Polars or Arrow table"),
        ("id", "items is a str; expected"),
    ],
)
def test_unusable_ids_are_one_line(frame, said):
    with pytest.raises(DataError) as raised:
        id_column(to_table(frame, "items"), "id", "items")
    assert said in str(raised.value) and "\n" not in str(raised.value)


NOON = datetime(2024, 7, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("times", "timezone"),
    [
        ([NOON], None),
        ([datetime(2024, 7, 1, 14)], "Europe/Berlin"),
        (pa.array([NOON], pa.timestamp("ns", "Asia/Tokyo")), None),
        (pa.array([NOON], pa.timestamp("s", "UTC")), "Asia/Tokyo"),
        (pd.Series([pd.Timestamp("2024-07-01 14:00")]).dt.tz_localize("Europe/Berlin"), None),
    ],
    ids=["utc", "naive", "nanoseconds", "a zone of its own", "pandas"],
)
def test_times_are_utc(times, timezone):
    found = time_column(to_table(pa.table({"t": pa.array(times)}), "interactions"), "t", "interactions", timezone)
    assert found.type == pa.timestamp("us", "UTC") and found.to_pylist() == [NOON]


def test_a_date_is_its_midnight_in_the_zone():
    table = to_table({"t": [date(2024, 7, 1)]}, "interactions")
    found = time_column(table, "t", "interactions", "Europe/Berlin")
    assert found.to_pylist() == [datetime(2024, 6, 30, 22, tzinfo=UTC)]


@pytest.mark.parametrize(
    ("times", "timezone", "said"),
    [
        ([datetime(2024, 7, 1)], None, "the times in 't' have no time zone; name it with timezone='UTC'"),
        ([datetime(2024, 7, 1)], "Mars", "timezone='Mars' is unknown"),
        ([1_720_000_000], "UTC", "'t' holds int64; expected timestamps"),
        (["2024-07-01"], "UTC", "'t' holds string; expected timestamps"),
        ([NOON, None], None, "1 of 2 times in 't' are null"),
    ],
)
def test_unusable_times_are_one_line(times, timezone, said):
    with pytest.raises((DataError, SchemaError)) as raised:
        time_column(to_table({"t": times}, "interactions"), "t", "interactions", timezone)
    assert said in str(raised.value) and "\n" not in str(raised.value)
