"""Dates of users and items beside the events: taken, replaced, or left to `as_of_now`; ids that match nobody."""

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rec_ray.errors import SchemaError
from rec_ray.sample.own_tables import read_own_tables
from rec_ray.sample.roles import ColumnNames
from rec_ray.sample.row_dates import check_event_times, describe_ids, write_dated
from rec_ray.sample.tables import write_own_table

T0 = datetime(2024, 1, 1, tzinfo=UTC)
STAMP = pa.timestamp("us", "UTC")
USERS, EACH = 10, 10


def day(number: float) -> datetime:
    return T0 + timedelta(days=number)


def write(folder: Path, name: str, **columns: Any) -> None:
    pq.write_table(pa.table(columns), folder / f"{name}.parquet")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Ten users with an event on each of ten days: user `u3` from day 3 on."""
    rows = [(f"u{user}", f"i{user}", day(user + number)) for user in range(USERS) for number in range(EACH)]
    user, item, when = zip(*rows, strict=True)
    write(tmp_path, "interactions", user_id=user, item_id=item, at=pa.array(when, STAMP))
    return tmp_path


def dated(own: Path) -> Any:
    scratch = own / "scratch"
    scratch.mkdir(exist_ok=True)
    tables = read_own_tables(own, scratch)
    events = write_own_table(tables.interactions, scratch / "events.parquet")
    assert tables.users is not None
    return write_dated(tables.users, scratch / "users.parquet", events, T0), scratch / "users.parquet"


NAMES = [f"u{user}" for user in range(USERS)]


def test_rows_without_a_time_count_from_the_first_event_and_the_others_from_theirs(own: Path) -> None:
    when = [day(user) if user % 2 else None for user in range(USERS)]
    write(own, "users", user_id=NAMES, age=list(range(USERS)), event_timestamp=pa.array(when, STAMP))
    made, path = dated(own)
    assert made.why == "the column event_timestamp; 5 of 10 rows have no time there and count from the first event"
    assert pq.read_table(path)["event_timestamp"].to_pylist() == [each or T0 for each in when]


@pytest.mark.parametrize(
    "when",
    [
        [day(60)] * USERS,  # one export
        [day(user + EACH - 1) for user in range(USERS)],  # the time of the last change
        [day(60)] * 9 + [T0],  # and one that has never changed
    ],
)
def test_one_row_each_dated_after_the_events_counts_from_the_first_event_on(own: Path, when: Any) -> None:
    write(own, "users", user_id=NAMES, age=range(USERS), event_timestamp=pa.array(when, STAMP))
    made, path = dated(own)
    assert pq.read_table(path)["event_timestamp"].to_pylist() == [T0] * USERS
    assert "one row each" in made.why and "leak into training" in made.why and made.settings == {}
    (decision,) = [made for made in made.table.decisions if made.column == "event_timestamp"]
    assert decision.role == "left out"


def test_several_rows_each_dated_after_the_events_set_as_of_now(own: Path) -> None:
    when = [day(60)] * USERS + [day(61)] * USERS
    write(own, "users", user_id=NAMES * 2, age=range(2 * USERS), event_timestamp=pa.array(when, STAMP))
    made, path = dated(own)
    assert made.settings == {"user_history": "as_of_now"}
    assert pq.read_table(path)["event_timestamp"].to_pylist() == when, "the rows stay as they are"


def test_dates_that_fit_are_taken(own: Path) -> None:
    """User 0 comes late, by three of its ten events: that is said and nothing else."""
    when = [day(2.5), *(day(user) for user in range(1, USERS))]
    write(own, "users", user_id=NAMES, age=range(USERS), event_timestamp=pa.array(when, STAMP))
    made, path = dated(own)
    assert pq.read_table(path)["event_timestamp"].to_pylist() == when
    assert made.why == "the column event_timestamp; 3% of the events precede all rows of their entity"


@pytest.mark.parametrize(
    ("name", "when", "taken"),
    [
        ("signup_date", [day(user) for user in range(USERS)], True),
        ("createdAt", [day(user - 5) for user in range(USERS)], True),
        ("signup_date", [day(user + 1) for user in range(USERS)], False),
        ("last_login", [day(user) for user in range(USERS)], False),
        ("sale_ends", [day(60)] * USERS, False),
    ],
)
def test_a_lone_date_counts_only_if_its_name_is_of_an_arrival_and_no_event_is_earlier(
    own: Path, name: str, when: Any, taken: bool
) -> None:
    write(own, "users", user_id=NAMES, age=range(USERS), **{name: pa.array(when, STAMP)})
    made, path = dated(own)
    table = pq.read_table(path)
    assert table["event_timestamp"].to_pylist() == (when if taken else [T0] * USERS)
    assert table[name].to_pylist() == when, "it stays a feature"
    assert name in made.why


def test_two_dates_are_none_of_them_the_time_of_a_row(own: Path) -> None:
    early = pa.array([day(-9)] * USERS, STAMP)
    write(own, "users", user_id=NAMES, age=range(USERS), created=early, updated=early)
    made, path = dated(own)
    assert pq.read_table(path)["event_timestamp"].to_pylist() == [T0] * USERS
    assert "not used as the time of a row: created, updated (one that events change" in made.why


def test_events_of_one_time_are_refused_or_warned_about(own: Path, caplog: pytest.LogCaptureFixture) -> None:
    ids = [f"u{number}" for number in range(30)]

    def check(column: str, **names: Any) -> list[str]:
        write(own, "interactions", user_id=ids, item_id=ids, **{column: pa.array([T0] * 30, STAMP)})
        scratch = own / column
        scratch.mkdir(exist_ok=True)
        table = read_own_tables(own, scratch, ColumnNames(**names)).interactions
        return check_event_times(table, write_own_table(table, scratch / "out.parquet"), named="time" in names)

    with pytest.raises(SchemaError, match=r"every row has the same time in 'at'.*--time-column"):
        check("at")
    for said in (check("at", time="at"), check("timestamp")):
        assert len(said) == 1 and "no events can be held out by time" in said[0]


@pytest.mark.parametrize(
    ("spell", "remedy"),
    [
        (lambda name: f"00{name[1:]}", "without leading zeros"),
        (lambda name: f"{name[1:]}.0", "without '.0' at the end"),
        (lambda name: f"U{name[1:]}", "in lower case"),
        (lambda name: f" {name} ", "without blanks around them"),
    ],
)
def test_ids_that_match_nobody_are_said_with_one_of_each_and_what_would_help(
    own: Path, spell: Any, remedy: str, caplog: pytest.LogCaptureFixture
) -> None:
    plain = NAMES if spell("u1").strip().lower() == "u1" else [name[1:] for name in NAMES]
    write(own, "users", user_id=plain, age=range(USERS))
    rows = [spell(name) for name in NAMES for _ in range(EACH)]
    events = pq.read_table(own / "interactions.parquet").set_column(0, "user_id", pa.array(rows))
    pq.write_table(events, own / "interactions.parquet")
    caplog.set_level(logging.WARNING, "rec_ray")
    (own / "scratch").mkdir()
    tables = read_own_tables(own, own / "scratch")
    assert tables.users is not None
    interactions = write_own_table(tables.interactions, own / "scratch" / "events.parquet")
    (said,) = describe_ids(interactions, write_own_table(tables.users, own / "scratch" / "users.parquet", T0))
    for part in (f"have {spell('u0')!r}", f"users have {plain[0]!r}", f"{remedy} more of them would match"):
        assert part in said
    assert said in caplog.messages


def test_ids_that_mostly_match_are_not_said(own: Path) -> None:
    write(own, "users", user_id=NAMES[:5], age=range(5))
    (own / "scratch").mkdir()
    tables = read_own_tables(own, own / "scratch")
    assert tables.users is not None
    events = write_own_table(tables.interactions, own / "scratch" / "events.parquet")
    assert describe_ids(events, write_own_table(tables.users, own / "scratch" / "users.parquet", T0)) == []


def test_events_without_a_time_are_counted(own: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "rec_ray")
    when = [None, datetime(1970, 1, 1, tzinfo=UTC), *(day(number) for number in range(28))]
    ids = [f"u{number}" for number in range(30)]
    write(own, "interactions", user_id=ids, item_id=ids, at=pa.array(when, STAMP))
    (own / "scratch").mkdir()
    table = read_own_tables(own, own / "scratch").interactions
    (said,) = check_event_times(table, write_own_table(table, own / "scratch" / "out.parquet"), named=False)
    assert said == "2 of 30 events have no time in 'at': a run leaves them out" and said in caplog.text


def test_rows_without_a_time_that_repeat_an_id_are_counted(own: Path) -> None:
    write(own, "users", user_id=[*NAMES, "u1", "u2"], age=range(USERS + 2))
    assert dated(own)[0].why.endswith("; 2 rows repeat an id, of which the last one in the file counts")
    write(own, "users", user_id=NAMES, age=range(USERS))
    assert "repeat" not in dated(own)[0].why
