"""Files as people have them: formats, names and times are read right, asked for, or refused with the remedy."""

import gzip
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from servers import SeaweedFS

from rec_ray.errors import ConfigError, EmptyDataError, RecRayError, SchemaError, UnavailableError
from rec_ray.sample.own_tables import OwnTables, read_own_tables
from rec_ray.sample.roles import ColumnNames, Question, unit_named
from rec_ray.sample.tables import write_own_table
from rec_ray.schema import EVENT_TIMESTAMP, TIMESTAMP

NAIVE = pa.timestamp("us")
T0 = datetime(2024, 1, 1, tzinfo=UTC)
EVENTS = pd.DataFrame(
    {
        "user_id": [f"{number % 7:03d}" for number in range(60)],
        "item_id": [f"i{number % 5}" for number in range(60)],
        "timestamp": [T0 + timedelta(hours=number) for number in range(60)],
    }
)


def read(folder: Path, *, ask: Callable[[Question], str] | None = None, **names: Any) -> OwnTables:
    scratch = folder.parent / f"scratch_{len(list(folder.parent.iterdir()))}"
    scratch.mkdir()
    return read_own_tables(folder, scratch, ColumnNames(**names), ask)


def events_of(folder: Path, **names: Any) -> pd.DataFrame:
    table = read(folder, **names).interactions
    return pq.read_table(write_own_table(table, folder.parent / "out.parquet").path).to_pandas()


@pytest.fixture
def own(tmp_path: Path) -> Path:
    folder = tmp_path / "own"
    folder.mkdir()
    return folder


def put(folder: Path, name: str, frame: pd.DataFrame | pa.Table, **options: Any) -> None:
    table = frame if isinstance(frame, pa.Table) else pa.Table.from_pandas(frame, preserve_index=False)
    path = folder / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)


def test_csv_is_read_like_parquet_and_ids_stay_as_they_are_written(own: Path) -> None:
    EVENTS.assign(rating=[f"{number % 5}.5" for number in range(60)]).to_csv(own / "interactions.csv", index=False)
    with gzip.open(own / "users.csv.gz", "wt", encoding="utf-8") as file:
        file.write(
            'user_id,age,plz,member,since,note\n007,30,01069,True,2024-01-02,"a, ""b""\nc"\n008,,99999,false,NaT,x\n'
        )
    tables = read(own)
    found = pq.read_table(write_own_table(tables.interactions, own / "out.parquet").path).to_pandas()
    assert found["user_id"].tolist() == EVENTS["user_id"].tolist()
    assert found[EVENT_TIMESTAMP].tolist() == EVENTS["timestamp"].tolist()
    assert found["rating"].tolist() == [number % 5 + 0.5 for number in range(60)]
    assert tables.users is not None
    users = pq.read_table(write_own_table(tables.users, own / "out.parquet", T0).path)
    kinds = {field.name: field.type for field in users.schema}
    assert kinds == {
        "user_id": pa.string(),
        "age": pa.int64(),
        "plz": pa.string(),
        "member": pa.bool_(),
        "since": TIMESTAMP,
        "note": pa.string(),
        EVENT_TIMESTAMP: TIMESTAMP,
    }
    first, second = users.to_pylist()
    assert first == {
        "user_id": "007",
        "age": 30,
        "plz": "01069",
        "member": True,
        "since": datetime(2024, 1, 2, tzinfo=UTC),
        "note": 'a, "b"\nc',
        EVENT_TIMESTAMP: T0,
    }
    assert (second["age"], second["since"], second["member"]) == (None, None, False)


@pytest.mark.parametrize("inside", ["interactions.parquet", "interactions"])
def test_a_folder_of_parquet_is_one_table_in_the_order_of_its_files(own: Path, inside: str) -> None:
    """As Spark writes it, with checksums, a mark of success, and an integer that one part has narrower."""
    folder = own / inside
    for part in range(3):
        table = pa.Table.from_pandas(EVENTS.iloc[part * 20 : part * 20 + 20], preserve_index=False)
        table = table.append_column("n", pa.array([part] * 20, pa.int32() if part else pa.int64()))
        put(folder, f"part-{part:05d}-c000.snappy", table)
    (folder / "_SUCCESS").touch()
    (folder / ".part-00000.crc").write_bytes(b"x")
    found = events_of(own)
    assert found[["user_id", "item_id"]].equals(EVENTS[["user_id", "item_id"]])
    assert found["n"].tolist() == [0] * 20 + [1] * 20 + [2] * 20


def test_parts_without_an_ending_are_known_by_their_first_bytes(own: Path) -> None:
    put(own / "interactions", "000000_0", EVENTS)
    (own / "interactions" / "000000_0.parquet").rename(own / "interactions" / "000000_0")
    (own / "interactions" / "notes.txt").write_text("no table")
    assert events_of(own)["user_id"].tolist() == EVENTS["user_id"].tolist()


def test_hive_folders_are_a_column(own: Path) -> None:
    put(own, "items", pd.DataFrame({"item_id": ["i0"], "price": [1.0]}))
    for day, rows in EVENTS.groupby(EVENTS["timestamp"].dt.date):
        put(own / "interactions" / f"day={day}" / "shop=3", "part-0", rows)
    tables = read(own)
    found = pq.read_table(write_own_table(tables.interactions, own / "out.parquet").path).to_pandas()
    assert len(found) == 60 and found["shop"].tolist() == [3] * 60
    assert sorted(set(found["day"])) == ["2024-01-01", "2024-01-02", "2024-01-03"]
    assert found[EVENT_TIMESTAMP].tolist() == EVENTS["timestamp"].tolist()


def test_parts_that_do_not_go_together_are_named_with_both_types(own: Path) -> None:
    put(own / "interactions", "a", EVENTS)
    put(own / "interactions", "b", EVENTS.assign(user_id=range(60)))
    with pytest.raises(SchemaError, match=r"'user_id' is string in a\.parquet and int64 in b\.parquet"):
        read(own)


def test_one_table_in_two_forms_is_refused(own: Path) -> None:
    put(own, "interactions", EVENTS)
    EVENTS.to_csv(own / "interactions.csv", index=False)
    with pytest.raises(ConfigError, match=r"'interactions\.csv', 'interactions\.parquet', which are the same table"):
        read(own)


def test_a_csv_that_is_none_is_refused(own: Path) -> None:
    (own / "interactions.csv").write_bytes(b"user_id,item_id,timestamp\n\xff\xfe,a,2024-01-01\n")
    with pytest.raises(SchemaError, match=r"interactions\.csv cannot be read as CSV with a header in UTF-8"):
        read(own)


@pytest.mark.parametrize("line", ["2,b", "2,b,2024-01-02,5"])
@pytest.mark.parametrize("rows", [0, 30_000])
def test_a_csv_line_that_does_not_fit_is_refused_and_never_passed_over(own: Path, line: str, rows: int) -> None:
    lines = ["user_id,item_id,timestamp", *["1,a,2024-01-01"] * rows, line, "3,c,2024-01-03"]
    (own / "interactions.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(SchemaError, match=rf"cannot be read as CSV .*Expected 3 columns, got \d: {line}"):
        read(own)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_csv_of_other_delimiters_with_a_byte_order_mark(own: Path, delimiter: str) -> None:
    EVENTS.assign(note="a, b; c").to_csv(own / "interactions.csv", sep=delimiter, index=False, encoding="utf-8-sig")
    found = events_of(own)
    assert found["user_id"].tolist() == EVENTS["user_id"].tolist() and set(found["note"]) == {"a, b; c"}


def test_the_index_that_pandas_writes_into_csv_is_left_out(own: Path) -> None:
    EVENTS.to_csv(own / "interactions.csv")
    table = read(own).interactions
    assert [column.origin for column in table.columns] == ["user_id", "item_id", "timestamp"]
    (left_out,) = [decision for decision in table.decisions if decision.role == "left out"]
    assert (left_out.column, left_out.why) == ("Unnamed: 0", "the index of a data frame")


def test_tables_behind_an_address_are_fetched(
    own: Path, seaweedfs: SeaweedFS, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Keys and endpoint are those of every S3 program; files and folders are read."""
    import s3fs

    for name, value in {
        "AWS_ACCESS_KEY_ID": seaweedfs.access_key,
        "AWS_SECRET_ACCESS_KEY": seaweedfs.secret_key,
        "AWS_ENDPOINT_URL": seaweedfs.endpoint,
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    filesystem = s3fs.S3FileSystem()
    put(own / "interactions", "part-0", EVENTS.iloc[:30])
    put(own / "interactions", "part-1", EVENTS.iloc[30:])
    pd.DataFrame({"item_id": ["i0"], "price": [2.5]}).to_csv(own / "items.csv", index=False)
    filesystem.put(str(own), f"{seaweedfs.bucket}/own", recursive=True)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    tables = read_own_tables(f"s3://{seaweedfs.bucket}/own", scratch)
    found = pq.read_table(write_own_table(tables.interactions, tmp_path / "out.parquet").path).to_pandas()
    assert found[["user_id", "item_id"]].equals(EVENTS[["user_id", "item_id"]])
    assert tables.items is not None and tables.items.rows == 1
    (tmp_path / "other").mkdir()
    with pytest.raises(ConfigError, match="there is no folder s3://"):
        read_own_tables(f"s3://{seaweedfs.bucket}/nowhere", tmp_path / "other")


def test_an_address_that_does_not_answer_is_tried_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(UnavailableError, match="s3://bucket/own cannot be listed"):
        read_own_tables("s3://bucket/own", tmp_path)
    with pytest.raises(ConfigError, match="nonsense://x cannot be read"):
        read_own_tables("nonsense://x", tmp_path)


def test_own_names_are_all_in_one_error_with_the_options_that_mend_it(own: Path) -> None:
    events = EVENTS.rename(columns={"user_id": "CustomerNo", "item_id": "sku", "timestamp": "at"})
    put(own, "interactions", events.assign(bought=EVENTS["timestamp"]))
    put(own, "users", pd.DataFrame({"id": ["000"], "age": [3]}))
    put(own, "items", pd.DataFrame({"item_id": pa.array([], pa.string())}))
    with pytest.raises(EmptyDataError) as caught:
        read(own)
    said = str(caught.value)
    for part in (
        "users.parquet lacks the columns 'user_id'; it has 'id', 'age'",
        "items.parquet has no rows",
        "interactions.parquet lacks the columns 'user_id'",
        "interactions.parquet lacks the columns 'item_id'",
        "several timestamp columns: 'at', 'bought'",
        "try: --user-column id --user-column CustomerNo --item-column sku --time-column at",
    ):
        assert part in said, part
    (own / "items.parquet").unlink()
    tables = read(own, user=("CustomerNo", "id"), item=("sku",), time="at")
    assert [column.origin for column in tables.interactions.columns[:3]] == ["CustomerNo", "sku", "at"]
    assert tables.users is not None and tables.users.columns[0].origin == "id"


def test_the_id_of_an_event_is_no_user_and_no_item(own: Path) -> None:
    """Each table has a key called `id`, as web frameworks make them; the error proposes `--user-column id`."""
    events = EVENTS.rename(columns={"item_id": "product"}).assign(id=range(60))
    put(own, "interactions", events)
    put(own, "users", pd.DataFrame({"id": ["000"], "age": [3]}))
    put(own, "items", pd.DataFrame({"id": ["i0"], "price": [3]}))
    tables = read(own, user=("id",), item=("id", "product"))
    assert [column.origin for column in tables.interactions.columns[:2]] == ["user_id", "product"]
    assert tables.items is not None and tables.items.columns[0].origin == "id"
    put(own, "interactions", events.rename(columns={"user_id": "who", "product": "thing"}))
    with pytest.raises(ConfigError, match="column 'id' cannot be the id of the user and of the item"):
        read(own, user=("id",), item=("id",))


def test_an_option_that_names_no_column_is_refused(own: Path) -> None:
    put(own, "interactions", EVENTS)
    with pytest.raises(ConfigError, match="no file has the column 'costumer' that --user-column names"):
        read(own, user=("costumer",))


def test_on_a_terminal_the_columns_are_asked_for_with_a_guess(own: Path) -> None:
    put(own, "interactions", EVENTS.rename(columns={"user_id": "visitorid", "item_id": "productId"}))
    asked: list[Question] = []

    def ask(question: Question) -> str:
        asked.append(question)
        return str(question.guess)

    tables = read(own, ask=ask)
    assert [(question.option, question.guess) for question in asked] == [
        ("--user-column", "visitorid"),
        ("--item-column", "productId"),
    ]
    assert [column.origin for column in tables.interactions.columns[:2]] == ["visitorid", "productId"]
    with pytest.raises(SchemaError, match="lacks the columns 'user_id'"):
        read(own, ask=lambda question: "nobody")


def test_other_spellings_of_the_names_need_no_question(own: Path) -> None:
    spelt = {"user_id": "UserID", "item_id": "ITEM_ID", "timestamp": " TimeStamp"}
    put(own, "interactions", EVENTS.rename(columns=spelt).assign(loaded=T0))
    put(own, "users", pd.DataFrame({"User_Id": ["u"], "Event Timestamp": [T0]}))
    tables = read(own)
    assert [column.origin for column in tables.interactions.columns[:3]] == ["UserID", "ITEM_ID", " TimeStamp"]
    assert tables.users is not None and tables.users.time is not None
    assert [column.name for column in tables.users.columns] == ["user_id", "event_timestamp"]


SECONDS = (EVENTS["timestamp"].astype("int64") // 10**9).to_numpy()


@pytest.mark.parametrize(
    ("values", "unit"),
    [
        (SECONDS, None),
        (SECONDS.astype(float), None),
        (SECONDS * 1_000, None),
        (SECONDS * 1_000_000, None),
        (SECONDS * 1_000_000_000, None),
        ([str(second) for second in SECONDS], None),
        ([f"{time:%Y-%m-%d %H:%M:%S}" for time in EVENTS["timestamp"]], None),
        ([f"{time:%Y-%m-%dT%H:%M:%S}Z" for time in EVENTS["timestamp"]], None),
        ([(time + timedelta(hours=2)).strftime("%Y-%m-%dT%H:%M:%S+02:00") for time in EVENTS["timestamp"]], None),
        ([f"{time:%Y-%m-%dT%H:%M:%S}{'.0000001' * (time.hour % 2)}" for time in EVENTS["timestamp"]], None),
        ([f"{time:%Y-%m-%d %H:%M}{'Z' * (time.hour % 2)}" for time in EVENTS["timestamp"]], None),
        ([f"{time:%Y-%m-%d %H:%M:%S} UTC" for time in EVENTS["timestamp"]], None),
        (SECONDS * 1_000, "ms"),
        ([f"{time:%Y-%m-%d %H:%M:%S +0000}" for time in EVENTS["timestamp"]], None),
    ],
)
def test_times_as_text_or_as_numbers_since_1970_are_read(own: Path, values: Any, unit: str | None) -> None:
    put(own, "interactions", EVENTS.assign(timestamp=values))
    assert events_of(own, time_unit=unit)[EVENT_TIMESTAMP].tolist() == EVENTS["timestamp"].tolist()


@pytest.mark.parametrize("unit", [None, "s"])
@pytest.mark.parametrize("text", [False, True])
def test_numbers_that_are_calendar_dates_are_no_epoch(own: Path, unit: str | None, text: bool) -> None:
    """As seconds since 1970 they would all lie in August 1970."""
    values = [20240101 + 100 * (number % 12) + number % 28 for number in range(60)]
    put(own, "interactions", EVENTS.assign(timestamp=[str(value) for value in values] if text else values))
    with pytest.raises(SchemaError, match=r"numbers from 20240101 to 202412.*calendar dates and no epoch.*2024-05-31"):
        events_of(own, time_unit=unit)


@pytest.mark.parametrize("values", [range(60), ["31/12/2023"] * 60, [True] * 60])
def test_what_is_no_time_is_refused_with_the_remedy(own: Path, values: Any) -> None:
    put(own, "interactions", EVENTS.assign(timestamp=list(values), ingested_at=T0))
    with pytest.raises(SchemaError, match=r"'timestamp' is \w+; expected a timestamp, ISO text .* --time-unit s\|ms"):
        read(own)


@pytest.mark.parametrize("name", ["ts", "event_time", "created_at", "Date"])
def test_a_readable_time_beside_the_time_of_a_load_is_never_passed_over(own: Path, name: str) -> None:
    frame = EVENTS.rename(columns={"timestamp": name}).assign(loaded=T0)
    for values in (SECONDS, [f"{time:%Y-%m-%d %H:%M:%S}" for time in EVENTS["timestamp"]]):
        put(own, "interactions", frame.assign(**{name: values}))
        with pytest.raises(ConfigError, match=rf"several timestamp columns: 'loaded', '{name}'.*--time-column {name}"):
            read(own)
        assert events_of(own, time=name)[EVENT_TIMESTAMP].tolist() == EVENTS["timestamp"].tolist()
    put(own, "interactions", frame.drop(columns="loaded").assign(**{name: SECONDS}))
    assert events_of(own)[EVENT_TIMESTAMP].tolist() == EVENTS["timestamp"].tolist()


def test_a_time_beyond_nanoseconds_and_a_null_written_as_a_time(own: Path) -> None:
    """Spark's INT96 with the year 9999 was 1816; numpy's NaT, written as a number, was 1677."""
    items = pa.table({"item_id": ["a", "b"], "until": pa.array([datetime(9999, 12, 31), None], NAIVE)})
    put(own, "items", items, use_deprecated_int96_timestamps=True)
    nat = np.array([-(2**63), 1_704_067_200_000_000_000], np.int64)
    put(own, "users", pa.table({"user_id": ["u", "v"], "since": pa.array(nat, pa.int64()).cast(pa.timestamp("ns"))}))
    put(own, "interactions", EVENTS)
    tables = read(own)
    assert tables.items is not None and tables.users is not None
    items = pq.read_table(write_own_table(tables.items, own / "out.parquet", T0).path)
    assert items["until"].to_pylist() == [datetime(9999, 12, 31, tzinfo=UTC), None]
    users = pq.read_table(write_own_table(tables.users, own / "out.parquet", T0).path)
    assert users["since"].to_pylist() == [None, T0]


@pytest.mark.parametrize("year", [1, 1900, 1970])
def test_a_time_that_stands_for_none_is_null_in_events_alone(own: Path, year: int) -> None:
    never = datetime(year, 1, 1, tzinfo=UTC)
    when = pa.array([never, *EVENTS["timestamp"].tolist()[1:]], TIMESTAMP)
    put(own, "interactions", pa.table({"user_id": EVENTS["user_id"], "item_id": EVENTS["item_id"], "timestamp": when}))
    put(own, "users", pa.table({"user_id": ["u"], "timestamp": pa.array([never], TIMESTAMP)}))
    tables = read(own)
    times = pq.read_table(write_own_table(tables.interactions, own / "out.parquet").path)[EVENT_TIMESTAMP]
    assert times.to_pylist() == [None, *EVENTS["timestamp"].tolist()[1:]]
    assert tables.users is not None
    users = pq.read_table(write_own_table(tables.users, own / "out.parquet").path)
    assert users[EVENT_TIMESTAMP].to_pylist() == [never], "a row that counts from the beginning"


def test_types_and_values_of_another_type_are_used_or_said(own: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "rec_ray")
    kinds = [number % 3 for number in range(60)]
    put(own, "interactions", EVENTS.assign(interaction_type=kinds, rating=[f" {number % 5}" for number in range(60)]))
    tables = read(own)
    assert (tables.interactions.type, tables.interactions.value) == ("interaction_type", "rating")
    found = events_of(own)
    assert found["interaction_type"].tolist() == [str(kind) for kind in kinds]
    assert found["rating"].tolist() == [number % 5 for number in range(60)]
    assert not caplog.messages
    put(own, "interactions", EVENTS.assign(rating=["NULL", "4", "n/a"] * 20))
    assert events_of(own)["rating"].fillna(-1).tolist() == [-1, 4, -1] * 20
    put(own, "interactions", EVENTS.assign(liked=[True, False] * 30))
    said = {decision.column: decision.why for decision in read(own).interactions.decisions}
    assert said["liked"].endswith("add --value-column liked")
    assert events_of(own, value="liked")["liked"].tolist() == [1, 0] * 30
    assert not caplog.messages
    put(own, "interactions", EVENTS.assign(interaction_type=[[1]] * 60, rating="5 stars"))
    tables = read(own)
    assert (tables.interactions.type, tables.interactions.value) == (None, None)
    assert "'rating' is string, such as '5 stars'; expected a number" in caplog.text
    assert "'interaction_type' is list" in caplog.text
    put(own, "interactions", EVENTS.assign(Event="view", qty=3))
    tables = read(own)
    said = {decision.column: decision.why for decision in tables.interactions.decisions if decision.role == "unused"}
    assert said["Event"].endswith("add --type-column Event") and said["qty"].endswith("add --value-column qty")
    tables = read(own, type="Event", value="qty")
    assert (tables.interactions.type, tables.interactions.value) == ("Event", "qty")
    with pytest.raises(RecRayError, match="has no column 'kind'"):
        read(own, type="kind")
    with pytest.raises(SchemaError, match="'Event' is string, such as 'view'; expected a number"):
        read(own, value="Event")


def test_a_number_beyond_signed_integers_stops_nothing(own: Path) -> None:
    """Hashes of 64 bits are written as floats, and as text where they are ids."""
    hashes = np.array([2**64 - 1 - number for number in range(60)], np.uint64)
    put(own, "interactions", EVENTS.assign(session=hashes, item_id=hashes))
    found = events_of(own)
    assert found["session"].tolist() == [float(number) for number in hashes]
    assert found["item_id"].tolist() == [str(number) for number in hashes]


def test_names_become_such_that_feast_and_yaml_take_them(own: Path) -> None:
    put(own, "interactions", EVENTS)
    odd = [
        "file_row_number",
        "age:float",
        "a:b:",
        "list\nprice",
        "größe, cm",
        " ",
        "as_of",
        "raw_x",
        "Event_Type",
        "user_id",
        "a b",
        "a_b",
    ]
    frame = pd.DataFrame({"item_id": ["a"], **{name: [1] for name in odd}, "__index_level_0__": [0], "Unnamed: 0": [0]})
    put(own, "items", frame)
    items = read(own).items
    assert items is not None
    assert [column.name for column in items.columns] == [
        "item_id",
        "item_file_row_number",
        "age_float",
        "a_b_2",
        "list_price",
        "größe_cm",
        "item_as_of",
        "item_raw_x",
        "item_Event_Type",
        "item_user_id",
        "a_b_3",
        "a_b",
    ]
    left_out = [decision.column for decision in items.decisions if decision.role == "left out"]
    assert left_out == [" ", "__index_level_0__", "Unnamed: 0"]


@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_whole_numbers_that_pandas_keeps_as_floats_are_ids(own: Path, form: str) -> None:
    """Beside a null they are floats: 7.0, in a CSV file too, while the other file has 7."""
    frame = EVENTS.assign(item_id=[7.0, None, *range(58)])
    if form == "csv":
        frame.to_csv(own / "interactions.csv", index=False)
    else:
        put(own, "interactions", frame)
    assert events_of(own)["item_id"].tolist()[:4] == ["7", None, "0", "1"]
    put(own, "users", pd.DataFrame({"user_id": [1.5, 2.0]}))
    with pytest.raises(SchemaError, match="'user_id' is double; an id must be"):
        read(own)


def test_whole_decimals_are_ids(own: Path) -> None:
    ids = pa.array([Decimal(number) for number in range(60)], pa.decimal128(38, 0))
    put(own, "interactions", pa.table({"user_id": ids, "item_id": ids, "at": EVENTS["timestamp"]}))
    assert events_of(own)["user_id"].tolist() == [str(number) for number in range(60)]


def test_a_unit_that_is_none_is_refused() -> None:
    assert unit_named("ms") == "ms" and unit_named(None) is None
    with pytest.raises(ConfigError, match="'minutes' is not a unit; expected 's', 'ms', 'us', 'ns'"):
        unit_named("minutes")


def test_an_empty_folder_and_an_empty_table(own: Path) -> None:
    (own / "interactions").mkdir()
    with pytest.raises(SchemaError, match="is a folder without Parquet or CSV files"):
        read(own)
    (own / "interactions").rmdir()
    put(own, "interactions", EVENTS.iloc[:0])
    with pytest.raises(EmptyDataError, match="has no rows"):
        read(own)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("signup_date", ["2024-01-05", None, "2024-02-29"]),
        ("created_at", ["2024-01-05T10:00:00Z", "NaT", "2024-02-29 00:00:00+02:00"]),
        ("created_at", [1704448800, None, 1709164800]),
        ("registered", [1704448800000, 1704448800001, 1709164800000]),
        ("last_login_ts", ["1704448800", "", "1709164800"]),
    ],
)
def test_dates_of_users_are_dates_in_any_encoding(own: Path, name: str, values: list[Any]) -> None:
    put(own, "interactions", EVENTS)
    users = pd.DataFrame({"user_id": ["000", "001", "002"], name: pd.array(values, dtype=None)})
    put(own, "users", users)
    table = read(own).users
    assert table is not None
    found = pq.read_table(write_own_table(table, own.parent / "out.parquet", T0).path)
    assert found.schema.field(name).type == TIMESTAMP
    assert found[name][0].as_py().date().isoformat() == "2024-01-05"
    assert found[name][2].as_py().date().isoformat() in ("2024-02-28", "2024-02-29")
    assert any(made.column == name and made.role == "a date" for made in table.decisions)


def test_an_arrival_as_text_dates_the_rows(own: Path) -> None:
    put(own, "interactions", EVENTS)
    put(own, "items", pd.DataFrame({"item_id": [f"i{number}" for number in range(5)], "created_at": "2023-05-06"}))
    table = read(own).items
    assert table is not None and table.arrival == "created_at"
    dated = pq.read_table(write_own_table(table.dated_by("created_at"), own.parent / "out.parquet", T0).path)
    assert set(dated[EVENT_TIMESTAMP].to_pylist()) == {datetime(2023, 5, 6, tzinfo=UTC)}


@pytest.mark.parametrize(
    ("values", "why"),
    [
        (["31/12/2023", "01/02/2024"], "'01/02/2024' is no ISO date; write all values as 2024-05-31"),
        (["2024-01-05", "2024-02-30x"], "'2024-02-30x' is no ISO date"),
        ([20231231, 20240102], "numbers such as 20231231 are calendar dates"),
    ],
)
def test_dates_that_cannot_be_read_are_named(own: Path, values: list[Any], why: str) -> None:
    put(own, "interactions", EVENTS)
    put(own, "users", pd.DataFrame({"user_id": ["000", "001"], "signup_date": values}))
    table = read(own).users
    assert table is not None
    [made] = [made for made in table.decisions if made.column == "signup_date"]
    assert made.role == "not read as a date" and why in made.why


def test_words_with_the_name_of_a_time_stay_words(own: Path) -> None:
    put(own, "interactions", EVENTS)
    words = {"user_id": ["000", "001"], "day": ["monday", "friday"], "time_zone": ["CET", "UTC"], "age_at": [31, 45]}
    put(own, "users", pd.DataFrame(words))
    table = read(own).users
    assert table is not None
    kinds = {column.name: column.type for column in table.columns}
    assert (kinds["day"], kinds["time_zone"], kinds["age_at"]) == (pa.string(), pa.string(), pa.int64())
    assert [made.column for made in table.decisions] == ["user_id"]
