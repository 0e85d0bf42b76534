"""Versions on SQLite and PostgreSQL: numbers, the commit, the live version, the lock, with real processes."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from rec_ray.errors import ConfigError, DataError, LockedError, UnavailableError
from rec_ray.versions.registry import VersionDatabase, VersionRow
from rec_ray.versions.tables import METADATA

READERS_QUERY = "SELECT version FROM model_version ORDER BY updated_at DESC LIMIT 1"


@dataclass(frozen=True)
class Place:
    """Where a test has its versions; `sql` speaks to it as any other program would."""

    url: str
    password: str | None = None

    def open(self) -> VersionDatabase:
        return VersionDatabase(self.url, self.password)

    def sql(self, statement: str, **values: Any) -> list[tuple[Any, ...]]:
        url = sa.make_url(self.url)
        if url.get_backend_name() == "postgresql":
            url = url.set(drivername="postgresql+psycopg", password=self.password)
        with sa.create_engine(url, poolclass=sa.NullPool).begin() as connection:
            done = connection.execute(sa.text(statement), values)
            return [tuple(row) for row in done] if done.returns_rows else []


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "sqlite":
        return Place(f"sqlite:///{tmp_path / 'versions.db'}")
    server = request.getfixturevalue("postgresql")
    return Place(server.make_database(f"versions_{uuid.uuid4().hex}"), server.password)


@pytest.fixture
def database(place: Place) -> VersionDatabase:
    return place.open()


def test_a_new_database_has_no_versions_and_is_not_made_by_reading(database: VersionDatabase, tmp_path: Path) -> None:
    assert database.live() is None
    assert database.list_versions() == []
    assert database.get("1") is None
    assert database.reservations() == [] and database.pushed_since_live() == []
    assert not database.is_migrated()
    assert not (tmp_path / "versions.db").exists()


def test_numbers_count_up_and_a_run_keeps_its_own(database: VersionDatabase) -> None:
    assert [database.reserve(run) for run in ("a", "b", "a", "c", "b")] == ["1", "2", "1", "3", "2"]
    assert database.live() is None, "a reserved number is no version"


def test_a_table_of_the_system_before_keeps_its_rows_and_gets_columns(database: VersionDatabase, place: Place) -> None:
    number = "INTEGER PRIMARY KEY" if place.password is None else "SERIAL PRIMARY KEY"
    place.sql(f"CREATE TABLE model_version (id {number}, version VARCHAR(50), updated_at TIMESTAMP)")
    place.sql("INSERT INTO model_version (version, updated_at) VALUES ('7', CURRENT_TIMESTAMP)")
    place.sql("INSERT INTO model_version (version, updated_at) VALUES ('v8-beta', '2020-01-01 00:00:00')")
    before = place.sql("SELECT id, version, updated_at FROM model_version ORDER BY id")
    assert database.live() == "7", "reading needs no migration"
    assert [row.version for row in database.list_versions()] == ["7", "v8-beta"]
    assert database.reserve("run") == "8"
    assert database.is_migrated()
    found = place.sql("SELECT id, version, updated_at, run_id, sha256, metrics, parent FROM model_version ORDER BY id")
    assert found == [(*row, None, None, None, None) for row in before]
    assert database.publish(VersionRow("8")).parent == "7"
    assert place.sql(READERS_QUERY) == [("8",)]
    assert database.get("v8-beta") == VersionRow("v8-beta", updated_at=datetime(2020, 1, 1, tzinfo=UTC), id=2)


def test_tables_made_before_there_were_migrations_are_taken_over(database: VersionDatabase, place: Place) -> None:
    database.publish(VersionRow(database.reserve("a")))
    place.sql("DROP TABLE rec_ray_migration")
    place.sql("DROP TABLE model_version_push")
    assert not place.open().is_migrated()
    assert place.open().reserve("b") == "2"
    assert place.open().is_migrated() and database.live() == "1"


def test_the_migrations_make_what_the_program_writes(database: VersionDatabase, place: Place) -> None:
    database.migrate()
    database.migrate()
    url = sa.make_url(place.url).set(password=place.password)
    url = url.set(drivername="postgresql+psycopg") if place.password else url
    with sa.create_engine(url, poolclass=sa.NullPool).connect() as connection:
        inspector = sa.inspect(connection)
        made = {
            table: {column["name"]: column["nullable"] for column in inspector.get_columns(table)}
            for table in inspector.get_table_names()
        }
    made.pop("rec_ray_migration")
    assert made == {
        table.name: {column.name: column.nullable for column in table.columns} for table in METADATA.sorted_tables
    }


def _reserve(place: Place, runs: list[str], ready: Any, go: Any, found: Any) -> None:
    database = place.open()
    ready.release()
    go.wait()
    found.put([database.reserve(run) for run in runs])


@pytest.mark.usefixtures("processes")
def test_two_processes_reserving_at_once_never_share_a_number(place: Place) -> None:
    context = multiprocessing.get_context("spawn")
    ready, go, found = context.Semaphore(0), context.Event(), context.Queue()
    names = ([f"a{i}" for i in range(25)], [f"b{i}" for i in range(25)])
    runs = [context.Process(target=_reserve, args=(place, n, ready, go, found)) for n in names]
    for run in runs:
        run.start()
    for _ in runs:
        assert ready.acquire(timeout=60)
    go.set()  # The tables do not exist yet: both processes make them, too.
    numbers = [*found.get(timeout=60), *found.get(timeout=60)]
    for run in runs:
        run.join(timeout=60)
        assert run.exitcode == 0
    assert sorted(int(number) for number in numbers) == list(range(1, 51))


def test_a_published_row_comes_back_whole(database: VersionDatabase, place: Place) -> None:
    given = VersionRow(
        version=database.reserve("run"),
        run_id="run",
        artifact_uri="s3://shop/two-tower/1",
        sha256="ab" * 32,
        metrics={"model": {"recall@10": 0.25, "coverage": float("nan")}},
        settings_hash="cd" * 32,
        data_from=datetime(2024, 1, 1, tzinfo=UTC),
        data_to=datetime(2024, 6, 1, 12, 30, tzinfo=UTC),
    )
    before = datetime.now(UTC)
    published = database.publish(given)
    assert published.updated_at is not None and before <= published.updated_at <= datetime.now(UTC)
    found = database.get("1")
    assert found is not None
    assert found.metrics == {"model": {"recall@10": 0.25, "coverage": None}}
    assert found.data_to == given.data_to and found.updated_at == published.updated_at and found.id == published.id
    assert place.sql("SELECT state FROM model_version_reservation") == [("published",)]


def test_the_newest_row_is_live_and_knows_its_parent(database: VersionDatabase, place: Place) -> None:
    for version in ("1", "2", "3"):
        database.publish(VersionRow(version, sha256=version))
    assert database.live() == "3"
    assert database.publish(VersionRow("1", run_id="rollback", sha256="1")).parent == "3"
    assert database.live() == "1"
    assert [row.version for row in database.list_versions()] == ["1", "3", "2", "1"]
    assert place.sql(READERS_QUERY) == [("1",)]


def test_a_repeated_commit_is_one_row(database: VersionDatabase) -> None:
    row = VersionRow("1", run_id="run", sha256="aa")
    assert database.publish(row) == database.publish(row)
    assert len(database.list_versions()) == 1


def test_a_version_never_changes_its_content(database: VersionDatabase) -> None:
    database.publish(VersionRow("1", sha256="aa"))
    database.publish(VersionRow("2", sha256="bb"))
    with pytest.raises(DataError, match="version 1 was published with the checksum aa, now it has cc"):
        database.publish(VersionRow("1", sha256="cc"))
    assert database.live() == "2"


def test_a_clock_that_goes_backwards_does_not_hide_a_version(database: VersionDatabase, place: Place) -> None:
    database.publish(VersionRow("1"))
    ahead = datetime.now(UTC).replace(tzinfo=None) + timedelta(days=400)
    place.sql("INSERT INTO model_version (version, updated_at) VALUES ('2', :at)", at=ahead.isoformat(" "))
    assert database.live() == "2"
    published = database.publish(VersionRow("3"))
    assert published.updated_at == ahead.replace(tzinfo=UTC) + timedelta(microseconds=1)
    assert place.sql(READERS_QUERY) == [("3",)]


def test_every_push_has_a_later_time_than_all_before(database: VersionDatabase, place: Place) -> None:
    """Also when the clock goes backwards, after pushes that failed and after publications of others."""
    with database.publishing_lock("one", seconds=60) as lock:
        times = [database.begin_push("1", lock) for _ in range(20)]
        ahead = datetime.now(UTC) + timedelta(days=400)
        place.sql("UPDATE model_version_push SET pushed_at = :at WHERE id = 20", at=_stored(ahead))
        times += [database.begin_push("1", lock)]
        assert times[-1] > ahead
        database.publish(VersionRow("1"), lock)
        later = ahead + timedelta(days=1)
        place.sql("UPDATE model_version SET updated_at = :at", at=_stored(later))
        times += [database.begin_push("2", lock)]
        assert times[-1] > later
    assert times == sorted(set(times))
    assert all(time.microsecond % 1000 == 0 for time in times)


def _stored(time: datetime) -> str:
    return time.replace(tzinfo=None).isoformat(" ", "microseconds")


def test_what_was_pushed_since_the_live_version_is_known(database: VersionDatabase) -> None:
    with database.publishing_lock("one", seconds=60) as lock:
        for version in ("1", "2"):
            database.begin_push(version, lock)
        assert database.pushed_since_live() == ["2", "1"], "nothing is live yet, both pushes may have left rows"
        database.publish(VersionRow("2"), lock)
        assert database.pushed_since_live() == ["2"]
        for version in ("3", "2", "4", "3"):
            database.begin_push(version, lock)
        assert database.pushed_since_live() == ["2", "3", "4"]
    with pytest.raises(LockedError):
        database.begin_push("5", lock)


def test_states_of_a_number(database: VersionDatabase, place: Place) -> None:
    for run in ("a", "b", "c", "d"):
        database.reserve(run)
    database.mark("2", "stored")
    database.publish(VersionRow("3"))
    database.mark("9", "stored")
    states = [(each.version, each.run_id, each.state) for each in database.reservations()]
    assert states == [("1", "a", "reserved"), ("2", "b", "stored"), ("3", "c", "published"), ("4", "d", "reserved")]
    assert database.running() == {"1", "4"}
    place.sql("UPDATE model_version_reservation SET reserved_at = '2020-01-01 00:00:00' WHERE version = '1'")
    assert database.running() == {"4"}, "a run of last year is dead"


def test_a_row_that_would_stay_live_for_ever_is_named(tmp_path: Path) -> None:
    """SQLite has no type for times, so another program may have written them in another way."""
    place = Place(f"sqlite:///{tmp_path / 'versions.db'}")
    database = place.open()
    database.migrate()
    today = datetime.now(UTC).strftime("%Y-%m-%dT00:00:00")  # "T" sorts after the blank that SQLAlchemy writes.
    place.sql("INSERT INTO model_version (version, updated_at) VALUES ('1', :at)", at=today)
    with pytest.raises(DataError, match="cannot be ordered"):
        database.publish(VersionRow("2"))
    assert place.sql("SELECT version FROM model_version") == [("1",)], "nothing was committed"
    place.sql("UPDATE model_version SET updated_at = 'yesterday'")
    with pytest.raises(DataError, match="yesterday"):
        database.list_versions()


@pytest.mark.parametrize(
    "row",
    [VersionRow(""), VersionRow("1" * 51), VersionRow("1", data_to=datetime(2024, 1, 1))],
    ids=["empty", "too long", "no time zone"],
)
def test_a_row_that_the_table_cannot_hold_is_refused(database: VersionDatabase, row: VersionRow) -> None:
    with pytest.raises(DataError):
        database.publish(row)
    assert database.live() is None


def test_two_rows_of_one_time_are_said_and_the_next_publication_ends_the_tie(
    database: VersionDatabase, place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    for version in ("1", "2"):
        database.publish(VersionRow(version))
    place.sql("UPDATE model_version SET updated_at = '2024-05-01 00:00:00'")
    assert database.live() == "2"
    assert "two newest rows with one updated_at, of the versions 2 and 1" in caplog.text
    database.publish(VersionRow("2"))
    caplog.clear()
    assert database.live() == "2" and not caplog.text
    assert place.sql(READERS_QUERY) == [("2",)]


def test_a_database_of_a_later_program_is_used_where_it_only_has_more(database: VersionDatabase, place: Place) -> None:
    """So that an image can be rolled back: migrations of four digits add, and leave what was there."""
    database.publish(VersionRow("1"))
    place.sql("ALTER TABLE model_version ADD COLUMN added_later VARCHAR(10)")
    place.sql("UPDATE rec_ray_migration SET version_num = '9999'")
    older = place.open()
    assert older.is_migrated()
    assert older.reserve("run") == "2"
    older.publish(VersionRow("2"))
    assert older.live() == "2" and place.sql(READERS_QUERY) == [("2",)]
    assert place.sql("SELECT version_num FROM rec_ray_migration") == [("9999",)]
    place.sql("UPDATE rec_ray_migration SET version_num = 'breaking-1'")
    assert older.live() == "2", "reading goes on"
    for write in (lambda: place.open().reserve("other"), lambda: place.open().is_migrated()):
        with pytest.raises(ConfigError, match=r"a later rec_ray applied the migration 'breaking-1'.*upgrade rec_ray"):
            write()


def test_new_candidates_of_the_live_version_are_a_new_row_with_the_same_parent(database: VersionDatabase) -> None:
    database.publish(VersionRow("1"))
    database.publish(VersionRow("2", candidates_sha256="a" * 64))
    again = database.publish(VersionRow("2", candidates_sha256="b" * 64))
    assert again.parent == "1" and again.candidates_sha256 == "b" * 64
    assert database.publish(VersionRow("2", candidates_sha256="b" * 64)).id == again.id
    assert [row.version for row in database.list_versions()] == ["2", "2", "1"]


def test_projects_share_a_postgresql_database_in_schemas_of_their_own(postgresql: Any) -> None:
    """Versions, numbers and the lock; the table without a schema stays that of the reader that was there before."""
    url = postgresql.make_database(f"versions_{uuid.uuid4().hex}")
    place = Place(url, postgresql.password)
    projects = [VersionDatabase(url, postgresql.password, schema) for schema in (None, "shop", "news")]
    for project in projects[1:]:
        assert project.live() is None and not project.is_migrated()
    with contextlib.ExitStack() as stack:
        for count, project in enumerate(projects, start=1):
            lock = stack.enter_context(project.publishing_lock("me", 60))
            for number in range(1, count + 1):
                assert project.reserve(f"run {number}") == str(number)
                project.begin_push(str(number), lock)
                project.publish(VersionRow(str(number)), lock)
            assert project.fence(lock).open().check()
            assert project.is_migrated()
    assert [project.live() for project in projects] == ["1", "2", "3"]
    assert place.sql(READERS_QUERY) == [("1",)]
    with pytest.raises(ConfigError, match="needs PostgreSQL; with SQLite use a file per project"):
        VersionDatabase("sqlite:///versions.db", None, "shop")


def test_values_are_parameters_not_statements(database: VersionDatabase, place: Place) -> None:
    evil = "x'); DROP TABLE model_version; --"
    database.reserve(evil)
    database.publish(VersionRow(evil, run_id=evil))
    assert place.sql(READERS_QUERY) == [(evil,)]


@pytest.mark.parametrize("run_id", ["", "x" * 201])
def test_a_run_id_has_a_length(database: VersionDatabase, run_id: str) -> None:
    with pytest.raises(ConfigError, match="run id"):
        database.reserve(run_id)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://me:hunter2@host/db", "REC_RAY__DATABASE__PASSWORD"),
        ("postgresql://me@host/db?password=hunter2", "REC_RAY__DATABASE__PASSWORD"),
        ("mysql://me@host/db", "known are sqlite and postgresql"),
        ("versions.db", "cannot be read"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite://", "names no file"),
    ],
)
def test_an_address_that_cannot_be_meant_is_refused(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as raised:
        VersionDatabase(url)
    assert "hunter2" not in str(raised.value)


def test_an_unreachable_database_is_named(tmp_path: Path) -> None:
    database = VersionDatabase(f"sqlite:///{tmp_path}/no/folder/versions.db", password="hunter2")
    with pytest.raises(UnavailableError, match=r"no/folder/versions\.db.*unable to open"):
        database.reserve("run")
    (tmp_path / "text.db").write_text("this is no database at all\n" * 100)
    with pytest.raises(UnavailableError, match=r"text\.db.*not a database"):
        VersionDatabase(f"sqlite:///{tmp_path}/text.db").live()


def test_one_publisher_at_a_time(database: VersionDatabase, place: Place) -> None:
    other = place.open()
    with database.publishing_lock("run a on host x", seconds=60) as lock:
        said = r"run a on host x is publishing; its lock runs out at \d{4}-"
        with pytest.raises(LockedError, match=said) as raised, other.publishing_lock("run b", seconds=60):
            pass
        assert raised.value.exit_code == 7
        database.publish(VersionRow("1"), lock)
    with other.publishing_lock("run b", seconds=60):
        pass
    with pytest.raises(ZeroDivisionError), database.publishing_lock("run c", seconds=60):
        _ = 1 / 0
    assert place.sql("SELECT * FROM publishing_lock") == [], "released at the end, also after an error"


@pytest.mark.usefixtures("processes")
def test_a_held_lock_is_renewed(database: VersionDatabase, place: Place) -> None:
    # Renewed three times in its span: a busy machine may be two seconds late.
    with database.publishing_lock("slow", seconds=3):
        time.sleep(4)
        with pytest.raises(LockedError), place.open().publishing_lock("other", seconds=1):
            pass


def test_who_lost_the_lock_cannot_commit(database: VersionDatabase, place: Place) -> None:
    with database.publishing_lock("asleep", seconds=60) as lock:
        place.sql("UPDATE publishing_lock SET expires_at = '2020-01-01 00:00:00'")
        lock.check()  # Run out, but nobody wanted it.
        with place.open().publishing_lock("awake", seconds=60):
            with pytest.raises(LockedError, match="of asleep was lost, awake took it over"):
                database.publish(VersionRow("1"), lock)
            lock.release()
            assert place.sql("SELECT owner FROM publishing_lock") == [("awake",)], "only its own lock is released"
    assert database.live() is None


@pytest.mark.usefixtures("processes")
def test_the_lock_of_a_killed_process_runs_out(database: VersionDatabase, place: Place) -> None:
    program = (
        "import os, sys, time\nfrom rec_ray.versions.registry import VersionDatabase\n"
        "database = VersionDatabase(sys.argv[1], os.environ.get('PASSWORD'))\n"
        "with database.publishing_lock('doomed', 2):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, place.url],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | ({"PASSWORD": place.password} if place.password else {}),
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        time.sleep(2.5)  # Longer than the lock lasts without renewal.
        with pytest.raises(LockedError, match="doomed"), database.publishing_lock("next", seconds=5):
            pass
        os.kill(holder.pid, signal.SIGKILL)
    with database.publishing_lock("next", seconds=60, wait_seconds=60):
        place.sql("SELECT 1")
    assert place.sql("SELECT count(*) FROM publishing_lock") == [(0,)]


def test_who_may_wait_gets_the_lock_when_the_other_is_done(database: VersionDatabase, place: Place) -> None:
    order: list[str] = []

    def second() -> None:
        with place.open().publishing_lock("second", seconds=60, wait_seconds=60):
            order.append("second")

    waiting = threading.Thread(target=second)
    with database.publishing_lock("first", seconds=60):
        waiting.start()
        with pytest.raises(LockedError, match="first"), place.open().publishing_lock("third", 60, wait_seconds=1.5):
            pass
        order.append("first")
    waiting.join(timeout=60)
    assert order == ["first", "second"]


def _publish_many(place: Place, name: str, times: int, failed: Any) -> None:
    database = place.open()
    for turn in range(times):
        version = database.reserve(f"{name}{turn}")
        with database.publishing_lock(name, seconds=60, wait_seconds=120) as lock:
            database.begin_push(version, lock)
            before = database.live()
            row = database.publish(VersionRow(version, run_id=f"{name}{turn}"), lock)
            if row.parent != before or database.live() != version:
                failed.put((version, before, row))


@pytest.mark.usefixtures("processes")
def test_two_publishers_at_once_take_turns(place: Place) -> None:
    """Real processes; a third one asks the readers' query throughout and never gets anything but what was live."""
    context = multiprocessing.get_context("spawn")
    failed = context.Queue()
    database = place.open()
    database.publish(VersionRow(database.reserve("zero")))
    runs = [context.Process(target=_publish_many, args=(place, name, 5, failed)) for name in ("a", "b")]
    for run in runs:
        run.start()
    seen = ["1"]
    while any(run.is_alive() for run in runs):
        (found,) = place.sql(READERS_QUERY)
        if found[0] != seen[-1]:
            seen.append(found[0])
    for run in runs:
        run.join(timeout=60)
        assert run.exitcode == 0
    assert failed.empty()
    rows = database.list_versions()[::-1]
    assert len(rows) == 11 and len({row.version for row in rows}) == 11
    order = [row.version for row in rows]
    assert [order.index(version) for version in seen] == sorted(order.index(version) for version in seen)
    assert [row.parent for row in rows[1:]] == order[:-1]
