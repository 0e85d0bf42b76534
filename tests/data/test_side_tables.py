"""Side tables of the shop: found or not, read in chunks with the right types, and added to what Feast holds."""

import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import sqlalchemy as sa
from servers import PostgreSQL

from rec_ray.config import FeatureSettings, InteractionSettings, SideTableSettings
from rec_ray.data.side_tables import SideTable, find_side_tables, read_chunks
from rec_ray.errors import ConfigError, SchemaError, UnavailableError
from rec_ray.logs import LOGGER
from rec_ray.schema import EVENT_TIMESTAMP, EVENT_TYPE, INTERACTIONS, ITEM_ID, SIGN_UP, USER_ID
from rec_ray.schema import FeatureDeclaration as Declared

FEATURES = FeatureSettings(
    user={"city": Declared("categorical"), "plan": Declared("numeric")},
    interaction=InteractionSettings(type_field="kind"),
)


@pytest.fixture
def shop(tmp_path: Path) -> str:
    """A SQLite database with both tables, columns named as the replaced system named them."""
    file = tmp_path / "shop.db"
    with sqlite3.connect(file) as database:
        database.execute(
            "CREATE TABLE users (user_id INTEGER, city TEXT, plan NUMERIC, signup_date TIMESTAMP, pw TEXT)"
        )
        database.execute("CREATE TABLE stream_interaction (user_id TEXT, item_id TEXT, timestamp TEXT, kind TEXT)")
        database.executemany(
            "INSERT INTO users VALUES (?, ?, ?, ?, 'secret')",
            [
                (7, "Oslo", 20, "2024-01-03 12:00:00"),
                (8, None, None, "2024-01-02 00:00:00+02:00"),
                (9, "Bern", 1, None),
            ],
        )
        rows = [(f"u{n}", f"i{n % 3}", f"2024-01-01 00:{n:02d}:00", "buy") for n in range(50)]
        database.executemany("INSERT INTO stream_interaction VALUES (?, ?, ?, ?)", reversed(rows))
    database.close()
    return f"sqlite:///{file}"


def settings(url: str | None, **more: Any) -> SideTableSettings:
    return SideTableSettings(url=url, interaction_columns={EVENT_TYPE: "kind"}, **more)


def found(url: str, **more: Any) -> Any:
    return find_side_tables(settings(url, **more), FEATURES)


def test_without_an_address_nothing_is_read() -> None:
    tables = find_side_tables(SideTableSettings(), FEATURES)
    assert (tables.users, tables.interactions) == (None, None)


def test_events_come_in_chunks_in_the_order_of_time(shop: str) -> None:
    chunks = list(read_chunks(found(shop, chunk_rows=20).interactions))
    assert [chunk.num_rows for chunk in chunks] == [20, 20, 10]
    table = pa.concat_tables(chunks)
    assert table[USER_ID].to_pylist() == [f"u{n}" for n in range(50)]
    assert table[EVENT_TIMESTAMP].to_pylist()[1] == datetime(2024, 1, 1, 0, 1, tzinfo=UTC)
    assert table[EVENT_TYPE].unique().to_pylist() == ["buy"]
    assert SIGN_UP not in table.column_names


def test_sign_ups_carry_the_declared_features_and_nothing_else(shop: str) -> None:
    (table,) = read_chunks(found(shop).users)
    rows = {row[USER_ID]: row for row in table.to_pylist()}
    assert rows["7"] == {
        USER_ID: "7",
        EVENT_TIMESTAMP: datetime(2024, 1, 3, 12, tzinfo=UTC),
        SIGN_UP: '{"city": "Oslo", "plan": 20}',
    }
    assert rows["8"][EVENT_TIMESTAMP] == datetime(2024, 1, 1, 22, tzinfo=UTC)
    assert rows["9"][EVENT_TIMESTAMP] is None
    assert "secret" not in str(table.to_pylist())


def test_a_table_that_is_not_there_is_said_once(shop: str, caplog: pytest.LogCaptureFixture) -> None:
    LOGGER.propagate = True
    caplog.set_level("INFO", "rec_ray")
    tables = found(shop, users="customers")
    assert tables.users is None and tables.interactions is not None
    assert [line for line in caplog.messages if "customers" in line] == [
        "the side table customers does not exist: only the data in Feast is used"
    ]


def test_columns_are_named_by_the_settings(shop: str) -> None:
    table = found(shop, user_columns={"city": None, "plan": "user_id"}).users
    assert table.features == {"plan": "user_id"}
    with pytest.raises(SchemaError, match="'users' lacks the columns 'town'; it has 'city'"):
        found(shop, user_columns={"city": "town"})
    with pytest.raises(SchemaError, match="lacks the columns 'born'"):
        found(shop, user_columns={EVENT_TIMESTAMP: "born"})


def test_a_column_of_a_feature_that_is_not_there_is_unknown(shop: str) -> None:
    features = FEATURES.model_copy(update={"user": {**FEATURES.user, "age": Declared("numeric")}})
    table = find_side_tables(settings(shop), features).users
    assert table is not None and set(table.features) == {"city", "plan"}


def test_a_name_is_no_sql(shop: str) -> None:
    """Names go through SQLAlchemy, which quotes them."""
    assert found(shop, users="users; DROP TABLE users").users is None
    table = SideTable(shop, "users", {USER_ID: 'user_id" FROM users; --', EVENT_TIMESTAMP: "signup_date"}, {}, 10)
    # SQLite takes a quoted name that it does not know as a text.
    assert next(read_chunks(table))[USER_ID].to_pylist() == ['user_id" FROM users; --'] * 3
    assert found(shop).users is not None


def test_a_time_that_is_none_is_refused(shop: str) -> None:
    with pytest.raises(SchemaError, match="'users' has 'Bern' in 'city'; expected a time"):
        list(read_chunks(found(shop, user_columns={EVENT_TIMESTAMP: "city"}).users))


def test_a_database_that_does_not_answer_is_named_without_its_password() -> None:
    pytest.importorskip("psycopg")
    away = settings("postgresql://me@127.0.0.1:1/shop", password="hunderttausend")
    with pytest.raises(UnavailableError, match=r"postgresql://me@127.0.0.1:1/shop cannot be read") as caught:
        find_side_tables(away, FEATURES)
    assert "hunderttausend" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"side_tables.url"):
        found("nonsense://")


@pytest.mark.usefixtures("processes")
def test_postgresql_keeps_the_rows_on_the_server_and_hands_out_chunks(postgresql: PostgreSQL) -> None:
    url = postgresql.make_database("side_tables")
    shop = settings(url, password=postgresql.password, chunk_rows=200, users="crm.users")
    with postgresql.engine("side_tables").connect() as connection:
        for statement in (
            "CREATE SCHEMA crm",
            "CREATE TABLE crm.users (user_id BIGINT, city TEXT, plan NUMERIC(9, 2), signup_date DATE)",
            "INSERT INTO crm.users VALUES (7, 'Oslo', 20.5, '2024-01-03'), (8, NULL, NULL, NULL)",
            "CREATE TABLE stream_interaction (user_id UUID, item_id TEXT, timestamp TIMESTAMPTZ, kind TEXT)",
            "INSERT INTO stream_interaction SELECT gen_random_uuid(), 'i' || n % 3, "
            "'2024-01-01 00:00+02'::timestamptz + n * interval '1 second', 'buy' FROM generate_series(1, 1000) n",
        ):
            connection.execute(sa.text(statement))
        tables = find_side_tables(shop, FEATURES)
        assert tables.users is not None and tables.interactions is not None
        (users,) = read_chunks(tables.users)
        assert users.to_pylist()[0] == {
            USER_ID: "7",
            EVENT_TIMESTAMP: datetime(2024, 1, 3, tzinfo=UTC),
            SIGN_UP: '{"city": "Oslo", "plan": 20.5}',
        }
        chunks = read_chunks(tables.interactions)
        first = next(chunks)
        assert (first.num_rows, len(first[USER_ID][0].as_py())) == (200, 36)
        assert first[EVENT_TIMESTAMP][0].as_py() == datetime(2023, 12, 31, 22, 0, 1, tzinfo=UTC)
        # The rest is not read yet: the session of the reader waits between two fetches from a cursor.
        asked = "SELECT query FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        assert [query.split()[0] for query in connection.scalars(sa.text(asked)) if query] == ["FETCH"]
        assert [chunk.num_rows for chunk in chunks] == [200] * 4
        with pytest.raises(UnavailableError, match=r"password authentication failed") as caught:
            find_side_tables(settings(url, password="wrong-password"), FEATURES)
        assert "wrong-password" not in str(caught.value)


@pytest.mark.usefixtures("processes")
@pytest.mark.usefixtures("local_ray")
def test_side_tables_are_added_to_what_feast_holds(hand_worked: Any, tmp_path: Path) -> None:
    """User `d` has no features in Feast and signs up on day 4; `e` is new; `a` is known already, but for its plan."""
    from rec_ray.data.load_features import load_features

    file = tmp_path / "shop.db"
    day = [(datetime(2024, 1, 1, tzinfo=UTC) + timedelta(days=n)).strftime("%Y-%m-%d %H:%M:%S") for n in range(31)]
    with sqlite3.connect(file) as database:
        database.execute("CREATE TABLE users (user_id TEXT, city TEXT, plan INTEGER, signup_date TEXT)")
        users = [("d", "Riga", 77, day[4]), ("e", "Wien", None, day[6]), ("a", "Nice", 99, day[13])]
        database.executemany("INSERT INTO users VALUES (?, ?, ?, ?)", users)
        database.execute("CREATE TABLE stream_interaction (user_id TEXT, item_id TEXT, timestamp TEXT, kind TEXT)")
        clicks = [
            ("a", "x", day[5], "buy"),
            ("e", "y", day[7], "buy"),
            ("e", "y", None, "buy"),
            ("e", None, day[7], ""),
        ]
        database.executemany("INSERT INTO stream_interaction VALUES (?, ?, ?, ?)", clicks)
    database.close()
    side = settings(f"sqlite:///{file}", chunk_rows=2)
    assert check_added(hand_worked, side, load_features) == {"read": 14, "kept": 12}


def check_added(hand_worked: Any, side: SideTableSettings, load_features: Callable[..., Any]) -> dict[str, int]:
    from rec_ray.config import FeastSettings

    tables = load_features(
        hand_worked.store,
        FeastSettings(),
        hand_worked.features,
        hand_worked.evaluation,
        as_of=hand_worked.as_of,
        side_tables=side,
    )
    rows = pa.concat_tables(tables.interactions.iter_batches(batch_size=None, batch_format="pyarrow"))
    assert SIGN_UP not in rows.column_names and set(INTERACTIONS.names) <= set(rows.column_names)
    users: dict[str, list[Any]] = {}
    for row in rows.to_pylist():
        days = (row[EVENT_TIMESTAMP] - datetime(2024, 1, 1, tzinfo=UTC)) / timedelta(days=1)
        is_event = row[ITEM_ID] is not None
        users.setdefault(row[USER_ID], []).append(
            (int(days) if is_event else "query", row[ITEM_ID], row["city"], row["plan"])
        )
    events = {user: [row for row in rows if row[0] != "query"] for user, rows in users.items()}
    now = {user: rows[-1][2:] for user, rows in users.items()}
    # The click of `a` comes behind the three events that Feast has of the same instant.
    assert [row[:2] for row in events["a"]] == [(0, "x"), (4, "y"), (5, "z"), (5, "x"), (5, "y"), (5, "x"), (17, "x")]
    assert events["a"][-1][2:] == ("Bern", 99), "Feast knows the city, and no plan since day 14"
    assert events["d"] == [(3, "x", None, None)] and now["d"] == ("Riga", 77)
    assert events["e"] == [(7, "y", "Wien", None)] and now["e"] == ("Wien", None)
    assert now["b"] == (None, None) and now["c"] == ("Rome", 10)
    assert len(users) == 5
    return {"read": tables.rows.read, "kept": tables.rows.kept}
